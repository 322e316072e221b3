"""The least confidence of an answer: one number, or a threshold for each species from a file.

`thresholds.csv` says from which confidence on an answer is right with a chosen probability, for
each species; `naturelm calibrate FOLDER` makes it from reviewed clips (`review.thresholds`), and
`--min-confidence FILE` reads it. A table of two columns, `species` and `threshold`, will do, too.

A species without a threshold has none: nothing is guessed from other species, and no confidence in
it is enough. A line for the species `*` holds for all that have none of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from NatureLM.data.table import read_csv
from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING
from NatureLM.results.tables import CSV_ENCODING, cell, with_formula, write_rows
from NatureLM.util import did_you_mean, digest

FILE_NAME = "thresholds.csv"
PROBABILITY = 0.95
"""That an answer at the threshold is right, where it is not said."""
ALL_SPECIES = "(all species)"
"""The line of all species together; it is for information and holds for none."""
OTHERS = "*"
_OPTION = "--min-confidence"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What confidences depend on, so what thresholds hold for; empty or None is not known.

    question: that was answered, or column of a questionnaire
    weights: fingerprint of the model's files
    mode: "score", "constrained" or "generate"
    labels: number and fingerprint of the list that was chosen from (`list_text`)
    temperature: of the calibration, by which scores were divided; 1 without one
    """

    question: str = ""
    weights: str = ""
    merging_alpha: float | None = None
    mode: str = ""
    labels: str = ""
    temperature: float | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any], question: str = "") -> Scale:
        """That of the answers to a question in a run with these settings."""
        asked: Mapping[str, Any] = settings
        chosen: Mapping[str, Any] = settings.get("choosing") or {}
        column = (settings.get("columns") or {}).get(question)
        if isinstance(column, dict):
            asked = {**settings, **column}
            chosen = column
        mode = chosen.get("mode") or ("generate" if settings.get("queries") else "")
        is_scored = mode == "score" and "calibration" in asked
        temperature = (asked.get("calibration") or {}).get("temperature", 1.0)
        alpha = asked.get("merging_alpha", settings.get("merging_alpha"))
        return cls(
            question=question,
            weights=str(settings.get("weights") or ""),
            merging_alpha=None if alpha is None else float(alpha),
            mode=str(mode),
            labels=list_text(chosen.get("labels") or ()),
            temperature=temperature if is_scored else None,
        )


