"""The form of answers, right or wrong: how long they are, and whether they do as they were told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from NatureLM.evaluation.bootstrap import (
    BootstrapOptions,
    Estimate,
    Floats,
    percentile_interval,
    resampled_mean,
)
from NatureLM.evaluation.protocols import END_OF_TEXT, NO_LABEL, PROTOCOLS, Matcher
from NatureLM.evaluation.score import GroupScore
from NatureLM.reports.charts import CurveChart, Series, curve


@dataclass(frozen=True)
class AnswerFormat:
    """The form of the answers of one group.

    words: mean number of words
    is_label: share of answers that are one of the labels and nothing else
    names_one: share of answers that contain exactly one of the labels
    matched: share of answers that the protocol took for some label
    """

    words: Estimate
    is_label: Estimate | None = None
    names_one: Estimate | None = None
    matched: Estimate | None = None


class FormatReader:
    """Measures the form of groups; a distinct answer is looked at once for the same labels."""

    def __init__(self, bootstrap: BootstrapOptions) -> None:
        self._bootstrap = bootstrap
        self._matchers: dict[tuple[str, tuple[str, ...]], Matcher] = {}

    def read(self, group: GroupScore) -> AnswerFormat:
        """Means over the group's answers with intervals."""
        texts = [answer.partition(END_OF_TEXT)[0] for answer in group.answers]
        words = self._mean(group, [len(text.split()) for text in texts])
        if group.task == "captioning":
            return AnswerFormat(words)
        is_label = self._mean(group, _are_labels(group, texts))
        if group.task == "detection":
            return AnswerFormat(words, is_label)
        names_one = self._mean(group, self._name_one(group, texts))
        labels = set(group.candidates)
        matched = [taken in labels for taken in group.samples.predicted]
        return AnswerFormat(words, is_label, names_one, self._mean(group, matched))

    def _name_one(self, group: GroupScore, texts: Sequence[str]) -> Sequence[bool]:
        """Whether exactly one label is contained in an answer."""
        labels = tuple(label for label in group.candidates if label != NO_LABEL)
        key = (str(group.key[0]), labels)
        if key not in self._matchers:
            self._matchers[key] = Matcher(PROTOCOLS["mention"], *key)
        return [code >= 0 for code in self._matchers[key].codes(texts).tolist()]

    def _mean(self, group: GroupScore, each: Sequence[float]) -> Estimate:
        values: Floats = np.array(each, dtype=np.float64)
        resamples, seed = self._bootstrap.resamples, self._bootstrap.seed
        drawn = resampled_mean(values, group.cluster_codes, resamples=resamples, seed=seed)
        return Estimate(float(values.mean()), *(percentile_interval(drawn) or ()))


def _are_labels(group: GroupScore, texts: Sequence[str]) -> list[bool]:
    """Whether all of an answer is a label (in detection, a list of labels)."""
    labels = {label.strip().casefold() for label in group.candidates}
    is_list = group.task == "detection"
    parts = [text.split(",") if is_list else [text] for text in texts]
    return [all(part.strip().casefold() in labels for part in one) for one in parts]


def form_charts(
    dataset: str, series: Sequence[Series], forms: Sequence[Sequence[AnswerFormat]]
) -> list[CurveChart]:
    """Charts of the form over α, with a curve for each series; `forms` of each at its α."""
    # A protocol that takes every answer for a label has nothing to show there.
    takes_all = all(f.matched is None or f.matched.value == 1 for one in forms for f in one)
    charts = []
    for field, measure in (
        ("is_label", "answers that are a label"),
        ("names_one", "answers that name one label"),
        ("matched", "answers taken for a label"),
        ("words", "words per answer"),
    ):
        curves = tuple(
            curve(one.name, zip(one.alphas, (getattr(f, field) for f in found), strict=True))
            for one, found in zip(series, forms, strict=True)
        )
        if all(one.points for one in curves) and not (field == "matched" and takes_all):
            key, title = f"{dataset}-{field.replace('_', '-')}", f"{dataset}: {measure}"
            charts.append(CurveChart(key, title, measure, curves, is_share=field != "words"))
    return charts
