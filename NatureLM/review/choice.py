"""Which answers are cut for review: of each species some, at random, the surest, or from every bin
of confidence as many.

A curve from confidence to the chance of being right needs clips of all confidences, and chance
alone gives few of those that are rare; so the default is balanced. Which are taken depends on the
seed and on the answers, not on their order; held are no more answers than may be taken.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal, TypeAlias, get_args

from NatureLM.errors import UsageError
from NatureLM.results.detections import Detection
from NatureLM.results.thresholds import MinConfidence
from NatureLM.util import check_range, digest

Choose: TypeAlias = Literal["balanced", "random", "confidence", "top", "uncertain", "diverse"]
CHOICES: tuple[str, ...] = get_args(Choose)
_POOL = 20  # times as many answers of a label as are wanted, of which the diverse ones are taken
BELOW, UNSCORED, UNKNOWN = "below the least confidence", "without a confidence", "no threshold"


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions:
    """How clips are chosen.

    choose: "random"; "confidence" or "top", the surest; "balanced", as many from each bin of
        confidence; "uncertain", those whose two likeliest labels are nearly as likely; "diverse",
        of as many recordings as there are, and far from each other in time
    per_species: at most so many of a label
    bins: of equal width, from the least confidence to 1
    species: labels or names that are taken; None for all
    seed: another one chooses others
    """

    choose: Choose = "balanced"
    per_species: int = 50
    bins: int = 5
    min_confidence: MinConfidence = field(default_factory=MinConfidence)
    species: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.choose not in CHOICES:
            raise UsageError(
                f"--choose is {self.choose!r}, and it must be one of {', '.join(CHOICES)}"
            )
        check_range("--per-species", self.per_species, 1, 100_000)
        check_range("--bins", self.bins, 1, 100)

    def plain(self) -> dict[str, Any]:
        """As settings of a run hold them."""
        species = None if self.species is None else sorted(self.species)
        return {**vars(self), "min_confidence": self.min_confidence.plain(), "species": species}


@dataclass
class Chosen:
    """What was chosen of a label, and why no more.

    answers: how many there are
    taken: those that are cut
    passed_over: how many could not be taken, by reason
    by_bin: how many were taken of each bin
    """

    label: str
    answers: int = 0
    taken: list[Detection] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    by_bin: tuple[int, ...] = ()

    def why(self, wanted: int, unreadable: int = 0) -> str:
        """Why there are fewer clips than asked for; "" where there are as many.

        unreadable: of those taken, how many could not be cut
        """
        if len(self.taken) - unreadable >= wanted:
            return ""
        if not self.answers:
            return "no answer names it"
        reasons = [f"{count} {reason}" for reason, count in sorted(self.passed_over.items())]
        if unreadable:
            reasons.append(f"{unreadable} of recordings that could not be read")
        there = f"{self.answers} answer{'s' * (self.answers != 1)}"
        return f"{there} ({', '.join(reasons)})" if reasons else there


class _Least:
    """The `most` items of the smallest keys, of however many are added."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: list[tuple[Any, Detection]] = []

    def add(self, key: Any, one: Detection) -> None:
        self._items.append((key, one))
        if len(self._items) > self._most + 32:
            self._cut()

    def _cut(self) -> None:
        self._items.sort(key=lambda item: item[0])
        del self._items[self._most :]

    def all(self) -> list[Detection]:
        self._cut()
        return [one for _, one in self._items]


def choose(
    detections: Iterable[Detection], options: ChoiceOptions, scored: Sequence[str] = ()
) -> list[Chosen]:
    """What is taken of each label, in the order of the labels; those that were named and have no
    answer stand among them.

    scored: other columns of the questionnaire, whose answers have a confidence

    Raises UsageError where answers shall be chosen by a confidence that none of them has.
    """
    found: dict[str, Chosen] = {}
    kept: dict[tuple[str, int], _Least] = {}
    wanted = None if options.species is None else set(options.species)
    missing = set(wanted or ())
    for one in detections:
        names = {one.label, one.common_name, one.scientific_name} - {""}
        if wanted is not None and wanted.isdisjoint(names):
            continue
        missing -= names
        chosen = found.setdefault(one.label, Chosen(one.label))
        chosen.answers += 1
        reason = _reason(one, options)
        if reason:
            chosen.passed_over[reason] += 1
            continue
        key, place = _key(one, options), (one.label, _bin(one, options))
        most = options.per_species * (_POOL if options.choose == "diverse" else 1)
        kept.setdefault(place, _Least(most)).add(key, one)
    for label, chosen in found.items():
        if options.choose == "diverse":
            spread = kept[label, 0].all() if (label, 0) in kept else []
            chosen.taken = _apart(spread, options.per_species)
            continue
        bins = [kept[label, n].all() if (label, n) in kept else [] for n in range(options.bins)]
        shares = _shares([len(one) for one in bins], options.per_species)
        chosen.taken = [o for one, n in zip(bins, shares, strict=True) for o in one[:n]]
        chosen.by_bin = tuple(shares) if options.choose == "balanced" else ()
    _refuse_unscored(found.values(), scored)
    found |= {name: Chosen(name) for name in missing}
    return [found[label] for label in sorted(found)]


