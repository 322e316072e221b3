"""Beam search, with the rules that the reference's library had when its numbers were made.

Shapes: R rows (one for each beam of each unfinished prompt), V vocabulary.

The rules (transformers 4.44): the best continuations are looked at in order of their summed
log-probability; an end-of-text among the first `beams` of them completes a hypothesis,
whose score is the sum divided by (number of generated tokens, the end included) ** length_penalty;
others go on as beams. A prompt is done when it has `beams` hypotheses and the best continuation,
scored at its present length, is no better than the worst of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from NatureLM.generation.logits import process_scores
from NatureLM.generation.options import GenerationOptions
from NatureLM.generation.session import DecodingSession


@dataclass
class _Search:
    """The beams and the finished hypotheses of one prompt."""

    width: int
    length_penalty: float
    prompt_length: int
    beams: list[list[int]] = field(default_factory=lambda: [[]])
    sums: list[float] = field(default_factory=lambda: [0.0])
    finished: list[tuple[float, list[int]]] = field(default_factory=list)
    done: bool = False

    def advance(
        self, candidates: list[tuple[float, int, int]], eos_ids: Sequence[int]
    ) -> list[int]:
        """Take (sum, beam, token) from best to worst; returns the parents of the new beams."""
        beams: list[list[int]] = []
        sums: list[float] = []
        parents: list[int] = []
        for rank, (total, parent, token) in enumerate(candidates):
            if token in eos_ids:
                if rank < self.width:  # whichever end came, the reference writes its first id
                    self._finish(total, [*self.beams[parent], eos_ids[0]])
                continue
            beams.append([*self.beams[parent], token])
            sums.append(total)
            parents.append(parent)
            if len(beams) == self.width:
                break
        self.beams, self.sums = beams, sums
        self.done = self._cannot_improve(candidates[0][0], len(beams[0]))
        return parents

    def best(self) -> list[int]:
        """The best hypothesis; unfinished beams count at their present length."""
        if not self.done:
            for total, ids in zip(self.sums, self.beams, strict=True):
                self._finish(total, ids)
        return max(self.finished, key=lambda scored: scored[0])[1]

    def _finish(self, total: float, ids: list[int]) -> None:
        score = total / len(ids) ** self.length_penalty
        if len(self.finished) < self.width or score > min(self.finished, key=_score)[0]:
            self.finished.append((score, ids))
            if len(self.finished) > self.width:
                self.finished.remove(min(self.finished, key=_score))

    def _cannot_improve(self, best_sum: float, length: int) -> bool:
        if len(self.finished) < self.width:
            return False
        attainable: float = best_sum / length**self.length_penalty
        return min(self.finished, key=_score)[0] >= attainable


def _score(scored: tuple[float, list[int]]) -> float:
    return scored[0]


def decode_beams(
    session: DecodingSession,
    prompt_lengths: Sequence[int],
    eos_ids: Sequence[int],
    options: GenerationOptions,
) -> list[list[int]]:
    """Token ids of the best hypothesis of each prompt; finished prompts leave the batch."""
    searches = [
        _Search(options.num_beams, options.length_penalty, length) for length in prompt_lengths
    ]
    active = list(searches)
    scores_RV = session.logits_RV
    for step in range(options.max_new_tokens):
        scores_RV = _sum_scores(scores_RV, active, eos_ids, options)
        widths = [len(search.beams) for search in active]
        candidates = _candidates(scores_RV, widths, options.num_beams, len(eos_ids))
        rows: list[int] = []
        first_row = 0
        going_on: list[_Search] = []
        for search, beams, best in zip(active, widths, candidates, strict=True):
            parents = search.advance(best, eos_ids)
            if not search.done:
                rows += [first_row + parent for parent in parents]
                going_on.append(search)
            first_row += beams
        active = going_on
        if not active or step + 1 == options.max_new_tokens:
            break
        session.select(rows)
        tokens = [ids[-1] for search in active for ids in search.beams]
        scores_RV = session.step(torch.tensor(tokens, device=scores_RV.device))
    return [search.best() for search in searches]


def _sum_scores(
    logits_RV: Tensor,
    active: Sequence[_Search],
    eos_ids: Sequence[int],
    options: GenerationOptions,
) -> Tensor:
    """Summed log-probability of every continuation (R, V)."""
    beams = [(search, ids) for search in active for ids in search.beams]
    scores_RV = process_scores(
        logits_RV.log_softmax(dim=-1),
        [ids for _, ids in beams],
        [search.prompt_length for search, _ in beams],
        eos_ids,
        options,
    )
    sums = [total for search in active for total in search.sums]
    return scores_RV + scores_RV.new_tensor(sums)[:, None]


def _candidates(
    scores_RV: Tensor, widths: Sequence[int], width: int, eos_count: int
) -> list[list[tuple[float, int, int]]]:
    """The best (sum, beam, token) over the beams of each prompt, best first.

    Enough of them that `width` go on even if every beam's end-of-text tokens come first.
    `widths`: how many rows each prompt has, mostly the same for all, which is one `topk` then.
    """
    vocabulary = scores_RV.shape[-1]
    same = len(set(widths)) == 1
    blocks = [scores_RV.view(len(widths), -1)] if same else scores_RV.split(list(widths))
    found: list[list[tuple[float, int, int]]] = []
    for block in blocks:
        flat = block if same else block.reshape(1, -1)
        best = flat.topk(min(max(2, 1 + eos_count) * width, flat.shape[-1]))
        for totals, places in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            found.append(
                [
                    (total, place // vocabulary, place % vocabulary)
                    for total, place in zip(totals, places, strict=True)
                ]
            )
    return found
