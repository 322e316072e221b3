"""What is wrong in a configuration is said with file, key, line, value and what is allowed; and in
the section `extended`, what excludes and what needs each other."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from NatureLM.cli.experiment import as_yaml
from NatureLM.config import ExperimentConfig, dump_config, json_schema, load_config
from NatureLM.config.schema import TableSource
from NatureLM.errors import ConfigError
from NatureLM.merging.recipe import load_recipe

WHOLE = "an integer, at least 1"
POSITIVE = "a number, above 0"
TEMPERATURE = "a number, at least 1e-06 and at most 1e+06"

CASES = [
    # (YAML, key path, value as shown, what is allowed)
    ("generate: {num_beams: 0}", "generate.num_beams", "0", WHOLE),
    ("generate: {num_beams: 2.5}", "generate.num_beams", "2.5", WHOLE),
    ("generate: {num_beams: '2'}", "generate.num_beams", '"2"', WHOLE),
    ("generate: {num_beams: true}", "generate.num_beams", "true", WHOLE),
    ("generate: {num_beams: }", "generate.num_beams", "null", WHOLE),
    ("generate: {temperature: 0}", "generate.temperature", "0", TEMPERATURE),
    ("generate: {temperature: -0.1}", "generate.temperature", "-0.1", TEMPERATURE),
    ("generate: {temperature: .nan}", "generate.temperature", "NaN", TEMPERATURE),
    ("generate: {temperature: .inf}", "generate.temperature", "Infinity", TEMPERATURE),
    ("generate: {temperature: hot}", "generate.temperature", '"hot"', TEMPERATURE),
    ("generate: {max_new_tokens: -5}", "generate.max_new_tokens", "-5", WHOLE),
    ("generate: {min_length: -1}", "generate.min_length", "-1", "at least 0"),
    ("generate: {do_sample: maybe}", "generate.do_sample", '"maybe"', "true or false"),
    ("generate: {do_sample: true}", "generate.do_sample", "true", "one beam"),
    ("generate: {merging_alpha: one}", "generate.merging_alpha", '"one"', "a number"),
    ("generate: {repetition_penalty: 0}", "generate.repetition_penalty", "0", TEMPERATURE),
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
    ("extended: {species: [{description: x}]}", "extended.species[0].name", "missing", "a string"),
    ("extended: {top_k_species: 0}", "extended.top_k_species", "0", WHOLE),
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
    assert "more than 50 levels of values" in problem_of(tmp_path, "model: " + "[" * 2000)


def laughs(first: str, item: str) -> str:
    """Eight levels, of which each holds the one before nine times: 43 million values."""
    names = "abcdefgh"
    lines = (
        f"{one}: &{one} {item.format(','.join([f'*{before}'] * 9))}\n"
        for before, one in itertools.pairwise(names)
    )
    return f"a: &a {first}\n{''.join(lines)}"


VALUES = "there are more than 50000 values, counted with what aliases stand for; no more are"
NUMBER = "line 1, column 23: there are more than 64 characters in a number; no more are allowed"
TOO_MUCH = {
    # content: what is said of it
    laughs("[x,x,x,x,x,x,x,x,x]", "[{}]"): f"line 5, column 4: {VALUES}",
    laughs("{x: 1}", "{{<<: [{}]}}"): f"line 6, column 12: {VALUES}",
    "generate: {num_beams: 0x" + "f" * 10**6: NUMBER,
    "generate: {num_beams: " + "9" * 10**6: NUMBER,
    "generate: {num_beams: 1" + ":1" * 10**5: NUMBER,
    "generate: {num_beams: !!int '" + "9" * 10**5 + "'": NUMBER,
    "generate: {temperature: 1e400}": "generate.temperature (line 1): Infinity is not allowed",
    "model: {fbank_cfg: {mean: 1e400}}": "model.fbank_cfg.mean (line 1): Infinity is not allowed",
    "model: " + "[" * 60 + "]" * 60: "there are more than 50 levels of values within each other",
    "- " * 10**5: "line 1, column 101: there are more than 50 levels of values within each other",
    "a: &a {<<: *a}": "line 1, column 12: not valid YAML: this alias contains itself",
    "extended: {samples: [" + "a," * 60_000: VALUES,
    "".join(f"k{i}: 1\n" for i in range(1000)): ": 100 problems or more\n",
    "# \n" * 1_400_000: "is no configuration: it holds more than 4 MB",
}


def test_no_more_is_read_than_a_person_would_write(tmp_path: Path) -> None:
    """Seconds and bytes are those of a process that reads one after the other."""
    for number, text in enumerate(TOO_MUCH):
        (tmp_path / f"{number}.yml").write_text(text)
    ran = subprocess.run(
        [sys.executable, "-c", _READ, str(tmp_path), str(len(TOO_MUCH))],
        check=True,
        capture_output=True,
        text=True,
    )
    read = json.loads(ran.stdout)
    for number, words in enumerate(TOO_MUCH.values()):
        assert f"{tmp_path / f'{number}.yml'}" in read["said"][number]
        assert words in read["said"][number]
        assert read["seconds"][number] < 5, words
    assert read["peak"] < 200e6


_READ = """
import json, resource, sys, time
from NatureLM.config import load_config
said, seconds = [], []
for number in range(int(sys.argv[2])):
    begun = time.process_time()
    try:
        load_config(f"{sys.argv[1]}/{number}.yml")
    except Exception as error:
        said.append(str(error))
    seconds.append(time.process_time() - begun)
