"""The configuration of a model, as Hugging Face has it.

Its names are the constructor arguments of the published checkpoint, so that
its `config.json` reads as it is; what the reference leaves open (sample rate, window, fbank,
Q-Former sizes, adapter targets, the encoder's kind) are further keys whose defaults are the
published facts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from NatureLM.config.model import MOST_LAYERS, BeatsConfig, FbankConfig, QFormerConfig
from NatureLM.config.schema import LLAMA_3_TEMPLATE, QUANTIZATIONS
from NatureLM.errors import ConfigError
from NatureLM.models.audio_side import AudioSizes
from NatureLM.models.registry import MODEL_TYPE, NAMES_OF_CODE, one_line
from NatureLM.util import shown

PAD_TOKEN = "[PAD]"

# Constructor arguments of the reference that say nothing about the model itself.
REFERENCE_ONLY = frozenset(
    {
        "audio_encoding_cache_size",
        "audio_llama_proj_model",
        "beats_path",
        "ckpt",
        "device",
        "flash_attn",
        "freeze_audio_QFormer",
        "freeze_audio_llama_proj",
        "freeze_beats",
        "multi_prompt",
        "prompt_path",
        "test_prompt_path",
    }
)


# Keys of a language model's configuration that nothing here uses: code that transformers would
# fetch and run, and names of classes, of which it makes as many as are asked for.
_OF_NO_USE = frozenset(
    {"attn_implementation", "experts_implementation", *NAMES_OF_CODE}
    | {"num_labels", "id2label", "label2id", "name_or_path"}
)
_MOST_PATCHES = 2**14  # of a window; published 496. Their attention is a square of so many
_NUMBERS = {  # name: kind, least and most
    "sample_rate": ("whole ", 1000, 1_000_000),  # Hz
    "window_seconds": ("", 0.001, 3600),
    "num_audio_query_token": ("whole ", 1, 4096),
    "second_per_window": ("", 0.0001, 3600),
    "second_stride": ("", 0.0001, 3600),
    "patches_per_second": ("", 0.001, 10_000),
    "downsample_factor": ("whole ", 1, 4096),
    "lora_rank": ("whole ", 1, 65_536),
    "lora_alpha": ("", 0, 10**9),
    "lora_dropout": ("", 0, 1),
    "max_txt_len": ("whole ", 1, 1_000_000),
}


def _is_number(value: object, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= cast(float, value) <= most


_PLAIN = re.compile(r"\^?[\w.-]{1,1000}")  # a name, or the end of one


def _is_list(value: Any, most: int, good: Callable[[Any], bool]) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) <= most and all(map(good, value))
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _PLAIN.fullmatch(value) is not None


def _is_by_layer(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and _is_list(list(value), 1000, _is_name)
        and all(_is_number(one, 0, 1e9) for one in value.values())
    )


_KINDS: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
    (
        ("use_audio_Qformer", "window_level_Qformer", "max_pooling", "lora", "use_rslora"),
        "true or false",
        lambda value: isinstance(value, bool),
    ),
    (
        ("encoder", "prompt_template", "end_sym"),
        "a string of at most 100,000 characters",
        lambda value: isinstance(value, str) and len(value) <= 100_000,
    ),
    (
        ("text_config", "beats_cfg", "fbank_cfg", "qformer_cfg"),
        "an object or null",
        lambda value: isinstance(value, (dict, PreTrainedConfig, type(None))),
    ),
    (
        ("window_delays",),
        "a list of at most 64 numbers",
        lambda value: _is_list(value, 64, lambda one: _is_number(one, -math.inf, math.inf)),
    ),
    (
        ("lora_target_modules",),
        "a list of at most 1,000 names of layers",
        lambda value: _is_list(value, 1000, _is_name),
    ),
    (
        ("quantized",),
        "int8, int4 or null",
        lambda value: value in (None, *QUANTIZATIONS),
    ),
    (
        ("lora_rank_pattern", "lora_alpha_pattern"),
        "an object with a number for each of at most 1,000 names of layers",
        _is_by_layer,
    ),
)

_SCHEMAS: dict[str, type[BaseModel]] = {
    "beats_cfg": BeatsConfig,
    "qformer_cfg": QFormerConfig,
    "fbank_cfg": FbankConfig,
}


class NatureLMConfig(AudioSizes, PreTrainedConfig):
    """Sizes and settings of a NatureLM model.

    `text_config` is the language model's own configuration (any causal model of transformers);
    its vocabulary counts the `[PAD]` token that the reference adds. `llama_path` only remembers
    where the base came from. For the audio side see `AudioSizes`.
    """

    model_type = MODEL_TYPE

    llama_path: str | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None

    use_audio_Qformer: bool = True
    lora: bool = True
    lora_rank: int = 32
    lora_alpha: int | float = 32
    lora_dropout: float = 0.1
    lora_target_modules: list[str] | None = None
    use_rslora: bool = False
    lora_rank_pattern: dict[str, int] | None = None  # PEFT's: layers with a rank or alpha of
    lora_alpha_pattern: dict[str, int | float] | None = None  # their own

    quantized: str | None = None  # int8 or int4: what the language model's weights are stored as

    prompt_template: str = LLAMA_3_TEMPLATE
    max_txt_len: int = 160
    end_sym: str = "<|end_of_text|>"

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_kinds()
        kwargs.pop("num_labels", None)  # a classifier's, which makes as many names
        if isinstance(self.text_config, dict):
            self.text_config = language_model_config(self.text_config)
        if self.text_config is not None:
            self.text_config.name_or_path = ""  # a folder of the machine it was made on
        for name, schema in _SCHEMAS.items():
            try:
                values = schema.model_validate(getattr(self, name) or {})
            except ValidationError as error:
                problems = "; ".join(
                    f"{'.'.join(map(str, (name, *e['loc'])))} = {shown(e['input'])}: {e['msg']}"
                    for e in error.errors()[:5]
                )
                raise ConfigError(f"model configuration: {problems}") from None
            setattr(self, name, values.model_dump())
        if self.lora_target_modules is None:
            self.lora_target_modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
        self._check()
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    def _check_kinds(self) -> None:
        """Refuse values of another type than theirs, and sizes that nothing could run with."""
        for name, (kind, least, most) in _NUMBERS.items():
            value = getattr(self, name)
            if not _is_number(value, least, most) or (kind and value != int(value)):
                self._refuse(name, f"a {kind}number from {least:,} to {most:,}")
        for names, allowed, good in _KINDS:
            for name in names:
                if not good(getattr(self, name)):
                    self._refuse(name, allowed)

    def _refuse(self, name: str, allowed: str) -> None:
        value = shown(getattr(self, name))
        raise ConfigError(f"model configuration: {name} must be {allowed}, got {value}")

    def _check(self) -> None:
        shift = self.fbank.frame_samples(self.sample_rate)[1]
        patches = self.patches(self.window_samples) if shift else 0
        rules = (
            (
                "window_seconds",
                self.window_samples > 0 and patches <= _MOST_PATCHES,
                f"so long that it has no more than {_MOST_PATCHES:,} patches of the spectrogram "
                f"(of {patches:,} here)",
            ),
            ("fbank_cfg", shift >= 1, "filters whose frames are a sample or more apart"),
            ("second_per_window", self.group_patches >= 1, "at least one patch (0.02 s)"),
            ("second_stride", self.group_stride >= 1, "at least one patch (0.02 s)"),
            (
                "window_delays",
                all(0 <= delay < self.window_seconds for delay in self.window_delays or ()),
                f"seconds from 0 to less than the window's {self.window_seconds:g}",
            ),
            ("prompt_template", "{}" in self.prompt_template, "a string that holds {}"),
            (
                "use_audio_Qformer",
                self.use_audio_Qformer or self.max_pooling,
                "true, unless max_pooling is true",
            ),
        )
        for name, good, allowed in rules:
            if not good:
                self._refuse(name, allowed)


def language_model_config(
    values: Mapping[str, Any], source: object = "model configuration: text_config"
) -> PreTrainedConfig:
    """The configuration of a language model from what a file says of it.

    Places of one machine, code to run and what only classifiers use are left out. Raises
    ConfigError for a kind of model that is not known, and for values that it cannot have.
    """
    kept = _without(values, source)
    kind = kept.pop("model_type", None)
    if not isinstance(kind, str) or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        remedy = (
            "its auto_map names Python code of its own, which is never run; take one of a kind "
            "that transformers itself has"
            if "auto_map" in values
            else "take one that has"
        )
        raise ConfigError(
            f"{source}: model_type is {shown(kind)}, and no causal language model of transformers "
            f"has this type: {remedy}"
        )
    try:
        made = AutoConfig.for_model(kind, **kept)
    except Exception as error:  # of each kind of model its own
        raise ConfigError(f"{source}: {one_line(error)}") from error
    layers = getattr(made, "num_hidden_layers", 1)
    if not _is_number(layers, 1, MOST_LAYERS):
        raise ConfigError(
            f"{source}: num_hidden_layers must be a whole number from 1 to {MOST_LAYERS:,}, got "
            f"{shown(layers)}"
        )
    return made


def _without(values: Any, source: object) -> Any:
    """JSON's values less what is of no use, at any depth; raises ConfigError for endless sizes."""
    if isinstance(values, Mapping):
        return {
            key: _without(one, source)
            for key, one in values.items()
            if key not in _OF_NO_USE and not str(key).startswith("_")
        }
    if isinstance(values, list):
        return [_without(one, source) for one in values]
    if isinstance(values, int) and abs(values) >= 2**48:
        raise ConfigError(f"{source} has {shown(values)}, and no size is so large")
    return values


# So that transformers' own loaders (of tokenizers, processors) know a folder of ours.
AutoConfig.register(NatureLMConfig.model_type, NatureLMConfig, exist_ok=True)
