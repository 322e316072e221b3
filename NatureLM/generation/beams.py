"""Beam search, with the rules that the reference's library had when its numbers were made.

Shapes: R rows (one for each beam of each unfinished prompt), V vocabulary.

The rules (transformers 4.44): the best continuations are looked at in order of their summed
log-probability; an end-of-text among the first `beams` of them completes a hypothesis,
whose score is the sum divided by (number of generated tokens, the end included) ** length_penalty;
others stay beams. A prompt is done when it has `beams` hypotheses and the best continuation,
scored at its present length, is no better than the worst of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from NatureLM.generation.labels import LabelGrammar
from NatureLM.generation.request import GenerationOptions
from NatureLM.generation.sampling import BeamStep, GenerationOutput, process_scores


@dataclass(eq=False)
class BeamState:
    """The beams and the finished hypotheses of one prompt."""

    width: int
    length_penalty: float
    max_new_tokens: int
    prompt_length: int
    grammar: LabelGrammar | None = None
    beams: list[list[int]] = field(default_factory=lambda: [[]])
    sums: list[float] = field(default_factory=lambda: [0.0])
    finished: list[tuple[float, GenerationOutput]] = field(default_factory=list)
    done: bool = False

    def advance(
        self, candidates: list[tuple[float, int, int]], eos_ids: Sequence[int]
    ) -> list[int]:
        """Take (sum, beam, token) from best to worst; returns the parents of the new beams."""
        beams: list[list[int]] = []
        sums: list[float] = []
        parents: list[int] = []
        if math.isnan(candidates[0][0]):  # sorted before all numbers; nothing can be compared
            self.finished = [(math.nan, GenerationOutput(self.beams[0], math.nan))]
            self.done = True
            return parents
        for rank, (total, parent, token) in enumerate(candidates):
            if total == -math.inf:  # neither it nor what comes after it is allowed
                break
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
        self.done = not beams or self._cannot_improve(candidates[0][0], len(beams[0]))
        if not self.done and len(beams[0]) >= self.max_new_tokens:
            for total, ids in zip(sums, beams, strict=True):  # they count at their present length
                self._finish(total, ids)
            self.done = True
        return parents

    def result(self) -> GenerationOutput:
        """The best hypothesis."""
        return max(self.finished, key=lambda scored: scored[0])[1]

    def _finish(self, total: float, ids: list[int]) -> None:
        score = total / len(ids) ** self.length_penalty
        if len(self.finished) < self.width or score > min(self.finished, key=_score)[0]:
            self.finished.append((score, GenerationOutput(ids, total)))
            if len(self.finished) > self.width:
                self.finished.remove(min(self.finished, key=_score))

    def _cannot_improve(self, best_sum: float, length: int) -> bool:
        if len(self.finished) < self.width:
            return False
        attainable: float = best_sum / length**self.length_penalty
        return min(self.finished, key=_score)[0] >= attainable


def _score(scored: tuple[float, GenerationOutput]) -> float:
    return scored[0]


class BeamSearch:
    """The best continuations of the beams of every prompt."""

    def __init__(self, options: GenerationOptions, eos_ids: Sequence[int]) -> None:
        self._options, self._eos_ids = options, list(eos_ids)

    def begin(
        self, prompt_length: int, stream: int = 0, grammar: LabelGrammar | None = None
    ) -> BeamState:
        """The state of a prompt of which nothing was decoded yet; nothing is drawn at random."""
        options = self._options
        return BeamState(
            options.num_beams,
            options.length_penalty,
            options.max_new_tokens if grammar is None else grammar.max_new_tokens,
            prompt_length,
            grammar,
        )

    def choose(self, logits_RV: Tensor, states: Sequence[BeamState]) -> BeamStep:
        """Take every prompt's beams one token further."""
        scores_RV = _sum_scores(logits_RV, states, self._eos_ids, self._options)
        widths = [len(search.beams) for search in states]
        candidates = _candidates(scores_RV, widths, self._options.num_beams, len(self._eos_ids))
        step = BeamStep([], [])
        first_row = 0
        for search, beams, best in zip(states, widths, candidates, strict=True):
            parents = search.advance(best, self._eos_ids)
            if not search.done:
                step.rows.extend(first_row + parent for parent in parents)
                step.tokens.extend(ids[-1] for ids in search.beams)
            first_row += beams
        return step


def _sum_scores(
    logits_RV: Tensor,
    searches: Sequence[BeamState],
    eos_ids: Sequence[int],
    options: GenerationOptions,
) -> Tensor:
    """Summed log-probability of every continuation (R, V)."""
    beams = [(search, ids) for search in searches for ids in search.beams]
    scores_RV = process_scores(
        logits_RV.log_softmax(dim=-1),
        [ids for _, ids in beams],
        [search.prompt_length for search, _ in beams],
        eos_ids,
        options,
        [search.grammar for search, _ in beams],
    )
    sums = [total for search in searches for total in search.sums]
    return scores_RV + scores_RV.new_tensor(sums)[:, None]


def _candidates(
    scores_RV: Tensor, widths: Sequence[int], width: int, eos_count: int
) -> list[list[tuple[float, int, int]]]:
    """The best (sum, beam, token) over the beams of each prompt, best first.

    Enough of them that `width` stay even if every beam's end-of-text tokens come first.
    `widths`: how many rows each prompt has; those with as many are one `topk`.
    """
    vocabulary = scores_RV.shape[-1]
    most = max(2, 1 + eos_count) * width
    first_rows = [0, *accumulate(widths)]
    found: list[list[tuple[float, int, int]]] = [[] for _ in widths]
    for beams in set(widths):
        prompts = [prompt for prompt, one in enumerate(widths) if one == beams]
        block_RV = scores_RV
        if len(prompts) < len(widths):
            rows = [first_rows[prompt] + beam for prompt in prompts for beam in range(beams)]
            block_RV = scores_RV[torch.tensor(rows, device=scores_RV.device)]
        best = block_RV.view(len(prompts), -1).topk(min(most, beams * vocabulary))
        for prompt, totals, places in zip(
            prompts, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            found[prompt] = [
                (total, place // vocabulary, place % vocabulary)
                for total, place in zip(totals, places, strict=True)
            ]
    return found
