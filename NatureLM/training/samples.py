"""From a drawn row to what the model sees: prompt drawn, clips read, changed and put in windows.

A sample depends on the run's seed, the row, the epoch and the copy of the row within the epoch, and
on nothing else: not on order, batch, workers or processes. It may be made of several rows: a
few-shot block of labelled clips, or the second of two turns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from NatureLM.config.schema import AugmentationsConfig, FewShotConfig
from NatureLM.data.sample import Clip, Example
from NatureLM.prompts import ChatTemplate, few_shot_prompt, render, with_clips, without_audio
from NatureLM.training import augment
from NatureLM.training.augment import Mask, Wave
from NatureLM.training.data import NONE_LABEL, merge_labels
from NatureLM.training.sampler import SampleIndex, generator
from NatureLM.util import ByteBoundedCache

_NO_CHANGES = AugmentationsConfig()


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
    augmentations: AugmentationsConfig = field(default_factory=AugmentationsConfig)
    few_shot: FewShotConfig = field(default_factory=FewShotConfig)
    conversation_prob: float = 0.0
    questions_per_clip: int = 1
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
        self._noise_clips = tuple(noise)
        self._support = SupportPool(examples) if settings.few_shot.prob > 0 else None
        several = settings.conversation_prob > 0 or settings.questions_per_clip > 1
        self._pool = ClipPool(examples if several else ())
        self._mixable: dict[str, list[Example]] = defaultdict(list)
        if settings.augmentations.mixup_prob > 0:
            for example in examples:
                if example.labels and len(example.clips) == 1:
                    self._mixable[example.task].append(example)

    def build(self, draw: SampleIndex) -> Sample:
        """The sample of a draw, with everything that is random. Raises `AudioError`."""
        row = self.examples[draw.row]
        rng = generator(self.settings.seed, "sample", row.id, draw.epoch, draw.copy)
        example, notes = self._compose(row, rng)
        used = self.settings.augmentations.use_augmentation
        changes = self.settings.augmentations if used else _NO_CHANGES
        sample = self._finish(example, rng, changes, notes)
        more = self.settings.questions_per_clip - 1
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
        return self._finish(example.with_prompt(example.prompts[0]), rng, unchanged, [])

    def _compose(self, example: Example, rng: np.random.Generator) -> tuple[Example, list[str]]:
        """Few-shot block or earlier turn, and one of the row's prompts."""
        few = self.settings.few_shot
        if (
            self._support is not None
            and len(example.clips) == 1
            and (not few.tasks or example.task in few.tasks)
            and rng.random() < few.prob
        ):
            support = self._support.draw(example, few, rng)
            if support:
                example = _with_drawn_prompt(few_shot(example, support), rng)
                return example, [f"{len(support)} examples"]
        two_turns = self.settings.conversation_prob
        if two_turns > 0 and rng.random() < two_turns:
            earlier = self._pool.draw_earlier(example, rng)
            if earlier is not None:
                return as_second_turn(self.settings.template, earlier, example, rng), ["two turns"]
        return _with_drawn_prompt(example, rng), []

    def _finish(
        self,
        example: Example,
        rng: np.random.Generator,
        changes: AugmentationsConfig,
        notes: list[str],
    ) -> Sample:
        windows, seconds, masks = [], [], []
        labels, answer = example.labels, example.answer
        for clip in example.clips:
            window, length, done = self._window(clip, changes, rng)
            windows.append(window)
            seconds.append(length)
            notes += done
        if labels and len(windows) == 1:
            windows[0], labels, done = self._mix(example, windows[0], changes, rng)
            if labels != example.labels:
                answer = ", ".join(labels)
            notes += done
        for i, window in enumerate(windows):
            windows[i], done = self._with_noise(window, changes, rng)
            masks.append(augment.draw_masks(changes, rng))
            notes += done
        return Sample(
            id=example.id,
            prompt=self._prompt(example),
            answer=answer,
            audios=tuple(np.clip(window, -1.0, 1.0) for window in windows),
            labels=labels,
            masks=tuple(masks),
            seconds=tuple(seconds),
            task=example.task,
            dataset=example.dataset,
            group=example.group or example.id,
            notes=tuple(notes),
        )

    def _prompt(self, example: Example) -> str:
        prompt = example.prompts[0]
        if example.rendered:
            return prompt
        if example.clips:
            return render(self.settings.template, prompt)
        return self.settings.template.replace("{}", prompt.strip())

    def _window(
        self, clip: Clip, changes: AugmentationsConfig, rng: np.random.Generator
    ) -> tuple[Wave, float, list[str]]:
        """A clip, changed and put into a window; seconds of sound in it, what was done."""
        wav, changed = augment.change_clip(self._audio.read(clip), changes, rng)
        seconds = min(len(wav), self.settings.window_samples) / self.settings.sample_rate
        window, placed = augment.pad_or_crop(wav, self.settings.window_samples, changes, rng)
        return window, seconds, [*changed, *placed]

    def _mix(
        self,
        example: Example,
        window: Wave,
        changes: AugmentationsConfig,
        rng: np.random.Generator,
    ) -> tuple[Wave, tuple[str, ...], list[str]]:
        """Replace the clip by noise, or mix in other clips; labels change with it."""
        if rng.random() < changes.mask_audio_prob:
            return self._noise(len(window), rng) * np.float32(0.1), (NONE_LABEL,), ["only noise"]
        partners = self._mixable.get(example.task, [])
        if not partners or rng.random() >= changes.mixup_prob:
            return window, example.labels, []
        others, gains, labels = [], [], [example.labels]
        for _ in range(int(rng.integers(1, changes.mixup_count + 1))):
            partner = partners[int(rng.integers(len(partners)))]
            others.append(self._window(partner.clips[0], changes, rng)[0])
            gains.append(float(rng.uniform(-6.0, 6.0)))
            labels.append(partner.labels)
        note = f"mixed with {len(others)} more"
        return augment.mix(window, others, gains), merge_labels(*labels), [note]

    def _with_noise(
        self, wav: Wave, changes: AugmentationsConfig, rng: np.random.Generator
    ) -> tuple[Wave, list[str]]:
        done = []
        if self._noise_clips and rng.random() < changes.noise_prob:
            snr = augment.draw_snr(changes, rng)
            wav = augment.add_at_snr(wav, self._noise(len(wav), rng), snr)
            done.append(f"noise at {snr:.0f} dB")
        if rng.random() < changes.synthetic_noise_prob:
            snr = augment.draw_snr(changes, rng)
            noise = augment.coloured_noise(len(wav), float(rng.uniform(0, 2)), rng)
            wav = augment.add_at_snr(wav, noise, snr)
            done.append(f"synthetic noise at {snr:.0f} dB")
        return wav, done

    def _noise(self, samples: int, rng: np.random.Generator) -> Wave:
        """Recorded noise, if there are recordings of it."""
        if self._noise_clips:
            clip = self._noise_clips[int(rng.integers(len(self._noise_clips)))]
            return augment.fit_length(self._audio.read(clip), samples, rng)
        return augment.coloured_noise(samples, float(rng.uniform(0, 2)), rng)


