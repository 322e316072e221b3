"""From a drawn row to batches of what the model sees, which threads build ahead of it.

Of a sample the prompt is drawn, its clips are read, changed and put in windows. It may be made of
several rows: a few-shot block of labelled clips, or the second of two turns. It depends on the
run's seed, the row, the epoch and the copy of the row within the epoch, and on nothing else:
nothing here draws from a generator that lives on, so order, batch size, number of workers and a
resumed run cannot change it.

Waveforms are float32 of shape (samples,) in [-1, 1]; functions of them return new arrays and may
leave that range (windows are clipped at the end). dB values are of power.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from NatureLM.audio import AudioError, find_recordings
from NatureLM.config.schema import AugmentationsConfig, DatasetsConfig, RunConfig
from NatureLM.data.sample import Clip, Example, FileSource
from NatureLM.errors import NatureLMError
from NatureLM.memory import ByteBoundedCache
from NatureLM.prompts import render
from NatureLM.training.data import (
    NONE_LABEL,
    ClipPool,
    Data,
    SampleIndex,
    Sampler,
    SupportPool,
    as_second_turn,
    few_shot,
)
from NatureLM.util import derive_seed, generator

Wave = npt.NDArray[np.float32]
MicroBatches = list[list["Sample"]]

_EQ_BANDS = 5
_MEL_RANGE = 8000 / 700  # highest frequency (8 kHz) over the corner of the mel scale
_SILENCE = 1e-10  # mean power below which a clip has no level to scale against
_ENOUGH = 20  # bad files from which on their share of the files tried so far tells enough
_MOST_REPLACEMENTS = 20

# Changes of sound


def power(wav: Wave) -> float:
    """Mean square."""
    return float(np.mean(np.square(wav, dtype=np.float64))) if len(wav) else 0.0


def add_at_snr(wav: Wave, noise: Wave, snr_db: float) -> Wave:
    """Add noise so that the signal's power is `snr_db` above it; silence stays as it is.

    Padding (exact zeros) does not count towards the signal's power.
    """
    signal_power, noise_power = power(wav[wav != 0]), power(noise[noise != 0])
    if signal_power < _SILENCE or noise_power < _SILENCE:
        return _float32(wav)
    scale = np.sqrt(signal_power / noise_power / 10 ** (snr_db / 10))
    return _float32(wav + np.float32(scale) * noise)


def coloured_noise(samples: int, exponent: float, rng: np.random.Generator) -> Wave:
    """Noise whose power falls as 1 / f ** exponent (0 white, 1 pink, 2 brown), of unit power."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.maximum(np.arange(len(spectrum)), 1.0)
    noise = np.fft.irfft(spectrum * frequency ** (-exponent / 2), n=samples)
    return _float32(noise / max(np.sqrt(np.mean(np.square(noise))), 1e-12))


def random_eq(wav: Wave, largest_db: float, rng: np.random.Generator) -> Wave:
    """Another frequency response: random gains of a few frequencies, in between smooth.

    The frequencies are spread evenly over the mel scale; the mean gain is 0 dB.
    """
    if len(wav) == 0:
        return _float32(wav)
    gains_db = rng.uniform(-largest_db, largest_db, _EQ_BANDS)
    gains_db -= gains_db.mean()
    spectrum = np.fft.rfft(wav)
    mel = np.log1p(np.linspace(0, _MEL_RANGE, len(spectrum))) / np.log1p(_MEL_RANGE)
    curve_db = np.interp(mel, np.linspace(0, 1, _EQ_BANDS), gains_db)
    return _float32(np.fft.irfft(spectrum * 10 ** (curve_db / 20), n=len(wav)))


def time_scale(wav: Wave, factor: float) -> Wave:
    """Play `factor` times faster: shorter and higher (slower below 1)."""
    if factor == 1.0 or len(wav) == 0:
        return _float32(wav)
    import soxr  # type: ignore[import-untyped, unused-ignore]

    return _float32(soxr.resample(wav, factor * 1000, 1000, quality="MQ"))


