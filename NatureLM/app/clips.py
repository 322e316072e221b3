"""A clip on the page: checked, with its picture, its windows and a copy that browsers can play.

Everything comes from the windows that the model hears: the picture, the copy, the times.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from NatureLM.app.files import shown_name, take
from NatureLM.app.limits import LimitError, Limits, say_seconds
from NatureLM.app.spectrogram import columns_per_second, contrast, levels_of, picture
from NatureLM.audio import AudioError, Window, iter_windows, probe
from NatureLM.errors import NatureLMError

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