def _with_drawn_prompt(example: Example, rng: np.random.Generator) -> Example:
    """The row with one of its prompts, drawn."""
    return example.with_prompt(example.prompts[int(rng.integers(len(example.prompts)))])


def few_shot(query: Example, support: Sequence[Example]) -> Example:
    """The query with `support` spliced in front; clips in the order of their placeholders.

    Raises ValueError if a support clip is of the query's recording, or has not exactly one clip.
    """
    for example in (query, *support):
        if len(example.clips) != 1:
            raise ValueError(f"{example.id}: few-shot rows have one clip, not {len(example.clips)}")
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
        own = self._others(query, answers.get(query.answer, ()))
        if not own:
            return []
        total = int(rng.integers(config.min_examples, config.max_examples + 1))
        others = sorted(set(answers) - {query.answer})
        count = min(int(rng.integers(1, config.max_labels + 1)), total, 1 + len(others))
        chosen = [others[i] for i in rng.permutation(len(others))[: count - 1]]
        pools = [own, *(self._others(query, answers[label]) for label in chosen)]
        pools = [[pool[i] for i in rng.permutation(len(pool))] for pool in pools if pool]
        support: list[Example] = []
        while len(support) < total and any(pools):
            support += [pool.pop() for pool in pools if pool][: total - len(support)]
        if len(support) < config.min_examples:
            return []
        return [support[i] for i in rng.permutation(len(support))]

    @staticmethod
    def _others(query: Example, rows: Sequence[Example]) -> list[Example]:
        return [row for row in rows if not _same_recording(query, row)]


def _same_recording(one: Example, other: Example) -> bool:
    if one.group and one.group == other.group:
        return True
    names = {clip.source.name for clip in one.clips}
    return any(clip.source.name in names for clip in other.clips)


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
    asked = earlier.prompts[int(rng.integers(len(earlier.prompts)))]
    question = query.prompts[int(rng.integers(len(query.prompts)))]
    prompt = ChatTemplate.of(template).text(
        [(with_clips(asked, 1), earlier.answer), (without_audio(question), "")]
    )
    return replace(query.with_prompt(prompt, rendered=True), labels=())
