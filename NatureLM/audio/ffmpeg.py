"""Sound of phones and videos (m4a, aac, mp4, webm, wma, amr), decoded by FFmpeg through PyAV.

PyAV is optional (`naturelm-audio[av]`). The demuxer is chosen by the first bytes of the file, never
by FFmpeg's guess, so only these containers are opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUFFIXES = frozenset(
    {".m4a", ".m4b", ".mp4", ".mov", ".3gp", ".aac", ".webm", ".mka", ".mkv", ".wma", ".amr"}
)
"""Suffixes of such files, in lower case."""

FORMAT = "FFMPEG"
TOLERANCE = 0.25
"""Seconds that may be missing at the end: encoders pad the first and the last packet."""
_DEMUXERS = (
    (4, b"ftyp", "mov"),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"#!AMR", "amr"),
    (0, b"\xff\xf1", "aac"),
    (0, b"\xff\xf9", "aac"),
)


def is_installed() -> bool:
    """Whether PyAV can be imported; does not import it."""
    return find_spec("av") is not None


def demuxer(path: str | os.PathLike[str]) -> str | None:
    """FFmpeg's name for the container of a file; None for one that is not read here."""
    with open(path, "rb") as file:
        head = file.read(16)
    return next((name for at, start, name in _DEMUXERS if head[at:].startswith(start)), None)


class DecodeError(Exception):
    """FFmpeg cannot go on; the text is its own."""


class FfmpegFile:
    """The sound of a file, with the interface of `soundfile.SoundFile` that decoding needs.

    Raises DecodeError, and ModuleNotFoundError where PyAV is not installed.
    """

    format = FORMAT
    frames = 1 << 62  # not known

    def __init__(self, path: str | os.PathLike[str], container: str) -> None:
        import av

        self._errors = (av.FFmpegError, ValueError)
        try:
            self._file = av.open(os.fspath(path), format=container, metadata_errors="ignore")
        except self._errors as error:
            raise DecodeError(_text(error)) from error
        if not self._file.streams.audio:
            self._file.close()
            raise DecodeError("it holds no sound")
        stream = self._file.streams.audio[0]
        self.subtype = stream.codec_context.name.upper()
        self.samplerate: int = stream.codec_context.sample_rate
        self.channels: int = stream.codec_context.channels
        length, unit = stream.duration, stream.time_base
        self.promised = float(length * unit) if length and unit else None
        self._resampler = av.AudioResampler(format="fltp", rate=self.samplerate)
        self._blocks = self._decode(stream)
        self._rest = np.zeros((0, self.channels), dtype=np.float32)

    def read(self, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fill `out` (frames, channels) as far as there is sound; what was filled."""
        filled = 0
        while filled < len(out):
            if not len(self._rest):
                block = next(self._blocks, None)
                if block is None:
                    break
                self._rest = block
            part = self._rest[: len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
            self._rest = self._rest[len(part) :]
        return out[:filled]

    def _decode(self, stream: Any) -> Iterator[NDArray[np.float32]]:
        """Blocks (frames, channels)."""
        try:
            for frame in self._file.decode(stream):
                for part in self._resampler.resample(frame):
                    yield np.ascontiguousarray(part.to_ndarray().T)
            for part in self._resampler.resample(None):
                yield np.ascontiguousarray(part.to_ndarray().T)
        except self._errors as error:
            raise DecodeError(_text(error)) from error

    def close(self) -> None:
        self._file.close()


def _text(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or error)