def _reason(one: Detection, options: ChoiceOptions) -> str:
    """Why an answer cannot be taken; "" where it can."""
    least = options.min_confidence.of(one.label, one.question)
    if one.confidence is None:
        needs_none = options.choose in ("random", "diverse")
        return UNSCORED if least > 0 or not needs_none else ""
    if one.confidence >= least:
        return ""
    return UNKNOWN if math.isinf(least) else BELOW


def _key(one: Detection, options: ChoiceOptions) -> tuple[float, bytes, str]:
    """What comes first is taken; of equal ones chance decides, by the seed."""
    rank = 0.0
    if options.choose in ("confidence", "top"):
        rank = -(one.confidence or 0.0)
    elif options.choose == "uncertain":
        rank = margin(one)
    name = PurePath(one.audio_path).name
    about = f"{options.seed}\0{name}\0{one.start:.6f}\0{one.end:.6f}\0{one.label}\0{one.question}"
    chance = digest(about.encode("utf-8", "surrogatepass"), "blake2b", size=8)
    return rank, chance, one.audio_path


def margin(one: Detection) -> float:
    """How much likelier an answer is than the next one; that of one alone is from a half on."""
    sure = one.confidence or 0.0
    others = [share for _, share in one.alternatives]
    return abs(sure - max(others)) if others else abs(2 * sure - 1)


def _apart(found: Sequence[Detection], wanted: int) -> list[Detection]:
    """Answers of as many recordings as there are; of one recording those far from each other.

    found: in an order that chance decides
    """
    left: dict[str, list[Detection]] = {}
    for one in found:
        left.setdefault(one.audio_path, []).append(one)
    taken: list[Detection] = []
    while left and len(taken) < wanted:
        for path in list(left)[: wanted - len(taken)]:
            here = [one.start for one in taken if one.audio_path == path]
            best = max(
                left[path], key=lambda one: min((abs(one.start - t) for t in here), default=0)
            )
            left[path].remove(best)
            taken.append(best)
        left = {path: rest for path, rest in left.items() if rest}
    return taken


def _bin(one: Detection, options: ChoiceOptions) -> int:
    if options.choose != "balanced" or one.confidence is None:
        return 0
    least = options.min_confidence.of(one.label, one.question)
    share = (one.confidence - least) / (1 - least) if least < 1 else 1.0
    return max(0, min(int(share * options.bins), options.bins - 1))


def _shares(there: Sequence[int], wanted: int) -> list[int]:
    """How many are taken of each bin: as many, as far as they go; the rest from the others."""
    given = [0] * len(there)
    left = min(wanted, sum(there))
    while left:
        open_bins = [n for n in reversed(range(len(there))) if given[n] < there[n]]
        each = max(1, left // len(open_bins))
        for n in open_bins:
            more = min(each, there[n] - given[n], left)
            given[n] += more
            left -= more
    return given


def _refuse_unscored(found: Iterable[Chosen], scored: Sequence[str]) -> None:
    listed = list(found)
    answers = sum(one.answers for one in listed)
    unscored = sum(one.passed_over[UNSCORED] for one in listed)
    if answers and answers == unscored:
        other = f"take --column {scored[0]}" if scored else "ask with a species list"
        raise UsageError(
            "no answer has a confidence to choose by; take --choose random and no "
            f"--min-confidence, or {other}, whose answers have one"
        )


def taken(chosen: Iterable[Chosen]) -> Iterator[Detection]:
    """All that is cut, label by label."""
    for one in chosen:
        yield from one.taken
