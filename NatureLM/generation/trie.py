"""Labels as a tree of tokens, in which what several labels begin with stands once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from NatureLM.errors import UsageError

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class TokenTrie:
    """A tree whose nodes are tokens, in preorder: a node comes before all that follow it.

    tokens: of each node
    parents: of each node, -1 where it begins a label
    depths: of each node; those that begin a label have 0
    ends: the last node of each label, in the order of the labels
    lengths: tokens of each label
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    ends: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, sequences: Sequence[Tokens]) -> TokenTrie:
        """The tree of token sequences, which are all different and not empty."""
        tokens: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        ends = [0] * len(sequences)
        path: list[int] = []  # nodes of the sequence before
        before: Tokens = ()
        for place in sorted(range(len(sequences)), key=lambda place: sequences[place]):
            sequence = sequences[place]
            shared = _common(before, sequence)
            del path[shared:]
            for depth in range(shared, len(sequence)):
                parents.append(path[-1] if path else -1)
                path.append(len(tokens))
                tokens.append(sequence[depth])
                depths.append(depth)
            ends[place], before = path[-1], sequence
        lengths = tuple(len(sequence) for sequence in sequences)
        return cls(tuple(tokens), tuple(parents), tuple(depths), tuple(ends), lengths)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def children(self) -> tuple[dict[int, int], ...]:
        """From token to node for what may follow each node; the last entry is for the beginning."""
        found: list[dict[int, int]] = [{} for _ in range(len(self) + 1)]
        for node, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True)):
            found[parent][token] = node
        return tuple(found)

    @cached_property
    def label_at(self) -> dict[int, int]:
        """From the last node of a label to the label's place."""
        return {node: label for label, node in enumerate(self.ends)}

    @cached_property
    def below(self) -> tuple[int, ...]:
        """The labels that end at each node or further down, as a set of bits."""
        bits = [0] * len(self)
        for label, node in enumerate(self.ends):
            bits[node] |= 1 << label
        for node in range(len(self) - 1, -1, -1):
            if self.parents[node] >= 0:
                bits[self.parents[node]] |= bits[node]
        return tuple(bits)

    def ancestors(self, node: int) -> list[int]:
        """The nodes before this one on its way, the first first."""
        way: list[int] = []
        node = self.parents[node]
        while node >= 0:
            way.append(node)
            node = self.parents[node]
        return way[::-1]


def label_tokens(labels: Sequence[str], tokenizer: Any, eos_ids: Sequence[int]) -> list[Tokens]:
    """Token ids of each label as an answer begins with it.

    Raises UsageError for a list without labels, labels that are empty or given twice, and labels
    that cannot be told apart or are no text for this tokenizer.
    """
    check_labels(labels)
    found = [tuple(tokenizer(label, add_special_tokens=False).input_ids) for label in labels]
    forbidden = {*eos_ids, *tokenizer.all_special_ids}
    owner: dict[Tokens, str] = {}
    for label, tokens in zip(labels, found, strict=True):
        if not tokens or forbidden.intersection(tokens):
            raise UsageError(
                f"the label {label!r} is no plain text for this model's tokenizer: it holds a "
                "special token or a character that the tokenizer does not know"
            )
        if tokens in owner:
            raise UsageError(
                f"the labels {owner[tokens]!r} and {label!r} are the same tokens for this model"
            )
        owner[tokens] = label
    return found


def check_labels(labels: Sequence[str]) -> None:
    """Raise UsageError for a list without labels, an empty label, or one that is given twice."""
    if isinstance(labels, str):
        raise UsageError(f"labels must be a list of texts, got the text {labels!r}")
    if not labels:
        raise UsageError("the list of labels is empty: give at least one")
    seen: set[str] = set()
    for label in labels:
        if not label.strip() or label != label.strip():
            raise UsageError(f"the label {label!r} is empty or begins or ends with a space")
        if label in seen:
            raise UsageError(f"the label {label!r} is in the list twice")
        seen.add(label)


def continued_tokens(label: str, separator: str, tokenizer: Any) -> Tokens:
    """Token ids of a separator and a label that follow another label.

    They are looked up behind a letter, because some tokenizers mark the beginning of a text.
    """
    anchor = tuple(tokenizer("a", add_special_tokens=False).input_ids)
    whole = tuple(tokenizer(f"a{separator}{label}", add_special_tokens=False).input_ids)
    if whole[: len(anchor)] == anchor:
        return whole[len(anchor) :]
    return tuple(tokenizer(f"{separator}{label}", add_special_tokens=False).input_ids)


def _common(a: Tokens, b: Tokens) -> int:
    length = 0
    for one, other in zip(a, b, strict=False):
        if one != other:
            break
        length += 1
    return length
