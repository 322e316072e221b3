"""From a drawn row to what the model sees: prompt drawn, clips read, changed and put in windows.

A sample depends on the run's seed, the row, the epoch and the copy of the row within the epoch, and
on nothing else: not on order, batch, workers or processes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from NatureLM.config.training import AugmentationsConfig, FewShotConfig
from NatureLM.prompts import render
from NatureLM.training import augment
from NatureLM.training.audio_store import AudioStore
from NatureLM.training.augment import Mask, Wave
from NatureLM.training.compose import (
    ConversationPool,
    QuestionPool,
    SupportPool,
    as_second_turn,
    few_shot,
)
from NatureLM.training.examples import NONE_LABEL, Clip, Example, merge_labels
from NatureLM.training.sampling import Draw
from NatureLM.training.seeding import generator

_NO_CHANGES = AugmentationsConfig()


@dataclass(frozen=True)
class Asked:
    """A complete prompt with its answer, and the task it belongs to."""

    prompt: str
    answer: str
    task: str = ""


@dataclass(frozen=True)
class Sample:
    """What the model sees.

    prompt: complete text, template included
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
    further: tuple[Asked, ...] = ()

    @property
    def asked(self) -> tuple[Asked, ...]:
        """All questions."""
        return (Asked(self.prompt, self.answer, self.task), *self.further)


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


class SampleBuilder:
    """Builds samples from the rows of one data set (`examples`), safe under threads.

    noise: recordings to take noise from
    """

    def __init__(
        self,
        examples: Sequence[Example],
        settings: SampleSettings,
        store: AudioStore,
        noise: Sequence[Clip] = (),
    ) -> None:
        self.examples = examples
        self.settings = settings
        self.store = store
        self.noise = tuple(noise)
        self._support = SupportPool(examples) if settings.few_shot.prob > 0 else None
        self._talks = ConversationPool(examples) if settings.conversation_prob > 0 else None
        self._about = QuestionPool(examples) if settings.questions_per_clip > 1 else None
        self._mixable: dict[str, list[Example]] = defaultdict(list)
        if settings.augmentations.mixup_prob > 0:
            for example in examples:
                if example.labels and len(example.clips) == 1:
                    self._mixable[example.task].append(example)

    def build(self, draw: Draw) -> Sample:
        """The sample of a draw, with everything that is random. Raises `AudioError`."""
        row = self.examples[draw.row]
        rng = generator(self.settings.seed, "sample", row.id, draw.epoch, draw.copy)
        example, notes = self._compose(row, rng)
        used = self.settings.augmentations.use_augmentation
        changes = self.settings.augmentations if used else _NO_CHANGES
        sample = self._finish(example, rng, changes, notes)
        if self._about is None or example.clips != row.clips or sample.labels != row.labels:
            return sample  # what is known about the clip is not all that is heard
        return replace(sample, further=self._further(row, rng))

    def _further(self, row: Example, rng: np.random.Generator) -> tuple[Asked, ...]:
        """More questions about the clip of a row, so that a window is encoded once for several."""
        assert self._about is not None
        more = self._about.draw(row, self.settings.questions_per_clip - 1, rng)
        return tuple(
            Asked(self._prompt(_drawn(other, rng)), other.answer, other.task) for other in more
        )

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
                return _drawn(few_shot(example, support), rng), [f"{len(support)} examples"]
        if self._talks is not None and rng.random() < self.settings.conversation_prob:
            earlier = self._talks.draw(example, rng)
            if earlier is not None:
                return as_second_turn(self.settings.template, earlier, example, rng), ["two turns"]
        return _drawn(example, rng), []

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
            wav = self.store.read(clip)
            wav, done = augment.change_clip(wav, changes, rng)
            seconds.append(min(len(wav), self.settings.window_samples) / self.settings.sample_rate)
            wav, placed = augment.into_window(wav, self.settings.window_samples, changes, rng)
            notes += [*done, *placed]
            windows.append(wav)
        if labels and len(windows) == 1:
            windows[0], labels, done = self._mix(example, windows[0], changes, rng)
            if labels != example.labels:
                answer = ", ".join(labels)
            notes += done
        for i, wav in enumerate(windows):
            windows[i], done = self._with_noise(wav, changes, rng)
            masks.append(augment.draw_masks(changes, rng))
            notes += done
        return Sample(
            id=example.id,
            prompt=self._prompt(example),
            answer=answer,
            audios=tuple(np.clip(wav, -1.0, 1.0) for wav in windows),
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
            wav, _ = augment.change_clip(self.store.read(partner.clips[0]), changes, rng)
            wav, _ = augment.into_window(wav, len(window), changes, rng)
            others.append(wav)
            gains.append(float(rng.uniform(-6.0, 6.0)))
            labels.append(partner.labels)
        note = f"mixed with {len(others)} more"
        return augment.mix(window, others, gains), merge_labels(*labels), [note]

    def _with_noise(
        self, wav: Wave, changes: AugmentationsConfig, rng: np.random.Generator
    ) -> tuple[Wave, list[str]]:
        done = []
        if self.noise and rng.random() < changes.noise_prob:
            snr = augment.draw_snr(changes, rng)
            clip = self.noise[int(rng.integers(len(self.noise)))]
            noise = augment.fit_length(self.store.read(clip), len(wav), rng)
            wav = augment.add_at_snr(wav, noise, snr)
            done.append(f"noise at {snr:.0f} dB")
        if rng.random() < changes.synthetic_noise_prob:
            snr = augment.draw_snr(changes, rng)
            noise = augment.coloured_noise(len(wav), float(rng.uniform(0, 2)), rng)
            wav = augment.add_at_snr(wav, noise, snr)
            done.append(f"synthetic noise at {snr:.0f} dB")
        return wav, done

    def _noise(self, samples: int, rng: np.random.Generator) -> Wave:
        if self.noise:
            clip = self.noise[int(rng.integers(len(self.noise)))]
            return augment.fit_length(self.store.read(clip), samples, rng)
        return augment.coloured_noise(samples, float(rng.uniform(0, 2)), rng)


def _drawn(example: Example, rng: np.random.Generator) -> Example:
    """The row with one of its prompts, drawn."""
    return example.with_prompt(example.prompts[int(rng.integers(len(example.prompts)))])
