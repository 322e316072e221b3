"""Cuts the clips that people review out of their recordings: `naturelm segments`.

Of each species some are taken: at random, the surest, or from every bin of confidence as many. A
curve from confidence to the chance of being right needs clips of all confidences, and chance alone
gives few of those that are rare; so the default is balanced. Which are taken depends on the seed
and on the answers, not on their order; held are no more answers than may be taken.

A clip holds what was heard (one channel, or the mix of all) at the rate of the recording, with some
context before and after. Each recording is opened once and read from front to back. A folder holds
clips of one call: `segments.csv.run.json` is written first, then clips one by one, whole or not at
all, and `segments.csv` at the end; so a call that was stopped goes on when it is given again.
"""

from __future__ import annotations

import io
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio import AudioError
from NatureLM.audio.decode import Recording, open_source, probe
from NatureLM.audio.windows import Mixer, parse_channel, to_fraction
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.results.detections import Detection, ResultFile
from NatureLM.results.parts import lines_of
from NatureLM.results.rows import (
    RunSettings,
    bullets,
    differences,
    read_record,
    record_path,
    write_record,
)
from NatureLM.results.tables import CSV_ENCODING, without_formula, write_rows
from NatureLM.results.thresholds import MinConfidence, Scale
from NatureLM.review.folder import (
    Segment,
    clip_paths,
    index_path,
    recording_names,
    write_segments,
)
from NatureLM.util import atomic_write, check_range, digest, writing

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


# Cutting

SPECIES_NAME = "species.csv"
_SPECIES_COLUMNS = ("species", "clips", "asked", "answers", "by_bin", "why")


@dataclass(frozen=True, kw_only=True)
class CutOptions:
    """What is cut.

    context: seconds before and after, as far as the recording goes
    longest: seconds of an answer at most; of a longer event its beginning is cut
    """

    choice: ChoiceOptions = field(default_factory=ChoiceOptions)
    context: float = 1.0
    longest: float = 60.0

    def __post_init__(self) -> None:
        check_range("--context-seconds", self.context, 0, 600)
        check_range("--max-seconds", self.longest, 0.1, 3600)

    def plain(self) -> dict[str, Any]:
        """As settings of a run hold them."""
        return {**self.choice.plain(), "context": self.context, "longest": self.longest}


@dataclass
class CutFolder:
    """What was cut.

    clips: in the index; before: how many of them an earlier call had cut
    chosen: what was taken of each label, and why no more
    unreadable: clips that could not be cut, by label
    shortened: clips of events that are longer than is cut
    """

    clips: int = 0
    before: int = 0
    chosen: Sequence[Chosen] = ()
    unreadable: Counter[str] = field(default_factory=Counter)
    shortened: int = 0

    def short(self, wanted: int) -> Iterator[tuple[Chosen, int, str]]:
        """Labels with fewer clips than asked for, how many they have, and why."""
        for one in self.chosen:
            lost = self.unreadable[one.label]
            why = one.why(wanted, lost)
            if why:
                yield one, len(one.taken) - lost, why


def cut_clips(
    answers: ResultFile,
    folder: Path,
    options: CutOptions,
    *,
    failed: Callable[[AudioError], None],
    done: Callable[[int, int], None] = lambda *_: None,
) -> CutFolder:
    """Cut clips of answers into a folder, with their index and a table of species.

    failed: told of each recording that cannot be read; the others go on
    done: told how many clips there are, of how many

    Raises UsageError where the folder holds something else, or nothing can be cut; the message says
    why of each species.
    """
    settings = _settings(answers, options)
    _check_folder(folder, settings)
    scored = [name for name, kind in answers.types.items() if kind.get("mode") == "score"]
    made = CutFolder(chosen=choose(answers, options.choice, scored))
    detections = list(taken(made.chosen))
    if not detections:
        raise UsageError(_nothing(answers, made, options))
    paths = _paths(answers, detections)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_record(index_path(folder), settings)
    segments: dict[int, Segment] = {}
    for recording, numbers in _by_recording(detections).items():
        channel = answers.settings.get("channel", "mean")
        spans = [_span(detections[n], options) for n in numbers]
        clips = [folder / paths[n] for n in numbers]
        made.before += sum(clip.is_file() for clip in clips)
        try:
            for n, (start, end) in zip(
                numbers, _write_clips(recording, channel, spans, clips), strict=False
            ):
                segments[n] = _segment(answers, detections[n], paths[n], start, end)
                done(len(segments), len(detections))
        except AudioError as error:
            failed(error)
        made.unreadable.update(detections[n].label for n in numbers if n not in segments)
    made.clips = len(segments)
    made.shortened = sum(
        one.end - one.start > options.longest for n, one in enumerate(detections) if n in segments
    )
    write_segments(folder, [segments[n] for n in sorted(segments, key=paths.__getitem__)])
    _write_species(folder, made, options.choice.per_species)
    if not segments:
        raise NatureLMError(f"{folder}: no clip could be cut: none of the recordings can be read")
    return made


