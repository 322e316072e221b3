"""How the text of an answer becomes a label, and what each task measures of labels and captions.

A `Protocol` is data; a `Matcher` applies it to the answers of one data set. Text after
`<|end_of_text|>` is never read. Where several labels fit equally well, the first in the order of
their characters' code points is taken, so numbers are the same in every process.

The samples of a group are one label each, sets of labels, or captions; the table of tasks and
metrics is in `data/components.py`.
"""

from __future__ import annotations

import os
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from NatureLM.errors import UsageError
from NatureLM.evaluation.metrics import (
    BootstrapOptions,
    ClassCounts,
    Counts,
    Floats,
    cell_counts,
    cider,
    class_counts,
    macro_scores,
    resampled_mean,
    set_counts,
    weighted_scores,
)
from NatureLM.util import library

Codes: TypeAlias = npt.NDArray[np.int32]
Values: TypeAlias = dict[str, float]
LabelSet: TypeAlias = tuple[int, ...]
"""Places of labels, sorted; empty where nothing is heard."""

Item = TypeVar("Item", str, LabelSet)

END_OF_TEXT = "<|end_of_text|>"
NO_LABEL = "None"
UNMATCHED = -1
DETECTION_LIMIT = 5
"""A part of a detection answer further from every label than so many edits names nothing."""

RANDOM_DRAWS = 100
CAPTION_DRAWS = 3

ANY = "*"
"""Stands for every data set in the tables of a protocol."""

# Signs that are typed in several ways; those that nobody sees go. Escapes, for they look alike.
_SIGNS = {
    "'": "\u2018\u2019\u201a\u201b\u02b9\u02bb\u02bc\u02bd\u2032\u0060\u00b4\uff07",
    '"': "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\uff02",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d",
    "": "\u00ad\u200b\u200c\u200d\u2060\ufeff",
}
_TYPED = {ord(sign): plain for plain, signs in _SIGNS.items() for sign in signs}

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)
_BLOCK = 4_000_000  # distances held at a time: 16 MB


@dataclass(frozen=True)
class Protocol:
    """How answers are read.

    match: "nearest" takes the label with the smallest Levenshtein distance, "mention" the only
        label that the answer contains, "equal" the label that the answer is
    limit: largest distance at which "nearest" still takes a label; None takes it always
    removed: phrases that are cut out of answers, with the data sets where they are
    cut_at: what ends the part of an answer that is read, by data set
    counts: by data set, the labels of a bare number: below 2, and any other
    unmatched: the name of an answer that is no label
    """

    name: str
    summary: str
    match: Literal["nearest", "mention", "equal"]
    limit: int | None = None
    removed: tuple[tuple[str, frozenset[str]], ...] = ()
    cut_at: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    unmatched: str = NO_LABEL

    def read(self, answer: str, dataset: str) -> str:
        """The part of an answer that is compared with the labels."""
        text = answer.partition(END_OF_TEXT)[0]
        for phrase, datasets in self.removed:
            if ANY in datasets or dataset in datasets:
                text = text.replace(phrase, "")
        if dataset in self.cut_at:
            text = text.partition(self.cut_at[dataset])[0]
        if dataset in self.counts and _NUMBER.fullmatch(text.strip()):
            one, more = self.counts[dataset]
            text = one if float(text) < 2 else more
        return text


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "beans-zero",
            "the benchmark's own: the nearest label, however far it is",
            match="nearest",
        ),
        Protocol(
            "paper",
            "the model merging paper's: cleaned answers, the nearest label within 5 edits",
            match="nearest",
            limit=5,
            removed=(
                ("The common name for the focal species in the audio is", frozenset({ANY})),
                (
                    "The scientific name for the focal species in the audio is",
                    frozenset({"cbi", "watkins"}),
                ),
            ),
            cut_at={"cbi": ",", "watkins": ","},
            counts={"zf-indiv": ("One", "More")},
        ),
        Protocol("mention", "the answer names one label and no other", match="mention"),
        Protocol("strict", "the answer is the label and nothing else", match="equal"),
    )
}


