"""The run's data: tables from the configuration, and how they are mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from NatureLM.config.training import AugmentationsConfig, DatasetsConfig, RunConfig, TableConfig
from NatureLM.errors import ConfigError
from NatureLM.training.audio_cache import AudioCache, BadFiles, clip_reader
from NatureLM.training.sampler import Sampler, derive_seed, mixture_weights
from NatureLM.training.samples import SampleBuilder, SampleSettings
from NatureLM.training.stream import file_names
from NatureLM.training.table import Clip, Example, load_examples, with_mixable_labels
from NatureLM.util import digest


@dataclass(frozen=True)
class Data:
    """Rows of a run. `train` lists the datasets one after the other, `sizes` their lengths."""

    train: list[Example]
    sizes: list[int]
    shares: list[float]
    valid: list[Example]
    test: list[Example]

    def fingerprint(self) -> str:
        """Changes when a training row changes."""
        return digest(map(repr, self.train), "blake2b", size=8).hex()


def load_data(config: DatasetsConfig | None, run: RunConfig) -> Data:
    """Read all tables. Raises `TableError` with file and row."""
    config = config or DatasetsConfig()
    changes = run.augmentations
    tables = _sources(config.train_ann_path, config.train)
    if not tables and run.evaluate:  # nothing is drawn then, but labels and sizes are asked for
        tables = _sources(config.test_ann_path, config.test)
    if not tables:
        what = "test" if run.evaluate else "train"
        raise ConfigError(f"no {what} data: set datasets.{what}_ann_path or datasets.{what}")
    datasets = [_prepared(load_examples(table), changes, run) for table in tables]
    return Data(
        train=[example for dataset in datasets for example in dataset],
        sizes=[len(dataset) for dataset in datasets],
        shares=[table.weight for table in tables],
        valid=_flat(_sources(config.valid_ann_path, config.valid), changes, run),
        test=_flat(_sources(config.test_ann_path, config.test), changes, run),
    )


def _sources(single: str | None, tables: Sequence[TableConfig]) -> list[TableConfig]:
    return [*([TableConfig(path=single)] if single else []), *tables]


def _flat(
    tables: Sequence[TableConfig], changes: AugmentationsConfig, run: RunConfig
) -> list[Example]:
    return [e for table in tables for e in _prepared(load_examples(table), changes, run)]


def _prepared(
    examples: list[Example], changes: AugmentationsConfig, run: RunConfig
) -> list[Example]:
    """Labels where they are needed; text runs have no audio."""
    tasks: Sequence[str] = changes.mix_tasks
    if run.task == "encoder":
        tasks = sorted({example.task for example in examples})
    examples = with_mixable_labels(examples, tasks)
    for example in examples:
        if run.task == "text" and example.clips:
            raise ConfigError(f"{example.id} has audio, and run.task is text")
        if run.task == "encoder" and len(example.clips) != 1:
            raise ConfigError(
                f"{example.id} has {len(example.clips)} clips; the encoder task needs one"
            )
    return examples


def make_order(data: Data, config: DatasetsConfig, run: RunConfig, step_size: int) -> Sampler:
    """The order of draws; an epoch is one pass over the data, or `iters_per_epoch` steps."""
    weights, first = [], 0
    for size in data.sizes:
        weights.append([example.weight for example in data.train[first : first + size]])
        first += size
    probabilities = mixture_weights(weights, data.shares, config.temperature)
    size = len(data.train) if run.epoch_based else run.iters_per_epoch * step_size
    return Sampler(probabilities, data.sizes, size, derive_seed(run.seed, "data"))


def make_builders(
    data: Data,
    config: DatasetsConfig,
    run: RunConfig,
    *,
    template: str,
    sample_rate: int,
    window_samples: int,
) -> tuple[SampleBuilder, SampleBuilder, SampleBuilder, BadFiles]:
    """Builders of training, validation and test samples, and the account of bad files."""
    store = AudioCache(clip_reader(sample_rate), config.audio_cache_mb * 2**20)
    settings = SampleSettings(
        template=template,
        sample_rate=sample_rate,
        window_samples=window_samples,
        augmentations=run.augmentations,
        few_shot=config.few_shot,
        conversation_prob=config.conversation_prob,
        questions_per_clip=config.questions_per_clip,
        seed=derive_seed(run.seed, "samples"),
    )
    bad = BadFiles(config.max_bad_share, len(file_names([*data.train, *data.valid, *data.test])))
    train, valid, test = (
        SampleBuilder(rows, settings, store, noise)
        for rows, noise in (
            (data.train, _noise(run.augmentations)),
            (data.valid, ()),
            (data.test, ()),
        )
    )
    return train, valid, test, bad


def _noise(changes: AugmentationsConfig) -> list[Clip]:
    """Noise recordings of the folders named; none are looked for when they are not used."""
    wanted = changes.noise_prob > 0 or changes.mask_audio_prob > 0
    if not (changes.use_augmentation and wanted and changes.noise_dirs):
        return []
    from NatureLM.audio import find_recordings

    return [Clip(str(path)) for path in find_recordings([Path(d) for d in changes.noise_dirs])]
