"""Names are told apart, chances mean what they say, and what is like no example is None."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vector_indexes import SETTINGS

from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING
from NatureLM.search.index import IndexSettings
from NatureLM.teach.classifier import SETTINGS_NAME, TENSORS_NAME, read_classifier
from NatureLM.teach.examples import Labelled
from NatureLM.teach.fit import (
    KNOWN,
    _Data,
    fit_classifier,
    fit_known,
    folds,
    logistic,
    prototypes,
    save,
    summary,
)

from .conftest import WIDTH, MakeExamples, cloud

HEARS: IndexSettings = replace(SETTINGS, width=WIDTH)
NAMES = {"cuckoo": 12, "wren": 12, "owl": 12}


@pytest.mark.parametrize("method", ["prototypes", "logistic"])
def test_names_are_told_apart_and_others_are_none(method: str, make_examples: MakeExamples) -> None:
    taught, held = fit_classifier(make_examples(NAMES), HEARS, method=method)
    assert held is not None
    for place, name in enumerate(taught.names):
        chances = taught.classify(cloud(name, 20, seed=1)).chances
        assert (chances.argmax(axis=1) == place).mean() >= 0.9
        assert np.allclose(chances.sum(axis=1), 1, atol=1e-5)
    others = -np.concatenate([cloud(name, 10, seed=2) for name in NAMES])
    answers = taught.classify(others).chances.argmax(axis=1)
    assert (answers == len(taught.names)).mean() > 0.9


def test_one_example_each_is_enough(make_examples: MakeExamples) -> None:
    taught, held = fit_classifier(make_examples({"cuckoo": 1, "wren": 1}), HEARS)
    assert held is None
    assert taught.method == "prototypes"
    found = taught.classify(cloud("wren", 5, seed=3))
    assert (found.chances.argmax(axis=1) == 1).all()
    assert [taught.places[place].file for place in found.nearest] == ["wren-0.wav"] * 5


def test_one_name_is_told_from_none(make_examples: MakeExamples) -> None:
    taught, _ = fit_classifier(make_examples({"owl": 3}), HEARS)
    chances = taught.classify(np.concatenate([cloud("owl", 5, seed=4), -cloud("owl", 5)])).chances
    assert chances.argmax(axis=1).tolist() == [0] * 5 + [1] * 5


def test_examples_of_none_are_learnt(make_examples: MakeExamples) -> None:
    taught, held = fit_classifier(make_examples({"owl": 6, "wren": 6, NOTHING: 6}), HEARS)
    assert taught.names == ("owl", "wren")
    assert held is not None
    assert (taught.classify(cloud(NOTHING, 10, seed=5)).chances.argmax(axis=1) == 2).all()


def test_windows_without_sound_have_no_chances(make_examples: MakeExamples) -> None:
    taught, _ = fit_classifier(make_examples(NAMES), HEARS, method="prototypes")
    assert np.isnan(taught.classify(np.zeros((1, WIDTH), np.float32)).chances).all()


def test_no_recording_is_on_both_sides(make_examples: MakeExamples) -> None:
    examples = make_examples({"owl": 9, "wren": 9})
    shared = replace(examples, recordings=tuple(f"r{n % 7}" for n in range(18)))
    recordings = np.array(shared.recordings)
    held = list(folds(_Data.of(shared), 0))
    assert held
    for rows in held:
        assert not {*recordings[rows]} & {*recordings[~rows]}
    assert np.sum(held) == 18


def test_every_name_of_two_recordings_is_held_out(make_examples: MakeExamples) -> None:
    """Also where all recordings have all names, as three nights of one pond have."""
    names = {"owl": 3, "wren": 6, NOTHING: 3}
    made = make_examples(names)
    nights = [f"night{n % 3}" if n < 9 else f"day{n % 3}" for n in range(len(made.labels))]
    data = _Data.of(replace(made, recordings=tuple(nights)))
    for seed in range(20):
        held = np.any(list(folds(data, seed)), axis=0)
        assert {*data.classes[held].tolist()} == {0, 1, 2}
        assert held.all()


def test_where_the_recordings_lie_decides_nothing(make_examples: MakeExamples) -> None:
    made = make_examples({"owl": 9, "wren": 9})
    here, there = (
        list(
            folds(
                _Data.of(replace(made, recordings=tuple(f"{folder}/{n % 7}" for n in range(18)))), 0
            )
        )
        for folder in ("/first", "/second/sound")
    )
    assert np.array_equal(here, there)


def test_held_out_chances_are_calibrated(make_examples: MakeExamples) -> None:
    """Of answers with a chance of p about p are right, however far apart the names are."""
    for spread in (0.5, 1.5):
        examples = make_examples(dict.fromkeys(NAMES, 40), spread=spread)
        taught, _ = fit_classifier(examples, HEARS, method="prototypes")
        right, sure = [], []
        for place, name in enumerate(taught.names):
            shares = taught.classify(cloud(name, 200, seed=6, spread=spread)).chances[:, :3]
            shares /= shares.sum(axis=1, keepdims=True)
            right.append(shares.argmax(axis=1) == place)
            sure.append(shares.max(axis=1))
        assert abs(np.mean(right) - np.mean(sure)) < 0.07


def test_a_curve_of_few_clips_is_nearly_that_of_before() -> None:
    few = fit_known(np.array([0.2]), np.array([0.9]), 1.0)
    ratios = np.linspace(0, 1.5, 7)
    assert np.abs(few.chance(ratios) - KNOWN.chance(ratios)).max() < 0.15
    near = fit_known(np.full(200, 0.02), np.full(200, 0.1), 1.0)
    assert near.chance(np.array([0.02]))[0] > 0.8 > 0.2 > near.chance(np.array([0.1]))[0]


def test_what_a_clip_is_not_counts(make_examples: MakeExamples) -> None:
    """A "no" about a wren that sounds like an owl makes it an owl; about nothing known, None."""
    examples = make_examples({"owl": 4, "wren": 4})
    judged = make_examples({"owl": 1, "lynx": 1}, spread=0.1)
    both = replace(
        examples,
        vectors=np.concatenate([examples.vectors, judged.vectors]),
        labels=(*examples.labels, "", ""),
        is_not=(*examples.is_not, "wren", "wren"),
        clips=tuple(range(10)),
        recordings=(*examples.recordings, "a", "b"),
        places=(*examples.places, *judged.places),
    )
    taught, _ = fit_classifier(both, HEARS)
    labels = [(*taught.names, NOTHING)[one] for one in taught.of]
    assert labels[-2:] == ["owl", NOTHING]


def test_faults_are_named(make_examples: MakeExamples) -> None:
    with pytest.raises(UsageError, match="no example has a name"):
        fit_classifier(make_examples({NOTHING: 3}), HEARS)
    with pytest.raises(UsageError, match="--method is 'forest'"):
        fit_classifier(make_examples(NAMES), HEARS, method="forest")


def test_both_methods_agree_on_their_form(make_examples: MakeExamples) -> None:
    data = _Data.of(make_examples({"owl": 3, "wren": 3}))
    for fit in (prototypes, logistic(10.0)):
        linear = data.fitted(fit)
        assert linear.weights.shape == (2, WIDTH)
        assert (linear(data.vectors).argmax(axis=1) == data.classes).all()


# Files


def test_a_folder_gives_back_what_was_written(tmp_path: Path, make_examples: MakeExamples) -> None:
    examples = make_examples({"owl": 5, "=wren|": 5})
    taught, held = fit_classifier(examples, HEARS)
    labelled = [Labelled(recording="a.wav", label="owl")]
    saved = save(tmp_path, taught, examples, held, labelled)
    again = read_classifier(tmp_path)
    assert again.fingerprint == saved.fingerprint
    assert again.card == saved.card
    vectors = cloud("owl", 4, seed=7)
    assert np.array_equal(again.classify(vectors).chances, taught.classify(vectors).chances)
    assert summary(again.card) in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert {one.name for one in tmp_path.iterdir()} == {
        *(SETTINGS_NAME, TENSORS_NAME, "README.md", "labels.csv", "thresholds.csv")
    }


@pytest.mark.parametrize("name", [SETTINGS_NAME, TENSORS_NAME])
def test_damaged_files_are_refused(name: str, tmp_path: Path, make_examples: MakeExamples) -> None:
    examples = make_examples({"owl": 2, "wren": 2})
    save(tmp_path, *fit_classifier(examples, HEARS)[:1], examples, None, [])
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UsageError, match=name):
        read_classifier(tmp_path)
    path.unlink()
    with pytest.raises(UsageError, match="is no classifier"):
        read_classifier(tmp_path)


@pytest.mark.parametrize("part", ["weights", "bias", "examples", "known", "of"])
def test_numbers_that_are_none_are_refused(
    part: str, tmp_path: Path, make_examples: MakeExamples
) -> None:
    examples = make_examples({"owl": 2, "wren": 2})
    taught, held = fit_classifier(examples, HEARS)
    hurt: Any = getattr(taught, part)
    if part == "known":
        hurt = replace(hurt, slope=float("nan"))
    else:
        hurt = np.full_like(hurt, np.nan) if part != "of" else hurt.astype(np.float64)
    save(tmp_path, replace(taught, **{part: hurt}), examples, held, [])
    with pytest.raises(UsageError, match=SETTINGS_NAME):
        read_classifier(tmp_path)


def test_parts_of_two_classifiers_are_not_mixed(
    tmp_path: Path, make_examples: MakeExamples
) -> None:
    for folder, spread in (("a", 0.1), ("b", 0.2)):
        examples = make_examples({"owl": 2, "wren": 2}, spread=spread)
        save(tmp_path / folder, *fit_classifier(examples, HEARS)[:1], examples, None, [])
    (tmp_path / "b" / TENSORS_NAME).replace(tmp_path / "a" / TENSORS_NAME)
    with pytest.raises(UsageError, match="is not the file that"):
        read_classifier(tmp_path / "a")


def test_another_encoder_is_refused(make_examples: MakeExamples) -> None:
    taught, _ = fit_classifier(make_examples(NAMES), HEARS, method="prototypes")
    taught.check_encoder(HEARS.fingerprint, "model")
    with pytest.raises(UsageError, match="has the encoder ffff"):
        taught.check_encoder("ffff", "other")
    with pytest.raises(UsageError, match="vectors of 8 numbers"):
        taught.classify(np.zeros((1, 3), np.float32))
