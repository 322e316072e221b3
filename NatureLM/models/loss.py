"""The training loss: cross-entropy on answer tokens only.

Shapes: R rows, L positions, K scored positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase
from transformers.utils.generic import ModelOutput

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


@dataclass(frozen=True)
class AnswerRows:
    """Prompts with their answers, padded on the right, and what is to be predicted."""

    embeds_RLD: Tensor
    mask_RL: Tensor
    targets_RL: Tensor

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
) -> AnswerRows:
    """Append each answer's tokens (cut at `max_answer_tokens`) to its prompt's embeddings."""
    device = prompts_LD[0].device
    rows: list[Tensor] = []
    targets: list[Tensor] = []
    for prompt_LD, answer in zip(prompts_LD, answers, strict=True):
        tokens = tokenizer(answer, add_special_tokens=False).input_ids[:max_answer_tokens]
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
    )


def answer_loss(logits_RKV: Tensor, rows: AnswerRows) -> LossOutput:
    """Mean over all answer tokens of the batch, and the same per row."""
    wanted_RK = rows.targets_RL[:, rows.scored_positions + 1]
    scored = wanted_RK != IGNORE
    logits_RKV = logits_RKV if logits_RKV.dtype == torch.float64 else logits_RKV.float()
    token_loss = F.cross_entropy(
        logits_RKV.flatten(0, 1), wanted_RK.flatten(), ignore_index=IGNORE, reduction="none"
    ).view_as(wanted_RK)
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
