"""The stretches of recordings that a report lets be heard and seen, as small as they can be.

A sound is mono, at the model's rate, at most a few seconds of the stretch, the loudest ones. Where
the model heard it slowed down, it is slow here, too.

Pictures are spectrograms that are computed block by block, so that length costs no memory. Levels
are bytes of half a decibel: 0 is -127.5 dB of full scale or less, 255 is 0 dB. Shapes: S samples,
F frequencies (lowest first), T columns.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio import AudioError
from NatureLM.audio.windows import read_clip
from NatureLM.errors import NatureLMError
from NatureLM.reports.tally import Clip, NameTally, RecordingTally
from NatureLM.results.detections import MODEL_RATE
from NatureLM.util import library

LONGEST = 5.0
"""Seconds that are heard of a clip."""
MOST_BYTES = 6_000_000
"""Of all clips together, as the page holds them."""

_LONGEST_READ = 60.0  # heard seconds in which the loudest are looked for
_STEP = 0.25  # seconds
_PEAK = 0.7
_LOUDEST_GAIN = 100.0


@dataclass(frozen=True)
class HeardClip:
    """A clip as it stands in the page.

    start: where its sound starts, in seconds of the recording
    seconds: that it lasts in the recording
    sound, picture: as data: URIs; empty where the recording could not be read
    highest_hz: upper end of the picture
    slowed: by how much it is slower than what was recorded
    problem: why there is no sound
    """

    recording: str
    confidence: float | None
    start: float
    seconds: float
    highest_hz: float
    slowed: float = 1.0
    sound: str = ""
    picture: str = ""
    problem: str = ""

    @property
    def size(self) -> int:
        """Bytes in the page."""
        return len(self.sound) + len(self.picture)


def best_clips(
    names: Sequence[NameTally],
    recordings: Sequence[RecordingTally],
    called: Sequence[str],
    *,
    each: int,
    slowed: float = 1.0,
    channel: str | int = "mean",
) -> tuple[list[list[HeardClip]], int]:
    """The surest clips of each name, and how many had no room.

    called: what the recordings are called in the page
    each: clips of a name at most
    slowed, channel: as the model heard them

    The surest of each name come first, then the second ones, until `MOST_BYTES` are full.
    """
    chosen = [one.best_clips(each) for one in names]
    made: list[list[HeardClip]] = [[] for _ in names]
    size = left_out = 0
    for turn in range(each):
        for clips, found in zip(chosen, made, strict=True):
            if turn >= len(clips):
                continue
            if size >= MOST_BYTES:
                left_out += 1
                continue
            place = clips[turn].recording
            clip = read(clips[turn], recordings[place], called[place], slowed, channel)
            found.append(clip)
            size += clip.size
    return made, left_out


def read(
    clip: Clip,
    recording: RecordingTally,
    name: str,
    slowed: float = 1.0,
    channel: str | int = "mean",
) -> HeardClip:
    """Sound and picture of a clip; a recording that cannot be read gives neither."""
    confidence = None if clip.confidence < 0 else clip.confidence
    seconds = min(clip.end - clip.start, _LONGEST_READ / slowed)
    heard_hz = MODEL_RATE / 2 * slowed
    known: dict[str, Any] = {"recording": name, "confidence": confidence}
    known |= {"highest_hz": heard_hz, "slowed": slowed}
    try:
        samples_S = read_clip(
            recording.heard.path,
            start=clip.start,
            duration=max(seconds, 0.05),
            # Played at the model's rate, it is as slow as the model heard it.
            sample_rate=round(MODEL_RATE * slowed),
            channel=channel,
        )
        first = _loudest(samples_S)
        samples_S = samples_S[first : first + round(LONGEST * MODEL_RATE)]
        return HeardClip(
            **known,
            start=clip.start + first / MODEL_RATE / slowed,
            seconds=len(samples_S) / MODEL_RATE / slowed,
            sound=sound_uri(_audible(samples_S), MODEL_RATE),
            picture=_uri("image/png", picture_of(samples_S, MODEL_RATE)),
        )
    except (NatureLMError, OSError) as error:
        reason = error.reason if isinstance(error, AudioError) else str(error)
        return HeardClip(**known, start=clip.start, seconds=seconds, problem=reason)


def _loudest(samples_S: NDArray[np.float32]) -> int:
    """Where the loudest seconds begin; rumble of wind and engines counts little."""
    wanted, step = round(LONGEST * MODEL_RATE), round(_STEP * MODEL_RATE)
    if len(samples_S) <= wanted:
        return 0
    changes = np.diff(samples_S.astype(np.float64)) ** 2
    energy = np.concatenate([[0.0], np.cumsum(changes)])
    starts = np.arange(0, len(samples_S) - wanted, step)
    return int(starts[np.argmax(energy[starts + wanted - 1] - energy[starts])])


def _audible(samples_S: NDArray[np.float32]) -> NDArray[np.float32]:
    """As loud as fits: far calls are faint in recordings."""
    centred = samples_S - samples_S.mean(dtype=np.float64)
    loudest = float(np.abs(centred).max(initial=0.0))
    gain = min(_PEAK / loudest, _LOUDEST_GAIN) if loudest > 0 else 1.0
    louder: NDArray[np.float32] = (centred * gain).astype(np.float32)
    return louder


def sound_uri(samples_S: NDArray[np.float32], sample_rate: int) -> str:
    """MP3, which every browser plays; FLAC where this libsndfile writes no MP3."""
    soundfile = library("soundfile", "clips need soundfile: pip install soundfile")
    kinds: Iterable[tuple[str, str, dict[str, Any]]] = (
        ("MP3", "audio/mpeg", {"subtype": "MPEG_LAYER_III", "compression_level": 0.3}),
        ("FLAC", "audio/flac", {"subtype": "PCM_16"}),
    )
    for name, media, options in kinds:
        if name in soundfile.available_formats():
            file = io.BytesIO()
            soundfile.write(file, samples_S, sample_rate, format=name, **options)
            return _uri(media, file.getvalue())
    raise NatureLMError("this libsndfile writes neither MP3 nor FLAC")


def _uri(media: str, data: bytes) -> str:
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


# Spectrograms as pictures

Levels = NDArray[np.uint8]

BINS = 160
"""Rows of a picture, from 0 Hz to half the sample rate."""
_MOST_COLUMNS = 1200  # of the picture of one clip
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


def columns_per_second(seconds: float) -> float:
    """How fine the picture of a clip of so many seconds is drawn."""
    return min(_FINEST, _MOST_COLUMNS / max(seconds, 0.1))


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
        loudest[:, first : first + step] = _pool(magnitude.max(axis=1), BINS).T
    decibels = 20 * np.log10(np.maximum(loudest / _FULL_SCALE, 1e-9))
    levels: Levels = np.clip(255 + decibels * _STEPS_PER_DECIBEL, 0, 255).astype(np.uint8)
    return levels


def pooled(levels_FT: Levels, columns: int) -> Levels:
    """At most so many columns, each the loudest of those that it stands for."""
    return levels_FT if levels_FT.shape[1] <= columns else _pool(levels_FT, columns)


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


def picture_of(samples_S: NDArray[np.float32], sample_rate: int) -> bytes:
    """A PNG of one clip, sound in [-1, 1], drawn as finely as its length allows.

    Raises UsageError where Pillow is not installed.
    """
    per_second = columns_per_second(len(samples_S) / sample_rate)
    levels_FT = levels_of(samples_S, sample_rate, per_second)
    return picture(levels_FT, *contrast([levels_FT]))


def picture(levels_FT: Levels, low: int, high: int) -> bytes:
    """A PNG, low frequencies at the bottom; `low` and `high` as from `contrast`.

    Raises UsageError where Pillow is not installed.
    """
    Image = library(
        "PIL.Image", "pictures of sound need pillow, which is not installed: pip install pillow"
    )
    scale = 255 / max(1, high - low)
    shown = np.clip((levels_FT.astype(np.float32) - low) * scale, 0, 255).astype(np.uint8)
    image = Image.fromarray(shown[::-1]).convert("P")
    places = np.linspace(0, len(_ANCHORS) - 1, 256)
    colors = [np.interp(places, np.arange(len(_ANCHORS)), _ANCHORS[:, c]) for c in range(3)]
    image.putpalette([int(one) for one in np.stack(colors, axis=1).round().reshape(-1)])
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _pool(values: NDArray[Any], columns: int) -> NDArray[Any]:
    """The last axis cut into so many parts, the largest value of each."""
    edges = np.linspace(0, values.shape[-1], columns + 1).astype(int)[:-1]
    made: NDArray[Any] = np.maximum.reduceat(values, edges, axis=-1)
    return made
