"""The whole configuration: sections `model`, `generate`, `datasets`, `run` and `extended`.

Keys and defaults are those of the published model, its inference settings and stage 1 of its
training, so that files made for the reference load as they are. Every section may be left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from NatureLM.config.model import BeatsConfig, FbankConfig, QFormerConfig
from NatureLM.errors import UsageError
from NatureLM.util import did_you_mean


class Section(BaseModel):
    """A section of the configuration: unknown keys are refused, values are never changed later.

    Types are strict (`"2"` is no integer), NaN and infinity are no numbers. A field's
    `json_schema_extra` may hold `ignored` (why the key has no effect here) and `allowed` (what a
    message says is allowed, where type and bounds do not say it all).
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


Text = Annotated[str, Field(min_length=1)]
"""A string with at least one character."""

MAX_POSITIONS, MAX_STEPS, MAX_BATCH, MAX_SEED = 131_072, 100_000_000, 100_000, 2**32 - 1
"""Bounds of numbers, above all that a run could finish: positions are those of Llama 3.1."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A probability or a part of a whole."""


def ignored(reason: str) -> Any:
    """A key of the reference's files without effect here: accepted, and named in one warning."""
    return Field(default=None, json_schema_extra={"ignored": reason})


class TableSource(Section):
    """One source of labelled clips."""

    path: Text
    audio_root: Text | None = None
    """Folder that relative audio paths start from; the table's own folder if null."""
    columns: dict[str, str] = Field(default={})
    """Our column name to the table's, such as `answer: common_name`."""
    where: dict[str, str | list[str]] = Field(default={})
    """Only rows whose column has this value or one of these."""

    @classmethod
    def named(cls, path: str, **rest: Any) -> TableSource:
        """The table that options name; UsageError for names that are no UTF-8."""
        try:
            return cls(path=path, **rest)
        except ValidationError:
            raise UsageError(
                f"{path}: this name, or one of a column, holds bytes that are no UTF-8; rename it"
            ) from None


# Model and decoding


Quantization = Literal["int8", "int4"]
QUANTIZATIONS = ("int8", "int4")
"""What the weights of a language model can be stored as beside floating-point numbers."""

