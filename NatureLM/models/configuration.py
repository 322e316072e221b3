"""What describes a model beside its weights, as Hugging Face has it: configuration and processor.

The names of the configuration are the constructor arguments of the published checkpoint, so that
its `config.json` reads as it is; what the reference leaves open (sample rate, window, fbank,
Q-Former sizes, adapter targets, the encoder's kind) are further keys whose defaults are the
published facts.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from NatureLM.config.model import BeatsConfig, FbankConfig, QFormerConfig
from NatureLM.config.schema import LLAMA_3_TEMPLATE
from NatureLM.errors import ConfigError
from NatureLM.models.registry import MODEL_TYPE
from NatureLM.prompts import render

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


_SCHEMAS: dict[str, type[BaseModel]] = {
    "beats_cfg": BeatsConfig,
    "qformer_cfg": QFormerConfig,
    "fbank_cfg": FbankConfig,
}


class NatureLMConfig(PreTrainedConfig):
    """Sizes and settings of a NatureLM model.

    `text_config` is the language model's own configuration (any causal model of transformers);
    its vocabulary counts the `[PAD]` token that the reference adds. `llama_path` only remembers
    where the base came from. `second_per_window` and `second_stride` are measured in patches of
    1 / `patches_per_second` seconds, as in the reference. With `max_pooling` there is no Q-Former:
    patches are pooled by `downsample_factor` and projected. A window is encoded once for each of
    `window_delays` (seconds), moved back by so much, and the embeddings are averaged: a small
    model encodes a call differently where it meets the borders of its patches and groups.
    """

    model_type = MODEL_TYPE

    llama_path: str | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None

    encoder: str = "beats"
    beats_cfg: dict[str, Any] | None = None
    sample_rate: int = 16000
    window_seconds: float = 10.0
    fbank_cfg: dict[str, Any] | None = None

    use_audio_Qformer: bool = True
    qformer_cfg: dict[str, Any] | None = None
    window_level_Qformer: bool = True
    num_audio_query_token: int = 1
    second_per_window: float = 0.333333
    second_stride: float = 0.333333
    patches_per_second: float = 50.0
    window_delays: list[float] | None = None  # None: as it is, once
    max_pooling: bool = False
    downsample_factor: int = 8

    lora: bool = True
    lora_rank: int = 32
    lora_alpha: int | float = 32
    lora_dropout: float = 0.1
    lora_target_modules: list[str] | None = None
    use_rslora: bool = False
    lora_rank_pattern: dict[str, int] | None = None  # PEFT's: layers with a rank or alpha of
    lora_alpha_pattern: dict[str, int | float] | None = None  # their own

    prompt_template: str = LLAMA_3_TEMPLATE
    max_txt_len: int = 160
    end_sym: str = "<|end_of_text|>"

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict):
            # where it was read from is a place on one machine, and would be written with it
            text = {k: v for k, v in self.text_config.items() if k != "_name_or_path"}
            self.text_config = AutoConfig.for_model(**text)
        if self.text_config is not None:
            self.text_config.name_or_path = ""  # a folder of the machine it was made on
        for name, schema in _SCHEMAS.items():
            try:
                values = schema.model_validate(getattr(self, name) or {})
            except ValidationError as error:
                problems = "; ".join(
                    f"{name}.{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}"
                    for e in error.errors()
                )
                raise ConfigError(f"model configuration: {problems}") from None
            setattr(self, name, values.model_dump())
        if self.lora_target_modules is None:
            self.lora_target_modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
        self._check()
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    @property
    def beats(self) -> BeatsConfig:
        return BeatsConfig.model_validate(self.beats_cfg)

    @property
    def qformer(self) -> QFormerConfig:
        return QFormerConfig.model_validate(self.qformer_cfg)

    @property
    def fbank(self) -> FbankConfig:
        return FbankConfig.model_validate(self.fbank_cfg)

    @property
    def window_samples(self) -> int:
        """Samples of one window."""
        return round(self.window_seconds * self.sample_rate)

    @property
    def delayed_samples(self) -> list[int]:
        """How many samples later each pass over a window begins."""
        return [round(delay * self.sample_rate) for delay in self.window_delays or [0.0]]

    @property
    def group_patches(self) -> int:
        """Patches that one group of the window-level Q-Former reads (its kernel)."""
        return round(self.patches_per_second * self.second_per_window)

    @property
    def group_stride(self) -> int:
        """Patches from the start of one group to the next."""
        return round(self.patches_per_second * self.second_stride)

    def audio_positions(self, seconds: float | None = None) -> int:
        """How many positions of a prompt a window of so many seconds takes; by default one of the
        model's, which is the longest.
        """
        longest = self.window_seconds
        window = round((longest if seconds is None else min(seconds, longest)) * self.sample_rate)
        size, fbank = self.beats.input_patch_size, self.fbank
        frames = fbank.frames(window, self.sample_rate)
        patches = (frames // size) * (fbank.num_mel_bins // size)
        if self.max_pooling:
            return patches // self.downsample_factor
        groups = 1
        if self.window_level_Qformer:
            groups = max(0, 1 + (patches - self.group_patches) // self.group_stride)
        return groups * self.num_audio_query_token

    def _check(self) -> None:
        rules = (
            ("sample_rate", self.sample_rate >= 1000, "1000 Hz or more"),
            ("window_seconds", self.window_seconds > 0, "above 0"),
            ("num_audio_query_token", self.num_audio_query_token >= 1, "1 or more"),
            ("second_per_window", self.group_patches >= 1, "at least one patch (0.02 s)"),
            ("second_stride", self.group_stride >= 1, "at least one patch (0.02 s)"),
            (
                "window_delays",
                all(0 <= delay < self.window_seconds for delay in self.window_delays or ()),
                f"seconds from 0 to less than the window's {self.window_seconds:g}",
            ),
            ("downsample_factor", self.downsample_factor >= 1, "1 or more"),
            ("lora_rank", self.lora_rank >= 1, "1 or more"),
            ("max_txt_len", self.max_txt_len >= 1, "1 or more"),
            ("prompt_template", "{}" in self.prompt_template, "a string that holds {}"),
            (
                "use_audio_Qformer",
                self.use_audio_Qformer or self.max_pooling,
                "true, unless max_pooling is true",
            ),
        )
        for name, good, allowed in rules:
            if not good:
                value = getattr(self, name)
                raise ConfigError(f"model configuration: {name} must be {allowed}, got {value!r}")


# So that transformers' own loaders (of tokenizers, processors) know a folder of ours.
AutoConfig.register(NatureLMConfig.model_type, NatureLMConfig, exist_ok=True)


class NatureLMProcessor(ProcessorMixin):
    """Tokenizer, prompt template and the facts of the audio input.

    `prompts, audios = processor(waveforms, queries)` gives what `NatureLM.generate` takes.
    """

    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sample_rate: int = 16000,
        window_seconds: float = 10.0,
        prompt_template: str = "{}",
        **kwargs: Any,
    ) -> None:
        # Meant for word pieces; on byte-level tokens it would take spaces out of answers.
        tokenizer.clean_up_tokenization_spaces = False
        super().__init__(tokenizer, **kwargs)  # type: ignore[no-untyped-call]
        self.sample_rate = sample_rate
        self.window_seconds = window_seconds
        self.prompt_template = prompt_template

    @classmethod
    def from_config(
        cls, config: NatureLMConfig, tokenizer: PreTrainedTokenizerBase
    ) -> NatureLMProcessor:
        """The processor of a model; gives the tokenizer the `[PAD]` that the reference adds."""
        if tokenizer.pad_token != PAD_TOKEN:
            tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        return cls(tokenizer, config.sample_rate, config.window_seconds, config.prompt_template)

    def render(self, query: str) -> str:
        """The complete prompt of a question."""
        return render(self.prompt_template, query)

    def prepare_audio(self, samples: Any, seconds: float | None = None) -> Tensor:
        """A mono waveform at the model's sample rate, cut or padded with silence to one window.

        seconds: length of the window; the model's, which is the longest, where it is None

        Returns float32 (or float64 as given) of shape (window samples,), clamped to [-1, 1].
        """
        wav_S = torch.as_tensor(samples)
        if wav_S.ndim != 1:
            raise ValueError(f"a waveform must have shape (samples,), got {tuple(wav_S.shape)}")
        if not wav_S.is_floating_point():
            raise ValueError(
                f"a waveform must hold floating-point samples in [-1, 1], got {wav_S.dtype}; "
                "divide integer samples by their full scale (32768 for 16 bits)"
            )
        if wav_S.dtype != torch.float64:
            wav_S = wav_S.float()
        longest = self.window_seconds
        window = round((longest if seconds is None else min(seconds, longest)) * self.sample_rate)
        wav_S = wav_S[:window].clamp(-1.0, 1.0)
        missing = window - wav_S.shape[0]
        return torch.nn.functional.pad(wav_S, (0, missing)) if missing else wav_S

    def __call__(
        self, audios: list[Any], queries: list[str], **_: Any
    ) -> tuple[list[str], list[list[Tensor]]]:
        """Complete prompts and one prepared clip for each."""
        prompts = [self.render(query) for query in queries]
        return prompts, [[self.prepare_audio(audio)] for audio in audios]
