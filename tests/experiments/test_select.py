"""Which samples are tested, and which species there are to choose from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from NatureLM.config import ExperimentConfig, SpeciesConfig
from NatureLM.data.sample import Sample
from NatureLM.data.table import DataError
from NatureLM.experiments.plan import drawn, make_plan, most_frequent, select

MakeSample = Callable[..., Sample]


@pytest.fixture
def samples(make_sample: MakeSample) -> list[Sample]:
    """Labels by frequency: Wren 3, Cat and Ant 2, Wolf 1."""
    labels = ["Wren", "Cat", "Ant", "Wren", "Wolf", "Cat", "Ant", "Wren"]
    return [make_sample(f"s{i}", label=label) for i, label in enumerate(labels)]


Selection = tuple[list[Sample], list[SpeciesConfig]]


def chosen(data: list[Sample], /, **config: Any) -> Selection:
    return select(ExperimentConfig.model_validate(config), data)


def ids(selection: Selection) -> list[str]:
    return [sample.id for sample in selection[0]]


@pytest.mark.parametrize(
    ("k", "names"),
    [
        (1, ["Wren"]),
        (2, ["Wren", "Ant"]),  # a tie: the alphabetically first
        (3, ["Wren", "Ant", "Cat"]),
        (4, ["Wren", "Ant", "Cat", "Wolf"]),
        (10000000, ["Wren", "Ant", "Cat", "Wolf"]),
    ],
)
def test_top_k(k: int, names: list[str], samples: list[Sample]) -> None:
    selection = chosen(samples, top_k_species=k)
    assert [one.name for one in selection[1]] == names
    assert ids(selection) == [one.id for one in samples if one.label in names]
    assert most_frequent(samples[::-1], k) == names


def test_species_filter_and_keep_their_order(samples: list[Sample]) -> None:
    selection = chosen(samples, species=[{"name": "Wolf"}, {"name": "Ant"}])
    assert ids(selection) == ["s2", "s4", "s6"]
    assert [one.name for one in selection[1]] == ["Wolf", "Ant"]


def test_with_species_to_choose_from_the_task_is_known(samples: list[Sample]) -> None:
    """So that answers can be scored; what the data say themselves stays."""
    said = [replace(samples[0], task="detection"), *samples[1:]]
    for config in ({"species": [{"name": "Wren"}]}, {"top_k_species": 1}):
        tasks = [one.task for one in chosen(said, **config)[0]]
        assert tasks == ["detection", "classification", "classification"]
    assert {one.task for one in chosen(samples)[0]} == {""}


def test_a_species_without_samples_is_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be there to distract, or be misspelt."""
    (tmp_path / "x.csv").write_text("file,label\na.wav,Wolf\nb.wav,Ant\n")
    config = {"species": [{"name": "Wolfe"}, {"name": "Ant"}], "queries": ["{species_list}"]}
    data = {"path": str(tmp_path / "x.csv")}
    make_plan(ExperimentConfig.model_validate({**config, "data": data}), "{}")
    assert caplog.messages == [
        "extended.species: no sample has the label 'Wolfe'; the nearest label is 'Wolf'"
    ]


def test_no_species_at_all_is_an_error_that_says_how(samples: list[Sample]) -> None:
    with pytest.raises(DataError) as error:
        chosen(samples, species=[{"name": "Emu", "description": "[booms]"}, {"name": "Owl"}])
    text = str(error.value)
    assert "'Emu', 'Owl', and none of the 8 samples has such a label" in text
    assert "Wren, Ant, Cat, Wolf" in text
    assert (
        "extended.species=[{name: Wren, description: ...}, {name: Ant, description: ...}]" in text
    )


def test_without_species_all_are_tested(samples: list[Sample]) -> None:
    assert ids(chosen(samples)) == [one.id for one in samples]


def test_named_samples(samples: list[Sample]) -> None:
    assert ids(chosen(samples, samples=["s7", "s1"])) == ["s1", "s7"]
    with pytest.raises(DataError, match=r"'s71' is no id of a sample .*; did you mean 's7'\?"):
        chosen(samples, samples=["s71"])


def test_a_limit_draws_by_seed_and_grows(samples: list[Sample]) -> None:
    small, large = ids(chosen(samples, limit=3)), ids(chosen(samples, limit=5))
    assert len(small) == 3
    assert set(small) < set(large)
    assert small == sorted(small)
    assert ids(chosen(samples, limit=100)) == [one.id for one in samples]
    others = [ids(chosen(samples, limit=3, seed=seed)) for seed in range(1, 5)]
    assert any(one != small for one in others)
    assert drawn(samples[::-1], 3, 0) == chosen(samples, limit=3)[0][::-1]
