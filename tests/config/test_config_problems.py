"""What is wrong in a configuration is said with file, key, line, value and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from NatureLM.config import load_config
from NatureLM.errors import ConfigError

WHOLE = "an integer, at least 1"
POSITIVE = "a number, above 0"

CASES = [
    # (YAML, key path, value as shown, what is allowed)
    ("generate: {num_beams: 0}", "generate.num_beams", "0", WHOLE),
    ("generate: {num_beams: 2.5}", "generate.num_beams", "2.5", WHOLE),
    ("generate: {num_beams: '2'}", "generate.num_beams", '"2"', WHOLE),
    ("generate: {num_beams: true}", "generate.num_beams", "true", WHOLE),
    ("generate: {num_beams: }", "generate.num_beams", "null", WHOLE),
    ("generate: {temperature: 0}", "generate.temperature", "0", POSITIVE),
    ("generate: {temperature: -0.1}", "generate.temperature", "-0.1", POSITIVE),
    ("generate: {temperature: .nan}", "generate.temperature", "NaN", POSITIVE),
    ("generate: {temperature: .inf}", "generate.temperature", "Infinity", POSITIVE),
    ("generate: {temperature: hot}", "generate.temperature", '"hot"', POSITIVE),
    ("generate: {max_new_tokens: -5}", "generate.max_new_tokens", "-5", WHOLE),
    ("generate: {min_length: -1}", "generate.min_length", "-1", "at least 0"),
    ("generate: {do_sample: maybe}", "generate.do_sample", '"maybe"', "true or false"),
    ("generate: {do_sample: true}", "generate.do_sample", "true", "one beam"),
    ("generate: {merging_alpha: one}", "generate.merging_alpha", '"one"', "a number"),
    ("generate: {repetition_penalty: 0}", "generate.repetition_penalty", "0", POSITIVE),
    ("generate: {top_p: 1.5}", "generate.top_p", "1.5", "above 0 and at most 1"),
    ("generate: 3", "generate", "3", "a section with keys such as max_new_tokens"),
    ("generate: [a]", "generate", '["a"]', "a section with keys such as max_new_tokens"),
    ("model: {lora_rank: 0}", "model.lora_rank", "0", WHOLE),
    ("model: {lora_dropout: 1}", "model.lora_dropout", "1", "at least 0 and below 1"),
    ("model: {llama_path: 3}", "model.llama_path", "3", "a string that is not empty"),
    ("model: {llama_path: ''}", "model.llama_path", '""', "a string that is not empty"),
    ("model: {prompt_template: user}", "model.prompt_template", '"user"', "{} exactly once"),
    ("model: {prompt_template: '{}{}'}", "model.prompt_template", '"{}{}"', "{} exactly once"),
    ("model: {prompt_template: 5}", "model.prompt_template", "5", "{} exactly once"),
    ("model: {second_stride: 0.0}", "model.second_stride", "0.0", POSITIVE),
    ("model: {beats_cfg: {activation_fn: gelo}}", "model.beats_cfg.activation_fn", "gelo", "relu"),
    ("model: {beats_cfg: {encoder_embed_dim: 770}}", "model.beats_cfg", "770", "a multiple of"),
    ("run: {seed: -1}", "run.seed", "-1", "at least 0"),
    ("run: {device: tpu}", "run.device", '"tpu"', "auto, cpu, mps, cuda"),
    ("run: {optims: {min_lr: 1e-3}}", "run.optims.min_lr", "0.001", "at most init_lr (9e-05)"),
    ("run: {optims: {init_lr: 1e-6}}", "run.optims.min_lr", "1e-05", "at most init_lr (1e-06)"),
    ("run: {optims: {beta2: 1.0}}", "run.optims.beta2", "1.0", "above 0 and below 1"),
    ("run: {optims: {max_grad_norm: 0}}", "run.optims.max_grad_norm", "0", "above 0, or null"),
    ("run: {augmentations: {noise_prob: 2}}", "run.augmentations.noise_prob", "2", "at most 1"),
    ("run: {augmentations: {high_snr: -20}}", "run.augmentations.high_snr", "-20", "low_snr (-10)"),
    ("run: {augmentations: {noise_dirs: a}}", "run.augmentations.noise_dirs", '"a"', "a list"),
    ("run: {augmentations: {noise_dirs: [a, 1]}}", "noise_dirs[1]", "1", "a string"),
    ("datasets: {train: [{path: a, where: {x: 3}}]}", "train[0].where.x (line", "3", "a string"),
    ("datasets: {train: [{path: a, columns: 3}]}", "train[0].columns (line", "3", "a mapping"),
    ("run: {optims: {part_rates: {beats: x}}}", "part_rates.beats (line", '"x"', "a number"),
    ("datasets: {audio_max_length_seconds: 0}", "audio_max_length_seconds", "0", POSITIVE),
    ("extended: {lora_scales: []}", "extended.lora_scales", "[]", "at least one item"),
    ("extended: {lora_scales: [0.4, x]}", "extended.lora_scales[1]", '"x"', "a number"),
    ("extended: {lora_scales: [0.4, 0.4]}", "extended.lora_scales", "0.4", "twice"),
    ("extended: {species: [{name: a}, {name: a}]}", "extended.species", "'a'", "twice"),
    ("extended: {species: [{description: x}]}", "extended.species[0].name", "missing", "a string"),
    ("extended: {n_examples: 0}", "extended.n_examples", "0", WHOLE),
    ("extended: {top_k_species: 0}", "extended.top_k_species", "0", WHOLE),
    ("extended: {species: [{name: a}], top_k_species: 2}", "top_k_species", "2", "exclude"),
    ("extended: {datasets: [a, b], top_k_species: 2}", "top_k_species", "2", "one dataset"),
    ("extended: {queries: ['{randomise} x']}", "extended.queries", "randomise", "{randomize}"),
    (
        "extended: {queries: ['{examples}'], species: [{name: Wolf}]}",
        "extended.species",
        "Wolf",
        "no description",
    ),
]


def problem_of(folder: Path, text: str) -> str:
    path = folder / "my.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value)


@pytest.mark.parametrize(("text", "key", "value", "allowed"), CASES)
def test_file_key_value_and_what_is_allowed(
    tmp_path: Path, text: str, key: str, value: str, allowed: str
) -> None:
    message = problem_of(tmp_path, text)
    assert str(tmp_path / "my.yml") in message
    assert "1 problem\n" in message
    line = message.splitlines()[1]
    assert key in line
    assert value in line
    assert allowed in line


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ("generate: {num_beam: 4}", "generate.num_beam", "generate.num_beams"),
        ("generate: {temprature: 1}", "generate.temprature", "generate.temperature"),
        ("generate: {Num-Beams: 4}", "generate.Num-Beams", "generate.num_beams"),
        ("num_beams: 4", "num_beams", "generate.num_beams"),
        ("generate: {lora_rank: 4}", "generate.lora_rank", "model.lora_rank"),
        ("model: {init_lr: 1}", "model.init_lr", "run.optims.init_lr"),
        ("modle: {}", "modle", "model"),
        (
            "extended: {species: [{name: a, descripton: c}]}",
            "extended.species[0].descripton",
            "extended.species[0].description",
        ),
    ],
)
def test_unknown_keys_get_the_nearest_known_one(
    tmp_path: Path, text: str, key: str, meant: str
) -> None:
    lines = [line for line in problem_of(tmp_path, text).splitlines() if f"{key} (line" in line]
    assert len(lines) == 1
    assert f"did you mean {meant}?" in lines[0]


def test_unknown_keys_show_value_and_known_keys(tmp_path: Path) -> None:
    message = problem_of(tmp_path, "generate: {zzz: 17}")
    assert "unknown key" in message
    assert "did you mean" not in message
    assert "17" in message
    assert "num_beams" in message


def test_all_problems_at_once_with_their_lines(tmp_path: Path) -> None:
    text = "generate:\n  num_beams: 0\n  zzz: 1\nmodel:\n  lora_rank: 0\nrun:\n  seed: x\n"
    message = problem_of(tmp_path, text)
    assert "4 problems" in message
    for key, line in (
        ("generate.num_beams", 2),
        ("generate.zzz", 3),
        ("model.lora_rank", 5),
        ("run.seed", 7),
    ):
        assert f"{key} (line {line})" in message


def test_a_key_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    message = problem_of(tmp_path, "generate:\n  num_beams: 1\n  min_length: 1\n  num_beams: 4\n")
    assert "line 4" in message
    assert "generate.num_beams" in message
    assert "line 2" in message


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("generate:\n  num_beams: [1\n", "line 3"),
        ("generate:\n\tnum_beams: 1\n", "line 2"),
        ("a: b: c\n", "line 1"),
        ("model: *nothing\n", "line 1"),
        ("model: !!python/object:os.system x\n", "line 1"),
        ("a: &x [*x]\n", "line 1"),
    ],
)
def test_syntax_errors_name_file_and_line(tmp_path: Path, text: str, where: str) -> None:
    message = problem_of(tmp_path, text)
    assert str(tmp_path / "my.yml") in message
    assert where in message


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "3\n"])
def test_a_file_without_sections(tmp_path: Path, text: str) -> None:
    assert "a configuration is a mapping" in problem_of(tmp_path, text)


def test_nesting_without_end(tmp_path: Path) -> None:
    assert "nested too deeply" in problem_of(tmp_path, "model: " + "[" * 2000)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yml: there is no such"):
        load_config(tmp_path / "absent.yml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)
    binary = tmp_path / "sound.wav"
    binary.write_bytes(b"RIFF\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(binary)


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
_SECTIONS = st.sampled_from(["model", "generate", "run", "datasets", "extended", "other"])
_KEYS = st.sampled_from(
    ["num_beams", "beats_cfg", "optims", "species", "queries", "noise_dirs", "temperature", "x"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(
    data=st.dictionaries(
        _SECTIONS | st.integers(), _PLAIN | st.dictionaries(_KEYS, _PLAIN), max_size=4
    )
)
def test_nothing_but_config_errors_whatever_is_in_the_file(
    tmp_path: Path, data: dict[object, object]
) -> None:
    path = tmp_path / "my.yml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    problem = ""
    try:
        load_config(path)
    except ConfigError as error:
        problem = str(error)
    assert not problem or str(path) in problem