def _paths(answers: ResultFile, detections: Sequence[Detection]) -> list[str]:
    """Where each clip goes below the folder."""
    names = recording_names(one.path for one in answers.recordings)
    return clip_paths(
        ((one.label, one.confidence, one.audio_path, one.start, one.end) for one in detections),
        names,
    )


def _by_recording(detections: Sequence[Detection]) -> dict[str, list[int]]:
    """Numbers of what is cut out of each recording, in the order of their beginnings."""
    found: dict[str, list[int]] = defaultdict(list)
    for number in sorted(range(len(detections)), key=lambda n: detections[n].start):
        found[detections[number].audio_path].append(number)
    return dict(sorted(found.items()))


def _span(one: Detection, options: CutOptions) -> tuple[float, float]:
    """Seconds in the recording where a clip shall begin and end."""
    end = min(one.end, one.start + options.longest)
    return max(0.0, one.start - options.context), end + options.context


def _write_clips(
    path: str, channel: str | int, spans: Sequence[tuple[float, float]], clips: Sequence[Path]
) -> Iterator[tuple[float, float]]:
    """Write the clips of a recording that are not there; where each begins and ends (seconds).

    spans: in the order of their beginnings
    """
    import soundfile  # type: ignore[import-untyped, unused-ignore]

    with open_source(path, None) as recording:
        assert isinstance(recording, Recording)
        rate = recording.sample_rate
        frames = [tuple(round(to_fraction(edge) * rate) for edge in span) for span in spans]
        subtype = "PCM_24" if recording.is_wide else "PCM_16"
        samples = _pieces(recording, Mixer(recording, parse_channel(channel)), frames, clips)
        for (first, _), clip, piece in zip(frames, clips, samples, strict=True):
            if isinstance(piece, int):
                yield first / rate, (first + piece) / rate
                continue
            with writing(clip):
                clip.parent.mkdir(parents=True, exist_ok=True)
                made = io.BytesIO()  # of a full disk soundfile would print a trace of its own
                soundfile.write(made, piece, rate, subtype=subtype, format="WAV")
                with atomic_write(clip) as unfinished:
                    unfinished.write_bytes(made.getbuffer())
            yield first / rate, (first + len(piece)) / rate


def _pieces(
    recording: Recording,
    mixer: Mixer,
    spans: Sequence[tuple[int, ...]],
    clips: Sequence[Path],
) -> Iterator[NDArray[np.float32] | int]:
    """The samples of each span, or how many a clip has that is there already.

    Raises AudioError where a span begins behind what can be decoded.
    """
    blocks = recording.blocks()
    held, at = np.zeros(0, dtype=np.float32), 0
    for (first, last), clip in zip(spans, clips, strict=True):
        there = _frames_of(clip)
        if there is not None:
            yield there
            continue
        behind = first - at - len(held)
        if behind >= 0:
            recording.skip(behind)
            held = held[:0]
        else:
            held = held[first - at :]
        at = first
        while at + len(held) < last and (block := next(blocks, None)) is not None:
            held = np.concatenate([held, _finite(mixer.mono(block))])
        piece = held[: last - first]
        if not len(piece):
            rate = recording.sample_rate
            raise recording.failure or AudioError(
                recording.path, f"ends before {first / rate:.2f} s, where a clip begins"
            )
        yield np.clip(piece, -1.0, 1.0)