def protocol(name: str) -> Protocol:
    """The protocol of a name; raises UsageError for others."""
    found = PROTOCOLS.get(name) or PROTOCOLS.get(name.replace("_", "-"))
    if found is None:
        raise UsageError(f"there is no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    return found


def plain(text: str) -> str:
    """A text as "mention" and "strict" compare it, but for capital letters.

    Composed letters (NFC), plain apostrophes, quotes and dashes, one space for all blanks, none
    outside.
    """
    return " ".join(unicodedata.normalize("NFC", text.translate(_TYPED)).split())


def caseless(text: str) -> str:
    """The same without capital letters."""
    return unicodedata.normalize("NFC", plain(text).casefold())


class Matcher:
    """Finds the labels of answers to one data set; each distinct text is compared once.

    labels: distinct, in sorted order; a label's code is its place among them
    place: the codes of the labels; those that a protocol takes for the same share the first's
    """

    def __init__(
        self, protocol: Protocol, dataset: str, labels: Sequence[str], *, is_detection: bool = False
    ) -> None:
        self.labels = tuple(labels)
        self._protocol = protocol
        self._dataset = dataset
        self._limit = DETECTION_LIMIT if is_detection else protocol.limit
        # The nearest label is that of the published arithmetic, to which every sign counts.
        forms = [one if protocol.match == "nearest" else plain(one) for one in self.labels]
        backwards = [*zip(forms, range(len(forms)), strict=True)][::-1]  # of equals the first stays
        self._code = dict(backwards)
        self.place = {
            label: self._code[form] for label, form in zip(self.labels, forms, strict=True)
        }
        self._folded = {caseless(form): code for form, code in backwards}
        self._caseless = {code: caseless(form) for form, code in self._code.items() if form}
        self._known: dict[str, int] = {}
        self._unmatched = self._code.get(protocol.unmatched, UNMATCHED)

    def codes(self, answers: Sequence[str]) -> Codes:
        """The label of each answer, UNMATCHED where there is none, (answers,)."""
        texts = [self._protocol.read(answer, self._dataset) for answer in answers]
        return np.array(self._matched(texts), dtype=np.int32)

    def sets(self, answers: Sequence[str]) -> list[tuple[int, ...]]:
        """The labels that each answer of a detection task names, sorted, without "None".

        Parts of an answer are separated by commas; "mention" looks for labels anywhere.
        """
        texts = [self._protocol.read(answer, self._dataset) for answer in answers]
        if self._protocol.match == "mention":
            named = [self._mentioned(text) for text in texts]
        else:
            parts = [[part.strip() for part in text.split(",") if part.strip()] for text in texts]
            codes = iter(self._matched([part for one in parts for part in one]))
            named = [[next(codes) for _ in one] for one in parts]
        nothing = {UNMATCHED, self._code.get(NO_LABEL, UNMATCHED)}
        return [tuple(sorted(set(one) - nothing)) for one in named]

    def _matched(self, texts: Sequence[str]) -> list[int]:
        """The code of each text."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if self._protocol.match == "nearest":
            found = nearest(new, self.labels, self._limit).tolist()
        elif self._protocol.match == "mention":
            named = map(self._mentioned, new)
            found = [one[0] if len(one) == 1 else UNMATCHED for one in named]
        else:
            cleaned = [plain(text) for text in new]
            folded = [self._folded.get(caseless(text), UNMATCHED) for text in cleaned]
            found = list(map(self._code.get, cleaned, folded))
        for text, code in zip(new, found, strict=True):
            self._known[text] = self._unmatched if code == UNMATCHED else code
        return [self._known[text] for text in texts]

    def _mentioned(self, text: str) -> list[int]:
        folded = caseless(text)
        return sorted(code for code, label in self._caseless.items() if label in folded)


def nearest(texts: Sequence[str], labels: Sequence[str], limit: int | None = None) -> Codes:
    """The label of the smallest Levenshtein distance, the first in order among equals, (texts,).

    UNMATCHED where the distance is above `limit`.
    """
    codes = np.full(len(texts), UNMATCHED, dtype=np.int32)
    step = max(1, _BLOCK // max(1, len(labels)))
    for start in range(0, len(texts) if len(labels) else 0, step):
        found = _distances(labels, texts[start : start + step], limit)
        best = found.argmin(axis=0).astype(np.int32)
        if limit is not None:
            best[found.min(axis=0) > limit] = UNMATCHED
        codes[start : start + step] = best
    return codes


def _distances(labels: Sequence[str], texts: Sequence[str], limit: int | None) -> Codes:
    """Distances, (labels, texts); those above the limit are some number above it."""
    absent = "scoring needs rapidfuzz: pip install 'naturelm-audio[beans]'"
    levenshtein = library("rapidfuzz.distance", absent).Levenshtein
    cdist = library("rapidfuzz.process", absent).cdist
    # The short side first is four times faster, but with a limit the other way round is.
    sides = (labels, texts) if limit is None else (texts, labels)
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    how: dict[str, Any] = {"dtype": np.int32, "score_cutoff": limit, "workers": cores}
    found: Codes = cdist(*sides, scorer=levenshtein.distance, **how)
    return found if limit is None else found.T


# What each task measures of the samples of a group


@dataclass(frozen=True)
class ClassRow:
    """One label of a group: how often it is true, was answered, and was answered rightly."""

    label: str
    support: int
    predicted: int
    correct: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ConfusionRow:
    """How often something was answered where `label` is true."""

    label: str
    predicted: str
    count: int


class Samples(ABC):
    """The samples of one group after a protocol has read their answers.

    predicted: what each answer was taken for, (samples,)
    correct: 1 where the answer is right, else 0; for captions their CIDEr, (samples,)
    """

    predicted: list[str]
    correct: Floats

    @abstractmethod
    def metrics(self) -> Values:
        """The metrics of the task."""

    @abstractmethod
    def resampled(self, clusters: Codes, bootstrap: BootstrapOptions) -> dict[str, Floats]:
        """The metrics of each resample, (resamples,) each; clusters: of each sample, (samples,)."""

    @abstractmethod
    def baselines(self, seed: int) -> dict[str, Values]:
        """The metrics of answers without listening.

        majority: always the most frequent label (set that is not empty, reference), the first in
            order among equals
        random: any label, all with the same chance; of sets and references the true ones, dealt out
            among the samples; the mean of seeded draws
        """

    def class_rows(self) -> list[ClassRow]:
        """A row for each label that is true or was answered somewhere."""
        return []

    def confusion_rows(self) -> list[ConfusionRow]:
        """The cells of the confusion matrix that are not empty."""
        return []


class _Cells(Samples):
    """Samples with the same truth and the same answer, counted together in cells.

    labels: distinct, in sorted order
    cell: number of each sample's cell, (samples,)
    names: what is true and what was answered in each cell; is_right: whether that is the same
    """

    def __init__(
        self,
        labels: Sequence[str],
        cell: npt.NDArray[np.int64],
        names: Sequence[tuple[str, str]],
        is_right: npt.NDArray[np.bool_],
    ) -> None:
        self._labels = labels
        self._cell = cell
        self._names = names
        self._right: Floats = is_right.astype(np.float64)
        self._counts = np.bincount(cell, minlength=len(names))
        self.predicted = [names[code][1] for code in cell.tolist()]
        self.correct = self._right[cell]

    def metrics(self) -> Values:
        return _floats(self._scores(self._counts))

    def resampled(self, clusters: Codes, bootstrap: BootstrapOptions) -> dict[str, Floats]:
        blocks = list(map(self._scores, cell_counts(self._cell, clusters, bootstrap)))
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def class_rows(self) -> list[ClassRow]:
        counts = self._per_class(self._counts)
        whole = [one.astype(int).tolist() for one in (counts.true, counts.predicted, counts.hits)]
        shares = [one.tolist() for one in (counts.precision, counts.recall, counts.f1)]
        rows = map(ClassRow, self._labels, *whole, *shares)
        return [row for row in rows if row.support or row.predicted]

    def confusion_rows(self) -> list[ConfusionRow]:
        pairs = zip(self._names, self._counts.tolist(), strict=True)
        return [ConfusionRow(*names, count) for names, count in pairs]

    @abstractmethod
    def _per_class(self, counts: Counts) -> ClassCounts:
        """Counts of each label, (labels, ...), of counts of each cell, (cells, ...)."""

    @abstractmethod
    def _scores(self, counts: Counts) -> dict[str, Floats]:
        """The metrics, (...) each, of counts of each cell, (cells, ...)."""


class SingleLabels(_Cells):
    """Samples with one label each: accuracy, weighted precision, recall and f1, and top1.

    true, predicted: places of labels among `labels`; a negative prediction is none of them
    unmatched: what such a prediction is called
    """

    def __init__(
        self, true: Codes, predicted: Codes, labels: Sequence[str], unmatched: str
    ) -> None:
        pairs = true.astype(np.int64) * (len(labels) + 1) + (predicted + 1)
        found, cell = np.unique(pairs, return_inverse=True)
        self._true = found // (len(labels) + 1)
        self._predicted = found % (len(labels) + 1) - 1
        words = np.array([*labels, unmatched], dtype=object)  # which -1 is the place of
        names = list(zip(words[self._true], words[self._predicted], strict=True))
        super().__init__(labels, cell, names, self._true == self._predicted)

    def baselines(self, seed: int) -> dict[str, Values]:
        support = self._per_class(self._counts).true
        most = np.zeros_like(support)
        most[support.argmax()] = support.sum()
        always = ClassCounts(support, most, np.where(most > 0, support, 0.0))
        random = _random_labels(tuple(sorted(support.astype(int).tolist())), seed)
        return {"majority": _floats(weighted_scores(always)), "random": dict(random)}

    def _per_class(self, counts: Counts) -> ClassCounts:
        return class_counts(counts, self._true, self._predicted, len(self._labels))

    def _scores(self, counts: Counts) -> dict[str, Floats]:
        return weighted_scores(self._per_class(counts))


@lru_cache(maxsize=64)
def _random_labels(counts: tuple[int, ...], seed: int) -> Values:
    """The scores depend on how often each label is true and on nothing else."""
    rng = np.random.default_rng(seed)
    labels = len(counts)
    chances = np.full(labels, 1 / labels)
    predicted, hits = np.empty((2, labels, RANDOM_DRAWS))
    for draw in range(RANDOM_DRAWS):
        answered = rng.multinomial(counts, chances)  # (true label, answered label)
        predicted[:, draw], hits[:, draw] = answered.sum(axis=0), answered.diagonal()
    true = np.broadcast_to(np.array(counts, dtype=np.float64)[:, None], hits.shape)
    scores = weighted_scores(ClassCounts(true, predicted, hits))
    return _floats({name: values.mean() for name, values in scores.items()})


class LabelSets(_Cells):
    """Samples with a set of labels each, as places among `labels`.

    accuracy: the sets are the same; precision, recall, f1 and map: means over the labels that occur
    """

    def __init__(
        self, true: Sequence[LabelSet], predicted: Sequence[LabelSet], labels: Sequence[str]
    ) -> None:
        self._all_true = tuple(true)
        pairs = list(zip(true, predicted, strict=True))
        cells = sorted(set(pairs))
        place = {pair: cell for cell, pair in enumerate(cells)}
        self._true = _members([true for true, _ in cells], len(labels))
        self._predicted = _members([predicted for _, predicted in cells], len(labels))
        words = [
            ", ".join(labels[code] for code in one) or NO_LABEL for pair in cells for one in pair
        ]
        super().__init__(
            labels,
            np.array([place[pair] for pair in pairs], dtype=np.int64),
            list(zip(words[::2], words[1::2], strict=True)),
            np.array([true == predicted for true, predicted in cells], dtype=np.bool_),
        )

    def baselines(self, seed: int) -> dict[str, Values]:
        true = self._all_true
        most = _most_frequent(one for one in true if one) or ()
        always = LabelSets(true, [most] * len(true), self._labels).metrics()
        return {"majority": always, "random": dict(_random_sets(true, len(self._labels), seed))}

    def _per_class(self, counts: Counts) -> ClassCounts:
        return set_counts(counts, self._true, self._predicted)

    def _scores(self, counts: Counts) -> dict[str, Floats]:
        samples = counts.sum(axis=0).astype(np.float64)
        accuracy = np.asarray(self._right @ counts / samples)
        return {"accuracy": accuracy} | macro_scores(self._per_class(counts), samples)


@lru_cache(maxsize=64)
def _random_sets(true: tuple[LabelSet, ...], labels: int, seed: int) -> Values:
    rng = np.random.default_rng(seed)
    members = _members(true, labels)
    totals = members.sum(axis=0).astype(np.float64)
    drawn = []
    for _ in range(RANDOM_DRAWS):
        dealt = members[rng.permutation(len(members))]
        hits = (members & dealt).sum(axis=0).astype(np.float64)
        macro = macro_scores(ClassCounts(totals, totals, hits), np.asarray(float(len(members))))
        drawn.append({"accuracy": (members == dealt).all(axis=1).mean()} | macro)
    return {name: float(np.mean([one[name] for one in drawn])) for name in drawn[0]}


def _members(sets: Sequence[LabelSet], labels: int) -> npt.NDArray[np.bool_]:
    """Whether each set holds each label, (sets, labels)."""
    members = np.zeros((len(sets), labels), dtype=np.bool_)
    for row, one in enumerate(sets):
        members[row, list(one)] = True
    return members


class Captions(Samples):
    """Captions beside their references: cider from 0 to 10, and spice where it is given.

    spice: the SPICE of each caption, (captions,)
    """

    def __init__(
        self, captions: Sequence[str], references: Sequence[str], spice: Floats | None = None
    ) -> None:
        self._references = tuple(references)
        self.predicted = list(captions)
        self.correct = cider(captions, references)
        self._scores = {"cider": self.correct} | ({} if spice is None else {"spice": spice})

    def metrics(self) -> Values:
        return {name: float(scores.mean()) for name, scores in self._scores.items()}

    def resampled(self, clusters: Codes, bootstrap: BootstrapOptions) -> dict[str, Floats]:
        # How rare words are stays the same.
        return {k: resampled_mean(one, clusters, bootstrap) for k, one in self._scores.items()}

    def baselines(self, seed: int) -> dict[str, Values]:
        return {name: {"cider": value} for name, value in _ciders(self._references, seed).items()}


@lru_cache(maxsize=16)
def _ciders(references: tuple[str, ...], seed: int) -> Values:
    most = _most_frequent(references) or ""
    rng = np.random.default_rng(seed)
    dealt = [
        cider([references[i] for i in rng.permutation(len(references))], references).mean()
        for _ in range(CAPTION_DRAWS)
    ]
    return {
        "majority": float(cider([most] * len(references), references).mean()),
        "random": float(np.mean(dealt)),
    }


def _most_frequent(items: Iterable[Item]) -> Item | None:
    """The most frequent one, the first in order among equals; None of nothing."""
    counts = Counter(items)
    return max(sorted(counts), key=counts.__getitem__) if counts else None


def _floats(scores: dict[str, Floats]) -> Values:
    return {name: float(value) for name, value in scores.items()}
