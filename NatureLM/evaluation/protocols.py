"""The protocols: how the text of an answer becomes a label. Each is data.

Text after `<|end_of_text|>` is never read. Where several labels fit equally well, the first in the
order of their characters' code points is taken, so numbers are the same in every process.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from NatureLM.errors import UsageError

END_OF_TEXT = "<|end_of_text|>"
NO_LABEL = "None"
DETECTION_LIMIT = 5
"""A part of a detection answer further from every label than so many edits names nothing."""

ANY = "*"
"""Stands for every data set in the tables of a protocol."""


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


_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)

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
                ("The scientific name for the focal species in the audio is", frozenset({"cbi"})),
            ),
            cut_at={"cbi": ","},
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
