"""The timeline of a recording: its answers as coloured windows, pictures of any stretch, and sound.

The whole is drawn once, in blocks, and kept in the job's folder; short stretches are drawn finely
when they are looked at. Seconds are those of the recording; a time expansion slows the sound down.
"""

from __future__ import annotations

import base64
import contextlib
import io
import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from NatureLM.app.clips import without_paths
from NatureLM.app.job import Job, JobRecording
from NatureLM.app.job_view import Answer, JobView
from NatureLM.app.jobs import Jobs
from NatureLM.audio import AudioError
from NatureLM.audio.windows import iter_windows, read_clip
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.reports.clips import BINS, Levels, contrast, levels_of, picture, pooled
from NatureLM.util import atomic_write

MOST_MARKS = 9000
"""Marks of a timeline: beyond a day of windows of ten seconds, neighbours share one."""
NAMED = 6
"""Answers that have a colour of their own: more could not be told apart."""
_STEPS = 5
_LONGEST = 300
OVERVIEW_COLUMNS = 6000
"""Columns of the picture of a whole recording."""
_FINE_SECONDS = 240.0  # the longest stretch, in heard time, that is drawn from the sound itself
_MOST_COLUMNS = 2400
_COLUMNS = 1200
_CLOSE_UP_COLUMNS = 1000
_BLOCK_SECONDS = 20.0
_FINEST = 0.01  # seconds of a column
_LONGEST_SOUND = 60.0  # heard seconds

ServerFunction: TypeAlias = Callable[[Any], dict[str, Any]]


