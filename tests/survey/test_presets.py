"""The questionnaires that come with the program load, say their weights, and fit the model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from NatureLM.generation.engine import Engine, Request
from NatureLM.generation.json_schema import JsonSchemaGrammar
from NatureLM.generation.labels import NOTHING, LabelChoice
from NatureLM.inference.loading import load_model
from NatureLM.survey.questionnaire import (
    OF_WINDOW,
    preset_folder,
    preset_names,
    read_questionnaire,
)

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ("bats", "bird-then-which", "frog-chorus", "guide-1.1", "soundscape", "who-calls")
_NUMBER = r"(?<![\d.])[01]\.\d+(?!\.?\d)"


def test_all_are_there() -> None:
    assert preset_names() == PRESETS
    page = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    assert not [name for name in PRESETS if f"`surveys/{name}`" not in page]


@pytest.mark.parametrize("name", PRESETS)
def test_each_loads_and_says_its_weights(name: str) -> None:
    found = read_questionnaire(name)
    assert found.source == name
    assert found.title
    assert found.weights
    assert not found.notes
    comment = "".join(
        line
        for line in (preset_folder() / f"{name}.yml").read_text(encoding="utf-8").splitlines(True)
        if line.startswith("#")
    )
    said = {
        float(one)
        for one in re.findall(_NUMBER, re.sub(r"audio[ -]1\.\d|weights 1\.\d", "", comment))
    }
    for column in found.columns:
        assert column.merging_alpha in said, column.name
        assert column.placeholders <= set(OF_WINDOW)
    assert "1.1" in comment
    assert "naturelm-tiny" in comment


@pytest.mark.parametrize("name", PRESETS)
def test_cheap_questions_go_first(name: str) -> None:
    waves = read_questionnaire(name).groups()
    assert [column.name for wave in waves for column in wave]
    if name in ("bats", "bird-then-which", "frog-chorus", "who-calls"):
        assert len(waves[0]) == 1
        assert waves[0][0].labels


def test_the_guide_has_its_alpha_by_task() -> None:
    alphas = {
        column.name: column.merging_alpha for column in read_questionnaire("guide-1.1").columns
    }
    tasks = {"bird": 1.0, "species": 1.0, "described": 0.9, "talk": 0.8, "facts": 0.7}
    assert {name: alphas[name] for name in tasks} == tasks
    assert alphas["in_context"] == 0.6
    assert min(filter(None, alphas.values())) >= 0.5


@pytest.fixture(scope="module")
def tiny() -> Engine:
    return Engine(load_model("naturelm-tiny"))


CONTEXT = {"place": "Brazil, -3.1, -60.0", "habitat": "tropical forest by a river", "month": "May"}


@pytest.mark.parametrize("name", PRESETS)
def test_each_fits_the_embedded_model(name: str, tiny: Engine) -> None:
    model = tiny.model
    for column in read_questionnaire(name).columns:
        question = column.question
        for key in column.placeholders:
            question = question.replace(f"{{{key}}}", CONTEXT[key])
        choice = None
        if column.is_scored:
            how = "score" if column.mode == "score" else "constrained"
            choice = LabelChoice((*column.labels, NOTHING), how, several=column.several)
        request = Request(column.name, model.processor.render(question), ("",), choice=choice)
        assert tiny.problem_of(request, model.config.audio_positions()) is None
        if column.json_schema is not None:
            grammar = JsonSchemaGrammar(
                dict(column.json_schema),
                model.processor.tokenizer,
                model.eos_ids,
                column.max_new_tokens or 300,
            )
            assert grammar.allowed([], 80) is not None