LLAMA_3_TEMPLATE = (
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


class ModelConfig(Section):
    """The parts of the model, their sizes, and which of them training leaves as they are."""

    llama_path: Text = "meta-llama/Meta-Llama-3.1-8B-Instruct"
    """Language model: an id on the Hugging Face Hub, a folder, or a GGUF file."""
    beats_path: str | None = None
    """Weights that the audio encoder starts training from."""
    ckpt: str | None = None
    """Checkpoint to start from: an id on the Hub or a folder."""
    revision: Text | None = None
    """Commit, tag or branch of `ckpt` on the Hub; that of `llama_path` stands in it, after an @."""
    weights_hash: Text | None = None
    """Hash that the weights of `ckpt` must have, as results record it (`weights`)."""
    quantize: Quantization | None = None
    """Store the language model's weights as integers of 8 or 4 bits; null leaves them as they are.
    Acts where a model answers, not in training."""

    freeze_beats: bool = True
    """Whether training leaves the audio encoder as it is."""
    freeze_llama: bool = True
    """Whether training leaves the language model itself as it is; the adapter is `lora`."""
    use_audio_Qformer: bool = True
    """Whether a Q-Former stands between encoder and language model."""
    max_pooling: bool = False
    """Pool encoded audio by `downsample_factor` instead of using a Q-Former."""
    downsample_factor: int = Field(default=8, ge=1, le=1000)
    """Encoded frames that are pooled into one; acts only with `max_pooling`."""
    freeze_audio_QFormer: bool = False
    """Whether training leaves the Q-Former and its queries as they are."""
    window_level_Qformer: bool = True
    """Whether the queries are asked of each group of frames, not of the whole window."""
    num_audio_query_token: int = Field(default=1, ge=1, le=1000)
    """Learned queries for each group of audio frames."""
    second_per_window: float = Field(default=0.333333, gt=0, le=3600)
    """Length of a group of frames, in seconds."""
    second_stride: float = Field(default=0.333333, gt=0, le=3600)
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
    lora_rank: int = Field(default=32, ge=1, le=65_536)
    """Rank of the adapter's matrices."""
    lora_alpha: int = Field(default=32, ge=1, le=1_000_000)
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
    max_txt_len: int = Field(default=160, ge=1, le=MAX_POSITIONS)
    """Longest answer in training, in tokens."""
    end_sym: Text = "<|end_of_text|>"
    """Text that ends an answer in training."""

    sample_rate: int = Field(default=16000, ge=1000, le=500_000)
    """Of the audio that a model that is built anew hears, in Hz."""
    beats_cfg: BeatsConfig = BeatsConfig()
    qformer_cfg: QFormerConfig = QFormerConfig()
    fbank_cfg: FbankConfig = FbankConfig()

    @model_validator(mode="after")
    def _pins_name_a_model(self) -> ModelConfig:
        for name in ("revision", "weights_hash"):
            if getattr(self, name) is not None and self.ckpt is None:
                raise ValueError(
                    f"{name} is of the checkpoint that model.ckpt names, and it names none"
                )
        return self

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

    max_new_tokens: int = Field(default=300, ge=1, le=MAX_POSITIONS)
    """Longest answer, in tokens; it is shorter where the context is full."""
    num_beams: int = Field(default=2, ge=1, le=100)
    """Beams of beam search; 1 is greedy."""
    do_sample: bool = False
    """Draw tokens at random instead of taking the likeliest; works with one beam."""
    min_length: int = Field(default=1, ge=0, le=MAX_POSITIONS)
    """Shortest length in tokens, the prompt included."""
    temperature: float = Field(default=0.1, ge=1e-6, le=1e6)
    """Acts only when sampling."""
    repetition_penalty: float = Field(default=1.0, ge=1e-6, le=1e6)
    length_penalty: float = Field(default=1.0, ge=-10, le=10)
    """Above 0 prefers longer answers, below 0 shorter ones; acts only with several beams."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Smallest set of tokens with this probability is drawn from; acts only when sampling."""
    top_k: int = Field(default=0, ge=0, le=1_000_000)
    """Number of tokens that are drawn from, 0 for all; acts only when sampling."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
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


# Training: `datasets` and `run`


_LAUNCH = "several processes are started with `accelerate launch`"


class TableConfig(TableSource):
    """One source of samples: a table (.jsonl, .json, .csv, .parquet), a folder of class names, or a
    Hugging Face dataset (its id on the Hub, or a folder of Arrow or Parquet files)."""

    name: Text | None = None
    """Name of the dataset in reports; the file's name without suffix if null."""
    weight: float = Field(default=1.0, ge=0)
    """Multiplies the dataset's share in the mixture."""
    prompts: list[Text] = Field(default=[])
    """Prompts for rows that have none; one is drawn for each draw of a row."""
    task: Text | None = None
    """Task of rows that name none."""
    split: Text | None = None
    """Split of a Hugging Face dataset; may be left out where there is one only."""
    subset: Text | None = None
    """Subset (configuration) of a Hugging Face dataset that has several."""
    balance: Literal["rows", "answers", "sqrt"] = "rows"
    """Rows alike; or each answer alike; or each answer by the square root of its rows."""


class FewShotConfig(Section):
    """Labelled clips of the same task put in front of the clip that is asked about."""

    prob: Share = 0.0
    tasks: list[Text] = Field(default=[])
    """Tasks whose samples may become few-shot samples; all if empty."""
    min_examples: int = Field(default=1, ge=1, le=10)
    max_examples: int = Field(default=5, ge=1, le=10)
    max_labels: int = Field(default=3, ge=1, le=1000)
    """Most different labels among the examples."""


class DatasetsConfig(Section):
    """Tables of training, validation and test data."""

    train_ann_path: Text | None = None
    valid_ann_path: Text | None = None
    test_ann_path: Text | None = None
    audio_max_length_seconds: float = Field(default=10.0, gt=0, le=3600)
    """Clips are cut or padded to this length."""

    train: list[TableConfig] = Field(default=[])
    """Further tables, mixed by weight."""
    valid: list[TableConfig] = Field(default=[])
    test: list[TableConfig] = Field(default=[])
    temperature: float = Field(default=1.0, ge=0.05, le=1000)
    """Share of a dataset ~ size ** (1 / temperature); above 1 favours small datasets."""
    max_bad_share: Share = 0.01
    """Part of the audio files that may be unreadable before the run stops."""
    audio_cache_mb: int = Field(default=1024, ge=0, le=10_000_000)
    """Decoded audio that is kept in memory, in MB."""
    few_shot: FewShotConfig = FewShotConfig()
    conversation_prob: Share = 0.0
    """Part of the samples that follow an answered question about the same clip."""
    questions_per_clip: int = Field(default=1, ge=1, le=1000)
    """Rows about the same clip that are asked in one sample: the clip is changed and encoded once
    for all of them. A batch then holds batch_size_train clips and up to so many times the rows."""


class OptimsConfig(Section):
    """AdamW with linear warm-up and a cosine down to `min_lr`."""

    max_epoch: int = Field(default=50, ge=1, le=1_000_000)
    warmup_steps: int = Field(default=5000, ge=0, le=MAX_STEPS)
    init_lr: float = Field(default=9e-5, gt=0)
    """Learning rate after the warm-up."""
    warmup_start_lr: float = Field(default=0.0, ge=0, validate_default=True)
    min_lr: float = Field(default=1e-5, ge=0, validate_default=True)
    weight_decay: float = Field(default=0.05, ge=0)
    beta1: float = Field(default=0.9, gt=0, lt=1)
    beta2: float = Field(default=0.999, gt=0, lt=1)
    muon_lr: float | None = Field(default=None, gt=0)
    """Learning rate of hidden matrices under Muon, for models trained from nothing; null trains
    everything by AdamW."""
    part_rates: dict[Text, float] = Field(default={})
    """Learning rate of a part (beats, qformer, projection, lora, language_model) over init_lr."""
    max_grad_norm: float | None = Field(default=2.0, gt=0)
    """Gradients are scaled down to this norm; null for no limit."""
    max_grad_value: float | None = Field(default=1.0, gt=0)
    """Gradients are clipped to this value; null for no limit."""

    device: Any = ignored("run.device says where training runs")
    resume_epoch: Any = ignored("use --resume")
    resume_optimizer: Any = ignored("use --resume")

    @field_validator("warmup_start_lr", "min_lr")
    @classmethod
    def _at_most_init_lr(cls, value: float, info: ValidationInfo) -> float:
        init_lr = info.data.get("init_lr")
        if init_lr is not None and value > init_lr:
            raise ValueError(f"it must be at most init_lr ({init_lr:g})")
        return value


class AugmentationsConfig(Section):
    """Random changes of the training audio."""

    use_augmentation: bool = False
    noise_dirs: list[Text] = Field(default=[])
    """Folders of noise recordings."""
    noise_prob: Share = 0.0
    low_snr: float = -10.0
    """Lowest signal-to-noise ratio of added noise, in dB."""
    high_snr: float = Field(default=25.0, validate_default=True)
    time_scale_prob: Share = 0.0
    time_scale: float = Field(default=1.1, ge=1, le=100)
    """Clips are played up to this many times faster or slower."""
    mask_audio_prob: Share = 0.0
    mixup_prob: Share = 0.0
    mixup_count: int = Field(default=2, ge=1, le=100)
    """Most clips that are mixed into one."""
    mix_tasks: list[Text] = Field(default=[])
    """Tasks whose answers are lists of labels, so that clips may be mixed; rows with a `labels`
    column may always."""

    synthetic_noise_prob: Share = 0.0
    """Coloured noise (white to brown) at low_snr to high_snr."""
    gain_prob: Share = 0.0
    gain_db: float = Field(default=12.0, ge=0)
    """Largest change of loudness, up or down."""
    colour_prob: Share = 0.0
    colour_db: float = Field(default=8.0, ge=0)
    """Largest gain or loss of a band, as microphones, distance and leaves change a sound."""
    random_crop: bool = True
    """Long clips are cut at random; otherwise their beginning is taken."""
    placement_prob: Share = 0.0
    """Short clips start at a random place in the window; otherwise at its start."""
    frequency_masks: int = Field(default=0, ge=0, le=1000)
    """Bands of the spectrogram that are masked."""
    frequency_mask_share: Share = 0.1
    """Widest such band, as a part of all mel bins."""
    time_masks: int = Field(default=0, ge=0, le=1000)
    """Stretches of the spectrogram that are masked."""
    time_mask_share: Share = 0.1
    """Longest such stretch, as a part of the window."""

    bandmask: Any = ignored("use frequency_masks and frequency_mask_share")
    revecho: Any = ignored("the released reference does not use it either")
    timescale: Any = ignored("use time_scale and time_scale_prob")
    flip: Any = ignored("the released reference does not use it either")

    @field_validator("high_snr")
    @classmethod
    def _not_below_low_snr(cls, value: float, info: ValidationInfo) -> float:
        low = info.data.get("low_snr")
        if low is not None and value < low:
            raise ValueError(f"it must be at least low_snr ({low:g})")
        return value


class EncoderTaskConfig(Section):
    """Training of the audio encoder alone, as a classifier of the answers."""

    loss: Literal["softmax", "multi-label"] = "softmax"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    positive_weight: float = Field(default=1.0, gt=0)
    """Weight of the labels that are there, multi-label only."""


class RunConfig(Section):
    """How training runs, and where its results go."""

    task: Literal["audio-text", "text", "encoder"] = "audio-text"
    """The whole model; the language model alone on text; or the audio encoder alone."""
    seed: int = Field(default=13, ge=0, le=MAX_SEED)
    output_dir: Text = "out"
    evaluate: bool = False
    """Only evaluate on the test table."""

    log_freq: int = Field(default=5, ge=1, le=MAX_STEPS)
    """Steps between log lines."""
    epoch_based: bool = False
    """An epoch is one pass over the data; otherwise it is `iters_per_epoch` steps."""
    iters_per_epoch: int = Field(default=10000, ge=1, le=MAX_STEPS)
    accum_grad_iters: int = Field(default=1, ge=1, le=MAX_BATCH)
    batch_size_train: int = Field(default=8, ge=1, le=MAX_BATCH)
    batch_size_eval: int = Field(default=32, ge=1, le=MAX_BATCH)
    num_workers: int = Field(default=12, ge=0, le=1000)
    rows_per_pass: int = Field(default=24, ge=1, le=MAX_BATCH)
    """Questions that pass the language model at a time, in the training of the whole model."""

    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        json_schema_extra={"allowed": "one of auto, cpu, mps, cuda, cuda:0, cuda:1 ..."},
    )
    amp: bool = True
    """Mixed precision (bfloat16); a CPU without bfloat16 instructions is faster without."""
    decode_ratio: Share = 0.1
    """Part of the evaluation samples whose answers are generated and scored."""

    max_steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """Length of the run in steps; max_epoch epochs if null."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Fewer steps than that, if no more fit into so many seconds at the pace of the warm-up."""
    save_every: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """Steps between checkpoints; an epoch if null."""
    eval_every: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """Steps between evaluations on the validation table; an epoch if null."""
    keep_checkpoints: int = Field(default=2, ge=1, le=MAX_STEPS)
    """Latest checkpoints that are kept, beside the best one."""
    best_by: Literal["loss", "token_accuracy", "accuracy", "macro_accuracy"] = "loss"
    """What the best checkpoint is chosen by; the accuracies are those of generated answers."""
    use_best: bool = False
    """The result is the best checkpoint; otherwise the last state."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the moving average of the weights that is evaluated and saved; 0 for none."""
    save_adapter: bool = False
    """Also write the adapter alone, in PEFT's format, to `output_dir`/adapter."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: slower, less memory."""
    loss_on: Literal["answer", "all"] = "answer"
    """What the text task learns to predict: answers, or prompts as well."""
    encoder: EncoderTaskConfig = EncoderTaskConfig()
    trackers: list[Literal["tensorboard", "trackio"]] = Field(default=[])
    """Where numbers are shown, beside the console and log.jsonl."""

    optims: OptimsConfig = OptimsConfig()
    augmentations: AugmentationsConfig = AugmentationsConfig()

    use_distributed: Any = ignored(_LAUNCH)
    world_size: Any = ignored(_LAUNCH)
    rank: Any = ignored(_LAUNCH)
    gpu: Any = ignored(_LAUNCH)
    dist_url: Any = ignored(_LAUNCH)
    dist_backend: Any = ignored(_LAUNCH)
    custom_metrics: Any = ignored("evaluation has its own metrics")
    wandb_enabled: Any = ignored("logs are files")


