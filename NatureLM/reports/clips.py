"""The stretches of recordings that a report lets be heard and seen, as small as they can be.

A sound is mono, at the model's rate, at most a few seconds of the stretch, the loudest ones. Where
the model heard it slowed down, it is slow here, too.
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
from NatureLM.reports.spectrogram import picture_of
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
    *,
    each: int,
    slowed: float = 1.0,
    channel: str | int = "mean",
) -> tuple[list[list[HeardClip]], int]:
    """The surest clips of each name, and how many had no room.

    each: clips of a name at most
    slowed, channel: as the model heard them

    The surest of each name come first, then the second ones, until `MOST_BYTES` are full.
    """
    chosen = [one.best_clips(each) for one in names]
    made: list[list[HeardClip]] = [[] for _ in names]
    size = left_out = 0
    for turn in range(each):
        for place, clips in enumerate(chosen):
            if turn >= len(clips):
                continue
            if size >= MOST_BYTES:
                left_out += 1
                continue
            clip = read(clips[turn], recordings[clips[turn].recording], slowed, channel)
            made[place].append(clip)
            size += clip.size
    return made, left_out


def read(
    clip: Clip, recording: RecordingTally, slowed: float = 1.0, channel: str | int = "mean"
) -> HeardClip:
    """Sound and picture of a clip; a recording that cannot be read gives neither."""
    confidence = None if clip.confidence < 0 else clip.confidence
    seconds = min(clip.end - clip.start, _LONGEST_READ / slowed)
    heard_hz = MODEL_RATE / 2 * slowed
    known: dict[str, Any] = {"recording": recording.heard.name, "confidence": confidence}
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
