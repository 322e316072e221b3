"""Questionnaires: what a file may say, and what is said about one that is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from NatureLM.errors import ConfigError
from NatureLM.generation.engine import Engine, Request
from NatureLM.generation.json_schema import JsonSchemaGrammar
from NatureLM.generation.labels import NOTHING, LabelChoice
from NatureLM.inference.loading import load_model
from NatureLM.results.thresholds import least
from NatureLM.survey.questionnaire import (
    OF_WINDOW,
    Questionnaire,
    preset_folder,
    preset_names,
    read_questionnaire,
)

WHOLE = """
title: Birds
weights: naturelm-audio 1.1
window_length_seconds: 5
hop_length_seconds: 2.5
time_expansion: 10
channel: 2
merging_alpha: 0.8
columns:
  bird:
    question: Is there a bird in this recording?
    type: yes_no
    min_confidence: 0.6
  species:
    question: "Which is it, of {species_list}, here in {place}?"
    type: choice
    species_list: birds.csv
    merging_alpha: 1.0
    top_k: 5
    ask_if: bird == "yes" and bird.confidence > 0.8
  calls:
    question: "Which of these: {labels}?"
    type: choice
    labels: [song, alarm call, None]
    several: true
    synonyms: {alarm call: [warning]}
  letter:
    question: "Which fits?\\n{options}"
    type: choice
    labels: [Wren, Robin]
    mode: generate
  pitch: {question: 'How high?', type: number, unit: Hz}
  n: {question: 'How many?', type: count, max_new_tokens: 10}
  notes: {question: Describe it., type: text, ask_if: n > 1}
  others: {question: 'Who else?', type: names}
  each: {question: 'How many of each?', type: counts}
  facts:
    question: 'As JSON: {"species": ...}'
    type: json
    schema: {type: object, required: [species]}
