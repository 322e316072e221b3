"""Evaluation during training: loss on a table, and accuracies of generated answers.

Scores are names and numbers; one with an interval has two more entries, `<name>_low` and
`<name>_high`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from NatureLM.config.schema import RunConfig
from NatureLM.evaluation.bootstrap import clustered_interval
from NatureLM.evaluation.metrics import accuracy, macro_accuracy
from NatureLM.evaluation.protocols import caseless
from NatureLM.training.batches import BadFiles, plain_batches
from NatureLM.training.objectives import Objective
from NatureLM.training.samples import Sample, SampleBuilder

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped, unused-ignore]

LOW, HIGH = "_low", "_high"
_RESAMPLES = 500  # half a second for a thousand answers

Scorer = Callable[[str, Sample], bool]


class ScoredAnswer(NamedTuple):
    """A generated answer: of which row, right or not, the right label, the row's cluster."""

    id: str
    correct: bool
    label: str
    cluster: str


def answer_scores(answered: Sequence[ScoredAnswer]) -> dict[str, float]:
    """Accuracy and macro accuracy (over the true answers) with 95 % intervals over clusters.

    Clips of one recording (`group`) succeed or fail together, so clusters are resampled. Empty
    where nothing was answered.
    """
    if not answered:
        return {}
    rows = sorted(answered)  # so that processes and batches do not matter
    correct = np.array([row.correct for row in rows], dtype=np.float64)
    labels = np.array([row.label for row in rows])
    clusters = [row.cluster for row in rows]
    statistics = {
        "accuracy": lambda weights: accuracy(correct, weights),
        "macro_accuracy": lambda weights: macro_accuracy(correct, labels, weights),  # type: ignore[arg-type]
    }
    scores: dict[str, float] = {}
    for name, statistic in statistics.items():
        found = clustered_interval(statistic, clusters, repeats=_RESAMPLES)
        scores |= {name: found.value, name + LOW: found.low, name + HIGH: found.high}
    return scores


def score_lines(scores: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """(name in words, value in words with its interval) of every score."""
    for name, value in scores.items():
        if not name.endswith((LOW, HIGH)):
            text = f"{value:.4f}"
            if name + LOW in scores:
                text += f" [{scores[name + LOW]:.3f}, {scores[name + HIGH]:.3f}]"
            yield name.replace("_", " "), text


def same_text(answer: str, sample: Sample) -> bool:
    """Whether an answer is the expected one, but for case, blanks, ways to type and a full stop."""
    one, other = (caseless(text.strip().rstrip(".")) for text in (answer, sample.answer))
    return one == other


def evaluate(
    objective: Objective,
    module: nn.Module,
    builder: SampleBuilder,
    bad: BadFiles,
    accelerator: Accelerator,
    run: RunConfig,
    scorer: Scorer = same_text,
) -> dict[str, float]:
    """Mean loss and token accuracy over all rows; `answer_scores` where answers are generated.

    module: gives the loss; the objective, or what wraps it
    """
    from accelerate.utils import (  # type: ignore[import-untyped, unused-ignore]
        gather_object,
        send_to_device,
    )

    device, processes = accelerator.device, accelerator.num_processes
    sums = torch.zeros(3, dtype=torch.float64)
    answered: list[ScoredAnswer] = []
    batches = plain_batches(
        builder,
        run.batch_size_eval,
        bad,
        process=accelerator.process_index,
        processes=processes,
    )
    module.eval()
    for number, samples in enumerate(batches):
        with torch.inference_mode(), accelerator.autocast():
            out = module(send_to_device(objective.collate(samples), device))
        sums += torch.stack([value.double().cpu() for value in out])
        if is_decoded(number, run.decode_ratio):
            with accelerator.autocast():
                answers = objective.answers(samples)
            for answer, sample in zip(answers, samples, strict=True):
                correct = bool(scorer(answer, sample))
                answered.append(ScoredAnswer(sample.id, correct, sample.answer, sample.group))
    loss, count, correct_tokens = accelerator.reduce(
        sums.to(device, torch.float32 if device.type == "mps" else None)
    ).tolist()
    scores = {"loss": loss / max(count, 1), "token_accuracy": correct_tokens / max(count, 1)}
    if run.decode_ratio > 0:
        if processes > 1:
            answered = [ScoredAnswer(*row) for row in gather_object(answered)]
        scores |= answer_scores(answered)
    return scores


def is_decoded(number: int, ratio: float) -> bool:
    """Whether answers of a batch are generated, for a ratio of the batches.

    Every batch for 1, every second for 0.5, none for 0; the first one for all but 0.
    """
    return math.ceil((number + 1) * ratio - 1e-9) > math.ceil(number * ratio - 1e-9)
