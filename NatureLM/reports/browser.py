"""The single answers that a page holds, for people to read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from NatureLM.beans.scoring.answers import Vocabulary
from NatureLM.beans.scoring.results import GroupScore
from NatureLM.reports.study import Line

LONGEST = 1500
"""Characters of an answer that are shown."""


@dataclass(frozen=True)
class Shown:
    """Answers in the form that the page's script reads.

    data: `groups` (data set, question, α, whether its answers are captions), `texts`, and `rows` of
        numbers: group, places of id, label, answer and what it was taken for among the texts, and
        1 or 0 for right or wrong; captions are neither and have their CIDEr there
    shown, total: how many answers are there, and how many were scored
    samples: of each line, at every α the same ones
    """

    data: dict[str, Any]
    shown: int
    total: int
    samples: int


def choose_answers(lines: Sequence[Line], limit: int) -> Shown:
    """At most `limit` answers, from every group alike.

    Which samples is decided by a checksum of their ids, so the same are shown at every α and the
    same whenever the report is made.
    """
    groups: list[tuple[Line, int]] = [
        (line, place) for line in lines for place in range(len(line.groups))
    ]
    total = sum(len(line.groups[place].ids) for line, place in groups)
    most = _samples_of_each(groups, limit)
    texts = Vocabulary()
    rows: list[list[float | int]] = []
    for number, (line, place) in enumerate(groups):
        rows += _rows(number, line.groups[place], most, texts)
    rows = rows[: max(0, limit)]
    data = {
        "groups": [
            [line.dataset, line.name, line.alphas[place], line.task == "captioning"]
            for line, place in groups
        ],
        "texts": texts.texts,
        "rows": rows,
    }
    return Shown(data, len(rows), total, most)


def _samples_of_each(groups: Sequence[tuple[Line, int]], limit: int) -> int:
    """The largest number of samples of each group with which the limit is kept."""
    sizes = [len(line.groups[place].ids) for line, place in groups]
    most = 0
    while most < max(sizes) and sum(min(size, most + 1) for size in sizes) <= limit:
        most += 1
    return most or min(1, limit)


def _order(group: GroupScore) -> list[int]:
    def key(sample: int) -> bytes:
        return hashlib.sha256(group.ids[sample].encode("utf-8", "backslashreplace")).digest()

    return sorted(range(len(group.ids)), key=key)


def _rows(number: int, group: GroupScore, most: int, texts: Vocabulary) -> list[list[float | int]]:
    taken, right = group.samples.predicted, group.samples.correct
    rows = []
    for sample in sorted(_order(group)[:most]):
        answer = group.answers[sample]
        if len(answer) > LONGEST:
            answer = f"{answer[:LONGEST]} … ({len(answer) - LONGEST} more characters)"
        shown = (group.ids[sample], group.labels[sample], answer, taken[sample])
        score = round(float(right[sample]), 3)
        rows.append([number, *map(texts.number, shown), int(score) if score in (0, 1) else score])
    return rows
