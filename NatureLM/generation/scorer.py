"""Rows whose labels are scored: every list is one tree of tokens, and each label's score an answer.

Shapes: R rows, C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.generation.label_scores import LabelScores
from NatureLM.generation.logits import NotANumberError
from NatureLM.generation.memory import halving
from NatureLM.generation.requests import Answer, LabelChoice
from NatureLM.generation.scheduler import Batch, Budget, Row, plan_batches
from NatureLM.generation.scoring import score_trie
from NatureLM.generation.splice import splice_parts
from NatureLM.generation.trie import TokenTrie, label_tokens

if TYPE_CHECKING:
    from NatureLM.generation.engine import EngineModel

_MOST_PRIORS = 4096


class Scorer:
    """Answers rows with scores; the trees of lists and what labels are worth unheard are kept.

    eos_ids: tokens that end an answer
    budget: how large a batch may be; a row takes its prompt and the nodes of its list
    note: told that memory ran out
    """

    def __init__(
        self,
        model: EngineModel,
        eos_ids: Sequence[int],
        budget: Budget,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._model, self._eos_ids = model, list(eos_ids)
        self._budget, self._note = replace(budget, num_beams=1), note
        self._trie = lru_cache(maxsize=64)(self._make_trie)
        self._prior = lru_cache(maxsize=_MOST_PRIORS)(self._make_prior)

    def __call__(self, rows: Sequence[Row]) -> Iterator[Answer]:
        """An answer for each row, list by list."""
        by_list: dict[LabelChoice, list[Row]] = {}
        for row in rows:
            assert row.request.choice is not None, "rows without a list are not scored"
            by_list.setdefault(row.request.choice, []).append(row)
        for choice, members in by_list.items():
            yield from self._score_all(choice, members)

    def _score_all(self, choice: LabelChoice, rows: Sequence[Row]) -> Iterator[Answer]:
        room = replace(self._budget, new_tokens=len(self._trie(choice.labels)))
        batches = plan_batches(rows, room)
        while batches:
            batch = batches.pop(0)
            likely_RC = None
            with halving(len(batch.rows), self._note, "lists of labels were scored") as outcome:
                likely_RC = self._likelihoods(batch, choice.labels)
            if likely_RC is None:
                self._budget = self._budget.within(outcome.halved or 1)
                room = room.within(outcome.halved or 1)
                left = [row for one in (batch, *batches) for row in one.rows]
                batches = plan_batches(left, room)
                continue
            for row, likely_C in zip(batch.rows, likely_RC, strict=True):
                yield self._answer(row, choice, likely_C)

    def _answer(self, row: Row, choice: LabelChoice, likely_C: Tensor) -> Answer:
        if not likely_C.max().isfinite():
            return Answer(row.request, None, NotANumberError())
        tokens = [length + 1 for length in self._trie(choice.labels).lengths]  # the end is one
        scores_C = likely_C
        if choice.normalize == "mean":
            scores_C = likely_C / likely_C.new_tensor(tokens)
        elif choice.normalize == "prior":
            _refuse_silence(row)
            scores_C = likely_C - self._prior(row.parts, row.request.alpha, choice.labels)
        found = LabelScores(choice.labels, tuple(likely_C.tolist()), tuple(scores_C.tolist()))
        best = choice.labels.index(found.best)
        return Answer(
            row.request,
            found.best,
            log_probability=found.log_likelihoods[best],
            tokens=tokens[best],
            scores=found,
        )

    def _likelihoods(self, batch: Batch, labels: tuple[str, ...]) -> Tensor:
        """Log-likelihood of each label after each prompt (R, C), float64."""
        embed_tokens = self._model.llama_embed_tokens
        with torch.inference_mode():
            prompts = [splice_parts(row.parts, row.audios_QD, embed_tokens) for row in batch.rows]
        return score_trie(
            self._model.language_model,
            prompts,
            [row.request.alpha for row in batch.rows],
            self._trie(labels),
            self._eos_ids,
            shared=batch.shared,
        )

    def _make_prior(self, parts: Any, alpha: float, labels: tuple[str, ...]) -> Tensor:
        """The same (C,) without the audio of the prompt: how likely each label is unheard."""
        with torch.inference_mode():
            prompt = splice_parts(parts, (), self._model.llama_embed_tokens)
        return score_trie(
            self._model.language_model, [prompt], [alpha], self._trie(labels), self._eos_ids
        )[0]

    def _make_trie(self, labels: tuple[str, ...]) -> TokenTrie:
        return TokenTrie.of(label_tokens(labels, self._model.tokenizer, self._eos_ids))


def _refuse_silence(row: Row) -> None:
    if not row.audios_QD:
        raise UsageError(
            'normalize="prior" compares a prompt with the same prompt without audio, and this one '
            f"has none: {row.request.prompt[:200]!r}"
        )