"""


@pytest.fixture
def whole(tmp_path: Path) -> Questionnaire:
    (tmp_path / "birds.csv").write_text(
        "common_name,scientific_name\nWren,Troglodytes troglodytes\n"
    )
    return read(tmp_path, WHOLE)


def read(folder: Path, text: str) -> Questionnaire:
    path = folder / "questions.yml"
    path.write_text(text, encoding="utf-8")
    return read_questionnaire(path)


def problem_of(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return str(caught.value)


def test_a_whole_file(whole: Questionnaire) -> None:
    assert (whole.title, whole.weights, whole.channel) == ("Birds", "naturelm-audio 1.1", 2)
    assert (whole.window_length_seconds, whole.hop_length_seconds) == (5, 2.5)
    assert whole.time_expansion == 10
    columns = {column.name: column for column in whole.columns}
    assert list(columns)[:3] == ["bird", "species", "calls"]
    species = columns["species"]
    assert species.question == "Which is it, of Wren, here in {place}?"
    assert species.placeholders == {"place"}
    assert species.labels == ("Wren",)
    assert species.scientific_names == {"Wren": "Troglodytes troglodytes"}
    assert (species.mode, species.top_k, species.merging_alpha) == ("score", 5, 1.0)
    assert species.is_scored
    assert columns["bird"].labels == ("Yes", "No")
    assert (columns["bird"].merging_alpha, columns["bird"].min_confidence) == (0.8, 0.6)
    assert (columns["calls"].mode, columns["calls"].labels) == (
        "constrained",
        ("song", "alarm call"),
    )
    assert columns["letter"].question == "Which fits?\nA: Wren\nB: Robin"
    assert [columns[name].mode for name in ("pitch", "n", "facts")] == [
        *("generate", "generate", "constrained")
    ]
    assert columns["facts"].question == 'As JSON: {"species": ...}'


@pytest.mark.parametrize(
    ("name", "said", "value"),
    [
        ("bird", "Yes", (True, True)),
        ("bird", "perhaps", (None, False)),
        ("species", "Troglodytes troglodytes", ("Wren", True)),
        ("species", "None", (None, True)),
        ("species", "Robin", (None, False)),
        ("calls", "song, warning", (["song", "alarm call"], True)),
        ("calls", "None", ([], True)),
        ("letter", "b", ("Robin", True)),
        ("pitch", "4.5 kHz", (4500.0, True)),
        ("n", "three", (3, True)),
        ("notes", " Rain. ", ("Rain.", True)),
        ("others", "Wren, Robin", (["Wren", "Robin"], True)),
        ("each", "Wren: 2", ({"Wren": 2}, True)),
        ("facts", '{"species": "Wren"}', ({"species": "Wren"}, True)),
        ("facts", "{}", (None, False)),
    ],
)
def test_answers_become_values(
    whole: Questionnaire, name: str, said: str, value: tuple[Any, bool]
) -> None:
    (column,) = (one for one in whole.columns if one.name == name)
    assert column.value(said) == value


def test_columns_are_asked_in_waves(whole: Questionnaire) -> None:
    first, second = ([column.name for column in wave] for wave in whole.groups())
    assert second == ["species", "notes"]
    assert len(first) == 8
    species = whole.columns[1].condition
    assert species is not None
    assert species.columns == {"bird"}
    assert species.holds({"bird": True}, {"bird": 0.9})
    assert not species.holds({"bird": True}, {"bird": 0.7})


def test_settings_are_all_that_changes_answers(whole: Questionnaire, tmp_path: Path) -> None:
    settings = whole.settings()
    assert json.loads(json.dumps(settings)) == settings
    assert settings["time_expansion"] == 10
    assert settings["columns"]["calls"] == {
        "type": "choice",
        "question": "Which of these: song, alarm call?",
        "mode": "constrained",
        "labels": ["song", "alarm call"],
        "several": True,
        "merging_alpha": 0.8,
        "synonyms": {"warning": "alarm call"},
    }
    assert settings["columns"]["facts"]["schema"] == {"type": "object", "required": ["species"]}
    assert read(tmp_path, WHOLE.replace("title: Birds", "title: Owls")).settings() == settings
    for old, new in (
        *(("How high?", "How low?"), ("unit: Hz", "unit: kHz"), ("n > 1", "n > 2")),
        *(("warning", "whistle"), ("top_k: 5", "top_k: 4"), ("0.6", "0.7"), ("10}", "11}")),
        *(("merging_alpha: 0.8", "merging_alpha: 0.0"), ("several: true", "several: false")),
    ):
        assert read(tmp_path, WHOLE.replace(old, new)).settings() != settings


ONE = "columns:\n  bird:\n    question: A bird?\n    type: yes_no\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "columns: missing"),
        ("[]", "a questionnaire is a mapping with keys such as"),
        ("columns: {}", "there is no column"),
        ("columns: [bird]", 'columns (line 1): ["bird"] is not allowed; it must be a mapping'),
        ("columns: {bird: A bird}", 'columns.bird (line 1): "A bird" is not allowed'),
        ("columns: {yes: {question: a, type: yes_no}}", "the name of a column is a text"),
        (ONE + "tilte: x\n", "tilte (line 5): unknown key; did you mean title?"),
        (ONE + "    min-confidence: 1\n", "unknown key; did you mean min_confidence?"),
        (ONE + "    type: text\n", "the key columns.bird.type stands twice (first in line 4)"),
        (ONE + "  bird: {}\n", "stands twice"),
        (
            ONE.replace("yes_no", "yesno"),
            'type (line 4): "yesno" is not allowed; it must be one of',
        ),
        (ONE.replace("A bird?", "''"), 'question (line 3): "" is not allowed'),
        (ONE.replace("    question: A bird?\n", ""), "columns.bird.question: missing"),
        (ONE + "    min_confidence: 2\n", "min_confidence (line 5): 2 is not allowed"),
        (ONE + "    labels: [a]\n", "labels is for type choice".replace("labels ", "")),
        (ONE + "    unit: Hz\n", "unit (line 5): is for type number, and the type is yes_no"),
        (ONE + "    mode: generate\n    min_confidence: 0.5\n", "is for mode score"),
        (ONE + "window_length_seconds: 0\n", "it must be a number, above 0"),
        (ONE + "channel: left\n", "mean, or the number of a channel"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, problem: str) -> None:
    said = problem_of(tmp_path, text)
    assert problem in said
    assert "questions.yml" in said


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        ("type: choice", "columns.b (line 3): a choice has labels or a species_list"),
        ("type: choice, labels: [a], species_list: cbi", "columns.b.labels (line 3): a choice has"),
        ("type: choice, labels: []", "must be a list of texts, at least one"),
        ("type: choice, labels: [Yes, No]", "write them in quotes"),
        ("type: choice, labels: [a, a]", "the label 'a' is in the list twice"),
        ("type: choice, labels: [' a']", "begins or ends with a space"),
        ("type: choice, labels: [None]", "the list of labels is empty"),
        ("type: choice, species_list: nowhere.txt", "nowhere.txt does not exist"),
        ("type: choice, species_list: cbii", "did you mean 'cbi'?"),
        ("type: choice, labels: [a], several: true, mode: score", "take constrained for several"),
        (
            "type: choice, labels: [a], mode: generate, top_k: 2",
            "top_k (line 3): is for mode score",
        ),
        ("type: choice, labels: [a], synonyms: {b: [c]}", "'b' is no label of the column"),
        ("type: count, mode: score", "is for type choice and yes_no and json"),
        ("type: json, schema: {type: object}, mode: score", "score does not go with json"),
        ("type: json", "a column of type json has a schema"),
        ("type: json, schema: {type: x}", "columns.b.schema (line 3): this is no JSON Schema"),
        ("type: number, unit: k Hz", "a unit is one word"),
        ("type: text, ask_if: c", "c is no column that stands before this one (before it: a)"),
        ("type: text, ask_if: a == 3", 'a is "yes" or "no"'),
    ],
)
def test_keys_that_do_not_go_together(tmp_path: Path, column: str, problem: str) -> None:
    text = f"columns:\n  a: {{question: 'A?', type: yes_no}}\n  b: {{question: 'B?', {column}}}\n"
    assert problem in problem_of(tmp_path, text)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("start", "is what another column of the table is called"),
        ("bird_confidence", "is what another column of the table is called"),
        ("not", "is a word of conditions"),
        ("None", "is a word of conditions"),
        ("the bird", "the name of a column begins with a letter"),
        ("vögel", "the name of a column begins with a letter"),
        ("2", "begins with a letter"),
        ("BIRD", "differs from bird by capital letters only"),
    ],
)
def test_names_of_columns(tmp_path: Path, name: str, problem: str) -> None:
    column = f"  {name!r}:\n    question: b\n    type: text\n"
    assert problem in problem_of(tmp_path, ONE + column)


@pytest.mark.parametrize(
    ("question", "kind", "problem"),
    [
        ("{plaec}?", "text", "{plaec} is nothing that is filled in; did you mean {place}?"),
        ("{labels}?", "text", "{labels} is for type choice, and the type is text"),
        ("{options}?", "choice, labels: [a]", "{options} asks for a letter"),
    ],
)
def test_what_stands_in_braces(tmp_path: Path, question: str, kind: str, problem: str) -> None:
    text = f"columns: {{a: {{question: '{question}', type: {kind}}}}}"
    assert problem in problem_of(tmp_path, text)


def test_thresholds_of_species_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "sure.csv").write_text("species,threshold\nWren,0.8\n")
    text = "columns: {a: {question: a, type: %s, labels: [Wren], min_confidence: %s}}"
    for name in ("sure.csv", "'sure.csv:0.95'"):
        questionnaire = read(tmp_path, text % ("choice", name))
        assert least(questionnaire.columns[0].min_confidence, "Wren", "a") == 0.8
        assert questionnaire.settings()["columns"]["a"]["min_confidence"] == {
            "probability": 0.95,
            "thresholds": [["Wren", "", 0.8]],
        }
    for kind, name, problem in (
        ("choice", "shure.csv", "(line 1): is shure.csv, which is no number and no file"),
        ("choice", "2", "2 is not allowed; it must be a number from 0 to 1, or thresholds"),
        ("yes_no", "sure.csv", "is a number for yes_no"),
    ):
        assert problem in problem_of(tmp_path, text % (kind, name))


def test_none_in_another_spelling_is_none(tmp_path: Path) -> None:
    columns = "{a: {question: a, type: choice, labels: [bird, none]}, b: {question: b, type: text, "
    questionnaire = read(tmp_path, f"columns: {columns}ask_if: a != none}}}}")
    first, second = questionnaire.columns
    assert first.labels == ("bird", "none")
    assert [first.value(said) for said in ("none", "None", "bird")] == [
        *((None, True), (None, True), ("bird", True))
    ]
    assert second.condition is not None
    assert not second.condition.holds({"a": None}, {})
    assert read(tmp_path, f'columns: {columns}ask_if: a == "none"}}}}').columns[1].condition


def test_several_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 problems"):
        read(tmp_path, ONE + "    ask_if: x\n    unit: Hz\n")


def test_a_list_beside_the_file_comes_first(tmp_path: Path) -> None:
    (tmp_path / "cbi").write_text("Wren\nRobin\n")
    text = "columns: {a: {question: a, type: choice, species_list: %s}}"
    assert read(tmp_path, text % "cbi").columns[0].labels == ("Wren", "Robin")
    assert len(read(tmp_path, text % "esc50").columns[0].labels) == 50
    assert read(tmp_path, text % "'Wren, Wren'").notes[0].startswith("the names given: 'Wren'")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such questionnaire file"):
        read_questionnaire(tmp_path / "a.yml")
    with pytest.raises(ConfigError, match="there is no such questionnaire file"):
        read_questionnaire("a.yml")
    with pytest.raises(ConfigError, match="did you mean 'bats'"):
        read_questionnaire("batts")


# Those that come with the program load, say their weights, and fit the model

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
