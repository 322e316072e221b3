"""Changes to the scores of the next token: repetition penalty, minimum length, sampling.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from NatureLM.errors import NatureLMError
from NatureLM.generation.options import GenerationOptions


class NotANumberError(NatureLMError):
    """The model's arithmetic came to no number."""

    def __init__(self) -> None:
        super().__init__(
            "the model's numbers became too large for its precision, so there is no answer: "
            "choose another one with --dtype (bfloat16 or float32)"
        )


def process_scores(
    scores_RV: Tensor,
    generated: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    eos_ids: Sequence[int],
    options: GenerationOptions,
) -> Tensor:
    """Scores after the penalties that greedy, sampling and beams share (a copy if changed)."""
    if options.repetition_penalty != 1.0:
        scores_RV = _penalise_repetition(scores_RV, generated, options.repetition_penalty)
    too_short = [
        row
        for row, (prompt, ids) in enumerate(zip(prompt_lengths, generated, strict=True))
        if prompt + len(ids) < options.min_length
    ]
    if too_short:
        scores_RV = scores_RV.clone()
        for row in too_short:
            scores_RV[row, list(eos_ids)] = -torch.inf
    return scores_RV


def _penalise_repetition(
    scores_RV: Tensor, generated: Sequence[Sequence[int]], penalty: float
) -> Tensor:
    scores_RV = scores_RV.clone()
    for row, ids in enumerate(generated):
        if ids:
            seen = torch.tensor(sorted(set(ids)), device=scores_RV.device)
            old = scores_RV[row, seen]
            scores_RV[row, seen] = torch.where(old < 0, old * penalty, old / penalty)
    return scores_RV


def random_stream(options: GenerationOptions, number: int) -> torch.Generator:
    """A row's own random stream, so that batch mates change nothing."""
    return torch.Generator().manual_seed(options.seed * 1_000_003 + number)


def sample(
    scores_RV: Tensor, options: GenerationOptions, streams: Sequence[torch.Generator]
) -> Tensor:
    """One token for each row, drawn from the row's stream; any where scores are no numbers."""
    shares_RV = _filter(scores_RV / options.temperature, options).softmax(-1).cpu()
    shares_RV[shares_RV.isnan().any(dim=-1)] = 1.0
    drawn = [
        torch.multinomial(row_V, 1, generator=stream)
        for row_V, stream in zip(shares_RV, streams, strict=True)
    ]
    return torch.cat(drawn).to(scores_RV.device)


def _filter(scores_RV: Tensor, options: GenerationOptions) -> Tensor:
    """Keep the `top_k` best tokens, and of them the fewest that hold `top_p` of the mass."""
    if options.top_k and options.top_k < scores_RV.shape[-1]:
        worst = scores_RV.topk(options.top_k, dim=-1).values[:, -1:]
        scores_RV = scores_RV.masked_fill(scores_RV < worst, -torch.inf)
    if options.top_p < 1.0:
        ordered, order = scores_RV.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        dropped = (before >= options.top_p).scatter(-1, order, before >= options.top_p)
        scores_RV = scores_RV.masked_fill(dropped, -torch.inf)
    return scores_RV
