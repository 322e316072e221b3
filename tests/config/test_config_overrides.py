"""`key.sub=value` changes one value and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.config import Config, load_config
from NatureLM.errors import ConfigError

_FIELDS = {
    "generate.num_beams": st.integers(1, 50),
    "generate.max_new_tokens": st.integers(1, 10**9),
    "generate.temperature": st.floats(1e-6, 1e6),
    "generate.merging_alpha": st.floats(-3, 3),
    "generate.length_penalty": st.floats(-5, 5),
    "model.llama_path": st.text(min_size=1).filter(lambda text: "\0" not in text),
    "model.prompt_template": st.text().map(lambda text: text.replace("{}", "") + "{}"),
    "model.lora": st.booleans(),
    "model.beats_cfg.encoder_layers": st.integers(1, 48),
    "run.optims.max_grad_norm": st.none() | st.floats(0.1, 10),
    "run.augmentations.noise_dirs": st.lists(st.text(min_size=1), max_size=3),
    "run.optims.part_rates": st.dictionaries(st.sampled_from(["beats", "lora"]), st.floats(0, 1)),
    "extended.lora_scales": st.lists(st.floats(-2, 2), min_size=1, max_size=5, unique=True),
}


def value_at(config: Config, path: str) -> object:
    value: object = config
    for part in path.split("."):
        value = getattr(value, part)
    return value


@given(data=st.data(), path=st.sampled_from(sorted(_FIELDS)))
def test_any_value_comes_back(data: st.DataObject, path: str) -> None:
    value = data.draw(_FIELDS[path])
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    config = load_config(options=[f"{path}={text}"])
    assert value_at(config, path) == value
    # Nothing else has changed.
    section = path.split(".")[0]
    for other in set(Config.model_fields) - {section}:
        assert getattr(config, other) == getattr(Config(), other)


@pytest.mark.parametrize("text", ["{}", "<|user|>{}", "*{}", "%{}", "@{}", "a: {}", "'{}'", '"{}"'])
def test_texts_are_taken_as_they_stand(text: str) -> None:
    config = load_config(options=[f"model.prompt_template={text}"])
    # Quotes are YAML's, as in the file.
    assert config.model.prompt_template == text.strip("'\"")


def test_a_number_where_a_text_belongs_is_a_text() -> None:
    assert load_config(options=["model.llama_path=123"]).model.llama_path == "123"


def test_entries_of_a_mapping() -> None:
    config = load_config(options=["run.optims.part_rates.beats=0.1"])
    assert config.run is not None
    assert config.run.optims.part_rates == {"beats": 0.1}


def test_the_last_one_wins_and_the_file_loses(tmp_path: Path) -> None:
    path = tmp_path / "my.yml"
    path.write_text("generate: {num_beams: 3, min_length: 2}")
    config = load_config(path, ["generate.num_beams=4", "generate.num_beams=5"])
    assert config.generate.num_beams == 5
    assert config.generate.min_length == 2
    assert load_config(path).generate.num_beams == 3


def test_sections_appear_and_empty_ones_are_filled(tmp_path: Path) -> None:
    path = tmp_path / "my.yml"
    path.write_text("run:\n")
    config = load_config(path, ["run.optims.init_lr=0.1", "extended.lora_scales=[0, 0.5]"])
    assert config.run is not None
    assert config.run.optims.init_lr == 0.1
    assert config.extended is not None
    assert config.extended.lora_scales == [0, 0.5]


def test_items_of_lists_by_number(tmp_path: Path) -> None:
    path = tmp_path / "my.yml"
    path.write_text("extended: {species: [{name: a}, {name: b}]}")
    for key in ("extended.species.1.name", "extended.species[1].name"):
        config = load_config(path, [f"{key}=Wolf"])
        assert config.extended is not None
        assert config.extended.species is not None
        assert [one.name for one in config.extended.species] == ["a", "Wolf"]
    with pytest.raises(ConfigError, match=r"species\[2\]\.name: there is no item 2"):
        load_config(path, ["extended.species.2.name=Wolf"])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("generate.num_beam=3", ["generate.num_beam", "did you mean generate.num_beams"]),
        ("num_beams=3", ["num_beams", "did you mean generate.num_beams"]),
        ("generate.num_beams.x=3", ["generate.num_beams.x", "unknown key"]),
        ("generate.num_beams", ["generate.num_beams", "key.sub=value"]),
        ("=3", ["=3", "key.sub=value"]),
        ("generate.num_beams=[", ["generate.num_beams", "'['", "an integer, at least 1"]),
        ("extended.species.0.name=Wolf", ["extended.species[0].name", "whole list"]),
    ],
)
def test_overrides_that_make_no_sense(option: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(options=[option])
    for word in ["--options", *words]:
        assert word in str(caught.value)


def test_a_bad_value_says_that_it_comes_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "my.yml"
    path.write_text("generate: {num_beams: 3}")
    with pytest.raises(ConfigError, match=r"generate\.num_beams \(from --options\): 0 is not all"):
        load_config(path, ["generate.num_beams=0"])


def test_an_override_into_something_that_is_no_section(tmp_path: Path) -> None:
    path = tmp_path / "my.yml"
    path.write_text("generate: 3")
    with pytest.raises(ConfigError, match="no section"):
        load_config(path, ["generate.num_beams=0"])