# Experiments: `extended`


SPECIES_LIST, EXAMPLES = "species_list", "examples"
AUDIO_EXAMPLES, RANDOMIZE = "audio_examples", "randomize"
FLAGS = (SPECIES_LIST, EXAMPLES, AUDIO_EXAMPLES, RANDOMIZE)
"""What may stand in braces in a query."""

_IN_BRACES = re.compile(r"\{([A-Za-z_][A-Za-z_ -]*)\}")
_AUDIO_PLACE = "<AudioHere>"


class SpeciesConfig(Section):
    """One species to choose from."""

    name: Text
    description: Text | None = None
    """What it sounds like, in words: shown for {examples}."""

    @field_validator("name", "description")
    @classmethod
    def _holds_no_audio(cls, value: str | None) -> str | None:
        if value is not None and _AUDIO_PLACE in value:
            raise ValueError(f"{_AUDIO_PLACE} stands for sound and belongs into a query")
        return value


class ExperimentConfig(Section):
    """What is asked of which samples, at which scales of the adapter."""

    datasets: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None, examples=[["unseen-family-cmn"]]
    )
    """Names of the datasets that are tested; all that the data hold if null."""
    lora_scales: Annotated[list[float], Field(min_length=1)] = Field(
        default=[1.0], examples=[[0.0, 0.5, 1.0]]
    )
    """Scales α of the adapter: 0 is the base language model, 1 the fine-tuned one."""
    queries: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None, examples=[["Identify the focal species.\nOne of: {species_list}"]]
    )
    """Asked instead of the dataset's own prompts; may hold {species_list}, {examples},
    {audio_examples} and {randomize}."""
    species: Annotated[list[SpeciesConfig], Field(min_length=1)] | None = Field(
        default=None, examples=[[{"name": "Wolf", "description": "[howls]"}]]
    )
    """Species to choose from; only samples of these are tested."""
    top_k_species: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = Field(
        default=None, examples=[3]
    )
    """Only samples of the k most frequent species of the one dataset are tested."""
    n_examples: int = Field(default=1, ge=1, le=1000, examples=[5])
    """Clips of each species for {audio_examples}."""

    support: Text | TableSource | None = Field(default=None, examples=["examples.csv"])
    """Clips for {audio_examples}: a table, a folder, or a dataset on disk; if null, the other
    samples of the dataset."""
    data: TableSource | None = Field(
        default=None, examples=[{"path": "clips.csv", "where": {"split": "test"}}]
    )
    """What is tested: BEANS-Zero on disk or on the Hub, or a table of one's own; `--data-path`
    puts another path in."""
    samples: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None, examples=[["XC1234", "XC1240"]]
    )
    """Ids of the samples that are tested; all if null."""
    limit: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = Field(
        default=None, examples=[100]
    )
    """So many samples at most, drawn by `seed`."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED, examples=[7])
    """Of {randomize}, of `limit` and of the choice of example clips."""
    output_path: Text | None = Field(default=None, examples=["runs/mine"])
    """Folder of the results; `runs/` and the name of the configuration if null."""
    batch_tokens: Annotated[int, Field(ge=1, le=100_000_000)] | None = Field(
        default=None, examples=[8192]
    )
    """Tokens in a batch: changes the speed, never the answers; chosen for the device if null."""

    @field_validator("lora_scales", "queries", "datasets", "samples")
    @classmethod
    def _each_once(cls, values: list[Any] | None) -> list[Any] | None:
        _refuse_twice(values or [])
        return values

    @field_validator("queries")
    @classmethod
    def _queries_are_well_formed(cls, queries: list[str] | None) -> list[str] | None:
        for query in queries or []:
            if not query.strip():
                raise ValueError("a query must hold more than spaces")
            _refuse_unknown_flags(query)
        return queries

    @field_validator("species")
    @classmethod
    def _species_fit(
        cls, species: list[SpeciesConfig] | None, info: ValidationInfo
    ) -> list[SpeciesConfig] | None:
        _refuse_twice(one.name for one in species or [])
        if _is_used(EXAMPLES, info):
            for one in species or []:
                if one.description is None:
                    raise ValueError(
                        f"{one.name!r} has no description, and a query with {{examples}} shows it"
                    )
        return species

    @field_validator("top_k_species")
    @classmethod
    def _one_way_to_choose_species(cls, k: int | None, info: ValidationInfo) -> int | None:
        if k is None:
            return k
        if info.data.get("species") is not None:
            raise ValueError("species and top_k_species exclude each other: keep one of them")
        datasets = info.data.get("datasets") or []
        if len(datasets) > 1:
            raise ValueError(
                f"it works with one dataset, and extended.datasets names {len(datasets)}"
            )
        if _is_used(EXAMPLES, info):
            raise ValueError(
                "a query holds {examples}, which shows descriptions: name the species with their "
                "descriptions in extended.species instead"
            )
        return k

    @field_validator("n_examples", "support")
    @classmethod
    def _has_an_effect(cls, value: Any, info: ValidationInfo) -> Any:
        is_default = value is None or value == 1
        if not is_default and "queries" in info.data and not _is_used(AUDIO_EXAMPLES, info):
            raise ValueError("no query holds {audio_examples}: put it into one, or leave this out")
        return value

    @model_validator(mode="after")
    def _there_are_species_to_show(self) -> ExperimentConfig:
        for query in self.queries or []:
            for flag in (SPECIES_LIST, EXAMPLES, AUDIO_EXAMPLES):
                if f"{{{flag}}}" in query and self.species is None and self.top_k_species is None:
                    also = "" if flag == EXAMPLES else ", or set extended.top_k_species"
                    raise ValueError(
                        f"the query {query!r} shows species with {{{flag}}}, and none are named: "
                        f"name them in extended.species{also}"
                    )
        return self

    @property
    def support_table(self) -> TableSource | None:
        """The table of example clips, however it is written."""
        return TableSource(path=self.support) if isinstance(self.support, str) else self.support


def _is_used(flag: str, info: ValidationInfo) -> bool:
    return any(f"{{{flag}}}" in query for query in info.data.get("queries") or [])


def _refuse_twice(values: Iterable[Any]) -> None:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{value!r} is in the list twice")
        seen.add(value)


def _refuse_unknown_flags(query: str) -> None:
    for flag in _IN_BRACES.findall(query):
        if flag not in FLAGS:
            hint = did_you_mean(flag.lower().strip(), FLAGS, "{{{}}}")
            known = ", ".join(f"{{{name}}}" for name in FLAGS)
            raise ValueError(f"{{{flag}}} is no flag of a query{hint} (flags: {known})")


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