def _frames_of(clip: Path) -> int | None:
    """How many samples a clip has that is there already; None for one that is to be cut."""
    if not clip.is_file():
        return None
    try:
        return probe(clip).frames
    except AudioError:
        return None


def _finite(mono: NDArray[np.float32]) -> NDArray[np.float32]:
    """Samples that are no numbers as silence: nobody was asked about them, they are context."""
    return np.nan_to_num(mono, copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def _segment(answers: ResultFile, one: Detection, clip: str, start: float, end: float) -> Segment:
    settings = answers.settings
    scale = Scale.of(settings, one.question)
    return Segment(
        clip=clip,
        recording=one.audio_path,
        start=one.start,
        end=one.end,
        clip_start=start,
        clip_end=end,
        label=one.label,
        common_name=one.common_name,
        scientific_name=one.scientific_name,
        confidence=one.confidence,
        question=one.question,
        model=answers.model,
        run="" if answers.record is None else answers.record.run,
        weights=scale.weights,
        merging_alpha=scale.merging_alpha,
        time_expansion=float(settings.get("time_expansion", 1.0)),
        site=str(one.context.get("site") or ""),
        local_time=str(one.context.get("local_time") or ""),
    )


def _settings(answers: ResultFile, options: CutOptions) -> RunSettings:
    """What decides which clips there are; the settings of the answers stand among it."""
    content = digest((line for *_, line in lines_of(answers.path)), "blake2b", size=8)
    return RunSettings(
        {
            "answers": dict(answers.settings),
            "content": content.hex(),
            "columns": list(answers.columns),
            "segments": options.plain(),
        }
    )


def _check_folder(folder: Path, settings: RunSettings) -> None:
    """Raise UsageError for a folder that holds something else than clips of this call."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file, and clips go into a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    before = read_record(index_path(folder))
    if before is None:
        raise UsageError(
            f"{folder}: holds other files (no {record_path(index_path(folder)).name}); give clips "
            "a folder of their own with --output-path"
        )
    if before.run == settings.run:
        return
    found = differences(before.values, settings.values)
    if len(found) > 1:  # that the answers are others is said by what differs in them
        found = [one for one in found if not one.startswith("content:")]
    found = ["the answers are others" if one.startswith("content:") else one for one in found]
    raise UsageError(
        f"{folder}: holds clips that were chosen otherwise:\n{bullets(found)}\nGive another "
        "--output-path: verdicts belong to the clips that are there."
    )


def _nothing(answers: ResultFile, made: CutFolder, options: CutOptions) -> str:
    """Why there is nothing to cut."""
    reasons = [f"{o.label}: {o.why(options.choice.per_species)}" for o in made.chosen]
    if not reasons:
        reasons = [f"{reason}: {count}" for reason, count in sorted(answers.left_out.items())]
        reasons = reasons or [answers.names_nothing or "no answer names anything"]
    return f"{answers.path}: there is no clip to cut:\n{bullets(reasons)}"


def _write_species(folder: Path, made: CutFolder, wanted: int) -> None:
    """A table of all labels: how many clips each has, of how many answers, and why no more."""
    rows = []
    for one in made.chosen:
        lost, bins = made.unreadable[one.label], " ".join(map(str, one.by_bin))
        counts = (len(one.taken) - lost, wanted, one.answers, bins)
        rows.append((without_formula(one.label), *counts, one.why(wanted, lost)))
    write_rows(folder / SPECIES_NAME, _SPECIES_COLUMNS, rows, encoding=CSV_ENCODING)


def settings_of(folder: str | Path) -> Mapping[str, Any]:
    """The settings of the answers that the clips of a folder are of; empty where they are lost."""
    record = read_record(index_path(folder))
    found = {} if record is None else record.values.get("answers")
    return found if isinstance(found, dict) else {}
