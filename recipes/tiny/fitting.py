"""Training of classifiers of changed spectrograms: one loop for teachers and for the encoder."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from NatureLM.training.sampler import generator
from recipes.tiny.data import Clip
from recipes.tiny.spectrograms import Augmentation, Spectrograms, whole_windows

Log = Callable[[dict[str, Any]], None]
TargetFn = Callable[[int, Tensor, Tensor], Tensor]
Model = TypeVar("Model", bound=nn.Module)
_LOG_EVERY = 100


@dataclass(frozen=True)
class Schedule:
    """How long, on what windows, and how fast.

    phases: (part of the steps, patches of a window, batch size), one after the other
    average: decay of the moving average of the weights, which is the result
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

    def rate(self, step: int) -> float:
        """Learning rate as a part of the full one: linear warm-up, cosine down to 2 %."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return min(1.0, (step + 1) / self.warmup) * (0.02 + 0.98 * cosine)


@dataclass(frozen=True)
class Sounds:
    """What classifiers learn from, and what they are watched on."""

    training: Spectrograms
    valid: Sequence[Clip]
    labels: Sequence[str]


def smoothed(amount: float) -> TargetFn:
    """Aim at the labels, with `amount` of the weight spread over all of them."""

    def aim(step: int, fbank: Tensor, target: Tensor) -> Tensor:
        return target * (1 - amount) + amount / target.shape[1]

    return aim


def fit(
    model: Model,
    optimizers: Sequence[torch.optim.Optimizer],
    sounds: Sounds,
    changes: Augmentation,
    schedule: Schedule,
    aim: TargetFn,
    *,
    seed: int,
    log: Log,
) -> Model:
    """Train; returns a copy with averaged weights.

    optimizers: their learning rates are the full ones
    aim: the class probabilities to learn in a step, from windows (B, T, M) and targets (B, C)
    """
    average = copy.deepcopy(model)
    full = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    windows = whole_windows(sounds.valid, sounds.training.config)
    for step in range(schedule.steps):
        patches, size = schedule.window(step)
        rng = generator(seed, "batch", step)
        fbank, target = sounds.training.batch(size, patches, changes, rng)
        for optimizer, rates in zip(optimizers, full, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule.rate(step)
        loss = _step(model, optimizers, fbank, aim(step, fbank, target), schedule.clip)
        _follow(average, model, min(schedule.average, (1 + step) / (10 + step)))
        if (step + 1) % _LOG_EVERY == 0 or step + 1 == schedule.steps:
            log({"step": step + 1, "loss": round(loss, 4), **_watch(average, windows, sounds)})
    return average.eval()


@torch.no_grad()
def predict(model: nn.Module, windows: Tensor) -> Tensor:
    """Logits (N, classes) of whole windows."""
    model.eval()
    return torch.cat([model(chunk) for chunk in windows.split(32)])


def _watch(model: nn.Module, windows: Tensor, sounds: Sounds) -> dict[str, float]:
    """Accuracy on the clips that are watched, by dataset."""
    hits = [
        sounds.labels[place] == clip.label
        for place, clip in zip(
            predict(model, windows).argmax(1).tolist(), sounds.valid, strict=True
        )
    ]
    shares = {}
    for name in sorted({clip.dataset for clip in sounds.valid}):
        of = [hit for hit, clip in zip(hits, sounds.valid, strict=True) if clip.dataset == name]
        shares[name] = round(sum(of) / len(of), 4)
    return shares


def _step(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    fbank: Tensor,
    wanted: Tensor,
    clip: float,
) -> float:
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(fbank)
    loss = -(wanted * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()
    model.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    for optimizer in optimizers:
        optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, keep: float) -> None:
    """Move the averaged weights and statistics towards the model's."""
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, 1 - keep)
        else:
            mean.copy_(value)
