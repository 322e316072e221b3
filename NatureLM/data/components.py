"""The components of BEANS-Zero as data: task, labels, longest clip.

Adding a component is one entry in `data/components.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Literal, get_args

from NatureLM.errors import UsageError
from NatureLM.util import did_you_mean

Task = Literal["classification", "detection", "captioning"]

METRICS = ("accuracy", "precision", "recall", "f1", "top1", "map", "cider", "spice")
"""All metrics of a record, in order; those that a task does not have are null."""

METRICS_OF: dict[Task, tuple[str, ...]] = {
    "classification": ("accuracy", "f1", "precision", "recall"),
    "detection": ("f1", "map", "precision", "recall", "accuracy"),
    "captioning": ("cider", "spice"),
}
"""The metrics that are shown of each task, and by which α can be chosen; the main one first."""

_NAMES = {"f1": "F1", "map": "mean average precision", "cider": "CIDEr", "spice": "SPICE"}


def metric_name(metric: str) -> str:
    """A metric in words."""
    return _NAMES.get(metric, metric)


def main_metric(task: Task) -> str:
    """The main metric of a task in words."""
    return metric_name(METRICS_OF[task][0])


@dataclass(frozen=True)
class Component:
    """One data set of the benchmark.

    labels: all that may be answered; empty for captions
    max_duration: clips are cut or padded to so many seconds; None keeps the model's window
    sample_rate: of the recordings, in Hz
    unknown_label: the label that stands for everything else
    """

    name: str
    task: Task
    labels: tuple[str, ...]
    max_duration: float | None
    sample_rate: int
    unknown_label: str | None
    license: str


@lru_cache(maxsize=1)
def components() -> dict[str, Component]:
    """All components by name, in the order of the benchmark."""
    text = resources.files("NatureLM.data").joinpath("components.json").read_text("utf-8")
    made = [_component(entry) for entry in json.loads(text)]
    return {one.name: one for one in made}


def component(name: str) -> Component:
    """The component of a name; raises UsageError with the nearest name for others."""
    known = components()
    if name not in known:
        hint = did_you_mean(name, known, "{}")
        raise UsageError(f"BEANS-Zero has no component {name!r}{hint} (it has {', '.join(known)})")
    return known[name]


def _component(entry: dict[str, Any]) -> Component:
    if entry["task"] not in get_args(Task):
        raise ValueError(f"unknown task {entry['task']!r} of component {entry['name']!r}")
    return Component(
        name=entry["name"],
        task=entry["task"],
        labels=tuple(entry["labels"] or ()),
        max_duration=None if entry["max_duration"] is None else float(entry["max_duration"]),
        sample_rate=entry["sample_rate"],
        unknown_label=entry["unknown_label"],
        license=entry["license"],
    )
