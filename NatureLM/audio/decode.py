"""Decode recordings front to back, block by block, with errors that name the file and the reason.

Decoding is libsndfile's (through soundfile). What it does wrongly or silently is fixed here: it is
never asked to seek between blocks (its Vorbis seek can land beside the asked sample), MP3 streams
that do not give their length are read to their end (see `mp3`), and a file that holds less than it
promises ends in an error, after all that could be decoded.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio import mp3
from NatureLM.audio.errors import AudioError, EmptyAudio, NotAudio, SampleRateError, UnreadableAudio

Block = NDArray[np.float32]

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 8_000, 500_000
BLOCK_FRAMES = 1 << 16

_MP3_SEEK_SECONDS = 300
_MP3_RUN_UP = 32 * mp3.MAX_FRAME_SAMPLES
_UNKNOWN_FRAMES = 1 << 60  # libsndfile gives 2**63 - 1 where a stream does not say
_UNRECOGNISED = (1, 7)  # libsndfile: "Format not recognised", and what its MP3 reader says instead
_MP3_TOLERANCE = 2 * mp3.MAX_FRAME_SAMPLES  # encoders disagree on how much delay they count
_CONVERT = "Convert it to wav or flac first (for example with ffmpeg) if it is a recording"
_REPAIR = "The file is damaged or cut off: copy it from the recorder again, or repair it"


@dataclass(frozen=True)
class RecordingInfo:
    """What a file's header says. `frames` are samples per channel, `duration` is in seconds."""

    path: Path
    sample_rate: int
    channels: int
    frames: int
    duration: float


