"""Configuration files load as they are; `key.sub=value` changes one value and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.config import Config, dump_config, json_schema, load_config
from NatureLM.config.schema import LLAMA_3_TEMPLATE
from NatureLM.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

# The keys of the reference's training files, with the odd spellings that they have there.
TRAINING = r"""
model: {llama_path: "meta-llama/Meta-Llama-3.1-8B-Instruct", beats_path: "path/to/beats.pt",
  ckpt: "", flash_attn: flash_attention_2, freeze_beats: False, use_audio_Qformer: True,
  max_pooling: False, downsample_factor: 8, freeze_audio_QFormer: False, window_level_Qformer: True,
  num_audio_query_token: 1, second_per_window: 0.333333, second_stride: 0.333333,
  audio_llama_proj_model: "", freeze_audio_llama_proj: False, lora: True, lora_rank: 32,
  lora_alpha: 32, lora_dropout: 0.1, multi_prompt: True, prompt_template: "<|user|>\n\n{}<|eot|>",
  prompt_path: "prompts/train_prompt.json", test_prompt_path: "prompts/test_prompt.json",
  max_txt_len: 200, end_sym: <|end_of_text|>, beats_cfg: {input_patch_size: 16, embed_dim: 512,
  conv_bias: False, encoder_layers: 12, layer_wise_gradient_decay_ratio: 0.6, predictor_class: 527}}
datasets: {train_ann_path: "/path/train.jsonl", valid_ann_path: "/path/valid.jsonl",
  test_ann_path: "/path/test.jsonl", audio_max_length_seconds: 10}
run:
  seed: 13
  output_dir: "out"
  evaluate: False # only evaluate
  log_freq: 5
  epoch_based: false
  iters_per_epoch: 10000
  accum_grad_iters: 1
  batch_size_train: 8
  batch_size_eval: 32
  num_workers: 12
  device: "cuda"
  use_distributed: True
  amp: True
  world_size: 4
  dist_url: "env://"
  custom_metrics: False
  decode_ratio: 0.1
  optims: {max_epoch: 50, warmup_steps: 5000, warmup_start_lr: 0, init_lr: 9e-5, min_lr: 1e-5,
    weight_decay: 0.05, beta2: 0.999, max_grad_norm: 2, max_grad_value: 1.0, resume_epoch: True,
    resume_optimizer: True}
  augmentations:
    {bandmask: 0.1, revecho: 0.1, timescale: 0.9, flip: 0.1, noise_prob: 0.4, time_scale_prob: 0.00,
    mask_audio_prob: 0.10, time_scale: 1.1, low_snr: -10, high_snr: 25, use_augmentation: True,
    mixup_prob: 0.45, mixup_count: 2, noise_dirs: ["/path/noise/a", "/path/noise/b"]}
generate: {max_new_tokens: 60, num_beams: 4, do_sample: False, min_length: 1, temperature: 0.1,
  repetition_penalty: 1.0, length_penalty: 1.0}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_file_is_the_default(caplog: pytest.LogCaptureFixture) -> None:
    path = ROOT / "configs" / "inference.yml"
    assert load_config(path) == load_config() == Config()
    assert not caplog.messages
    # Every key of the two sections stands in the file, so that people find it there.
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    later = {"top_p", "top_k", "seed"}
    assert set(data["generate"]) >= set(type(load_config().generate).model_fields) - later
    assert len(data["model"]["beats_cfg"]) == 25


def test_defaults_are_the_published_settings() -> None:
    config, generate = load_config(), load_config().generate
    assert (generate.max_new_tokens, generate.num_beams, generate.temperature) == (300, 2, 0.1)
    assert (generate.do_sample, generate.min_length, generate.merging_alpha) == (False, 1, 1.0)
    assert (config.model.lora_rank, config.model.lora_alpha) == (32, 32)
    assert config.model.prompt_template == LLAMA_3_TEMPLATE
    assert config.model.beats_cfg.encoder_layers == 12
    assert (config.run, config.datasets, config.extended) == (None, None, None)


def test_a_training_file_of_the_reference_loads_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, TRAINING)
    config = load_config(path)
    assert config.run is not None
    assert config.run.optims.init_lr == 9e-5
    assert config.run.optims.max_grad_norm == 2.0
    assert config.run.augmentations.noise_dirs == ["/path/noise/a", "/path/noise/b"]
    assert config.datasets is not None
    assert config.datasets.train_ann_path == "/path/train.jsonl"
    assert config.model.ckpt is None
    (warning,) = caplog.messages
    assert str(path) in warning
    for key in ("run.use_distributed", "run.dist_url", "model.multi_prompt", "run.world_size"):
        assert key in warning
    assert "audio_llama_proj_model" not in warning


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "model:\ngenerate:\nextended:\n"])
def test_sections_may_be_left_out_or_empty(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path, text)) == Config()