try:  # Linux; there ru_maxrss starts at the parent's peak
    (peak,) = (int(line.split()[1]) * 1024 for line in open("/proc/self/status") if "VmHWM" in line)
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"said": said, "seconds": seconds, "peak": peak}))
"""


@pytest.mark.parametrize("text", [laughs("[x]", "[{}]"), "[" * 10**5, "9" * 5000, "0x" + "f" * 999])
def test_the_same_bounds_hold_in_overrides_and_recipes(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"generate\.num_beams: '.{,70}' is not valid YAML; it must"
    ):
        load_config(options=[f"generate.num_beams={text}"])
    (tmp_path / "r.yml").write_text(f"alpha: {text}" if ":" not in text else text)
    with pytest.raises(ConfigError, match="no more are allowed"):
        load_recipe(tmp_path / "r.yml")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("generate.num_beams", 100_000, "an integer, at least 1 and at most 100"),
        ("generate.max_new_tokens", 10**9, "an integer, at least 1 and at most 131,072"),
        ("generate.min_length", 10**9, "an integer, at least 0 and at most 131,072"),
        ("generate.top_k", 10**9, "an integer, at least 0 and at most 1,000,000"),
        ("generate.temperature", 1e-300, TEMPERATURE),
        ("generate.length_penalty", 1e3, "a number, at least -10 and at most 10"),
        ("generate.seed", 2**32, "an integer, at least 0 and at most 4,294,967,295"),
        ("run.batch_size_train", 10**6, "an integer, at least 1 and at most 100,000"),
        ("run.max_steps", 10**12, "an integer, at least 1 and at most 100,000,000, or null"),
        ("run.num_workers", 10**6, "an integer, at least 0 and at most 1,000"),
        ("datasets.temperature", 1e-3, "a number, at least 0.05 and at most 1,000"),
        ("extended.n_examples", 10**9, "an integer, at least 1 and at most 1,000"),
        (
            "extended.batch_tokens",
            10**12,
            "an integer, at least 1 and at most 100,000,000, or null",
        ),
    ],
)
def test_what_no_run_could_finish_is_refused(key: str, value: float, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(options=[f"{key}={value}"])
    shown = json.dumps(value)
    assert f"{key} (from --options): {shown} is not allowed; it must be {allowed}" in str(
        caught.value
    )


def test_every_whole_number_has_an_upper_bound() -> None:
    """In the JSON Schema, so that editors know it; the sizes of networks have their own."""
    sections = json_schema()["$defs"]
    for name in sections.keys() - {"BeatsConfig", "QFormerConfig", "FbankConfig"}:
        for key, node in sections[name]["properties"].items():
            for choice in node.get("anyOf", [node]):
                assert choice.get("type") != "integer" or "maximum" in choice, f"{name}.{key}"


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


# The section `extended`


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
def test_what_is_wrong_in_an_experiment_is_said(
    section: dict[str, Any], parts: list[str], tmp_path: Path
) -> None:
    text = problem_of(tmp_path, yaml.safe_dump({"extended": section}))
    assert text.startswith(f"{tmp_path / 'my.yml'}: 1 problem\n")
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


def test_an_experiment_is_written_and_read_back(tmp_path: Path) -> None:
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


BEFORE = "generate:\n  num_beams: 4\nmodel:\n  "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ckpt: a\fb", "line 4, column 10: not valid YAML: the character U+000C FORM FEED may not"),
        ("ckpt: a\0b", "line 4, column 10: not valid YAML: the character U+0000 NULL may not"),
        ("# \x1a", "line 4, column 5: not valid YAML: the character U+001A SUBSTITUTE may not"),
        ("# \x7f", "line 4, column 5: not valid YAML: the character U+007F CONTROL CHARACTER may"),
        ("# \x92", "line 4, column 5: not valid YAML: the character U+0092 CONTROL CHARACTER may"),
        ("# \ufffe", "line 4, column 5: not valid YAML: the character U+FFFE NO CHARACTER may not"),
        ("ckpt: \ufeffa", "line 4, column 9: not valid YAML: the character U+FEFF ZERO WIDTH NO-"),
        ("\tckpt: a", "line 4, column 3: not valid YAML: found character U+0009 TAB that cannot "),
        ("\tckpt: a", "; indent with spaces"),
        ('ckpt: "C:\\qx"', "line 4, column 13: not valid YAML: found unknown escape character 'q'"),
        ('ckpt: "C:\\Users"', "a backslash begins an escape: write it in single quotes"),
        ('ckpt: "\\U00110000"', "line 4, column 12: chr() arg not in range"),
        ('ckpt: "\\UFFFFFFFF"', "line 4, column 12: "),
        ('ckpt: "a\\0b"', "line 4, column 9: the value holds U+0000 NULL"),
        ('ckpt: "a\\ud800b"', "line 4, column 9: the value holds U+D800 HALF OF A CHARACTER"),
        ("ckpt: 2024-13-45", "line 4, column 9: month must be in 1..12"),
        ("ckpt: !!bool perhaps", "line 4, column 9: the value does not fit its tag"),
        ("ckpt: !!timestamp soon", "line 4, column 9: the value does not fit its tag"),
        ("ckpt: !!int ''", "line 4, column 9: the value does not fit its tag"),
        ("ckpt: !!float ten", "line 4, column 9: could not convert string to float: 'ten'"),
        ("\xa0ckpt: a", "unknown key; it holds U+00A0 NO-BREAK SPACE; did you mean"),
        ("\u200bckpt: a", "unknown key; it holds U+200B ZERO WIDTH SPACE; did you mean"),
    ],
)
def test_what_cannot_be_seen_is_named_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    problem = problem_of(tmp_path, BEFORE + text)
    assert problem.startswith(str(tmp_path / "my.yml"))
    assert said in problem
    assert len(problem.splitlines()) <= 2


@given(place=st.integers(0, len(BEFORE)), bad=st.sampled_from("\x00\x07\x0b\x0c\x1b\x1c\x7f\x80"))
def test_a_control_character_anywhere_has_its_line_and_column(
    tmp_path_factory: pytest.TempPathFactory, place: int, bad: str
) -> None:
    before = BEFORE[:place].split("\n")
    problem = problem_of(tmp_path_factory.mktemp("c"), BEFORE[:place] + bad + BEFORE[place:])
    assert f"line {len(before)}, column {len(before[-1]) + 1}: " in problem
    assert f"U+{ord(bad):04X}" in problem


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig", "utf-16-be", "utf-16-le"])
def test_encodings_with_a_mark_are_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "my.yml"
    mark = "\ufeff" if encoding[-2:] in ("be", "le") else ""
    path.write_bytes(f"{mark}generate: {{num_beams: 3}}\nmodel: {{ckpt: Kröte}}".encode(encoding))
    config = load_config(path)
    assert (config.generate.num_beams, config.model.ckpt) == (3, "Kröte")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("# Übung\nmodel:\n  ckpt: Kröte".encode("cp1252"), "line 1, column 3: is not a text file"),
        (b"a: 1\nb: \xff", "line 2, column 4: is not a text file in UTF-8 (the byte 0xFF): save"),
        ("\ufeffa: b".encode("utf-16-le")[:-1], "is not a text file in UTF-16 (the byte 0x62)"),
        ("a: b".encode("utf-16-le"), "line 1, column 2: not valid YAML: the character U+0000 NULL"),
    ],
)
def test_other_encodings_are_refused_with_the_place(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "my.yml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert said in str(caught.value)


def test_characters_that_json_escapes_in_halves_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "my.yml"
    path.write_text(json.dumps({"model": {"ckpt": "a 🦉 b"}}), encoding="utf-8")
    assert load_config(path).model.ckpt == "a 🦉 b"


@pytest.mark.parametrize("value", ["!!bool perhaps", "!!timestamp soon", "2024-13-45", "a\fb"])
def test_overrides_that_are_no_value_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"generate\.num_beams: .* is not valid YAML"):
        load_config(None, [f"generate.num_beams={value}"])


def test_a_file_name_that_is_no_utf_8_can_be_given(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.csv")
    assert load_config(None, [f"model.ckpt={as_yaml(name)}"]).model.ckpt == name