def mix(base: Wave, others: Sequence[Wave], gains_db: Sequence[float]) -> Wave:
    """Add other windows at a level relative to the base's (0 dB: as loud), peak kept below 1."""
    mixed = base.astype(np.float32).copy()
    for other, db in zip(others, gains_db, strict=True):
        mixed = add_at_snr(mixed, other, -db) if power(mixed) >= _SILENCE else mixed + other
    peak = float(np.abs(mixed).max(initial=0.0))
    return _float32(mixed / max(peak, 1.0))


def _float32(wav: npt.NDArray[Any]) -> Wave:
    out: Wave = wav.astype(np.float32, copy=False)
    return out


@dataclass(frozen=True)
class Mask:
    """A masked band or stretch of the spectrogram, as parts of its bins or frames."""

    axis: str  # "time" or "frequency"
    start: float
    width: float


class Augmenter:
    """The random changes of one sample, drawn in the order of the calls.

    read: gives the waveform of a clip
    samples: length of a window
    noise: recordings to take noise from
    notes: what was done, in words
    """

    def __init__(
        self,
        config: AugmentationsConfig,
        rng: np.random.Generator,
        read: Callable[[Clip], Wave],
        samples: int,
        noise: Sequence[Clip] = (),
    ) -> None:
        self.config, self.rng, self.read, self.samples = config, rng, read, samples
        self.noise_clips = noise
        self.notes: list[str] = []

    def window(self, clip: Clip) -> tuple[Wave, int]:
        """A clip with another speed, loudness and colour in a window; samples of sound in it."""
        config, rng, wav = self.config, self.rng, self.read(clip)
        if rng.random() < config.time_scale_prob:
            factor = float(np.exp(rng.uniform(-1, 1) * np.log(config.time_scale)))
            wav = time_scale(wav, factor)
            self.notes.append(f"speed x{factor:.2f}")
        if rng.random() < config.gain_prob:
            db = float(rng.uniform(-config.gain_db, config.gain_db))
            wav = _float32(wav * np.float32(10 ** (db / 20)))
            self.notes.append(f"gain {db:+.1f} dB")
        # Where there is no colour, nothing is drawn for it: other draws stay as before it came.
        if config.colour_prob and rng.random() < config.colour_prob:
            wav = random_eq(wav, config.colour_db, rng)
            self.notes.append(f"colour {config.colour_db:g} dB")
        return self._pad_or_crop(wav), min(len(wav), self.samples)

    def _pad_or_crop(self, wav: Wave) -> Wave:
        """A random stretch of a long clip; a short one at a random place, or at the start."""
        spare, start = self.samples - len(wav), 0
        if spare < 0 and self.config.random_crop:
            first = int(self.rng.integers(0, 1 - spare))
            wav = wav[first:]
            self.notes.append("random crop")
        elif spare > 0 and self.rng.random() < self.config.placement_prob:
            start = int(self.rng.integers(0, spare + 1))
            self.notes.append("random placement")
        window = np.zeros(self.samples, dtype=np.float32)
        window[start : start + len(wav)] = wav[: self.samples]
        return window

    def mix(
        self, window: Wave, labels: tuple[str, ...], partners: Sequence[Example]
    ) -> tuple[Wave, tuple[str, ...]]:
        """Replace a window by noise, or mix clips of others into it; its labels change with it."""
        config, rng = self.config, self.rng
        if rng.random() < config.mask_audio_prob:
            self.notes.append("only noise")
            return self._noise(len(window)) * np.float32(0.1), (NONE_LABEL,)
        if not partners or rng.random() >= config.mixup_prob:
            return window, labels
        others, gains, said = [], [], len(self.notes)
        for _ in range(int(rng.integers(1, config.mixup_count + 1))):
            partner = partners[int(rng.integers(len(partners)))]
            others.append(self.window(partner.clips[0])[0])
            gains.append(float(rng.uniform(-6.0, 6.0)))
            labels += partner.labels
        # What was done to the others is not told.
        self.notes[said:] = [f"mixed with {len(others)} more"]
        return mix(window, others, gains), merge_labels(labels)

    def with_noise(self, window: Wave) -> Wave:
        """The window with recorded and with synthetic noise."""
        config, rng = self.config, self.rng
        if self.noise_clips and rng.random() < config.noise_prob:
            window = self._add_noise(window, "noise", self._noise)
        if rng.random() < config.synthetic_noise_prob:
            window = self._add_noise(window, "synthetic noise", self._synthetic)
        return window

    def _add_noise(self, window: Wave, name: str, make: Callable[[int], Wave]) -> Wave:
        snr = float(self.rng.uniform(self.config.low_snr, self.config.high_snr))
        self.notes.append(f"{name} at {snr:.0f} dB")
        return add_at_snr(window, make(len(window)), snr)

    def _noise(self, samples: int) -> Wave:
        """A random stretch of recorded noise, repeated where it is too short, if there is any."""
        if not self.noise_clips:
            return self._synthetic(samples)
        wav = self.read(self.noise_clips[int(self.rng.integers(len(self.noise_clips)))])
        if len(wav) < samples:
            wav = np.tile(wav, -(-samples // max(len(wav), 1)))
        start = int(self.rng.integers(0, len(wav) - samples + 1))
        return _float32(wav[start : start + samples])

    def _synthetic(self, samples: int) -> Wave:
        return coloured_noise(samples, float(self.rng.uniform(0, 2)), self.rng)

    def masks(self) -> tuple[Mask, ...]:
        """As in SpecAugment (arXiv 1904.08779): uniform widths up to the largest, anywhere."""
        config, masks = self.config, []
        for axis, count, widest in (
            ("frequency", config.frequency_masks, config.frequency_mask_share),
            ("time", config.time_masks, config.time_mask_share),
        ):
            for _ in range(count):
                width = float(self.rng.uniform(0, widest))
                masks.append(Mask(axis, float(self.rng.uniform(0, 1 - width)), width))
        return tuple(masks)


def merge_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """All labels once, sorted; `None` only when there is nothing else."""
    return tuple(sorted({*labels} - {NONE_LABEL})) or (NONE_LABEL,)


# Samples


@dataclass(frozen=True)
class Question:
    """A complete prompt with its answer, and the task that it belongs to."""

    prompt: str
    answer: str
    task: str = ""


@dataclass(frozen=True)
class Sample:
    """What the model sees.

    prompt: the complete prompt, template included
    audios: windows of (window samples,), one for each placeholder
    masks: of the spectrogram of each window
    seconds: length of the sound in each window before padding
    group: samples of one recording share it; the sample's own id where no recording is named
    notes: what was drawn and changed, in words
    further: more questions about the same windows
    """

    id: str
    prompt: str
    answer: str
    audios: tuple[Wave, ...] = ()
    labels: tuple[str, ...] = ()
    masks: tuple[tuple[Mask, ...], ...] = ()
    seconds: tuple[float, ...] = ()
    task: str = ""
    dataset: str = ""
    group: str = ""
    notes: tuple[str, ...] = ()
    further: tuple[Question, ...] = ()

    @property
    def questions(self) -> tuple[Question, ...]:
        """All questions about the windows."""
        return (Question(self.prompt, self.answer, self.task), *self.further)


@dataclass(frozen=True)
class SampleSettings:
    """How rows become samples."""

    template: str
    sample_rate: int = 16000
    window_samples: int = 160000
    datasets: DatasetsConfig = field(default_factory=DatasetsConfig)
    augmentations: AugmentationsConfig = field(default_factory=AugmentationsConfig)
    seed: int = 0


class AudioCache:
    """Reads clips, each at most once as long as they fit into `max_bytes`; safe under threads.

    sample_rate: that clips are resampled to, in Hz
    """

    def __init__(self, sample_rate: int, max_bytes: int) -> None:
        self._sample_rate = sample_rate
        self._kept: ByteBoundedCache[Clip, Wave] = ByteBoundedCache(max_bytes)

    def read(self, clip: Clip) -> Wave:
        """The clip's waveform, (samples,), not to be written to. Raises `AudioError`."""
        wav = self._kept.get(clip)
        if wav is None:
            wav = clip.source.read(
                start=clip.start, duration=clip.duration, sample_rate=self._sample_rate
            )
            wav.setflags(write=False)
            self._kept.put(clip, wav, wav.nbytes)
        return wav


class SampleBuilder:
    """Builds samples from the rows of one data set (`examples`), safe under threads.

    noise: recordings to take noise from
    """

    def __init__(
        self,
        examples: Sequence[Example],
        settings: SampleSettings,
        audio: AudioCache,
        noise: Sequence[Clip] = (),
    ) -> None:
        self.examples = examples
        self.settings = settings
        self._audio = audio
        self._noise = tuple(noise)
        datasets, augmentations = settings.datasets, settings.augmentations
        self._changes = augmentations if augmentations.use_augmentation else AugmentationsConfig()
        self._support = SupportPool(examples if datasets.few_shot.prob > 0 else ())
        several = datasets.conversation_prob > 0 or datasets.questions_per_clip > 1
        self._pool = ClipPool(examples if several else ())
        self._mixable: dict[str, list[Example]] = defaultdict(list)
        for example in examples if augmentations.mixup_prob > 0 else ():
            if example.labels and len(example.clips) == 1:
                self._mixable[example.task].append(example)

    def build(self, draw: SampleIndex) -> Sample:
        """The sample of a draw, with everything that is random. Raises `AudioError`."""
        row = self.examples[draw.row]
        rng = generator(self.settings.seed, "sample", row.id, draw.epoch, draw.copy)
        example, notes = self._compose(row, rng)
        sample = self._sample(example, rng, self._changes, notes)
        more = self.settings.datasets.questions_per_clip - 1
        if more == 0 or example.clips != row.clips or sample.labels != row.labels:
            return sample  # what is known about the clip is not all that is heard
        further = tuple(
            Question(self._prompt(other.with_drawn_prompt(rng)), other.answer, other.task)
            for other in self._pool.draw_further(row, more, rng)
        )
        return replace(sample, further=further)

    def plain(self, example: Example) -> Sample:
        """The row as it is, first prompt, nothing changed: for evaluation."""
        rng = generator(self.settings.seed, "plain", example.id)
        unchanged = AugmentationsConfig(random_crop=False)
        return self._sample(example.with_prompt(example.prompts[0]), rng, unchanged)

    def _compose(self, example: Example, rng: np.random.Generator) -> tuple[Example, list[str]]:
        """Few-shot block or earlier turn, and one of the row's prompts; what was done, in words."""
        few, two_turns = self.settings.datasets.few_shot, self.settings.datasets.conversation_prob
        asks_few_shot = len(example.clips) == 1 and (not few.tasks or example.task in few.tasks)
        if few.prob > 0 and asks_few_shot and rng.random() < few.prob:
            support = self._support.draw(example, few, rng)
            if support:
                example = few_shot(example, support).with_drawn_prompt(rng)
                return example, [f"{len(support)} examples"]
        if two_turns > 0 and rng.random() < two_turns:
            earlier = self._pool.draw_earlier(example, rng)
            if earlier is not None:
                return as_second_turn(self.settings.template, earlier, example, rng), ["two turns"]
        return example.with_drawn_prompt(rng), []

    def _sample(
        self,
        example: Example,
        rng: np.random.Generator,
        config: AugmentationsConfig,
        notes: Sequence[str] = (),
    ) -> Sample:
        settings, answer, labels = self.settings, example.answer, example.labels
        changes = Augmenter(config, rng, self._audio.read, settings.window_samples, self._noise)
        windows, lengths, masks = [], [], []
        for clip in example.clips:
            window, length = changes.window(clip)
            windows.append(window)
            lengths.append(length)
        if labels and len(windows) == 1:
            partners = self._mixable.get(example.task, ())
            windows[0], labels = changes.mix(windows[0], labels, partners)
            if labels != example.labels:
                answer = ", ".join(labels)
        for place, window in enumerate(windows):
            windows[place] = changes.with_noise(window)
            masks.append(changes.masks())
        return Sample(
            id=example.id,
            prompt=self._prompt(example),
            answer=answer,
            audios=tuple(np.clip(window, -1.0, 1.0) for window in windows),
            labels=labels,
            masks=tuple(masks),
            seconds=tuple(length / settings.sample_rate for length in lengths),
            task=example.task,
            dataset=example.dataset,
            group=example.group or example.id,
            notes=(*notes, *changes.notes),
        )

    def _prompt(self, example: Example) -> str:
        prompt = example.prompts[0]
        if example.rendered:
            return prompt
        if example.clips:
            return render(self.settings.template, prompt)
        return self.settings.template.replace("{}", prompt.strip())


# Batches


@dataclass
class BadFiles:
    """Which files could not be read, why, and whether they are too many.

    max_share: allowed part of `total`; from twenty bad files on, also of the files tried so far
    total: number of files that the data names
    """

    max_share: float
    total: int
    reasons: dict[str, str] = field(default_factory=dict)
    _tried: set[str] = field(default_factory=set)
    _tried_before: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tried(self, clips: Iterable[Clip]) -> None:
        """These clips are being read."""
        with self._lock:
            self._tried.update(clip.source.name for clip in clips)

    @property
    def tried_so_far(self) -> int:
        """How many files were read, also before the run was resumed."""
        return max(len(self._tried), self._tried_before)

    def restore(self, reasons: Mapping[str, str], tried: int) -> None:
        """Take up the account of a run that is resumed."""
        self.reasons, self._tried_before = dict(reasons), tried

    def add(self, error: AudioError) -> None:
        """A file could not be read; raises NatureLMError above the limit."""
        with self._lock:
            self.reasons[str(error.path)] = error.reason
            bad, tried = len(self.reasons), self.tried_so_far
            if bad > self.max_share * self.total:
                raise NatureLMError(self._report(f"the {self.total} audio files"))
            if bad >= _ENOUGH and bad > self.max_share * tried:
                raise NatureLMError(self._report(f"the first {tried} audio files"))

    def _report(self, of_what: str) -> str:
        lines = [
            f"{len(self.reasons)} of {of_what} cannot be used, more than "
            f"datasets.max_bad_share = {self.max_share:g} allows:",
            *(f"  {path}: {reason}" for path, reason in list(self.reasons.items())[:5]),
        ]
        if len(self.reasons) > 5:
            lines.append(f"  and {len(self.reasons) - 5} more")
        return "\n".join(lines)


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
    audio = AudioCache(sample_rate, config.audio_cache_mb * 2**20)
    changes = run.augmentations
    settings = SampleSettings(
        template, sample_rate, window_samples, config, changes, derive_seed(run.seed, "samples")
    )
    noise: list[Path] = []
    wanted = changes.noise_prob > 0 or changes.mask_audio_prob > 0
    if changes.use_augmentation and wanted and changes.noise_dirs:
        noise = find_recordings([Path(folder) for folder in changes.noise_dirs])
    rows = (*data.train, *data.valid, *data.test)
    files = {clip.source.name for row in rows for clip in row.clips}
    return (
        SampleBuilder(data.train, settings, audio, [Clip.of(FileSource(path)) for path in noise]),
        SampleBuilder(data.valid, settings, audio),
        SampleBuilder(data.test, settings, audio),
        BadFiles(config.max_bad_share, len(files)),
    )


@dataclass(frozen=True)
class BatchLayout:
    """How the samples of a step are shared out: micro-batches for each of `processes`."""

    batch_size: int
    accumulation: int = 1
    processes: int = 1

    @property
    def step_size(self) -> int:
        """Samples of one update, over all processes."""
        return self.batch_size * self.accumulation * self.processes

    def places(self, process: int) -> list[list[int]]:
        """For each micro-batch of a process, its samples' places within the step."""
        return [
            [(m * self.processes + process) * self.batch_size + i for i in range(self.batch_size)]
            for m in range(self.accumulation)
        ]


class BatchSource(ABC):
    """Where the batches of a run come from; give `Trainer` one of your own.

    layout: how a step is shared out
    """

    layout: BatchLayout

    @property
    @abstractmethod
    def epoch_steps(self) -> int:
        """Steps of an epoch."""

    @abstractmethod
    def steps(self, first: int, last: int) -> Iterator[list[list[Any]]]:
        """For each of the steps first, first + 1, … last - 1, this process's micro-batches.

        They are lists of what the objective collates, and depend on the step alone.
        """


class DataLoader(BatchSource):
    """Micro-batches of samples, drawn in a seeded order and built ahead by threads.

    Decoding and numpy release Python's lock, so threads suffice. A sample that cannot be built is
    replaced by another draw, so that batches keep their size and a resumed run sees the same data.

    workers: threads; 0 builds samples when they are asked for
    lengths: of the rows, if given; the samples of a step are sorted by it, so that batches pad
        little
    """

    def __init__(
        self,
        builder: SampleBuilder,
        order: Sampler,
        layout: BatchLayout,
        bad: BadFiles,
        *,
        process: int = 0,
        workers: int = 0,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.builder, self.order, self.layout, self.bad = builder, order, layout, bad
        self.process, self.workers, self.lengths = process, workers, lengths

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch of the order."""
        return self.order.epoch_steps(self.layout.step_size)

    def steps(self, first: int, last: int) -> Iterator[MicroBatches]:
        """Samples of the steps first, first + 1, … last - 1."""
        if self.workers == 0:
            for step in range(first, last):
                yield [[self.sample(at) for at in batch] for batch in self.positions(step)]
            return
        steps_ahead = 2 + -(
            -2 * self.workers // (self.layout.batch_size * self.layout.accumulation)
        )
        waiting: deque[list[list[Future[Sample]]]] = deque()
        with ThreadPoolExecutor(self.workers, thread_name_prefix="samples") as pool:
            try:
                for step in range(first, last + steps_ahead):
                    if step < last:
                        batches = self.positions(step)
                        waiting.append(
                            [[pool.submit(self.sample, at) for at in b] for b in batches]
                        )
                    if waiting and step - first + 1 >= steps_ahead:
                        yield [[future.result() for future in b] for b in waiting.popleft()]
            finally:
                for future in (f for step in waiting for batch in step for f in batch):
                    future.cancel()

    def positions(self, step: int) -> list[list[tuple[int, SampleIndex]]]:
        """This process's (position in the run, draw) of a step, by micro-batch."""
        start = step * self.layout.step_size
        draws = self.order.draws(start, self.layout.step_size)
        placed = [(start + i, draw) for i, draw in enumerate(draws)]
        if self.lengths is not None:
            lengths = self.lengths
            placed.sort(key=lambda item: (lengths[item[1].row], item[0]))
        return [[placed[i] for i in batch] for batch in self.layout.places(self.process)]

    def sample(self, at: tuple[int, SampleIndex]) -> Sample:
        """The sample at a position, or its replacement if a file of it cannot be read."""
        position, draw = at
        for attempt in range(_MOST_REPLACEMENTS):
            try:
                self.bad.tried(self.builder.examples[draw.row].clips)
                return self.builder.build(draw)
            except AudioError as error:
                self.bad.add(error)
                draw = self.order.replacement(position, attempt, draw)
        raise NatureLMError(
            f"{_MOST_REPLACEMENTS} draws in a row hold audio that cannot be read, the last one in "
            f"{self.builder.examples[draw.row].id}; is the disk with the recordings there?"
        )


def plain_batches(
    builder: SampleBuilder, batch_size: int, bad: BadFiles, *, process: int = 0, processes: int = 1
) -> Iterator[list[Sample]]:
    """All rows once, in order, unchanged, without the unreadable; each process has its share."""
    rows = builder.examples[process::processes]
    for first in range(0, len(rows), batch_size):
        batch = []
        for example in rows[first : first + batch_size]:
            bad.tried(example.clips)
            try:
                batch.append(builder.plain(example))
            except AudioError as error:
                bad.add(error)
        if batch:
            yield batch
