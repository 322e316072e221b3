"""Lists of labels: what is chosen from one, its scores, its tree of tokens, its grammar.

Without torch, so that options and configuration files can check lists at no cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal, get_args

from NatureLM.errors import UsageError

NOTHING = "None"
"""The answer that no label of the list fits."""

SEPARATOR = ", "
"""Between several labels of one answer."""

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
class LabelChoice:
    """A list that an answer is chosen from.

    labels: what may be answered
    how: "score" says how likely each label is; "constrained" decodes an answer that can only be
        one of them or `None`
    several: whether a constrained answer may be several labels, separated by ", "
    normalize: how scores are made comparable, see `Normalize`

    Raises UsageError for a list without labels, an empty label, or one that is there twice.
    """

    labels: tuple[str, ...]
    how: Literal["score", "constrained"] = "score"
    several: bool = False
    normalize: Normalize = "sum"

    def __post_init__(self) -> None:
        _check_labels(self.labels)
        check_normalize(self.normalize)


def label_choices(
    labels: Sequence[str] | Sequence[Sequence[str]], prompts: int, normalize: Normalize
) -> list[LabelChoice]:
    """What each prompt is scored on: one list for all of them, or one list for each."""
    if isinstance(labels, str):
        raise UsageError(f"labels must be a list of texts, got the text {labels!r}")
    if all(isinstance(label, str) for label in labels):
        return [LabelChoice(tuple(map(str, labels)), normalize=normalize)] * prompts
    if len(labels) != prompts:
        raise UsageError(f"{len(labels)} lists of labels were given for {prompts} prompts")
    return [LabelChoice(tuple(one), normalize=normalize) for one in labels]


def _check_labels(labels: Sequence[str]) -> None:
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
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    ends: tuple[int, ...]

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
        return cls(tuple(tokens), tuple(parents), tuple(depths), tuple(ends))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each label."""
        return [self.depths[end] + 1 for end in self.ends]

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
        """The nodes from the beginning of a label to before this one."""
        path: list[int] = []
        node = self.parents[node]
        while node >= 0:
            path.append(node)
            node = self.parents[node]
        return path[::-1]


def _common(a: Tokens, b: Tokens) -> int:
    pairs = zip(a, b, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def label_tokens(labels: Sequence[str], tokenizer: Any, eos_ids: Sequence[int]) -> list[Tokens]:
    """Token ids of each label as an answer begins with it.

    Raises UsageError for labels that cannot be told apart or are no text for this tokenizer.
    """
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


def continued_tokens(label: str, separator: str, tokenizer: Any) -> Tokens:
    """Token ids of a separator and a label that follow another label.

    They are looked up behind a letter, because some tokenizers mark the beginning of a string.
    """
    anchor = tuple(tokenizer("a", add_special_tokens=False).input_ids)
    whole = tuple(tokenizer(f"a{separator}{label}", add_special_tokens=False).input_ids)
    if whole[: len(anchor)] == anchor:
        return whole[len(anchor) :]
    return tuple(tokenizer(f"{separator}{label}", add_special_tokens=False).input_ids)


class LabelGrammar:
    """All answers that a choice allows: one label, `None`, or with `several` more of them.

    max_new_tokens: how long an answer may be; it is raised where one label needs more

    Raises UsageError for a label that is no plain text for the tokenizer; with `several` also for
    one with a comma in it.
    """

    def __init__(
        self,
        choice: LabelChoice,
        tokenizer: Any,
        eos_ids: Sequence[int],
        max_new_tokens: int = 64,
    ) -> None:
        labels = choice.labels
        self.labels = labels if NOTHING in labels else (*labels, NOTHING)
        self._eos_ids = tuple(eos_ids)
        if not eos_ids:
            raise UsageError("the model has no token that ends an answer, so none can be closed")
        self._first = TokenTrie.of(label_tokens(self.labels, tokenizer, eos_ids))
        self._next: TokenTrie | None = None
        longest = max(self._first.lengths)
        self._named = [label for label in self.labels if label != NOTHING]
        if choice.several and self._named:
            _refuse_commas(labels)
            further = [continued_tokens(label, SEPARATOR, tokenizer) for label in self._named]
            _refuse_ambiguous({one[0] for one in further}, self._first.tokens, further)
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


def _refuse_commas(labels: Sequence[str]) -> None:
    for label in labels:
        if "," in label:
            raise UsageError(
                f"the label {label!r} has a comma in it, and several labels are separated by "
                "commas: rename it, or allow one label at a time"
            )


def _refuse_ambiguous(
    separators: set[int], first: Sequence[int], further: Sequence[Tokens]
) -> None:
    """Raise UsageError where a token that begins a further label may also stand within one."""
    within = {*first, *(token for one in further for token in one[1:])}
    if separators & within or len(set(further)) < len(further):
        raise UsageError(
            f"this model's tokenizer does not keep the separator {SEPARATOR!r} apart from the "
            "labels: allow one label at a time"
        )
