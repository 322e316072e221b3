"""Answers that can only be names of a list: what may come next, token by token.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.generation.labels import (
    NOTHING,
    Tokens,
    TokenTrie,
    check_labels,
    continued_tokens,
    label_tokens,
)

SEPARATOR = ", "
_LEAST = -1e9  # what an allowed token counts at least, so that one always can be chosen


class LabelGrammar:
    """All answers that a list of labels allows: one label, `None`, or with `several` more of them.

    labels: what may be answered
    several: whether an answer may be several different labels, separated by ", "
    max_new_tokens: how long an answer may be; it is raised where one label needs more

    Raises UsageError for a list that is empty, has a label twice, or one that is no plain text for
    the tokenizer; with `several` also for a label with a comma in it.
    """

    def __init__(
        self,
        labels: Sequence[str],
        tokenizer: Any,
        eos_ids: Sequence[int],
        *,
        several: bool = False,
        max_new_tokens: int = 64,
    ) -> None:
        check_labels(labels)
        self.labels = tuple(labels) if NOTHING in labels else (*labels, NOTHING)
        self._eos_ids = tuple(eos_ids)
        if not eos_ids:
            raise UsageError("the model has no token that ends an answer, so none can be closed")
        self._first = TokenTrie.of(label_tokens(self.labels, tokenizer, eos_ids))
        self._next: TokenTrie | None = None
        longest = max(self._first.lengths)
        self._named = [label for label in self.labels if label != NOTHING]
        if several and self._named:
            _refuse_commas(labels)
            further = [continued_tokens(label, SEPARATOR, tokenizer) for label in self._named]
            _refuse_unclear({one[0] for one in further}, self._first.tokens, further)
            self._next = TokenTrie.of(further)
            self._longest_further = max(self._next.lengths)
            self._number = {label: number for number, label in enumerate(self._named)}
        self.max_new_tokens = max(max_new_tokens, longest + 1)

    def allowed(self, ids: Sequence[int]) -> Tokens:
        """Tokens that may follow the beginning `ids` of an answer; always one at least."""
        trie, node, used, _ = self._walk(ids)
        allowed = [
            token
            for token, child in trie.children[node].items()
            if trie is self._first or trie.below[child] & ~used
        ]
        label = trie.label_at.get(node) if node >= 0 else None
        if label is not None and not (trie is self._next and used >> label & 1):
            allowed += self._eos_ids
            allowed += self._further(used | self._bit(trie, label), ids)
        return tuple(allowed)

    def text(self, ids: Sequence[int]) -> str:
        """The answer that a whole sequence spells, its end included or not."""
        end = next((place for place, one in enumerate(ids) if one in self._eos_ids), len(ids))
        trie, node, _, names = self._walk(ids[:end])
        return SEPARATOR.join([*names, self._name(trie, trie.label_at[node])])

    def _walk(self, ids: Sequence[int]) -> tuple[TokenTrie, int, int, list[str]]:
        """The tree and node where `ids` lead, and the labels before (bits and names)."""
        trie, node, used = self._first, -1, 0
        names: list[str] = []
        for token in ids:
            child = trie.children[node].get(token)
            if child is None:  # a separator: the label is complete, and another one begins
                label = trie.label_at[node]
                used |= self._bit(trie, label)
                names.append(self._name(trie, label))
                assert self._next is not None, "only a list of several labels goes on"
                trie = self._next
                child = trie.children[-1][token]
            node = child
        return trie, node, used, names

    def _further(self, used: int, ids: Sequence[int]) -> list[int]:
        """Tokens that begin one more label, if there is one left and room for it."""
        if self._next is None or not used:
            return []
        room = self.max_new_tokens - len(ids) - 1
        if room < self._longest_further:
            return []
        trie = self._next
        return [token for token, node in trie.children[-1].items() if trie.below[node] & ~used]

    def _bit(self, trie: TokenTrie, label: int) -> int:
        """The label as a bit among those that may follow; 0 for `None`, which none follows."""
        if self._next is None or self._name(trie, label) == NOTHING:
            return 0
        return 1 << self._number[self._name(trie, label)]

    def _name(self, trie: TokenTrie, label: int) -> str:
        return self.labels[label] if trie is self._first else self._named[label]


def only_allowed(
    scores_RV: Tensor,
    generated: Sequence[Sequence[int]],
    grammars: Sequence[LabelGrammar | None] | None,
) -> Tensor:
    """Scores with -inf for every token that a row's grammar does not allow (a copy if changed)."""
    if grammars is None or all(grammar is None for grammar in grammars):
        return scores_RV
    masked_RV = scores_RV.clone()
    for row, (ids, grammar) in enumerate(zip(generated, grammars, strict=True)):
        if grammar is not None:
            allowed = torch.tensor(grammar.allowed(ids), device=scores_RV.device)
            masked_RV[row] = -torch.inf
            masked_RV[row, allowed] = scores_RV[row, allowed].clamp_min(_LEAST)
    return masked_RV


def _refuse_commas(labels: Sequence[str]) -> None:
    for label in labels:
        if "," in label:
            raise UsageError(
                f"the label {label!r} has a comma in it, and several labels are separated by "
                "commas: rename it, or allow one label at a time"
            )


def _refuse_unclear(separators: set[int], first: Sequence[int], further: Sequence[Tokens]) -> None:
    """Raise UsageError where a token that begins a further label may also stand within one."""
    within = {*first, *(token for one in further for token in one[1:])}
    if separators & within or len(set(further)) < len(further):
        raise UsageError(
            f"this model's tokenizer does not keep the separator {SEPARATOR!r} apart from the "
            "labels: allow one label at a time"
        )
