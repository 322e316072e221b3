"""The encoder stage: BEATs and the Q-Former learn to name the sounds, before any language.

They learn together, from teachers. A linear classifier reads the attention-pooled audio vectors
over all classes of both datasets; it is thrown away afterwards. Windows are short at first (most
calls are), then as long as the model's. Hidden matrices are trained by Muon, which needs about half
the steps of Adam here.

From under a thousand clips a convolutional network learns far more than a transformer does, since
it need not be told that a call may come at any time and a little higher or lower. Teachers are
several such networks, averaged. They name changed windows, and BEATs learns to give the same
probabilities (distillation, Hinton et al., arXiv 1503.02531); they are thrown away afterwards. All
are trained by the package's trainer.

Shapes: B windows, T frames, M mel bins, C classes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from NatureLM.audio.fbank import normalised_fbank
from NatureLM.config import Config
from NatureLM.config.model import QFormerConfig
from NatureLM.config.schema import OptimsConfig, RunConfig
from NatureLM.data.sample import Clip as Sound
from NatureLM.data.sample import Example, FileSource
from NatureLM.models.audio_side import QFormer, patch_groups
from NatureLM.models.beats import BEATs
from NatureLM.training.data import Data
from NatureLM.training.objectives import Objective, StepOutput
from NatureLM.training.samples import BatchLayout, BatchSource
from NatureLM.training.train import Trainer
from NatureLM.util import generator
from recipes.tiny.architecture import GROUP, NATURELM, fbank_config, new_encoder
from recipes.tiny.data import Clip
from recipes.tiny.spectrograms import SAMPLE_RATE, WINDOW_SECONDS, Augmentation, Spectrograms

TargetFn = Callable[[int, Tensor, Tensor], Tensor]
"""Class probabilities (B, C) to learn in a step, from windows (B, T, M) and label shares (B, C)."""

_LOG_EVERY = 100
_WEIGHTS = "classifier.safetensors"


@dataclass(frozen=True)
class Schedule:
    """How long, and on what windows.

    phases: (part of the steps, patches of a window, batch size), one after the other
    average: decay of the moving average of the weights, which is the result
    clip: largest norm of the gradients
    """

    steps: int
    phases: tuple[tuple[float, int, int], ...]
    warmup: int = 50
    average: float = 0.995
    clip: float = 1.0

    def window(self, step: int) -> tuple[int, int]:
        """Patches of a window and batch size at a step."""
        done, progress = 0.0, step / self.steps
        for part, patches, batch in self.phases:
            done += part
            if progress < done:
                return patches, batch
        return self.phases[-1][1:]


@dataclass(frozen=True)
class ClassifierSettings:
    """Training of a classifier.

    matrix_learning_rate: that of hidden matrices under Muon; None trains everything by AdamW
    smoothing: part of a target that is spread over all classes
    """

    schedule: Schedule
    changes: Augmentation
    learning_rate: float = 1e-3
    matrix_learning_rate: float | None = None
    weight_decay: float = 0.05
    smoothing: float = 0.05

    def smoothed(self, step: int, fbank_BTM: Tensor, target_BC: Tensor) -> Tensor:
        """The labels as the target, smoothed: a `TargetFn`."""
        return target_BC * (1 - self.smoothing) + self.smoothing / target_BC.shape[1]

    def config(self, folder: Path, seed: int) -> Config:
        """The configuration of the training run: a warm-up, then a cosine down to 2 %."""
        schedule = self.schedule
        optims = OptimsConfig(
            init_lr=self.learning_rate,
            min_lr=0.02 * self.learning_rate,
            muon_lr=self.matrix_learning_rate,
            warmup_steps=schedule.warmup,
            weight_decay=self.weight_decay,
            beta2=0.99,
            max_grad_norm=schedule.clip,
            max_grad_value=None,
        )
        run = RunConfig(
            task="encoder",
            seed=seed,
            output_dir=str(folder),
            device="cpu",
            max_steps=schedule.steps,
            log_freq=_LOG_EVERY,
            eval_every=_LOG_EVERY,
            save_every=schedule.steps,
            decode_ratio=1.0,
            ema_decay=schedule.average,
            optims=optims,
        )
        return Config(run=run)


@dataclass(frozen=True)
class Sounds:
    """What classifiers learn from, and what they are watched on."""

    training: Spectrograms
    valid: Sequence[Clip]
    labels: Sequence[str]


class SpectrogramBatches(BatchSource):
    """Changed windows and their targets, one batch a step: "fbank" (B, T, M), "target" (B, C).

    Windows are longer and batches smaller from phase to phase.
    """

    def __init__(
        self, data: Spectrograms, settings: ClassifierSettings, target: TargetFn, seed: int
    ) -> None:
        self.layout = BatchLayout(settings.schedule.phases[0][2])
        self._data, self._settings = data, settings
        self._target, self._seed = target, seed

    @property
    def epoch_steps(self) -> int:
        """All steps of the run."""
        return self._settings.schedule.steps

    def steps(self, first: int, last: int) -> Iterator[list[list[dict[str, Tensor]]]]:
        """The batches of the steps first, first + 1, … last - 1."""
        for step in range(first, last):
            patches, size = self._settings.schedule.window(step)
            rng = generator(self._seed, "batch", step)
            fbank, target = self._data.batch(size, patches, self._settings.changes, rng)
            yield [[{"fbank": fbank, "target": self._target(step, fbank, target)}]]


class SpectrogramClassifier(Objective):
    """Cross-entropy of a network (spectrograms → logits) with class probabilities."""

    sample_rate = SAMPLE_RATE
    window_samples = round(WINDOW_SECONDS * SAMPLE_RATE)

    def __init__(self, network: nn.Module, labels: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.labels = list(labels)

    def forward(self, batch: dict[str, Tensor]) -> StepOutput:
        """Cross-entropy of each window."""
        logits, target = self.network(batch["fbank"]).float(), batch["target"]
        loss = -(target * F.log_softmax(logits, dim=-1)).sum()
        right = (logits.argmax(-1) == target.argmax(-1)).sum()
        return StepOutput(loss, torch.tensor(len(target), device=loss.device), right)

    def collate(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        """A batch of `SpectrogramBatches` as it is, or validation samples as one."""
        if isinstance(samples[0], dict):
            return dict(samples[0])
        wav = torch.stack([torch.from_numpy(sample.audios[0]) for sample in samples])
        truths = [[label == sample.answer for label in self.labels] for sample in samples]
        return {
            "fbank": normalised_fbank(wav, SAMPLE_RATE, fbank_config()),
            "target": torch.tensor(truths, dtype=torch.float32),
        }

    @torch.no_grad()
    def answers(self, samples: Sequence[Any]) -> list[str]:
        """The likeliest label of each sample."""
        logits = self.network(self.collate(samples)["fbank"])
        return [self.labels[place] for place in logits.argmax(1).tolist()]

    def save(self, folder: Path) -> None:
        """Tensors of the network, shared ones once."""
        state = self.network.state_dict()
        names: dict[int, str] = {}
        for name, tensor in sorted(state.items()):
            names.setdefault(tensor.data_ptr(), name)
        save_file({name: state[name].contiguous() for name in names.values()}, folder / _WEIGHTS)


def train_classifier(
    network: nn.Module,
    sounds: Sounds,
    settings: ClassifierSettings,
    target: TargetFn,
    path: Path,
    seed: int,
) -> None:
    """Train `network`, and write its averaged weights to `path`.

    The log of the run is in the folder beside it that is called the same without `.safetensors`.
    """
    run = path.with_suffix("")
    shutil.rmtree(run, ignore_errors=True)  # what a run that was stopped left
    trainer = Trainer(
        settings.config(run, seed),
        Data(train=_examples(sounds.training.clips), valid=_examples(sounds.valid)),
        objective=SpectrogramClassifier(network, sounds.labels),
        loader=SpectrogramBatches(sounds.training, settings, target, seed),
    )
    trainer.run(resume=False)
    (run / "final" / _WEIGHTS).replace(path)
    for rest in ("final", "checkpoints"):
        shutil.rmtree(run / rest)


def _examples(clips: Sequence[Clip]) -> list[Example]:
    return [
        Example(
            str(clip.path),
            (Sound.of(FileSource(clip.path)),),
            answer=clip.label,
            dataset=clip.dataset,
            group=clip.family,
        )
        for clip in clips
    ]


# -- teachers -------------------------------------------------------------------------------

_FRAMES = 4  # frames of 2.5 ms that are averaged into one of 10 ms
_HEADS = 4
_FILE = "teacher_{}.safetensors"
_MOMENTUM = 0.005


@dataclass(frozen=True)
class TeacherSettings(ClassifierSettings):
    """Number, size and training of the teachers."""

    schedule: Schedule = field(
        default_factory=lambda: Schedule(1700, ((0.7, 16, 64), (0.3, 32, 32)), clip=2.0)
    )
    changes: Augmentation = field(default_factory=lambda: Augmentation(mix=0.5, colour_db=8.0))
    learning_rate: float = 2e-3
    count: int = 2
    width: int = 24


class SlowNorm(nn.BatchNorm2d):
    """Statistics over many batches: the trainer averages weights, not statistics.

    They are the mean of all batches at first, then move as slowly as the averaged weights.
    """

    def forward(self, x: Tensor) -> Tensor:
        tracked = 0 if self.num_batches_tracked is None else int(self.num_batches_tracked)
        self.momentum = max(_MOMENTUM, 1 / (tracked + 1))
        return super().forward(x)


class Block(nn.Module):
    """Two convolutions beside a short cut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = SlowNorm(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = SlowNorm(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else None
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        if self.stride != 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return F.silu((x if self.short is None else self.short(x)) + y)


class SoundNet(nn.Module):
    """Spectrograms (B, T, M) of the encoder's front end → logits (B, classes)."""

    def __init__(self, classes: int, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 5, 2, 2, bias=False)
        self.stem_norm = SlowNorm(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nn.Sequential(
            *(
                Block(inputs, outputs, 1 if number == 0 else 2)
                for number, (inputs, outputs) in enumerate(pairwise(widths))
            )
        )
        features = 2 * widths[-1]
        self.attention = nn.Linear(features, _HEADS)
        self.norm = nn.LayerNorm(features)
        self.dropout = nn.Dropout(0.2)
        self.out = nn.Linear(features, classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, fbank_BTM: Tensor) -> Tensor:
        frames = fbank_BTM.shape[1] // _FRAMES
        image = fbank_BTM[:, : frames * _FRAMES].unflatten(1, (frames, _FRAMES)).mean(2)[:, None]
        image = image.contiguous(memory_format=torch.channels_last)
        found = self.blocks(F.silu(self.stem_norm(self.stem(image))))  # (B, C, time, frequency)
        found = torch.cat([found.mean(3), found.amax(3)], 1).transpose(1, 2).float()
        weights = self.attention(found).softmax(dim=1)
        pooled = torch.einsum("bth,bthk->bhk", weights.float(), found.unflatten(-1, (_HEADS, -1)))
        logits: Tensor = self.out(self.dropout(self.norm(pooled.flatten(1))))
        return logits


class Teachers:
    """Several networks, asked in turn: over many windows that is as good as their mean."""

    def __init__(self, networks: Sequence[SoundNet]) -> None:
        self.networks = [network.eval() for network in networks]

    @torch.no_grad()
    def probabilities(self, fbank_BTM: Tensor, turn: int) -> Tensor:
        """Class probabilities (B, C) of one of them."""
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.networks[turn % len(self.networks)](fbank_BTM)
        return logits.float().softmax(dim=-1)

    def mean(self, fbank_BTM: Tensor) -> Tensor:
        """Class probabilities (B, C), the mean over all of them."""
        every = [self.probabilities(fbank_BTM, turn) for turn in range(len(self.networks))]
        return torch.stack(every).mean(dim=0)


def train_teacher(
    sounds: Sounds, settings: TeacherSettings, folder: Path, seed: int, number: int
) -> None:
    """Train `teacher_{number}.safetensors` of `folder`, unless it is there."""
    path = folder / _FILE.format(number)
    if path.is_file():
        return
    seed = seed * 100 + number
    torch.manual_seed(seed)
    network = SoundNet(len(sounds.labels), settings.width)
    train_classifier(network, sounds, settings, settings.smoothed, path, seed)


def load_teachers(folder: Path, classes: int, settings: TeacherSettings) -> Teachers:
    """What `train_teacher` wrote."""
    networks = []
    for number in range(settings.count):
        network = SoundNet(classes, settings.width)
        network.load_state_dict(load_file(folder / _FILE.format(number)))
        networks.append(network)
    return Teachers(networks)


# The encoder

ENCODER = "listener.safetensors"


@dataclass(frozen=True)
class EncoderSettings(ClassifierSettings):
    """Training of the encoder; `taught` is the teachers' part of its targets."""

    schedule: Schedule = field(
        default_factory=lambda: Schedule(2600, ((0.65, 18, 96), (0.2, 36, 48), (0.15, 62, 32)))
    )
    changes: Augmentation = field(default_factory=lambda: Augmentation(colour_db=8.0))
    matrix_learning_rate: float | None = 0.02
    taught: float = 0.9
    seed: int = 0


class AudioClassifier(nn.Module):
    """The audio encoder and the Q-Former with a classifier on top: spectrograms → logits.

    Parts are named as in `NatureLM`.
    """

    def __init__(self, encoder: BEATs, classes: int, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        config = QFormerConfig.model_validate(NATURELM["qformer_cfg"])
        self.beats = encoder
        self.ln_audio = nn.LayerNorm(encoder.width)
        self.audio_Qformer = QFormer(config, encoder.width)
        for module in self.audio_Qformer.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        self.audio_query_tokens = nn.Parameter(torch.randn(1, 1, config.hidden_size))
        self.head = Head(config.hidden_size, classes, heads, dropout)

    def forward(self, fbank_BTF: Tensor) -> Tensor:
        patches_BPE = self.ln_audio(self.beats(fbank_BTF))
        groups = patch_groups(patches_BPE, GROUP, GROUP)
        queries = self.audio_query_tokens.expand(groups.shape[0], -1, -1)
        audio = self.audio_Qformer(queries, groups)
        logits: Tensor = self.head(audio.reshape(fbank_BTF.shape[0], -1, audio.shape[-1]))
        return logits


class Head(nn.Module):
    """Attention pooling and a linear layer: vectors (B, N, D) → logits (B, classes)."""

    def __init__(self, width: int, classes: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        # Muon trains hidden matrices, and leaves out what is called a predictor.
        self.weight_predictor = nn.Linear(width, heads)
        self.value = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.class_predictor = nn.Linear(width, classes)

    def forward(self, vectors_BND: Tensor) -> Tensor:
        weights_BNH = self.weight_predictor(vectors_BND).float().softmax(dim=1)
        values_BNHK = self.value(vectors_BND).unflatten(-1, (self.heads, -1))
        pooled = torch.einsum("bnh,bnhk->bhk", weights_BNH.to(values_BNHK.dtype), values_BNHK)
        logits: Tensor = self.class_predictor(self.dropout(self.norm(pooled.flatten(1))))
        return logits


def train_encoder(
    sounds: Sounds, teachers: Teachers | None, settings: EncoderSettings, folder: Path
) -> None:
    """Train an `AudioClassifier`, and write its averaged weights to `folder`.

    Without teachers it learns from the labels alone.
    """
    patches = sounds.training.patches(6, generator(settings.seed, "patches"))
    torch.manual_seed(settings.seed)
    model = AudioClassifier(new_encoder(patches, settings.seed), len(sounds.labels))

    def target(step: int, fbank_BTM: Tensor, target_BC: Tensor) -> Tensor:
        labels = settings.smoothed(step, fbank_BTM, target_BC)
        if teachers is None:
            return labels
        given = teachers.probabilities(fbank_BTM, step)
        return (1 - settings.taught) * labels + settings.taught * given

    folder.mkdir(parents=True, exist_ok=True)
    train_classifier(model, sounds, settings, target, folder / ENCODER, settings.seed)


def load_classifier(folder: Path, labels: Sequence[str]) -> AudioClassifier:
    """What `train_encoder` wrote."""
    blank = np.random.default_rng(0).standard_normal((4, 64, 64)).astype(np.float32)
    model = AudioClassifier(new_encoder(blank, 0), len(labels))
    model.load_state_dict(load_file(folder / ENCODER), strict=False)  # shared tensors once
    return model.eval()
