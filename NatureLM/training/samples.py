"""From a drawn row to what the model sees: prompt drawn, clips read, changed and put in windows.

A sample may be made of several rows: a few-shot block of labelled clips, or the second of two
turns. It depends on the run's seed, the row, the epoch and the copy of the row within the epoch,
and on nothing else: nothing here draws from a generator that lives on, so order, batch size, number
of workers and a resumed run cannot change it.

Waveforms are float32 of shape (samples,) in [-1, 1]; functions of them return new arrays and may
leave that range (windows are clipped at the end). dB values are of power.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from NatureLM.config.schema import AugmentationsConfig, DatasetsConfig, FewShotConfig
from NatureLM.data.sample import Clip, Example
from NatureLM.prompts import ChatTemplate, few_shot_prompt, render, with_clips, without_audio
from NatureLM.util import ByteBoundedCache, digest

Wave = npt.NDArray[np.float32]

NONE_LABEL = "None"
_EQ_BANDS = 5
_MEL_RANGE = 8000 / 700  # highest frequency (8 kHz) over the corner of the mel scale
_SILENCE = 1e-10  # mean power below which a clip has no level to scale against


def derive_seed(seed: int, *keys: int | str) -> int:
    """A 63-bit seed for `keys` under the run's `seed`; equal on every machine and Python."""
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in (seed, *keys))
    return int.from_bytes(digest(text, "blake2b", size=8), "big") >> 1


def generator(seed: int, *keys: int | str) -> np.random.Generator:
    """A fresh numpy generator for `keys` under the run's `seed`."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *keys)))


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
class SampleIndex:
    """One draw: the row, and which copy of it this is (`epoch` and `copy` seed its changes)."""

    row: int
    epoch: int
    copy: int


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
            Question(self._prompt(_with_drawn_prompt(other, rng)), other.answer, other.task)
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
                example = _with_drawn_prompt(few_shot(example, support), rng)
                return example, [f"{len(support)} examples"]
        if two_turns > 0 and rng.random() < two_turns:
            earlier = self._pool.draw_earlier(example, rng)
            if earlier is not None:
                return as_second_turn(self.settings.template, earlier, example, rng), ["two turns"]
        return _with_drawn_prompt(example, rng), []

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


def _with_drawn_prompt(example: Example, rng: np.random.Generator) -> Example:
    return example.with_prompt(_drawn(example.prompts, rng))


def _drawn(prompts: Sequence[str], rng: np.random.Generator) -> str:
    return prompts[int(rng.integers(len(prompts)))]


# Samples of several rows


def few_shot(query: Example, support: Sequence[Example]) -> Example:
    """The query with `support` spliced in front; clips in the order of their placeholders.

    All have one clip. Raises ValueError if a support clip is of the query's recording.
    """
    if any(_same_recording(query, example) for example in support):
        raise ValueError(f"{query.id}: an example clip is of the recording that is asked about")
    prompts = tuple(
        few_shot_prompt(without_audio(prompt), [example.answer for example in support])
        for prompt in query.prompts
    )
    clips = tuple(example.clips[0] for example in (*support, query))
    # A mix would change the answer that the examples point to.
    return replace(query, clips=clips, prompts=prompts, labels=())


class SupportPool:
    """Rows by task and answer, from which few-shot examples are drawn."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._by_task: dict[str, dict[str, list[Example]]] = defaultdict(lambda: defaultdict(list))
        for example in examples:
            if len(example.clips) == 1:
                self._by_task[example.task][example.answer].append(example)

    def draw(
        self, query: Example, config: FewShotConfig, rng: np.random.Generator
    ) -> list[Example]:
        """Labelled examples of the query's task, shuffled; empty if there are too few.

        The query's own answer is among the labels, examples are spread evenly over the labels, and
        none is of the query's recording.
        """
        answers = self._by_task.get(query.task, {})
        own = _of_other_recordings(query, answers.get(query.answer, ()))
        if not own:
            return []
        total = int(rng.integers(config.min_examples, config.max_examples + 1))
        others = sorted(set(answers) - {query.answer})
        count = min(int(rng.integers(1, config.max_labels + 1)), total, 1 + len(others))
        chosen = [others[i] for i in rng.permutation(len(others))[: count - 1]]
        pools = [own, *(_of_other_recordings(query, answers[answer]) for answer in chosen)]
        pools = [[pool[i] for i in rng.permutation(len(pool))] for pool in pools if pool]
        support: list[Example] = []
        while len(support) < total and any(pools):
            support += [pool.pop() for pool in pools if pool][: total - len(support)]
        if len(support) < config.min_examples:
            return []
        return [support[i] for i in rng.permutation(len(support))]


def _of_other_recordings(query: Example, rows: Sequence[Example]) -> list[Example]:
    return [row for row in rows if not _same_recording(query, row)]


def _same_recording(one: Example, other: Example) -> bool:
    """Of one group, or of one source: files are the same by their real paths."""
    if one.group and one.group == other.group:
        return True
    pairs = itertools.product((c.source for c in one.clips), (c.source for c in other.clips))
    return any(a == b or a.name == b.name for a, b in pairs)


class ClipPool:
    """Rows by their clips, from which other questions about the same clips are drawn."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._by_clips: dict[tuple[Clip, ...], list[Example]] = defaultdict(list)
        for example in examples:
            if example.clips:
                self._by_clips[example.clips].append(example)

    def draw_earlier(self, query: Example, rng: np.random.Generator) -> Example | None:
        """A row to be asked before the query, with other questions; None if there is none."""
        others = [row for row in self._others(query) if not set(row.prompts) & set(query.prompts)]
        return others[int(rng.integers(len(others)))] if others else None

    def draw_further(self, row: Example, count: int, rng: np.random.Generator) -> list[Example]:
        """Up to `count` rows to be asked beside a row, by weight, each once."""
        others = self._others(row)
        weights = np.array([other.weight for other in others])
        count = min(count, int((weights > 0).sum()))
        if count == 0:
            return []
        chosen = rng.choice(len(others), count, replace=False, p=weights / weights.sum())
        return [others[int(i)] for i in chosen]

    def _others(self, row: Example) -> list[Example]:
        return [other for other in self._by_clips.get(row.clips, ()) if other.id != row.id]


def as_second_turn(
    template: str, earlier: Example, query: Example, rng: np.random.Generator
) -> Example:
    """The query as the second question of a conversation; its prompt is complete.

    It has the form that a conversation gives: the audio stands in the first turn only.
    """
    asked, question = _drawn(earlier.prompts, rng), _drawn(query.prompts, rng)
    prompt = ChatTemplate.of(template).text(
        [(with_clips(asked, 1), earlier.answer), (without_audio(question), "")]
    )
    return replace(query.with_prompt(prompt, rendered=True), labels=())
