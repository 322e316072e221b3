"""The training loss: cross-entropy on answer tokens only.

Shapes: R rows, L positions, K scored positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase
from transformers.utils.generic import ModelOutput

from NatureLM.prompts import token_ids

IGNORE = -100


@dataclass
class LossOutput(ModelOutput):
    """Loss and counts of a batch; counts are numbers of answer tokens."""

    loss: Tensor | None = None
    correct: Tensor | None = None
    total: Tensor | None = None
    per_example_loss: Tensor | None = None
    correct_per_sample: Tensor | None = None
    total_per_sample: Tensor | None = None


class SoftTarget(NamedTuple):
    """One of several tokens that may stand at a position, and how likely it is there."""

    row: int
    position: int
    token: int
    share: float


@dataclass(frozen=True)
class AnswerRows:
    """Prompts with their answers, padded on the right, and what is to be predicted.

    soft: tokens of the positions in `targets_RL` that are not certain
    """

    embeds_RLD: Tensor
    mask_RL: Tensor
    targets_RL: Tensor
    soft: Sequence[SoftTarget] = ()

    @property
    def scored_positions(self) -> Tensor:
        """Positions whose prediction is scored in some row: a range, shape (K,)."""
        first = int((self.targets_RL != IGNORE).int().argmax(dim=1).min())
        last = self.targets_RL.shape[1] - 1
        return torch.arange(first - 1, last, device=self.targets_RL.device)


def answer_rows(
    prompts_LD: Sequence[Tensor],
    answers: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    embed_tokens: nn.Embedding,
    max_answer_tokens: int,
    soft: Sequence[Mapping[str, float] | None] = (),
) -> AnswerRows:
    """Append each answer's tokens (cut at `max_answer_tokens`) to its prompt's embeddings.

    soft: for each prompt, answers with how likely each is; None for one that is certain
    """
    device = prompts_LD[0].device
    rows: list[Tensor] = []
    targets: list[Tensor] = []
    soft_targets: list[SoftTarget] = []

    @cache  # rows with shares name the same answers again and again
    def tokens_of(text: str) -> tuple[int, ...]:
        return tuple(token_ids(text, tokenizer)[:max_answer_tokens])

    for row, (prompt_LD, answer) in enumerate(zip(prompts_LD, answers, strict=True)):
        tokens = tokens_of(answer)
        if row < len(soft) and (likely := soft[row]) is not None:
            shares = {tokens_of(text): share for text, share in likely.items()}
            soft_targets += _soft_targets(row, prompt_LD.shape[0], tokens, shares)
        ids = torch.tensor(tokens, dtype=torch.long, device=device)
        rows.append(torch.cat([prompt_LD, embed_tokens(ids)]))
        ignored = ids.new_full((prompt_LD.shape[0],), IGNORE)
        targets.append(torch.cat([ignored, ids]))
    lengths = torch.tensor([row.shape[0] for row in rows], device=device)
    positions = torch.arange(int(lengths.max()), device=device)
    return AnswerRows(
        pad_sequence(rows, batch_first=True),
        (positions < lengths[:, None]).long(),
        pad_sequence(targets, batch_first=True, padding_value=IGNORE),
        soft_targets,
    )


def _soft_targets(
    row: int, start: int, tokens: tuple[int, ...], shares: Mapping[tuple[int, ...], float]
) -> Iterator[SoftTarget]:
    """What may follow each part of the row's own answer, among the answers that begin like it."""
    for place in range(len(tokens)):
        follows: dict[int, float] = defaultdict(float)
        for other, share in shares.items():
            if len(other) > place and other[:place] == tokens[:place] and share > 0:
                follows[other[place]] += share
        whole = sum(follows.values())
        if len(follows) > 1:
            for token, share in follows.items():
                yield SoftTarget(row, start + place, token, share / whole)


def answer_loss(logits_RKV: Tensor, rows: AnswerRows) -> LossOutput:
    """Mean over all answer tokens of the batch, and the same per row."""
    wanted_RK = rows.targets_RL[:, rows.scored_positions + 1]
    scored = wanted_RK != IGNORE
    logits_RKV = logits_RKV if logits_RKV.dtype == torch.float64 else logits_RKV.float()
    token_loss = F.cross_entropy(
        logits_RKV.flatten(0, 1), wanted_RK.flatten(), ignore_index=IGNORE, reduction="none"
    ).view_as(wanted_RK)
    if rows.soft:
        token_loss = token_loss + _soft_loss(logits_RKV, rows, int(rows.scored_positions[0]) + 1)
    totals = scored.sum(dim=1)
    hits = ((logits_RKV.argmax(dim=-1) == wanted_RK) & scored).sum(dim=1)
    return LossOutput(
        loss=token_loss.sum() / totals.sum(),
        correct=hits.sum(),
        total=totals.sum(),
        per_example_loss=token_loss.sum(dim=1) / totals,
        correct_per_sample=hits,
        total_per_sample=totals,
    )


def _soft_loss(logits_RKV: Tensor, rows: AnswerRows, first: int) -> Tensor:
    """(R, K): what the loss of uncertain positions is more than that of the row's own token."""
    device = logits_RKV.device
    row, position, token = torch.tensor([one[:3] for one in rows.soft], device=device).T
    shares = [one.share for one in rows.soft]
    own, place = rows.targets_RL[row, position], position - first
    # the normaliser of the softmax is the same for all tokens of a position, and drops out
    more = logits_RKV[row, place, own] - logits_RKV[row, place, token]
    more = more * torch.tensor(shares, dtype=more.dtype, device=device)
    return logits_RKV.new_zeros(logits_RKV.shape[:2]).index_put((row, place), more, accumulate=True)