def list_text(labels: Iterable[str]) -> str:
    """A list of labels, in whatever order: how many there are, and their fingerprint."""
    names = sorted(set(labels) - {NOTHING})
    return f"{len(names)}-{digest(chr(10).join(names), size=4).hex()}" if names else ""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A line of the file.

    species: label as it is answered, `ALL_SPECIES` or `OTHERS`
    probability: that an answer at the threshold is right, and surer ones more probably; None where
        the file does not say
    threshold: confidence, 0 to 1; None where there is none, which `why` explains
    low, high: its 95 % interval
    clips, right: how many were judged, and how many of them were right
    """

    species: str
    probability: float | None
    threshold: float | None
    low: float | None = None
    high: float | None = None
    clips: int | None = None
    right: int | None = None
    scale: Scale = field(default_factory=Scale)
    why: str = ""


_OF_SCALE = tuple(one.name for one in fields(Scale))
COLUMNS = (
    *("species", "probability", "threshold", "low", "high", "clips", "right"),
    *(*_OF_SCALE, "why"),
)


@dataclass(frozen=True, kw_only=True)
class MinConfidence:
    """How sure an answer has to be.

    number: for all species, where there is no file
    path: the file that `thresholds` are of; those of one probability
    """

    number: float = 0.0
    path: str = ""
    probability: float = PROBABILITY
    thresholds: tuple[Threshold, ...] = ()

    @property
    def is_by_species(self) -> bool:
        """Whether each species has a threshold of its own."""
        return bool(self.path)

    def of(self, label: str, question: str = "") -> float:
        """The least confidence of an answer; infinite for a species without a threshold.

        Where several questions have thresholds for it, that of `question` counts.
        """
        if not self.path:
            return self.number
        if label == NOTHING:
            return 0.0
        for species in (label, OTHERS):
            named = [one for one in self._usable() if one.species == species]
            fitting = [one for one in named if one.scale.question in ("", question)]
            if not fitting and len({one.scale.question for one in named}) == 1:
                fitting = named
            for one in fitting:
                if one.threshold is not None:
                    return one.threshold
        return math.inf

    def plain(self) -> float | dict[str, Any]:
        """As settings of a run hold it: a number, or what holds for each species."""
        if not self.path:
            return self.number
        pairs = sorted((one.species, one.scale.question, one.threshold) for one in self._usable())
        return {"probability": self.probability, "thresholds": [list(pair) for pair in pairs]}

    def check(self, settings: Mapping[str, Any], questions: Iterable[str]) -> list[str]:
        """What else is not as it was when the thresholds were made, one sentence each.

        settings: of the run whose answers are to be kept; what is not known is not compared

        Raises UsageError where they are for other weights or another α: they mean nothing here.
        """
        notes: list[str] = []
        known = {one.scale.question for one in self._usable()}
        for question in questions:
            now = Scale.of(settings, question)
            for one in self._usable():
                fits = one.scale.question in ("", question)
                if fits or len(known) == 1:
                    self._check_model(one.scale, now)
                if fits:
                    notes += self._notes(one.scale, now)
        if self.path and known and "" not in known and known.isdisjoint(questions):
            asked = ", ".join(map(repr, sorted(known)))
            notes.append(f"{self.path}: the thresholds are of answers to another question: {asked}")
        return list(dict.fromkeys(notes))

    def _usable(self) -> Iterable[Threshold]:
        return (
            one
            for one in self.thresholds
            if one.threshold is not None and one.species != ALL_SPECIES
        )

    def _check_model(self, made: Scale, now: Scale) -> None:
        remedy = "review clips of these answers and call `naturelm calibrate`, or give a number"
        if made.weights and now.weights and made.weights != now.weights:
            raise UsageError(
                f"{_OPTION} {self.path}: the thresholds were made for other weights "
                f"({made.weights[:12]}, not {now.weights[:12]}); {remedy}"
            )
        alphas = (made.merging_alpha, now.merging_alpha)
        if None not in alphas and abs(alphas[0] - alphas[1]) > 1e-9:  # type: ignore[operator]
            raise UsageError(
                f"{_OPTION} {self.path}: the thresholds were made at α = {alphas[0]:g}, and the "
                f"answers are at α = {alphas[1]:g}; {remedy}"
            )

    def _notes(self, made: Scale, now: Scale) -> Iterable[str]:
        for name, what in (
            ("mode", "in another mode"),
            ("labels", "with another list of species"),
            ("temperature", "with another calibration"),
        ):
            then, is_now = getattr(made, name), getattr(now, name)
            if then and is_now and then != is_now:
                yield (
                    f"{self.path}: the thresholds were made {what} ({then}, not {is_now}), and "
                    "confidences may mean something else here"
                )


def least(of: float | MinConfidence, label: str, question: str = "") -> float:
    """The least confidence of an answer, from a number or from thresholds."""
    return of.of(label, question) if isinstance(of, MinConfidence) else of


def read_min_confidence(given: str | float | Path, *, option: str = _OPTION) -> MinConfidence:
    """The value of --min-confidence: a number, or FILE or FILE:PROBABILITY of thresholds.

    given: a folder stands for the `thresholds.csv` in it
    option: what messages call it

    Raises UsageError for what is none of them.
    """
    text = str(given)
    number = _as_number(text)
    if number is not None:
        if not 0 <= number <= 1:
            raise UsageError(f"{option} is {text}, and it must be between 0 and 1")
        return MinConfidence(number=number)
    path, share = Path(text), PROBABILITY
    if not path.exists():
        left, _, right = text.rpartition(":")
        asked = _as_number(right)
        if left and asked is not None:
            path, share = Path(left), asked
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise UsageError(
            f"{option} is {text}, which is no number and no file; give a number from 0 to 1, or "
            "thresholds as FILE or FILE:0.95 (`naturelm calibrate` makes such a file)"
        )
    thresholds = read_thresholds(path)
    known = sorted({one.probability for one in thresholds if one.probability is not None})
    if known and not any(math.isclose(share, one, abs_tol=1e-9) for one in known):
        there = ", ".join(f"{one:g}" for one in known)
        raise UsageError(f"{option} {text}: has no thresholds for {share:g}; there are {there}")
    chosen = tuple(
        one
        for one in thresholds
        if one.probability is None or math.isclose(one.probability, share, abs_tol=1e-9)
    )
    made = MinConfidence(path=str(path), probability=share, thresholds=chosen)
    if not any(made._usable()):
        raise UsageError(
            f"{option} {text}: no species has a threshold there; the column why says the reasons"
        )
    return made


def read_thresholds(path: Path) -> list[Threshold]:
    """The lines of a file of thresholds. Raises UsageError with file, line and column."""
    header, rows = read_csv(path)
    for name in ("species", "threshold"):
        if name not in header:
            raise UsageError(
                f"{path}: has no column {name!r}{did_you_mean(name, header)}; thresholds have the "
                "columns species and threshold, and those of `naturelm calibrate` some more"
            )
    found: dict[tuple[Any, ...], Threshold] = {}
    for line, cells in rows:
        row, place = dict(zip(header, cells, strict=True)), f"{path}, line {line}"
        one = _threshold(row, place)
        key = (one.species, one.probability, one.scale.question)
        if found.setdefault(key, one) is not one:
            raise UsageError(f"{place}: there is a line for {one.species!r} already; take one out")
    return list(found.values())


def write_thresholds(path: Path, thresholds: Iterable[Threshold]) -> None:
    """Write the file, whole or not at all. Raises OutputError."""

    lines = (
        [cell(getattr(one.scale if name in _OF_SCALE else one, name, None)) for name in COLUMNS]
        for one in thresholds
    )
    write_rows(path, COLUMNS, lines, encoding=CSV_ENCODING)


def _threshold(row: Mapping[str, str], place: str) -> Threshold:
    species = with_formula(row["species"]).strip()
    if not species:
        raise UsageError(f"{place}: species is empty; name one, or {OTHERS} for all others")
    texts = {name: with_formula(row.get(name, "")) for name in _TEXTS}
    return Threshold(
        species=species,
        probability=_share(row, "probability", place),
        threshold=_share(row, "threshold", place),
        low=_share(row, "low", place),
        high=_share(row, "high", place),
        clips=_count(row, "clips", place),
        right=_count(row, "right", place),
        scale=Scale(
            merging_alpha=_number(row, "merging_alpha", place),
            temperature=_number(row, "temperature", place),
            **texts,
        ),
        why=with_formula(row.get("why", "")),
    )


_TEXTS = ("question", "weights", "mode", "labels")


def _count(row: Mapping[str, str], name: str, place: str) -> int | None:
    value = _number(row, name, place)
    return None if value is None else int(value)


def _share(row: Mapping[str, str], name: str, place: str) -> float | None:
    value = _number(row, name, place)
    if value is not None and not 0 <= value <= 1:
        raise UsageError(f"{place}: {name} is {value:g}, and it must be between 0 and 1")
    return value


def _number(row: Mapping[str, str], name: str, place: str) -> float | None:
    cell = row.get(name, "").strip()
    if not cell:
        return None
    value = _as_number(cell.replace(",", "."))
    if value is None:
        raise UsageError(f"{place}: {name} is {cell!r}, and it must be a number or empty")
    return value


def _as_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
