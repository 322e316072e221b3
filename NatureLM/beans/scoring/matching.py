"""From the text of an answer to the label it stands for."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from NatureLM.beans.scoring.protocols import DETECTION_LIMIT, NO_LABEL, Protocol
from NatureLM.errors import UsageError

Codes = npt.NDArray[np.int32]

UNMATCHED = -1
_BLOCK = 4_000_000  # distances held at a time: 16 MB


class Matcher:
    """Finds the labels of answers to one data set; every distinct text is compared once.

    labels: distinct, in sorted order; a label's code is its place among them
    """

    def __init__(
        self, protocol: Protocol, dataset: str, labels: Sequence[str], *, is_detection: bool = False
    ) -> None:
        self.labels = tuple(labels)
        self._protocol = protocol
        self._dataset = dataset
        self._limit = DETECTION_LIMIT if is_detection else protocol.limit
        self._code = {label: code for code, label in enumerate(self.labels)}
        self._folded: dict[str, int] = {}
        for code, label in enumerate(self.labels):
            self._folded.setdefault(label.strip().casefold(), code)
        self._in_lower_case = [label.casefold() for label in self.labels]
        self._known: dict[str, int] = {}
        self._unmatched = self._code.get(protocol.unmatched, UNMATCHED)

    def codes(self, answers: Sequence[str]) -> Codes:
        """The label of each answer, UNMATCHED where there is none, (answers,)."""
        texts = [self._protocol.read(answer, self._dataset) for answer in answers]
        self._learn(texts)
        return np.fromiter((self._known[text] for text in texts), np.int32, len(texts))

    def sets(self, answers: Sequence[str]) -> list[tuple[int, ...]]:
        """The labels that each answer of a detection task names, sorted, without "None".

        Parts of an answer are set off by commas; "mention" looks for labels anywhere.
        """
        texts = [self._protocol.read(answer, self._dataset) for answer in answers]
        if self._protocol.match == "mention":
            named = [self._mentioned(text) for text in texts]
        else:
            parts = [[part.strip() for part in text.split(",") if part.strip()] for text in texts]
            self._learn([part for one in parts for part in one])
            named = [[self._known[part] for part in one] for one in parts]
        nothing = {UNMATCHED, self._code.get(NO_LABEL, UNMATCHED)}
        return [tuple(sorted(set(one) - nothing)) for one in named]

    def _learn(self, texts: Sequence[str]) -> None:
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        if self._protocol.match == "nearest":
            found = nearest(new, self.labels, self._limit)
        elif self._protocol.match == "mention":
            found = np.array([self._only_mentioned(text) for text in new], dtype=np.int32)
        else:
            found = np.array([self._equal(text) for text in new], dtype=np.int32)
        found[found == UNMATCHED] = self._unmatched
        self._known.update(zip(new, found.tolist(), strict=True))

    def _mentioned(self, text: str) -> list[int]:
        folded = text.casefold()
        return [code for code, label in enumerate(self._in_lower_case) if label in folded]

    def _only_mentioned(self, text: str) -> int:
        named = self._mentioned(text)
        return named[0] if len(named) == 1 else UNMATCHED

    def _equal(self, text: str) -> int:
        text = text.strip()
        return self._code.get(text, self._folded.get(text.casefold(), UNMATCHED))


def nearest(texts: Sequence[str], labels: Sequence[str], limit: int | None = None) -> Codes:
    """The label of the smallest Levenshtein distance, the first in order among equals, (texts,).

    UNMATCHED where the distance is above `limit`.
    """
    codes = np.full(len(texts), UNMATCHED, dtype=np.int32)
    step = max(1, _BLOCK // max(1, len(labels)))
    for start in range(0, len(texts) if len(labels) else 0, step):
        found = _distances_between(labels, texts[start : start + step], limit)
        best = found.argmin(axis=0).astype(np.int32)
        if limit is not None:
            best[found.min(axis=0) > limit] = UNMATCHED
        codes[start : start + step] = best
    return codes


def _distances_between(labels: Sequence[str], texts: Sequence[str], limit: int | None) -> Codes:
    """Distances, (labels, texts); those above the limit are some number above it."""
    try:
        from rapidfuzz.distance import Levenshtein
        from rapidfuzz.process import cdist
    except ImportError:
        message = "scoring needs rapidfuzz: pip install 'naturelm-audio[beans]'"
        raise UsageError(message) from None
    # The short side first is four times faster, but with a limit the other way round is.
    sides = (labels, texts) if limit is None else (texts, labels)
    found: Codes = cdist(
        *sides,
        scorer=Levenshtein.distance,
        dtype=np.int32,
        score_cutoff=limit,
        workers=_workers(),
    )
    return found if limit is None else found.T


def _workers() -> int:
    """Threads for distances: all cores that the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
