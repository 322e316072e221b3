"""The calibration of a model: a temperature that fits scores of labels to what was right.

Source: Guo and others, "On calibration of modern neural networks" (2017): one number that all
scores are divided by, chosen to make the right labels likeliest. It changes no answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from NatureLM.errors import NatureLMError, UsageError
from NatureLM.generation.labels import Normalize, check_normalize
from NatureLM.models.registry import apart, find
from NatureLM.util import atomic_write, parse_json, shown, writing

FILE_NAME = "calibration.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what it was fitted on.

    temperature: scores of labels are divided by it before they become probabilities
    normalize: how the scores were normalised, see `NatureLM.generation.labels`
    merging_alpha: share of the adapter; at others it says nothing
    weights: fingerprint of the model's files
    query: what was asked
    labels: how many labels there were to choose from
    revision: commit of the model, if it came from the Hub
    samples, clusters: how many recordings, and groups of them that belong together
    """

    temperature: float
    normalize: Normalize
    merging_alpha: float
    weights: str | None
    query: str
    labels: int
    samples: int
    clusters: int
    revision: str | None = None

    @property
    def is_at_the_edge(self) -> bool:
        """Whether the temperature is one that no search goes beyond: the samples did not tell."""
        low, high = RANGE
        return self.temperature <= 1.01 * low or self.temperature >= 0.99 * high

    def mismatch(self, weights: str | None, alpha: float) -> str | None:
        """Why it does not hold for these weights at this α; None where it does."""
        if self.weights != weights:
            return "the calibration was made for other weights, so confidences are not calibrated"
        if not math.isclose(self.merging_alpha, alpha, abs_tol=1e-9):
            return (
                f"the calibration was made at α = {self.merging_alpha:g}, so confidences at "
                f"α = {alpha:g} are not calibrated"
            )
        return None


def beside_model(model: str | Path) -> Path | None:
    """Where the calibration of a model lies: in its folder; None if that is not on this machine."""
    name, revision = apart(str(model))
    entry = find(name)
    folder = entry.folder_at(revision) if entry is not None else Path(model)
    return None if not str(model) or folder is None or not folder.is_dir() else folder / FILE_NAME


def find_calibration(
    model_name: str | Path, given: Calibration | str | Path | None
) -> Calibration | None:
    """A calibration as it was given, whether or not it fits the model.

    given: a calibration, a file of one, "auto" for the file beside the model, None for none

    Raises NatureLMError for a file that cannot be read.
    """
    if given is None or isinstance(given, Calibration):
        return given
    if given != "auto":
        return read_calibration(given)
    path = beside_model(model_name)
    return None if path is None or not path.is_file() else read_calibration(path)


def read_calibration(path: str | Path) -> Calibration:
    """The calibration of a file; raises NatureLMError where it holds none."""
    try:
        with open(path, "rb") as file:
            data = parse_json(file.read(1 << 20))  # a few hundred bytes, and a question
    except OSError as error:
        raise NatureLMError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise NatureLMError(f"{path}: is no JSON ({error})") from None
    version = data.pop("schema_version", None) if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise NatureLMError(
            f"{path}: is no calibration of schema version {SCHEMA_VERSION}; make it with "
            "`naturelm calibrate`"
        )
    names = [field.name for field in fields(Calibration) if field.name != "revision"]
    missing = [name for name in names if name not in data]
    if missing:
        raise NatureLMError(f"{path}: lacks {', '.join(missing)}")
    made = Calibration(**{name: data[name] for name in names}, revision=data.get("revision"))
    checks: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
        ("temperature", "a number above 0", lambda v: _is_number(v) and v > 0),
        ("merging_alpha", "a number", _is_number),
        ("normalize", "a name", lambda v: isinstance(v, str)),
        ("weights", "a fingerprint or null", lambda v: isinstance(v, str | None)),
        ("revision", "a commit or null", lambda v: isinstance(v, str | None)),
        ("query", "a question", lambda v: isinstance(v, str)),
        *((name, "a whole number", _is_whole) for name in ("labels", "samples", "clusters")),
    )
    for name, allowed, is_good in checks:
        if not is_good(value := getattr(made, name)):
            raise NatureLMError(f"{path}: {name} is {shown(value)}, and it must be {allowed}")
    try:
        check_normalize(made.normalize)
    except NatureLMError as error:
        raise NatureLMError(f"{path}: {error}") from None
    return made


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e12


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 1e12


def write_calibration(calibration: Calibration, path: str | Path) -> None:
    """Write the file, whole or not at all."""
    target = Path(path)
    values = {"schema_version": SCHEMA_VERSION, **asdict(calibration)}
    if calibration.revision is None:
        del values["revision"]
    text = json.dumps(values, indent=2)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as unfinished:
            unfinished.write_text(text + "\n", encoding="utf-8")


Floats = npt.NDArray[np.float64]
RANGE = (0.01, 100.0)
"""Where the temperature is looked for."""

_STEPS = 100


def fit_temperature(scores: Sequence[Sequence[float]], right: Sequence[int]) -> float:
    """The temperature within `RANGE` under which the right labels are likeliest.

    scores: of the labels, one row for each sample; rows may be of different length
    right: place of the right label in each row

    The log-likelihood is concave in 1 / temperature, so a golden-section search over its logarithm
    finds the best. Raises UsageError where there is nothing to fit: no sample, or all labels equal.
    """
    if len(scores) != len(right):
        raise ValueError(f"{len(scores)} rows of scores were given with {len(right)} right labels")
    if not scores:
        raise UsageError("a temperature cannot be fitted to no samples")
    rows = [np.asarray(row, dtype=np.float64) for row in scores]
    gaps = [row - row[place] for row, place in zip(rows, right, strict=True)]
    if all(np.all(gap == 0) for gap in gaps):
        raise UsageError("a temperature cannot be fitted: all labels have the same scores")
    low, high = (math.log(limit) for limit in RANGE)
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(_STEPS):
        left, further = high - ratio * (high - low), low + ratio * (high - low)
        if _cost(gaps, left) <= _cost(gaps, further):
            high = further
        else:
            low = left
    return math.exp((low + high) / 2)


def _cost(gaps: Sequence[Floats], log_temperature: float) -> float:
    temperature = math.exp(log_temperature)
    return float(np.mean([np.logaddexp.reduce(gap / temperature) for gap in gaps]))
