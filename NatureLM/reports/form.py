"""The form of answers, right or wrong: how long they are, and whether they do as they were told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from NatureLM.evaluation.bootstrap import (
    BootstrapOptions,
    Floats,
    percentile_interval,
    resampled_mean,
)
from NatureLM.evaluation.protocols import END_OF_TEXT, NO_LABEL, PROTOCOLS, Matcher
from NatureLM.evaluation.score import GroupScore
from NatureLM.reports.charts import Curve, CurveChart, Point, Series


@dataclass(frozen=True)
class AnswerFormat:
    """The form of the answers of one group.

    words: mean number of words
    is_label: share of answers that are one of the labels and nothing else
    names_one: share of answers that contain exactly one of the labels
    matched: share of answers that the protocol took for some label
    """

    words: Point
    is_label: Point | None
    names_one: Point | None
    matched: Point | None


class FormReader:
    """Measures the form of groups; a distinct answer is looked at once for the same labels."""

    def __init__(self, bootstrap: BootstrapOptions) -> None:
        self._bootstrap = bootstrap
        self._matchers: dict[tuple[str, tuple[str, ...]], Matcher] = {}

    def form(self, alpha: float | None, group: GroupScore) -> AnswerFormat:
        """Means over the group's answers with intervals."""
        texts = [answer.partition(END_OF_TEXT)[0] for answer in group.answers]
        words = np.array([len(text.split()) for text in texts], dtype=np.float64)
        if group.task == "captioning":
            return AnswerFormat(self._point(alpha, group, words), None, None, None)
        is_list = group.task == "detection"
        return AnswerFormat(
            self._point(alpha, group, words),
            self._point(alpha, group, self._are_labels(group, texts)),
            None if is_list else self._point(alpha, group, self._name_one(group, texts)),
            None if is_list else self._point(alpha, group, _are_matched(group)),
        )

    def _are_labels(self, group: GroupScore, texts: Sequence[str]) -> Floats:
        """1 where all of an answer is a label (in detection, a list of labels)."""
        labels = {label.strip().casefold() for label in group.candidates}
        is_list = group.task == "detection"
        parts = [text.split(",") if is_list else [text] for text in texts]
        return np.array(
            [all(part.strip().casefold() in labels for part in one) for one in parts],
            dtype=np.float64,
        )

    def _name_one(self, group: GroupScore, texts: Sequence[str]) -> Floats:
        """1 where exactly one label is contained in an answer."""
        labels = tuple(label for label in group.candidates if label != NO_LABEL)
        key = (str(group.key[0]), labels)
        if key not in self._matchers:
            self._matchers[key] = Matcher(PROTOCOLS["mention"], *key)
        return np.asarray(self._matchers[key].codes(texts) >= 0, dtype=np.float64)

    def _point(self, alpha: float | None, group: GroupScore, values: Floats) -> Point:
        resampled = resampled_mean(
            values,
            group.cluster_codes,
            resamples=self._bootstrap.resamples,
            seed=self._bootstrap.seed,
        )
        low, high = percentile_interval(resampled) or (None, None)
        return Point(alpha, float(values.mean()), low, high)


def _are_matched(group: GroupScore) -> Floats:
    """1 where the protocol took the answer for a label."""
    labels = set(group.candidates)
    return np.array([taken in labels for taken in group.samples.predicted], dtype=np.float64)


def forms_of(line: Series, reader: FormReader) -> list[AnswerFormat]:
    """The form of a line's answers at each α."""
    return [
        reader.form(alpha, group) for alpha, group in zip(line.alphas, line.groups, strict=True)
    ]


def form_charts(
    dataset: str, lines: Sequence[Series], forms: Sequence[Sequence[AnswerFormat]]
) -> list[CurveChart]:
    """Charts of the form over α, with a curve for each line; `forms` of the lines."""

    def chart(
        name: str, measure: str, pick: Callable[[AnswerFormat], Point | None], is_share: bool
    ) -> CurveChart | None:
        picked = [[pick(form) for form in one] for one in forms]
        curves = tuple(
            Curve(line.name, tuple(point for point in points if point is not None))
            for line, points in zip(lines, picked, strict=True)
        )
        if not all(curve.points for curve in curves):
            return None
        key, title = f"{dataset}-{name}", f"{dataset}: {measure}"
        return CurveChart(key, title, measure, curves, is_share=is_share)

    charts = [
        chart("is-label", "answers that are a label", lambda form: form.is_label, True),
        chart("names-one", "answers that name one label", lambda form: form.names_one, True),
        chart("matched", "answers taken for a label", lambda form: form.matched, True),
        chart("words", "words per answer", lambda form: form.words, False),
    ]
    # A protocol that takes every answer for a label has nothing to show there.
    is_idle = all(f.matched is None or f.matched.value == 1 for one in forms for f in one)
    return [
        one for one in charts if one is not None and not (is_idle and one.key.endswith("-matched"))
    ]
