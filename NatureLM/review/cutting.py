"""Cuts the clips that people review out of their recordings: `naturelm segments`.

A clip holds what was heard (one channel, or the mix of all) at the rate of the recording, with some
context before and after. Each recording is opened once and read from front to back. A folder holds
clips of one call: `segments.csv.run.json` is written first, then clips one by one, whole or not at
all, and `segments.csv` at the end; so a call that was stopped goes on when it is given again.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio import AudioError
from NatureLM.audio.decode import Recording, open_source, probe
from NatureLM.audio.windows import Mixer, parse_channel, to_fraction
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.results.detections import Detection, ResultFile
from NatureLM.results.rows import (
    RunSettings,
    bullets,
    differences,
    read_record,
    record_path,
    write_record,
)
from NatureLM.results.tables import CSV_ENCODING, without_formula, write_rows
from NatureLM.results.thresholds import Scale
from NatureLM.review.choice import ChoiceOptions, Chosen, choose, taken
from NatureLM.review.segments import (
    Segment,
    clip_paths,
    index_path,
    recording_names,
    write_segments,
)
from NatureLM.util import atomic_write, check_range, digest, writing

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
    with open(answers.path, "rb") as file:
        content = digest(iter(lambda: file.read(1 << 20), b""), "blake2b", size=8).hex()
    return RunSettings(
        {
            "answers": dict(answers.settings),
            "content": content,
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
