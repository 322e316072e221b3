"""The sample recordings of `--assets-dir`, by names that people read.

The clips that a visitor has put into one tab.

Spectrograms as pictures: computed block by block, so that length costs no memory.

Levels are bytes of half a decibel: 0 is -127.5 dB of full scale or less, 255 is 0 dB. Shapes: S
samples, F frequencies (lowest first), T columns.

A clip on the page: checked, with its picture, its windows and a copy that browsers can play.

Everything comes from the windows that the model hears: the picture, the copy, the times.
"""

from __future__ import annotations

import secrets
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from NatureLM.app.limits import LimitError, Limits, say_seconds, shown_name, take
from NatureLM.audio import AudioError, Window, find_recordings, iter_windows, probe
from NatureLM.errors import NatureLMError


def samples_of(folder: Path | None) -> dict[str, Path]:
    """Name → file, in the order of the names; empty where there are none."""
    if folder is None:
        return {}
    try:
        found = find_recordings([folder])
    except NatureLMError:
        return {}
    named: dict[str, Path] = {}
    for path in sorted(found):
        name = path.stem.replace("_", " ").replace("synthetic ", "")
        name = f"{name[:1].upper()}{name[1:]}"
        named[name if name not in named else path.name] = path
    return dict(sorted(named.items()))


_LATE = 4
"""Clips that were taken out and whose files are kept for the moment."""


@dataclass
class UploadResult:
    """How taking files in went: sentences on those that could not be used, and one too long."""

    problems: list[str] = field(default_factory=list)
    too_long: TooLong | None = None


@dataclass
class ClipList:
    """Clips in the order of their numbers, which start at 1. `labels` are by the clip's id."""

    folder: Path
    limits: Limits
    most: int
    clips: list[Clip] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    _gone: list[Clip] = field(default_factory=list)

    def put(
        self,
        files: Iterable[tuple[str | Path, str | None]],
        *,
        add: bool,
        slowed: float = 1.0,
        label: str = "",
        sample_rate: int = 16_000,
    ) -> UploadResult:
        """Open (file, name or None) and put them after the clips, or in place of them.

        What was there stays if none of the files can be used.
        """
        taken, new = UploadResult(), list[Clip]()
        room = self.most - (len(self.clips) if add else 0)
        for file, name in files:
            if len(new) >= room:
                taken.problems.append(
                    f"{self.most} clips fit in here; take one out to put another in."
                    if self.most > 1
                    else "Only the first of the files was taken: one clip fits in here."
                )
                break
            try:
                clip = open_clip(
                    file,
                    self.folder,
                    self.limits,
                    slowed=slowed,
                    name=name,
                    sample_rate=sample_rate,
                )
            except TooLong as error:
                taken.too_long = error
                taken.problems.append(str(error))
                continue
            except NatureLMError as error:
                taken.problems.append(str(error))
                continue
            new.append(clip)
            self.labels[clip.id] = label
        if new and not add:
            self.clear()
        self.clips.extend(new)
        return taken

    def remove(self, id: str) -> None:
        """Take one out. Its files go a little later, as the page may be loading them."""
        for clip in [one for one in self.clips if one.id == id]:
            self.clips.remove(clip)
            self.labels.pop(clip.id, None)
            self._gone.append(clip)
        while len(self._gone) > _LATE:
            clip = self._gone.pop(0)
            for path in (clip.path, clip.image, clip.sound):
                path.unlink(missing_ok=True)

    def choose(self, id: str, window: int) -> None:
        """Let questions be about this window of the clip."""
        self.clips = [
            replace(clip, chosen=window) if clip.id == id and window < len(clip.spans) else clip
            for clip in self.clips
        ]

    def clear(self) -> None:
        """Take all out."""
        for clip in list(self.clips):
            self.remove(clip.id)


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


Levels = NDArray[np.uint8]

BINS = 160
"""Rows of a picture, from 0 Hz to half the sample rate."""
MOST_COLUMNS = 1200
"""Columns of the picture of one clip."""
_FINEST = 100.0  # columns per second
_SEGMENT = 512
_FULL_SCALE = 0.25 * _SEGMENT  # magnitude of a sine of amplitude 1 through a Hann window
_STEPS_PER_DECIBEL = 2.0
_RANGE_DECIBELS = 55.0
_LOWEST_TOP = -70.0  # decibels; so that silence stays dark

# From dark to light evenly, blue to yellow, which all colour-blind readers tell apart.
_ANCHORS = np.array(
    [
        (12, 14, 30),
        (25, 46, 102),
        (30, 95, 150),
        (67, 146, 157),
        (150, 190, 132),
        (232, 214, 120),
        (255, 250, 220),
    ],
    dtype=float,
)


def columns_per_second(seconds: float, most: int = MOST_COLUMNS) -> float:
    """How fine a picture of so many seconds is drawn."""
    return min(_FINEST, most / max(seconds, 0.1))


