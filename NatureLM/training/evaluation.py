"""Evaluation during training: loss on a table, and accuracies of generated answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from NatureLM.training.audio_store import BadFiles
from NatureLM.training.objectives.base import Objective
from NatureLM.training.samples import Sample, SampleBuilder
from NatureLM.training.scores import Answered, answer_scores
from NatureLM.training.stream import plain_batches

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped, unused-ignore]

Scorer = Callable[[str, Sample], bool]


def same_text(answer: str, sample: Sample) -> bool:
    """Whether an answer is the expected one, but for case, outer space and a full stop."""
    return _plain(answer) == _plain(sample.answer)


def _plain(text: str) -> str:
    return text.strip().rstrip(".").casefold()


def evaluate(
    objective: Objective,
    module: nn.Module,
    builder: SampleBuilder,
    bad: BadFiles,
    accelerator: Accelerator,
    *,
    batch_size: int,
    decode_ratio: float = 0.0,
    scorer: Scorer = same_text,
) -> dict[str, float]:
    """Mean loss and token accuracy over all rows; `answer_scores` where answers are generated.

    module: gives the loss; that of the objective, or what wraps it

    decode_ratio: part of the batches whose answers are generated and scored
    """
    sums = torch.zeros(3, dtype=torch.float64)
    answered: list[Answered] = []
    batches = plain_batches(
        builder,
        batch_size,
        bad,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    module.eval()
    for number, samples in enumerate(batches):
        with torch.inference_mode(), accelerator.autocast():
            out = module(to_device(objective.collate(samples), accelerator.device))
        sums += torch.stack([value.double().cpu() for value in out])
        if _is_decoded(number, decode_ratio):
            with accelerator.autocast():
                answers = objective.answers(samples)
            answered += map(_answered, samples, map(scorer, answers, samples))
    loss, count, correct = accelerator.reduce(
        sums.to(accelerator.device, torch.float32 if accelerator.device.type == "mps" else None)
    ).tolist()
    scores = {"loss": loss / max(count, 1), "token_accuracy": correct / max(count, 1)}
    if decode_ratio > 0:
        scores |= answer_scores(_of_all_processes(answered, accelerator))
    return scores


def _answered(sample: Sample, correct: bool) -> Answered:
    return Answered(sample.id, bool(correct), sample.answer, sample.group)


def _of_all_processes(answered: list[Answered], accelerator: Accelerator) -> list[Answered]:
    if accelerator.num_processes == 1:
        return answered
    from accelerate.utils import gather_object  # type: ignore[import-untyped, unused-ignore]

    return [Answered(*row) for row in gather_object(answered)]


def _is_decoded(number: int, ratio: float) -> bool:
    """Every batch for 1, every second for 0.5, none for 0; the first one for all but 0."""
    return math.ceil((number + 1) * ratio - 1e-9) > math.ceil(number * ratio - 1e-9)


def to_device(batch: Any, device: torch.device) -> Any:
    """The same batch with its tensors on `device`."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list):
        return [to_device(value, device) for value in batch]
    return batch