class Recording:
    """An open audio file that is read from front to back.

    Opening raises the typed error of what is wrong. `blocks` ends where decoding ends; `failure`
    then says why, if that is not where the file should end. So the caller can use what came
    before, and raise `failure` after it. `frames` are the samples per channel that the header
    promises, None if it does not.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: str | Path = path if isinstance(path, str) else Path(path)
        self.failure: AudioError | None = None
        _check_file(self.path)
        self._open_ended: mp3.OpenEndedFile | None = None
        self._handle = self._open()
        self.sample_rate: int = self._handle.samplerate
        self.channels: int = self._handle.channels
        self._format = (self._handle.format, self._handle.subtype)
        unknown = self._open_ended is not None or self._handle.frames >= _UNKNOWN_FRAMES
        self.frames: int | None = None if unknown else self._handle.frames
        self._decoded = 0
        self._error = ""
        try:
            check_sample_rate(self.path, self.sample_rate)
            if self.frames == 0:
                raise EmptyAudio(self.path, "the file has a header but no samples")
        except AudioError:
            self.close()
            raise

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._handle.close()
        if self._open_ended is not None:
            self._open_ended.close()

    def blocks(self, block_frames: int = BLOCK_FRAMES) -> Iterator[Block]:
        """Yield the rest of the file as float32 arrays (frames, channels), integers in [-1, 1]."""
        size = max(1, min(block_frames, 8 * BLOCK_FRAMES // self.channels))
        while True:
            block = self._read(size)
            self._decoded += len(block)
            if len(block):
                yield block
            if self._error or len(block) == 0:
                break
        self.failure = self._judge_end()

    def skip(self, frames: int) -> None:
        """Move forward by `frames`, or to the end."""
        if self.frames is not None:
            frames = min(frames, self.frames - self._decoded)
        if frames <= 0:
            return
        unsought = self._decoded_before(frames)
        if frames > unsought:
            self._seek(self._decoded + frames - unsought)
        for first in range(0, unsought, BLOCK_FRAMES):
            self._decoded += len(self._read(min(BLOCK_FRAMES, unsought - first)))

    def _decoded_before(self, frames: int) -> int:
        """How many of the frames to skip are to be decoded, so that those after them are right."""
        if self._format[1] == "VORBIS":
            # libsndfile 1.2 misses the sample on the last pages of some files.
            return frames
        if self._format[0] == "MP3":
            # A frame needs bits of frames before it, of more than the decoder goes back, and it
            # prints what it misses: so seek only where that saves a second or so.
            return frames if frames < _MP3_SEEK_SECONDS * self.sample_rate else _MP3_RUN_UP
        return 0

    def _seek(self, frame: int) -> None:
        try:
            self._decoded = self._handle.seek(frame)
        except _soundfile().LibsndfileError as error:
            reason = f"cannot be decoded at {frame / self.sample_rate:.2f} s ({_text(error)})"
            raise UnreadableAudio(self.path, reason, _REPAIR) from error

    def _read(self, frames: int) -> Block:
        # On an error soundfile does not say how much was decoded before it: NaN marks the rest.
        block = np.full((frames, self.channels), np.nan, dtype=np.float32)
        try:
            decoded: Block = self._handle.read(out=block)
            return decoded
        except _soundfile().LibsndfileError as error:
            self._error = _text(error)
            undecoded = np.isnan(block).all(axis=1)
            return block[: int(undecoded.argmax())] if undecoded.any() else block

    def _judge_end(self) -> AudioError | None:
        """Why decoding ended, unless the file ends here."""
        at = f"{self._decoded / self.sample_rate:.2f} s"
        missing = 0 if self.frames is None else self.frames - self._decoded
        if self._open_ended is not None:
            # The decoder also stumbles over what may follow the sound, such as half a frame.
            if self._open_ended.audio_follows():
                reason = f"decoding stops at {at}, where the file goes on"
                return UnreadableAudio(self.path, reason, _REPAIR)
        elif self._error:
            return UnreadableAudio(
                self.path, f"decoding stops at {at}{self._of_promised()} ({self._error})", _REPAIR
            )
        elif missing > (_MP3_TOLERANCE if self._format[0] == "MP3" else 0):
            return UnreadableAudio(
                self.path, f"only {at} could be decoded{self._of_promised()}", _REPAIR
            )
        if self._decoded == 0:
            return EmptyAudio(self.path, "no sample could be decoded from the file")
        return None

    def _of_promised(self) -> str:
        if self.frames is None:
            return ""
        return f", the header promises {self.frames / self.sample_rate:.2f} s"

    def _open(self) -> Any:
        sequential = _sequential_file()
        # Bytes, so that names that are not valid UTF-8 open too.
        name = os.fsencode(self.path) if os.name == "posix" else str(self.path)
        try:
            handle = sequential(name)
        except _soundfile().LibsndfileError as error:
            raise self._not_opened(error.code, _text(error)) from error
        except (TypeError, ValueError) as error:  # headerless formats such as .raw
            raise NotAudio(self.path, f"cannot be opened ({error})", _CONVERT) from error
        if handle.format != "MP3" or mp3.gives_length(Path(self.path)):
            return handle
        self._open_ended = mp3.OpenEndedFile(Path(self.path))
        try:
            endless = sequential(self._open_ended)
        except _soundfile().LibsndfileError:  # known by its suffix only: as libsndfile sees it
            self._open_ended.close()
            self._open_ended = None
            return handle
        handle.close()
        return endless

    def _not_opened(self, code: int, text: str) -> AudioError:
        if code == 7 and mp3.has_mpeg_audio(Path(self.path)):
            return UnreadableAudio(self.path, "holds no whole MPEG frame", _REPAIR)
        if code in _UNRECOGNISED:
            return NotAudio(
                self.path, "this is not an audio file, or of a format that is not known", _CONVERT
            )
        return UnreadableAudio(self.path, f"cannot be opened ({text})", _REPAIR)


def probe(path: str | os.PathLike[str]) -> RecordingInfo:
    """Read what a file is from its header.

    Where the header does not give the length, it is counted: from the frame headers of an MP3,
    else by decoding. Raises an `AudioError` like decoding would.
    """
    with Recording(path) as recording:
        frames = recording.frames
        if frames is None and recording._format == ("MP3", "MPEG_LAYER_III"):
            frames = mp3.count_frames(Path(path))
        if frames is None:
            frames = sum(len(block) for block in recording.blocks())
        rate = recording.sample_rate
        return RecordingInfo(Path(path), rate, recording.channels, frames, frames / rate)


def check_sample_rate(path: str | Path | None, rate: float) -> None:
    """Raise `SampleRateError` unless recordings of this sample rate (Hz) are supported."""
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise SampleRateError(
            path,
            f"the sample rate is {rate:g} Hz, supported are {MIN_SAMPLE_RATE} to "
            f"{MAX_SAMPLE_RATE} Hz",
            "Resample the recording, or correct its header",
        )


def _check_file(path: str | Path) -> None:
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb"):
                pass
    except FileNotFoundError as error:
        raise UnreadableAudio(path, "there is no such file", "Check the spelling") from error
    except OSError as error:
        reason = f"the file may not be read ({error.strerror})"
        raise UnreadableAudio(path, reason, "Check its permissions and the disk") from error
    if stat.S_ISDIR(status.st_mode):
        raise UnreadableAudio(path, "is a folder, not an audio file")
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableAudio(path, "is not a regular file", "Copy the sound into a file first")
    if status.st_size == 0:
        raise EmptyAudio(path, "the file is empty (0 bytes)", "Nothing was recorded or copied")
    if Path(path).suffix.lower() == ".mp3" and not _starts_known(path):
        # Told here, because the MPEG decoder would print its own complaints on stderr.
        raise NotAudio(path, "this is not an audio file, whatever its name says", _CONVERT)


def _starts_known(path: str | Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(4)
    return start in (b"RIFF", b"fLaC", b"OggS", b"FORM", b"caff", b"RF64") or mp3.has_mpeg_audio(
        Path(path)
    )


def _text(error: Any) -> str:
    """What libsndfile says."""
    return str(error.error_string).removeprefix("Error : ").rstrip(". ")


def _soundfile() -> Any:
    """The library, loaded when the first file is opened."""
    import soundfile  # type: ignore[import-untyped, unused-ignore]

    return soundfile


@lru_cache(maxsize=1)
def _sequential_file() -> Any:
    """The class of files that soundfile reads without seeking after each block."""

    class SequentialFile(_soundfile().SoundFile):  # type: ignore[misc]
        def seekable(self) -> bool:
            return False

    return SequentialFile
