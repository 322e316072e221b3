"""The recipe of naturelm-small: questions of its study, texts of replay, and what is written."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from NatureLM.config import load_config
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.models import NatureLM
from NatureLM.models.checkpoint.tensors import of_language_model
from NatureLM.prompts import PLACEHOLDER
from recipes.small.recipe import FIXED, instructions, ridge, save_partial
from recipes.small.study import (
    FAMILIES,
    GERMAN,
    LETTERS,
    Draws,
    StudyConfig,
    balanced,
    questions,
    report,
)
from recipes.tiny.data import Clip, audio_rows
from recipes.tiny.species import HEARD
from recipes.tiny.study import read_study

CLIPS = [
    Clip(
        *(Path(f"{s.name} {split}{n}.flac"), s.name, s.group, s.scientific),
        *(f"{s.name} {split}{n // 2}", split, "animals"),
    )
    for s in HEARD
    if s.is_animal
    for split in ("train", "test")
    for n in range(4)
]
TESTED = [clip for clip in CLIPS if clip.split == "test"]
DRAWS = Draws(CLIPS, 0)
# A right answer to a question that the names below are in.
RIGHT = {
    "common name": "{}",
    "list": "{}",
    "one word": "{}",
    "capitals": "{}",
    "JSON": '{{"animal": "{}"}}',
    "list, z to a": "{}",
    "letter": "{}",
    "German": "{}",
    "describe, then name": "A short call. Animal: {}",
    "few shot": "{}",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_right_answer_is_right_and_in_form_and_others_are_not(family: str) -> None:
    way, asked = FAMILIES[family], questions(family, DRAWS, TESTED)
    assert asked
    for question in asked:
        right = RIGHT[family].format(question.truth)
        assert way.is_right(question, right)
        assert not way.is_right(question, "")
        assert not way.has_form(question, "")
        assert question.query.count(PLACEHOLDER) in (0, len(question.clips))
        assert len(question.examples) == (2 if family == "few shot" else 0)
        assert all(clip.split == "train" for clip in question.examples)
        if question.options:
            assert question.truth in question.options
            assert len(set(question.options)) == len(question.options)
    assert questions(family, DRAWS, TESTED) == asked, "draws depend on the seed and the clip alone"


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        ("capitals", "Dog"),
        ("JSON", "Dog"),
        ("JSON", '["Dog"]'),
        ("one word", "Dog"),
        ("letter", "A) Dog"),
        ("describe, then name", "Animal: Dog"),
        ("list", "Unicorn"),
    ],
)
def test_an_answer_that_is_not_written_as_asked_for_has_not_the_form(family, answer) -> None:
    dog = next(clip for clip in TESTED if clip.label == "Dog")
    (question,) = questions(family, DRAWS, [dog])
    assert not FAMILIES[family].has_form(question, answer)
    assert not FAMILIES[family].is_right(question, answer)


def test_every_animal_has_a_german_name_of_its_own() -> None:
    assert set(GERMAN) == {source.name for source in HEARD if source.is_animal}
    assert len(set(GERMAN.values())) == len(GERMAN)
    assert len(LETTERS) == 4


def test_training_asks_in_two_wordings_of_each_family() -> None:
    rows = list(audio_rows(CLIPS[::4], 1, among=FIXED, longest=6))
    prompts: dict[str, set[str]] = {}
    for row in rows:
        prompts.setdefault(row["task"], set()).update(row["prompt"])
    for family in ("common", "scientific", "group", "sound", "animals", "caption"):
        assert prompts[family] <= set(FIXED[family])
        assert len(FIXED[family]) == 2
    assert max(prompt.count(", ") for prompt in prompts["choice"]) <= 7, (
        "six, and two of the wording"
    )


def test_clips_of_other_recordings_come_first() -> None:
    kept = balanced(TESTED, 2, None, 0)
    assert set(Counter(clip.label for clip in kept).values()) == {2}
    assert len({clip.family for clip in kept}) == len(kept)
    drawn = balanced(TESTED, 2, 10, 0)
    assert len(drawn) == 10
    assert set(drawn) <= set(kept)
    assert drawn == balanced(TESTED, 2, 10, 0)


def test_texts_of_replay_are_not_those_of_the_study() -> None:
    texts = list(islice(instructions(1), 300))
    assert len(set(texts)) == len(texts)
    assert texts == list(islice(instructions(1), 300))
    words = ("capital", "json", "german", "audio", "recording", "letter only")
    assert not [text for text in texts if any(word in text.lower() for word in words)]


def test_least_squares_finds_the_matrix_that_made_the_targets() -> None:
    rng = np.random.default_rng(0)
    inputs, matrix = rng.standard_normal((4000, 6)), rng.standard_normal((3, 6))
    weight, bias = ridge(inputs, inputs @ matrix.T + 0.5, np.ones(4000))
    np.testing.assert_allclose(weight, matrix, atol=0.01)
    np.testing.assert_allclose(bias, 0.5, atol=0.01)


def test_a_partial_checkpoint_is_the_model_on_its_base(fixtures_dir: Path, tmp_path: Path) -> None:
    nano = fixtures_dir / "goldens" / "nano"
    model = NatureLM.from_pretrained(nano / "checkpoint", llama_path=nano / "llama")
    save_partial(model, tmp_path, str(nano / "llama"))
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert any(".lora_A." in name for name in names)
    assert not [name for name in names if "embed_tokens" in name or name.endswith("mlp.weight")]
    again = NatureLM.from_pretrained(tmp_path)
    again.config.llama_path = model.config.llama_path
    assert again.config.to_dict() == model.config.to_dict()
    for (name, one), (_, other) in zip(
        model.named_parameters(), again.named_parameters(), strict=True
    ):
        if not of_language_model(name) or ".lora_" in name:
            torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-3, msg=name)


def test_configurations_are_whole_and_errors_name_the_file(tmp_path: Path) -> None:
    for name in ("listen", "answer", "replay"):
        config = load_config(Path(f"configs/small/{name}.yml"))
        assert config.model.end_sym == "<|im_end|>"
        assert config.run is not None
    study = read_study(Path("configs/small/study.yml"), StudyConfig)
    assert study.lora_scales == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    (tmp_path / "study.yml").write_text("lora_scale: [1.0]\n")
    with pytest.raises(NatureLMError, match=r"study\.yml"):
        read_study(tmp_path / "study.yml", StudyConfig)
    with pytest.raises(UsageError, match=r"holds no answers\.jsonl"):
        report(tmp_path)