def timeline(
    view: JobView, recording: JobRecording, query: str, colouring: str = "answer"
) -> dict[str, Any]:
    """The windows of a recording that have an answer to one question, with their colours.

    `windows` are start and end (seconds of the recording), answer, confidence (0 to 1, or None) and
    place in `legend`; what has no answer yet is not among them. `colouring` is `answer` or
    `confidence`, which is of no use where no answer has any. Of more than `MOST_MARKS` windows
    neighbours share a mark, which has the colour that most of them have.
    """
    found = [one for one in view.answers if one.file == recording.file and one.query == query]
    answers = sorted(found, key=lambda one: one.start)
    by_answer = colouring != "confidence" or all(one.confidence is None for one in answers)
    legend, places = _by_answer(answers) if by_answer else _by_confidence(answers)
    many = -(-len(answers) // MOST_MARKS) or 1
    marks = (
        _mark(answers[n : n + many], places[n : n + many]) for n in range(0, len(answers), many)
    )
    return {
        "job": view.job.id,
        "recording": recording.file,
        "name": recording.name,
        "seconds": recording.seconds or 0.0,
        "legend": legend,
        "windows": list(marks),
    }


def _mark(answers: Sequence[Answer], places: Sequence[int]) -> dict[str, Any]:
    """A window of the timeline, or neighbours as one."""
    ((place, _),) = Counter(places).most_common(1)
    first = answers[places.index(place)]
    alike = sum(one.text == first.text for one in answers)
    more = f" ({alike} of {len(answers)} windows)" if len(answers) > 1 else ""
    return {
        "start": answers[0].start,
        "end": max(one.end for one in answers),
        "text": first.text[:_LONGEST] + more,
        "confidence": first.confidence,
        "colour": place,
    }


def _by_answer(answers: Sequence[Answer]) -> tuple[list[dict[str, Any]], list[int]]:
    """The legend, and the place of each answer in it."""
    counts = Counter(one.text for one in answers)
    # By number, then by name: the same answers have the same colours whenever one looks.
    ordered = sorted(counts, key=lambda text: (-counts[text], text))
    legend = [
        _legend(text[:_LONGEST] or "(nothing)", f"series-{n}", counts[text])
        for n, text in enumerate(ordered[:NAMED])
    ]
    if len(ordered) > NAMED:
        rest = sum(counts[text] for text in ordered[NAMED:])
        legend.append(_legend("other answers", "other", rest))
    places = {text: min(n, NAMED) for n, text in enumerate(ordered)}
    return legend, [places[one.text] for one in answers]


def _by_confidence(answers: Sequence[Answer]) -> tuple[list[dict[str, Any]], list[int]]:
    places = [
        _STEPS if share is None else max(0, min(_STEPS - 1, int(share * _STEPS)))
        for share in (one.confidence for one in answers)
    ]
    counts = Counter(places)
    legend = [
        _legend(f"{100 * n // _STEPS} to {100 * (n + 1) // _STEPS} %", f"step-{n}", counts[n])
        for n in range(_STEPS)
    ]
    if counts[_STEPS]:
        legend.append(_legend("not known", "other", counts[_STEPS]))
    return legend, places


def _legend(label: str, style: str, count: int) -> dict[str, Any]:
    return {"label": label, "style": style, "count": count}


@dataclass(frozen=True)
class Overview:
    """The whole recording.

    levels_FT: as `spectrogram.levels_of` gives them
    column: seconds of the recording that a column covers
    low, high: the levels that are drawn darkest and lightest, in all pictures of the recording
    """

    levels_FT: Levels
    column: float
    low: int
    high: int


def _for_the_page(answer: ServerFunction) -> ServerFunction:
    """Let a function say what is wrong instead of raising; what a page sends is not trusted."""

    @wraps(answer)
    def answered(wanted: Any) -> dict[str, Any]:
        try:
            return answer(wanted)
        except NatureLMError as error:
            return {"error": without_paths(str(error))}
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            return {"error": "The page asked for something that is not there: load it again."}

    return answered


class JobSound:
    """Pictures and sound of the recordings of all jobs.

    sample_rate: gives Hz, of the model: what lies above half of it is not shown, because not heard
    """

    def __init__(self, jobs: Jobs, sample_rate: Callable[[], int]) -> None:
        self._jobs = jobs
        self._sample_rate = sample_rate
        self._drawing = threading.Lock()

    def server_functions(self) -> list[ServerFunction]:
        """`stretch` and `listen`, which the timeline's script calls.

        Each takes job, recording, start and end, and never raises.
        """

        def asked(wanted: Any) -> tuple[Job, JobRecording, float, float]:
            job = self._jobs.open(wanted["job"])
            recording = {one.file: one for one in job.recordings}[wanted["recording"]]
            return job, recording, float(wanted["start"]), float(wanted["end"])

        @_for_the_page
        def stretch(wanted: Any) -> dict[str, Any]:
            job, recording, start, end = asked(wanted)
            highest = self._sample_rate() / 2000 * job.settings.time_expansion
            columns = int(wanted.get("columns", _COLUMNS))
            drawn = self.stretch(job, recording, start, end, columns)
            return {"picture": _base64(drawn), "kilohertz": f"{highest:g}"}

        @_for_the_page
        def listen(wanted: Any) -> dict[str, Any]:
            stretch = asked(wanted)
            close_up = self.stretch(*stretch, _CLOSE_UP_COLUMNS)
            return {"picture": _base64(close_up), "sound": _base64(self.heard(*stretch))}

        return [stretch, listen]

    def stretch(
        self, job: Job, recording: JobRecording, start: float, end: float, columns: int
    ) -> bytes:
        """A PNG of a stretch of a recording, about as many columns wide.

        Raises UsageError where the recording cannot be read.
        """
        start, end = _inside(start, end, _length(recording))
        columns = max(1, min(columns, _MOST_COLUMNS))
        overview = self.overview(job, recording)
        if (end - start) * job.settings.time_expansion <= _FINE_SECONDS:
            samples_S = self._samples(job, recording, start, end)
            rate = self._sample_rate()
            per_second = min(1 / _FINEST, columns / max(len(samples_S) / rate, _FINEST))
            levels_FT = levels_of(samples_S, rate, per_second)
        else:
            first = int(start / overview.column)
            last = max(first + 1, math.ceil(end / overview.column))
            levels_FT = pooled(overview.levels_FT[:, first:last], columns)
        return picture(levels_FT, overview.low, overview.high)

    def heard(self, job: Job, recording: JobRecording, start: float, end: float) -> bytes:
        """A WAV file of a stretch as the model hears it: mono, slowed down where the job says so.

        Raises UsageError where the recording cannot be read.
        """
        import soundfile  # type: ignore[import-untyped, unused-ignore]

        start, end = _inside(start, end, _length(recording))
        end = min(end, start + _LONGEST_SOUND / job.settings.time_expansion)
        file = io.BytesIO()
        samples_S = self._samples(job, recording, start, end)
        soundfile.write(file, samples_S, self._sample_rate(), format="WAV", subtype="PCM_16")
        return file.getvalue()

    def overview(self, job: Job, recording: JobRecording) -> Overview:
        """The whole recording, drawn at the first call. Raises UsageError."""
        expansion = job.settings.time_expansion
        column = max(_FINEST, _length(recording) * expansion / OVERVIEW_COLUMNS)
        kept = job.folder / "pictures" / f"{Path(recording.file).name}.npy"
        with self._drawing:
            levels_FT = _load(kept)
            if levels_FT is None:
                levels_FT = self._draw(job, recording, column)
                with contextlib.suppress(OSError):  # without room for it, it is drawn again
                    kept.parent.mkdir(exist_ok=True)
                    with atomic_write(kept) as unfinished, open(unfinished, "wb") as file:
                        np.save(file, levels_FT, allow_pickle=False)
        return Overview(levels_FT, column / expansion, *contrast([levels_FT]))

    def _draw(self, job: Job, recording: JobRecording, column: float) -> Levels:
        """Levels of a recording block by block, each of whole columns (`column` heard seconds).

        Columns that are longer than a block are the loudest of their parts.
        """
        many = max(1, round(_BLOCK_SECONDS / column))
        parts = max(1, math.ceil(column / _BLOCK_SECONDS))
        block = column * many / parts
        columns = math.ceil(_length(recording) * job.settings.time_expansion / column - 1e-9)
        levels_FT = np.zeros((BINS, max(1, columns)), dtype=np.uint8)
        rate = self._sample_rate()
        try:
            for window in iter_windows(
                job.path_of(recording),
                sample_rate=rate,
                window_seconds=block,
                hop_seconds=block,
                channel=job.settings.channel,
                time_expansion=job.settings.time_expansion,
                warn=lambda text: None,
            ):
                part_FT = levels_of(window.samples, rate, 1 / min(column, block))
                first = window.index * many if parts == 1 else window.index // parts
                drawn_FT = levels_FT[:, first : first + many]
                width = min(part_FT.shape[1], drawn_FT.shape[1])
                np.maximum(drawn_FT[:, :width], part_FT[:, :width], out=drawn_FT[:, :width])
        except AudioError as error:
            if not levels_FT.any():
                raise UsageError(f"{recording.name}: {error.reason}") from None
        return levels_FT

    def _samples(
        self, job: Job, recording: JobRecording, start: float, end: float
    ) -> NDArray[np.float32]:
        try:
            return read_clip(
                job.path_of(recording),
                start=start,
                duration=end - start,
                # Played at the model's rate, the clip is as slow as the model hears it.
                sample_rate=round(self._sample_rate() * job.settings.time_expansion),
                channel=job.settings.channel,
            )
        except AudioError as error:
            raise UsageError(f"{recording.name}: {error.reason}") from None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _length(recording: JobRecording) -> float:
    if recording.seconds is None:
        raise UsageError(f"{recording.name}: it cannot be read, so there is nothing to see")
    return recording.seconds


def _inside(start: float, end: float, length: float) -> tuple[float, float]:
    """The stretch within the recording, at least a little long."""
    if not (math.isfinite(start) and math.isfinite(end)):
        raise UsageError("the stretch to look at must have a start and an end")
    start = max(0.0, min(start, length - 0.05))
    return start, max(start + 0.05, min(end, length))


def _load(kept: Path) -> Levels | None:
    try:
        levels: Levels = np.load(kept, allow_pickle=False)
    except (OSError, ValueError):
        return None
    is_good = levels.dtype == np.uint8 and levels.ndim == 2 and levels.shape[0] == BINS
    return levels if is_good else None
