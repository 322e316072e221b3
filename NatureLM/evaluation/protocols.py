"""The protocols: how the text of an answer becomes a label.

A `Protocol` is data; a `Matcher` applies it to the answers of one data set. Text after
`<|end_of_text|>` is never read. Where several labels fit equally well, the first in the order of
their characters' code points is taken, so numbers are the same in every process.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from NatureLM.errors import UsageError
from NatureLM.util import library

Codes: TypeAlias = npt.NDArray[np.int32]

END_OF_TEXT = "<|end_of_text|>"
NO_LABEL = "None"
UNMATCHED = -1
DETECTION_LIMIT = 5
"""A part of a detection answer further from every label than so many edits names nothing."""

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
