"""The section `extended`: what excludes each other, what needs each other, and how it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from NatureLM.config import ExperimentConfig, dump_config, json_schema, load_config
from NatureLM.config.schema import TableSource
from NatureLM.errors import ConfigError

AUDIO = "{audio_examples} <AudioHere>"

# (what is in the section, what the message must hold)
WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"lora_scale": [1.0]}, ["extended.lora_scale (line", "did you mean extended.lora_scales?"]),
    ({"lora_scales": ["0.4"]}, ["extended.lora_scales[0] (line", '"0.4" is not', "a number"]),
    ({"lora_scales": 0.4}, ["extended.lora_scales (line", "0.4", "a list with at least one item"]),
    ({"lora_scales": [0, 0.4, 0.0]}, ["extended.lora_scales", "0.0 is in the list twice"]),
    ({"lora_scales": [float("nan")]}, ["extended.lora_scales[0]", "NaN", "a number"]),
    ({"queries": []}, ["extended.queries", "[]", "at least one item"]),
    ({"queries": ["What?", ""]}, ["extended.queries[1]", '""', "a string that is not empty"]),
    ({"queries": ["  \n"]}, ["extended.queries", "a query must hold more than spaces"]),
    ({"queries": "What?"}, ["extended.queries", '"What?"', "a list with at least one item"]),
    ({"queries": ["a", "a"]}, ["extended.queries", "'a' is in the list twice"]),
    (
        {"queries": ["Of {specieslist}"], "top_k_species": 2},
        ["extended.queries", "{specieslist} is no flag", "did you mean {species_list}?", "flags:"],
    ),
    ({"queries": ["{Randomize}"]}, ["{Randomize} is no flag", "did you mean {randomize}?"]),
    ({"queries": ["{audio examples}"]}, ["{audio examples}", "did you mean {audio_examples}?"]),
    (
        {"queries": ["Of {species_list}"]},
        ["'Of {species_list}' shows species", "none are named", "extended.top_k_species"],
    ),
    ({"queries": ["{examples}"]}, ["with {examples}", "name them in extended.species"]),
    (
        {"queries": ["{examples}"], "top_k_species": 2},
        ["extended.top_k_species", "{examples}, which shows descriptions", "extended.species"],
    ),
    (
        {"queries": ["{examples}"], "species": [{"name": "Wolf"}]},
        ["extended.species", "'Wolf' has no description"],
    ),
    (
        {"species": [{"name": "Wolf"}], "top_k_species": 2},
        ["extended.top_k_species", "2 is not allowed", "exclude each other: keep one"],
    ),
    (
        {"datasets": ["cbi", "watkins"], "top_k_species": 2},
        ["extended.top_k_species", "one dataset, and extended.datasets names 2"],
    ),
    ({"datasets": ["cbi", "cbi"]}, ["extended.datasets", "'cbi' is in the list twice"]),
    ({"species": [{"name": "a"}, {"name": "a"}]}, ["extended.species", "'a' is in the list twice"]),
    ({"species": ["Wolf"]}, ["extended.species[0]", '"Wolf"', "a section with keys such as name"]),
    (
        {"species": [{"name": "Wolf", "desription": "x"}]},
        ["extended.species[0].desription", "did you mean extended.species[0].description?"],
    ),
    (
        {"species": [{"name": "Wolf", "description": "<AudioHere>"}]},
        ["extended.species[0].description", "<AudioHere> stands for sound"],
    ),
    ({"n_examples": 2}, ["extended.n_examples", "2 is not", "no query holds {audio_examples}"]),
    (
        {"n_examples": 2, "queries": ["What?"]},
        ["extended.n_examples", "put it into one, or leave this out"],
    ),
    ({"support": "a.csv"}, ["extended.support", '"a.csv"', "no query holds {audio_examples}"]),
    (
        {"queries": [AUDIO], "top_k_species": 1, "n_examples": 0},
        ["extended.n_examples", "0", "an integer, at least 1"],
    ),
    (
        {"queries": [AUDIO], "top_k_species": 1, "support": 3},
        ["extended.support", "3", "a string that is not empty, or a section"],
    ),
    ({"data": "a.csv"}, ["extended.data", '"a.csv"', "a section with keys such as path"]),
    (
        {"data": {"path": "a", "wher": {}}},
        ["extended.data.wher", "did you mean extended.data.where?"],
    ),
    ({"limit": 0}, ["extended.limit", "0", "an integer, at least 1"]),
    ({"limit": "all"}, ["extended.limit", '"all"', "an integer"]),
    ({"samples": "x"}, ["extended.samples", '"x"', "a list with at least one item"]),
    ({"seed": -1}, ["extended.seed", "-1", "at least 0"]),
    ({"batch_tokens": 0}, ["extended.batch_tokens", "0", "at least 1"]),
    ({"output_path": ""}, ["extended.output_path", '""', "a string that is not empty"]),
]


@pytest.mark.parametrize(("section", "parts"), WRONG, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_said(section: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_text(yaml.safe_dump({"extended": section}))
    with pytest.raises(ConfigError) as error:
        load_config(path)
    text = str(error.value)
    assert text.startswith(f"{path}: 1 problem\n")
    assert not [part for part in parts if part not in text], text


def test_braces_that_are_no_flags_are_left_alone() -> None:
    query = 'Answer as {"species": 1} or { } or {2}'
    config = ExperimentConfig.model_validate({"queries": [query]})
    assert config.queries == [query]


def test_support_is_a_path_or_a_table() -> None:
    base = {"queries": [AUDIO], "top_k_species": 1}
    assert ExperimentConfig.model_validate(base).support_table is None
    for support in ("a.csv", {"path": "a.csv"}):
        config = ExperimentConfig.model_validate({**base, "support": support})
        assert config.support_table == TableSource(path="a.csv")


def test_it_is_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    path.write_text(
        "extended: {queries: ['{audio_examples}'], top_k_species: 2, n_examples: 3, seed: 4, "
        "support: {path: s.csv, where: {split: [a, b]}}, data: {path: d, columns: {label: x}}, "
        "limit: 9, samples: [x], output_path: o, batch_tokens: 100, lora_scales: [0, 0.5]}"
    )
    config = load_config(path)
    path.write_text(dump_config(config))
    assert load_config(path) == config
    plain = tmp_path / "plain.yml"
    plain.write_text("extended: {queries: ['What?']}")
    plain.write_text(dump_config(load_config(plain)))
    assert load_config(plain).extended == ExperimentConfig(queries=["What?"])


@pytest.mark.parametrize("key", list(ExperimentConfig.model_fields))
def test_the_example_of_each_key_is_allowed(key: str) -> None:
    """They stand in the README."""
    (example,) = json_schema()["$defs"]["ExperimentConfig"]["properties"][key]["examples"]
    needed: dict[str, Any] = {}
    if key in ("n_examples", "support"):
        needed = {"queries": [AUDIO], "top_k_species": 1}
    if key == "queries":
        needed = {"top_k_species": 1}
    config = ExperimentConfig.model_validate({**needed, key: example})
    assert getattr(config, key) != ExperimentConfig.model_fields[key].default
