"""What scoring a list of labels gives: log-likelihoods, and what follows from them.

Labels as a tree of tokens, in which what several labels begin with stands once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

from NatureLM.errors import UsageError

NOTHING = "None"
"""The answer that no label of the list fits."""

Normalize = Literal["sum", "mean", "prior"]
"""How labels of different length and commonness are made comparable.

sum: the log-likelihood of the label and of the end after it
mean: that, divided by the number of tokens, the end included
prior: that, minus the same under the prompt without its audio: what the sound adds
"""


def check_normalize(value: str) -> None:
    """Raise UsageError if it is no way to normalise."""
    if value not in get_args(Normalize):
        raise UsageError(f"normalize is {value!r}, and it must be one of sum, mean, prior")


@dataclass(frozen=True)
class LabelScores:
    """How likely each label of a list is as the answer to one prompt.

    labels: in the order in which they were given
    log_likelihoods: of each label and of the end of the answer after it, natural logarithm
    scores: the same, normalised; equal to them for "sum"
    temperature: what `scores` are divided by before they become probabilities; 1 until calibrated
    """

    labels: tuple[str, ...]
    log_likelihoods: tuple[float, ...]
    scores: tuple[float, ...]
    temperature: float = 1.0

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Of each label, given that one of the list is right; they sum to 1."""
        scaled = [score / self.temperature for score in self.scores]
        highest = max(scaled)
        shares = [math.exp(score - highest) for score in scaled]
        total = sum(shares)
        return tuple(share / total for share in shares)

    @property
    def best(self) -> str:
        """The likeliest label; the first of equal ones."""
        return self.labels[max(range(len(self.labels)), key=self.scores.__getitem__)]

    @property
    def confidence(self) -> float:
        """Probability of the likeliest label, 0 to 1."""
        return max(self.probabilities)

    @property
    def margin(self) -> float:
        """Probability of the likeliest label minus that of the next, 0 to 1; 1 for one label."""
        ordered = sorted(self.probabilities, reverse=True)
        return ordered[0] - (ordered[1] if len(ordered) > 1 else 0.0)

    @property
    def entropy(self) -> float:
        """Of the probabilities, in nats: 0 when sure, log(labels) when nothing is known."""
        return -sum(p * math.log(p) for p in self.probabilities if p > 0)

    def ranked(self, k: int | None = None) -> list[tuple[str, float]]:
        """The `k` likeliest labels (all of them if None) with their probabilities, best first."""
        pairs = list(zip(self.labels, self.probabilities, strict=True))
        return sorted(pairs, key=lambda pair: -pair[1])[:k]

    def at_temperature(self, temperature: float) -> LabelScores:
        """The same scores, calibrated: above 1 makes them less sure, below 1 surer."""
        if not (math.isfinite(temperature) and temperature > 0):
            raise UsageError(f"the temperature is {temperature}, and it must be above 0")
        return replace(self, temperature=temperature)


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