def levels_of(samples_S: NDArray[np.float32], sample_rate: int, per_second: float) -> Levels:
    """Levels (F, T) of a stretch of sound in [-1, 1]; each column is the loudest in its time.

    `T = ceil(seconds · per_second)`, so stretches of whole columns can be put side by side.
    """
    count = max(1, int(np.ceil(len(samples_S) / sample_rate * per_second - 1e-9)))
    width = sample_rate / per_second
    looks = max(1, int(np.ceil(width / (_SEGMENT / 2))))  # frames that a column is the loudest of
    centres = (np.arange(count * looks) + 0.5) * (width / looks)
    starts = np.maximum(0, np.round(centres - _SEGMENT / 2).astype(int))
    padded = np.pad(samples_S, (0, max(0, int(starts[-1]) + _SEGMENT - len(samples_S))))
    taper = np.hanning(_SEGMENT).astype(np.float32)
    loudest = np.empty((BINS, count), dtype=np.float32)
    step = max(1, 4096 // looks)  # columns at a time
    for first in range(0, count, step):
        some = starts[first * looks : (first + step) * looks]
        frames = padded[some[:, None] + np.arange(_SEGMENT)] * taper
        magnitude = np.abs(np.fft.rfft(frames, axis=1)).reshape(-1, looks, _SEGMENT // 2 + 1)
        loudest[:, first : first + step] = _rows(magnitude.max(axis=1)).T
    decibels = 20 * np.log10(np.maximum(loudest / _FULL_SCALE, 1e-9))
    levels: Levels = np.clip(255 + decibels * _STEPS_PER_DECIBEL, 0, 255).astype(np.uint8)
    return levels


def contrast(parts: Iterable[Levels]) -> tuple[int, int]:
    """The level that is drawn darkest and the one that is drawn lightest, for all parts alike."""
    counts = np.zeros(256, dtype=np.int64)
    for levels in parts:
        counts += np.bincount(levels.reshape(-1), minlength=256)
    if not counts.sum():
        return 0, 255
    share = np.cumsum(counts) / counts.sum()
    lowest_top = int(255 + _LOWEST_TOP * _STEPS_PER_DECIBEL)
    top = max(int(np.searchsorted(share, 0.9995)), lowest_top)
    floor = int(np.searchsorted(share, 0.10))
    return max(floor, int(top - _RANGE_DECIBELS * _STEPS_PER_DECIBEL), 0), top


def picture(levels_FT: Levels, low: int, high: int) -> bytes:
    """A PNG, low frequencies at the bottom; `low` and `high` as from `contrast`."""
    scale = 255 / max(1, high - low)
    shown = np.clip((levels_FT.astype(np.float32) - low) * scale, 0, 255).astype(np.uint8)
    return _png(shown[::-1])


def _rows(magnitude_TB: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pool the frequencies of the transform into `BINS` rows (T, F), the loudest of each."""
    edges = np.linspace(0, magnitude_TB.shape[1], BINS + 1).astype(int)[:-1]
    pooled: NDArray[np.float32] = np.maximum.reduceat(magnitude_TB, edges, axis=1)
    return pooled


def _png(indices: NDArray[np.uint8]) -> bytes:
    """A PNG whose pixels are indices into the palette (PNG specification, third edition)."""
    height, width = indices.shape
    places = np.linspace(0, len(_ANCHORS) - 1, 256)
    palette = np.stack(
        [np.interp(places, np.arange(len(_ANCHORS)), _ANCHORS[:, c]) for c in range(3)], axis=1
    )
    rows = np.concatenate([np.zeros((height, 1), np.uint8), indices], axis=1)  # 0: no filter
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", palette.round().astype(np.uint8).tobytes()),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)),
            _chunk(b"IEND", b""),
        ]
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


WINDOW_SECONDS = 10.0
SLOW_FACTOR = 10
_SILENT_PEAK = 10 ** (-80 / 20)


class BadClip(NatureLMError):  # noqa: N818
    """A file that is no usable clip; the message names it as the visitor does."""


class TooLong(LimitError):  # noqa: N818
    """A recording that belongs into Long recording; `path` is where it is kept."""

    def __init__(self, message: str, path: Path, name: str) -> None:
        super().__init__(message)
        self.path, self.name = path, name


@dataclass(frozen=True)
class Clip:
    """One clip.

    Attributes:
        id: unguessable.
        name: as the visitor knows it; text, not a path.
        path: the file itself.
        seconds: length of the recording.
        slowed: how many times slower it is heard (time expansion).
        spans: start and end of its windows, seconds of the recording.
        image, sound: picture and playable copy, in the visitor's folder.
        sample_rate: Hz, of the windows.
        notes: what should be known about it, sentences.
        chosen: index of the window that questions are about.
    """

    id: str
    name: str
    path: Path
    seconds: float
    slowed: float
    spans: tuple[tuple[float, float], ...]
    image: Path
    sound: Path
    sample_rate: int
    notes: tuple[str, ...] = ()
    chosen: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """Names what of it is heard."""
        return self.id, self.chosen

    def samples(self) -> NDArray[np.float32]:
        """The chosen window (samples,), without what only fills it up to its full length."""
        start, end = self.spans[self.chosen]
        for window in _windows(self.path, self.sample_rate, self.slowed, lambda _: None):
            if window.index == self.chosen:
                return window.samples[: round((end - start) * self.slowed * self.sample_rate)]
        raise BadClip(f"{self.name} has changed since it was opened. Open it again.")


def open_clip(
    upload: str | Path,
    folder: Path,
    limits: Limits,
    *,
    sample_rate: int = 16_000,
    slowed: float = 1.0,
    name: str | None = None,
) -> Clip:
    """Take a file in. Raises BadClip, TooLong or LimitError with a sentence for the visitor."""
    shown = name or shown_name(upload)
    kept = take(upload, folder, limits)
    try:
        return _open(kept, shown, folder, limits, sample_rate, slowed)
    except AudioError as error:
        kept.unlink(missing_ok=True)
        raise BadClip(sentence(shown, error)) from error
    except NatureLMError as error:
        if not isinstance(error, TooLong):
            kept.unlink(missing_ok=True)
        raise


def sentence(name: str, error: AudioError) -> str:
    """What is wrong with a recording, under the name that its owner knows."""
    reason = error.reason.replace(str(error.path), name) if error.path else error.reason
    return f"{name}: {reason}." + (f" {error.advice}." if error.advice else "")


def write_sound(path: Path, blocks: Iterator[NDArray[np.float32]], sample_rate: int) -> None:
    """Write mono samples as a WAV file of 16 bits, which every browser plays."""
    import soundfile  # type: ignore[import-untyped, unused-ignore]

    with soundfile.SoundFile(
        path, "w", samplerate=sample_rate, channels=1, format="WAV", subtype="PCM_16"
    ) as file:
        for block in blocks:
            file.write(block)


def _open(
    path: Path, name: str, folder: Path, limits: Limits, sample_rate: int, slowed: float
) -> Clip:
    info = probe(path)
    if info.duration > limits.ask_seconds:
        raise TooLong(
            f"{name} lasts {say_seconds(info.duration)}. A clip may last "
            f"{say_seconds(limits.ask_seconds)} at most here; Long recording takes longer ones.",
            path,
            name,
        )
    key = secrets.token_urlsafe(12)
    image, sound = folder / f"{key}.png", folder / f"{key}-heard.wav"
    warnings: list[str] = []
    spans: list[tuple[float, float]] = []
    parts: list[Any] = []
    per_second = columns_per_second(info.duration * slowed)
    peak = 0.0

    def heard() -> Iterator[NDArray[np.float32]]:
        nonlocal peak
        for window in _windows(path, sample_rate, slowed, warnings.append):
            seconds = (window.end - window.start) * slowed
            samples = window.samples[: round(seconds * sample_rate)]
            spans.append((window.start, window.end))
            parts.append(levels_of(samples, sample_rate, per_second))
            peak = max(peak, float(np.abs(samples).max(initial=0.0)))
            yield samples

    try:
        write_sound(sound, heard(), sample_rate)
    except AudioError:
        sound.unlink(missing_ok=True)
        raise
    image.write_bytes(picture(np.concatenate(parts, axis=1), *contrast(parts)))
    notes = _notes(name, info.channels, peak, bool(warnings), sample_rate, slowed)
    end = max(spans[-1][1], 1e-9)
    return Clip(key, name, path, end, slowed, tuple(spans), image, sound, sample_rate, tuple(notes))


def _notes(
    name: str, channels: int, peak: float, ultrasonic: bool, sample_rate: int, slowed: float
) -> Iterator[str]:
    if channels > 1:
        yield f"Its {channels} channels are mixed into one."
    if peak < _SILENT_PEAK:
        yield "It is silent: whatever the model answers is a guess."
    if ultrasonic:
        remedy = (
            "even slowed down like this" if slowed > 1 else "if these are bats, slow it down below"
        )
        yield (
            f"Most of its sound lies above {sample_rate / 2000:g} kHz, where the model hears "
            f"nothing: {remedy}."
        )


def _windows(path: Path, sample_rate: int, slowed: float, warn: Any) -> Iterator[Window]:
    return iter_windows(
        path,
        sample_rate=sample_rate,
        window_seconds=WINDOW_SECONDS,
        hop_seconds=WINDOW_SECONDS,
        time_expansion=slowed,
        warn=warn,
    )


def total_seconds(clips: Sequence[Clip]) -> float:
    """Length of some clips together."""
    return sum(clip.seconds for clip in clips)
