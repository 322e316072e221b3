"""The encoder stage: BEATs learns to name the sounds, before any language.

A linear classifier reads the attention-pooled patch vectors over all classes of both datasets; it
is thrown away afterwards. Windows are short at first (most calls are), then as long as the
model's. Hidden matrices are trained by Muon, which needs about half the steps of Adam here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from NatureLM.models.beats import BEATs
from NatureLM.training.seeding import generator
from NatureLM.training.tiny.architecture import new_encoder
from NatureLM.training.tiny.sounds import Clip
from NatureLM.training.tiny.spectrograms import Changes, Spectrograms, whole_windows


@dataclass(frozen=True)
class EncoderSettings:
    """How long and how fast; `phases` are (part of the steps, patches of a window, batch size)."""

    steps: int = 3000
    phases: tuple[tuple[float, int, int], ...] = ((0.6, 16, 96), (0.25, 32, 64), (0.15, 62, 32))
    learning_rate: float = 1e-3
    matrix_learning_rate: float = 0.02
    weight_decay: float = 0.05
    warmup: int = 50
    smoothing: float = 0.05
    balance: float = 0.5
    average: float = 0.995
    seed: int = 0
    changes: Changes = field(default_factory=Changes)

    def window(self, step: int) -> tuple[int, int]:
        """Patches of a window and batch size at a step."""
        done, progress = 0.0, step / self.steps
        for part, patches, batch in self.phases:
            done += part
            if progress < done:
                return patches, batch
        return self.phases[-1][1:]

    def rate(self, step: int) -> float:
        """Learning rate as a part of the full one: linear warm-up, cosine down to 2 %."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return min(1.0, (step + 1) / self.warmup) * (0.02 + 0.98 * cosine)


class Classifier(nn.Module):
    """BEATs, attention pooling with four heads, and a linear layer: spectrograms → logits."""

    def __init__(self, encoder: BEATs, classes: int, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        width = encoder.width
        self.attention = nn.Linear(width, heads)
        self.value = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, classes)

    def forward(self, fbank_BTF: Tensor) -> Tensor:
        encoded_BPD = self.encoder(fbank_BTF)
        weights_BPH = self.attention(encoded_BPD).float().softmax(dim=1)
        values_BPHK = self.value(encoded_BPD).unflatten(-1, (self.heads, -1))
        pooled = torch.einsum("bph,bphk->bhk", weights_BPH.to(values_BPHK.dtype), values_BPHK)
        logits: Tensor = self.out(self.dropout(self.norm(pooled.flatten(1))))
        return logits


@torch.no_grad()
def predict(model: Classifier, windows: Tensor) -> Tensor:
    """Logits (N, classes) of whole windows."""
    model.eval()
    logits = torch.cat([model(chunk) for chunk in windows.split(32)])
    model.train()
    return logits


def train_encoder(
    training: list[Clip],
    valid: list[Clip],
    labels: list[str],
    settings: EncoderSettings,
    folder: Path,
    log: Callable[[dict[str, Any]], None],
    teacher: Callable[[Tensor], Tensor] | None = None,
) -> BEATs:
    """Train; returns the encoder with averaged weights.

    Writes `folder/classifier.safetensors` and, with BEATs' own names, `folder/beats.safetensors`.

    teacher: gives class probabilities of windows; the student learns four parts of them and one
        part of the labels
    """
    data = Spectrograms(training, labels, settings.balance)
    patches = data.patches(6, generator(settings.seed, "patches"))
    model = Classifier(new_encoder(patches, settings.seed), len(labels))
    average = copy.deepcopy(model)
    optimizers = _optimizers(model, settings)
    windows = whole_windows(valid, data.config)
    for step in range(settings.steps):
        fbank, target = data.batch(
            settings.window(step)[1],
            settings.window(step)[0],
            settings.changes,
            generator(settings.seed, "batch", step),
        )
        if teacher is not None:
            target = 0.2 * target + 0.8 * teacher(fbank)
        else:
            target = target * (1 - settings.smoothing) + settings.smoothing / len(labels)
        loss = _step(model, optimizers, fbank, target, settings.rate(step), settings)
        _follow(average, model, min(settings.average, (1 + step) / (10 + step)))
        if (step + 1) % 100 == 0 or step + 1 == settings.steps:
            hits = predict(average, windows).argmax(1) == _targets(valid, labels)
            log({"stage": "encoder", "step": step + 1, "loss": loss, "valid": _share(hits)})
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_tensors(average), folder / "classifier.safetensors")
    save_file(_tensors(average.encoder), folder / "beats.safetensors")
    return average.encoder


def load_encoder(folder: Path, labels: list[str]) -> Classifier:
    """The classifier that `train_encoder` wrote."""
    blank = np.random.default_rng(0).standard_normal((4, 64, 64)).astype(np.float32)
    model = Classifier(new_encoder(blank, 0), len(labels))
    model.load_state_dict(load_file(folder / "classifier.safetensors"), strict=False)
    return model.eval()


def _optimizers(model: Classifier, settings: EncoderSettings) -> list[torch.optim.Optimizer]:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        hidden = parameter.ndim == 2 and "relative_attention_bias" not in name
        first_or_last = name.startswith(("out.", "attention."))
        (matrices if hidden and not first_or_last else others).append(parameter)
    return [
        torch.optim.AdamW(
            others,
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
        ),
        torch.optim.Muon(
            matrices, lr=settings.matrix_learning_rate, weight_decay=settings.weight_decay
        ),
    ]


def _step(
    model: Classifier,
    optimizers: list[torch.optim.Optimizer],
    fbank: Tensor,
    target: Tensor,
    rate: float,
    settings: EncoderSettings,
) -> float:
    full = (settings.learning_rate, settings.matrix_learning_rate)
    for optimizer, learning_rate in zip(optimizers, full, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(fbank)
    loss = -(target * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()
    model.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    """Move the averaged weights towards the model's."""
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1 - keep)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors of the model, shared ones once."""
    names: dict[int, str] = {}
    for name, tensor in sorted(model.state_dict().items()):
        names.setdefault(tensor.data_ptr(), name)
    state = model.state_dict()
    return {name: state[name].contiguous() for name in names.values()}


def _targets(clips: list[Clip], labels: list[str]) -> Tensor:
    return torch.tensor([labels.index(clip.label) for clip in clips])


def _share(hits: Tensor) -> float:
    return round(float(hits.float().mean()), 4)


def settings_as_dict(settings: EncoderSettings) -> dict[str, Any]:
    """For logs and for telling whether a finished stage fits."""
    return asdict(settings)