@pytest.mark.parametrize(
    ("text", "value"),
    [("9e-5", 9e-5), ("9.0e-5", 9e-5), ("1E2", 100.0), (".5e1", 5.0), ("1.e-1", 0.1), ("3", 3.0)],
)
def test_numbers_as_people_write_them(tmp_path: Path, text: str, value: float) -> None:
    config = load_config(write(tmp_path, f"generate: {{temperature: {text}}}"))
    assert config.generate.temperature == value
    assert load_config(options=[f"generate.temperature={text}"]) == config


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    text = "model: {beats_cfg: &small {encoder_layers: 2, embed_dim: 64}}"
    config = load_config(write(tmp_path, text))
    assert config.model.beats_cfg.encoder_layers == 2
    text = "model: {beats_cfg: {<<: {encoder_layers: 2, embed_dim: 64}, embed_dim: 32}}"
    config = load_config(write(tmp_path, text))
    assert (config.model.beats_cfg.encoder_layers, config.model.beats_cfg.embed_dim) == (2, 32)


def test_what_is_dumped_loads_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(write(tmp_path, TRAINING), ["run.optims.max_grad_norm=null"])
    assert config.run is not None
    assert config.run.optims.max_grad_norm is None
    again = load_config(write(tmp_path, dump_config(config)))
    assert again == config
    caplog.clear()
    assert load_config(write(tmp_path, dump_config(Config()))) == Config()
    assert not caplog.messages


def test_json_schema_knows_every_section() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert set(schema["properties"]) == {"model", "generate", "datasets", "run", "extended"}
    generate = schema["$defs"]["GenerateConfig"]
    assert generate["additionalProperties"] is False
    assert generate["properties"]["num_beams"]["minimum"] == 1
    assert generate["properties"]["num_beams"]["description"]


def test_a_config_is_not_changed_later() -> None:
    config = load_config()
    with pytest.raises(Exception, match="frozen"):
        config.generate.num_beams = 3  # type: ignore[misc]


# Overrides


_FIELDS = {
    "generate.num_beams": st.integers(1, 50),
    "generate.max_new_tokens": st.integers(1, 131_072),
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
    section, plain = path.split(".")[0], Config()
    for other in set(Config.model_fields) - {section}:
        assert getattr(config, other) == getattr(plain, other)


@pytest.mark.parametrize("text", ["{}", "<|user|>{}", "*{}", "%{}", "@{}", "a: {}", "'{}'", '"{}"'])
def test_texts_are_taken_as_they_stand(text: str) -> None:
    config = load_config(options=[f"model.prompt_template={text}"])
    # Quotes are YAML's, as in the file.
    assert config.model.prompt_template == text.strip("'\"")


def test_a_number_where_a_text_belongs_is_a_text() -> None:
    assert load_config(options=["model.llama_path=123"]).model.llama_path == "123"


def test_the_last_one_wins_and_the_file_loses(tmp_path: Path) -> None:
    path = write(tmp_path, "generate: {num_beams: 3, min_length: 2}")
    config = load_config(path, ["generate.num_beams=4", "generate.num_beams=5"])
    assert config.generate.num_beams == 5
    assert config.generate.min_length == 2
    assert load_config(path).generate.num_beams == 3


def test_sections_appear_and_empty_ones_are_filled(tmp_path: Path) -> None:
    path = write(tmp_path, "run:\n")
    rate = "run.optims.part_rates.beats=0.1"
    config = load_config(path, ["run.optims.init_lr=0.1", "extended.lora_scales=[0, 0.5]", rate])
    assert config.run is not None
    assert (config.run.optims.init_lr, config.run.optims.part_rates) == (0.1, {"beats": 0.1})
    assert config.extended is not None
    assert config.extended.lora_scales == [0, 0.5]


def test_items_of_lists_by_number(tmp_path: Path) -> None:
    path = write(tmp_path, "extended: {species: [{name: a}, {name: b}]}")
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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("generate: {num_beams: 3}", r"generate\.num_beams \(from --options\): 0 is not all"),
        ("generate: 3", "no section"),
    ],
)
def test_overrides_of_what_stands_in_a_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path, text), ["generate.num_beams=0"])
