"""The sections that training reads: `datasets` and `run` with its `optims` and `augmentations`.

Defaults are the published settings of stage 1.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from NatureLM.config.base import Section, Share, TableSource, Text, ignored

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
    max_labels: int = Field(default=3, ge=1)
    """Most different labels among the examples."""


class DatasetsConfig(Section):
    """Tables of training, validation and test data."""

    train_ann_path: Text | None = None
    valid_ann_path: Text | None = None
    test_ann_path: Text | None = None
    audio_max_length_seconds: float = Field(default=10.0, gt=0)
    """Clips are cut or padded to this length."""

    train: list[TableConfig] = Field(default=[])
    """Further tables, mixed by weight."""
    valid: list[TableConfig] = Field(default=[])
    test: list[TableConfig] = Field(default=[])
    temperature: float = Field(default=1.0, gt=0)
    """Share of a dataset ~ size ** (1 / temperature); above 1 favours small datasets."""
    max_bad_share: Share = 0.01
    """Part of the audio files that may be unreadable before the run stops."""
    audio_cache_mb: int = Field(default=1024, ge=0)
    """Decoded audio that is kept in memory, in MB."""
    few_shot: FewShotConfig = FewShotConfig()
    conversation_prob: Share = 0.0
    """Part of the samples that follow an answered question about the same clip."""
    questions_per_clip: int = Field(default=1, ge=1)
    """Rows about the same clip that are asked in one sample: the clip is changed and encoded once
    for all of them. A batch then holds batch_size_train clips and up to so many times the rows."""


class OptimsConfig(Section):
    """AdamW with linear warm-up and a cosine down to `min_lr`."""

    max_epoch: int = Field(default=50, ge=1)
    warmup_steps: int = Field(default=5000, ge=0)
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
    time_scale: float = Field(default=1.1, ge=1)
    """Clips are played up to this many times faster or slower."""
    mask_audio_prob: Share = 0.0
    mixup_prob: Share = 0.0
    mixup_count: int = Field(default=2, ge=1)
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
    frequency_masks: int = Field(default=0, ge=0)
    """Bands of the spectrogram that are masked."""
    frequency_mask_share: Share = 0.1
    """Widest such band, as a part of all mel bins."""
    time_masks: int = Field(default=0, ge=0)
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
    seed: int = Field(default=13, ge=0)
    output_dir: Text = "out"
    evaluate: bool = False
    """Only evaluate on the test table."""

    log_freq: int = Field(default=5, ge=1)
    """Steps between log lines."""
    epoch_based: bool = False
    """An epoch is one pass over the data; otherwise it is `iters_per_epoch` steps."""
    iters_per_epoch: int = Field(default=10000, ge=1)
    accum_grad_iters: int = Field(default=1, ge=1)
    batch_size_train: int = Field(default=8, ge=1)
    batch_size_eval: int = Field(default=32, ge=1)
    num_workers: int = Field(default=12, ge=0)

    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        json_schema_extra={"allowed": "one of auto, cpu, mps, cuda, cuda:0, cuda:1 ..."},
    )
    amp: bool = True
    """Mixed precision (bfloat16); a CPU without bfloat16 instructions is faster without."""
    decode_ratio: Share = 0.1
    """Part of the evaluation samples whose answers are generated and scored."""

    max_steps: int | None = Field(default=None, ge=1)
    """Length of the run in steps; max_epoch epochs if null."""
    save_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; an epoch if null."""
    eval_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations on the validation table; an epoch if null."""
    keep_checkpoints: int = Field(default=2, ge=1)
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
