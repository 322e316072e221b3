"""The whole configuration: sections `model`, `generate`, `datasets`, `run` and `extended`.

Keys and defaults are those of the published model and its inference settings, so that files made
for the reference load as they are. Every section may be left out.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from NatureLM.config.base import Section, Text, ignored
from NatureLM.config.experiment import ExperimentConfig
from NatureLM.config.model import BeatsConfig, FbankConfig, QFormerConfig
from NatureLM.config.training import DatasetsConfig, RunConfig

LLAMA_3_TEMPLATE = (
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


class ModelConfig(Section):
    """The parts of the model, their sizes, and which of them training leaves as they are."""

    llama_path: Text = "meta-llama/Meta-Llama-3.1-8B-Instruct"
    """Language model: an id on the Hugging Face Hub or a folder."""
    beats_path: str | None = None
    """Weights that the audio encoder starts training from."""
    ckpt: str | None = None
    """Checkpoint to start from: an id on the Hub or a folder."""

    freeze_beats: bool = True
    """Whether training leaves the audio encoder as it is."""
    freeze_llama: bool = True
    """Whether training leaves the language model itself as it is; the adapter is `lora`."""
    use_audio_Qformer: bool = True
    """Whether a Q-Former stands between encoder and language model."""
    max_pooling: bool = False
    """Pool encoded audio by `downsample_factor` instead of using a Q-Former."""
    downsample_factor: int = Field(default=8, ge=1)
    """Encoded frames that are pooled into one; acts only with `max_pooling`."""
    freeze_audio_QFormer: bool = False
    """Whether training leaves the Q-Former and its queries as they are."""
    window_level_Qformer: bool = True
    """Whether the queries are asked of each group of frames, not of the whole window."""
    num_audio_query_token: int = Field(default=1, ge=1)
    """Learned queries for each group of audio frames."""
    second_per_window: float = Field(default=0.333333, gt=0)
    """Length of a group of frames, in seconds."""
    second_stride: float = Field(default=0.333333, gt=0)
    """From the start of one group to the next, in seconds."""
    window_delays: list[float] | None = None
    """Seconds: a window is heard once for each, moved back by so much, and the hearings averaged.
    Null hears it once, as it is. Training hears the first."""
    qformer_path: str | None = None
    """Weights that the Q-Former, with its queries and norm, starts training from."""
    audio_llama_proj_model: str | None = None
    """Weights that the projection into the language model starts training from."""
    freeze_audio_llama_proj: bool = False
    """Whether training leaves the projection as it is."""

    lora: bool = True
    """Whether the language model has an adapter."""
    lora_rank: int = Field(default=32, ge=1)
    """Rank of the adapter's matrices."""
    lora_alpha: int = Field(default=32, ge=1)
    """Strength of the adapter: its output is multiplied by alpha / rank."""
    lora_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Part of the adapter's inputs that training leaves out."""
    lora_target_modules: list[Text] | None = None
    """Linear layers of the language model that are adapted; q, k, v and o projections if null."""
    use_rslora: bool = False
    """Scale the adapter by alpha / sqrt(rank) instead of alpha / rank."""

    prompt_template: str = Field(
        default=LLAMA_3_TEMPLATE, json_schema_extra={"allowed": "a string with {} exactly once"}
    )
    """Text around a query; {} is where the query goes."""
    max_txt_len: int = Field(default=160, ge=1)
    """Longest answer in training, in tokens."""
    end_sym: Text = "<|end_of_text|>"
    """Text that ends an answer in training."""

    sample_rate: int = Field(default=16000, ge=1000)
    """Of the audio that a model that is built anew hears, in Hz."""
    beats_cfg: BeatsConfig = BeatsConfig()
    qformer_cfg: QFormerConfig = QFormerConfig()
    fbank_cfg: FbankConfig = FbankConfig()

    flash_attn: Any = ignored("the fastest attention that the machine has is used")
    multi_prompt: Any = ignored("the prompts are in the data table")
    prompt_path: Any = ignored("the prompts are in the data table")
    test_prompt_path: Any = ignored("the prompts are in the data table")
    device: Any = ignored("use --device")
    audio_encoding_cache_size: Any = ignored("each window is encoded once")

    @field_validator("beats_path", "ckpt", "qformer_path", "audio_llama_proj_model")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value or None

    @field_validator("prompt_template")
    @classmethod
    def _one_place_for_the_query(cls, value: str) -> str:
        if value.count("{}") != 1:
            raise ValueError("it must hold {} exactly once, where the query goes")
        return value


class GenerateConfig(Section):
    """How answers are decoded, and how much of the adapter is in the weights."""

    max_new_tokens: int = Field(default=300, ge=1)
    """Longest answer, in tokens."""
    num_beams: int = Field(default=2, ge=1)
    """Beams of beam search; 1 is greedy."""
    do_sample: bool = False
    """Draw tokens at random instead of taking the likeliest; works with one beam."""
    min_length: int = Field(default=1, ge=0)
    """Shortest length in tokens, the prompt included."""
    temperature: float = Field(default=0.1, gt=0)
    """Acts only when sampling."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    length_penalty: float = 1.0
    """Above 0 prefers longer answers, below 0 shorter ones; acts only with several beams."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Smallest set of tokens with this probability is drawn from; acts only when sampling."""
    top_k: int = Field(default=0, ge=0)
    """Number of tokens that are drawn from, 0 for all; acts only when sampling."""
    seed: int = Field(default=0, ge=0)
    """Seed of the random draws."""
    merging_alpha: float = 1.0
    """0 is the base language model, 1 the adapted one, between them the two are merged."""

    @field_validator("do_sample")
    @classmethod
    def _sampling_has_one_beam(cls, value: bool, info: ValidationInfo) -> bool:
        beams = info.data.get("num_beams", 1)
        if value and beams > 1:
            raise ValueError(f"sampling works with one beam, and num_beams is {beams}")
        return value


class Config(Section):
    """A whole configuration file."""

    model: ModelConfig = ModelConfig()
    generate: GenerateConfig = GenerateConfig()
    datasets: DatasetsConfig | None = None
    """Training data."""
    run: RunConfig | None = None
    """How training runs."""
    extended: ExperimentConfig | None = None
    """An experiment over prompts, scales, species and datasets."""
