"""Sound of phones and videos (m4a, aac, mp4, webm, wma, amr), decoded by FFmpeg through PyAV.

PyAV is optional (`naturelm-audio[media]`). The demuxer is chosen by the first bytes of the file
(see `container`), never by FFmpeg's guess, so only these containers are opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from NatureLM.storage import RemotePath, StorageError, open_file

FORMAT = "FFMPEG"
TOLERANCE = 0.25
"""Seconds that may be missing at the end: encoders pad the first and the last packet."""


_CODECS = (
    *("aac", "mp3", "alac", "opus", "vorbis", "flac", "ac3", "eac3", "amr", "wma", "pcm_", "mp2"),
    *("libopus", "libvorbis", "libopencore_amr", "libfdk_aac"),
)


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

        self._errors = (av.FFmpegError, ValueError, StorageError)
        try:
            self._remote = open_file(path) if isinstance(path, RemotePath) else None
            source: Any = self._remote or os.fspath(path)
            self._file: Any = av.open(source, format=container, metadata_errors="ignore")
        except self._errors as error:
            raise DecodeError(_text(error)) from error
        if not self._file.streams.audio:
            self._file.close()
            raise DecodeError("it holds no sound")
        stream = self._file.streams.audio[0]
        if not stream.codec_context.name.startswith(_CODECS):
            self._file.close()
            raise DecodeError(f"its codec {stream.codec_context.name} is none that is read here")
        self.subtype = stream.codec_context.name.upper()
        self.samplerate: int = stream.codec_context.sample_rate
        self.channels: int = stream.codec_context.channels
        length, unit = stream.duration, stream.time_base
        self.promised = float(length * unit) if length and unit else None
        self._resampler = av.AudioResampler(format="fltp", rate=self.samplerate)
        self._blocks = self._decode(stream)
        self._rest = np.zeros((0, self.channels), dtype=np.float32)

    @property
    def failure(self) -> StorageError | None:
        """Why a remote file could be read no further."""
        return getattr(getattr(self._remote, "raw", None), "failure", None)

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
