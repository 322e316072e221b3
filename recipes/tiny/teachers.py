"""Teachers of the encoder: small convolutional networks, several of them, averaged.

From under a thousand clips a convolutional network learns far more than a transformer does, since
it need not be told that a call may come at any time and a little higher or lower. The teachers
name changed windows, and BEATs learns to give the same probabilities (distillation, Hinton et al.,
arXiv 1503.02531). They are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from NatureLM.util import atomic_write
from recipes.tiny.fitting import Log, Schedule, Sounds, fit, smoothed
from recipes.tiny.spectrograms import Augmentation

_FRAMES = 4  # frames of 2.5 ms that are averaged into one of 10 ms
_HEADS = 4
_FILE = "teacher_{}.safetensors"


@dataclass(frozen=True)
class TeacherSettings:
    """Number, size and training of the teachers."""

    count: int = 2
    width: int = 24
    schedule: Schedule = field(
        default_factory=lambda: Schedule(1700, ((0.7, 16, 64), (0.3, 32, 32)), clip=2.0)
    )
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    smoothing: float = 0.05
    changes: Augmentation = field(default_factory=lambda: Augmentation(mix=0.5, colour_db=8.0))


class Block(nn.Module):
    """Two convolutions beside a short cut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
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
        self.stem_norm = nn.BatchNorm2d(width)
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
    sounds: Sounds, settings: TeacherSettings, folder: Path, seed: int, number: int, log: Log
) -> None:
    """Train `teacher_{number}.safetensors` of `folder`, unless it is there."""
    path = folder / _FILE.format(number)
    if path.is_file():
        return
    network = _train(sounds, settings, seed * 100 + number, number, log)
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    with atomic_write(path, alone=True) as unfinished:
        save_file(state, unfinished)


def load_teachers(folder: Path, classes: int, settings: TeacherSettings) -> Teachers:
    """What `train_teacher` wrote."""
    networks = []
    for number in range(settings.count):
        network = SoundNet(classes, settings.width)
        network.load_state_dict(load_file(folder / _FILE.format(number)))
        networks.append(network)
    return Teachers(networks)


def _train(sounds: Sounds, settings: TeacherSettings, seed: int, number: int, log: Log) -> SoundNet:
    torch.manual_seed(seed)
    network = SoundNet(len(sounds.labels), settings.width)
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=settings.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=settings.weight_decay,
    )
    return fit(
        network,
        [optimizer],
        sounds,
        settings.changes,
        settings.schedule,
        smoothed(settings.smoothing),
        seed=seed,
        log=lambda row: log({"teacher": number, **row}),
    )
