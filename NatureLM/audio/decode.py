"""Decode recordings front to back, block by block, with errors that name the file and the reason.

Decoding is libsndfile's (through soundfile). What it does wrongly or silently is mended here: it is
never asked to seek between blocks (its Vorbis seek can land beside the asked sample), MP3 streams
that do not give their length are read to their end (see `streams`), and a file that holds less than
it promises ends in an error, after all that could be decoded, and what a header does not know of is
read too (see `container`). Arrays are read like files.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from stat import S_IFREG, S_ISDIR, S_ISREG
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio import ARRAY_NAME, AudioError, streams
from NatureLM.audio.container import FORMATS, Contents, examine, holds_another_flac
from NatureLM.audio.streams import Stream, StreamFile
from NatureLM.errors import UsageError
from NatureLM.progress import printable
from NatureLM.storage import (
    AnyPath,
    RemotePath,
    StorageError,
    is_as_before,
    local_copy,
    open_file,
    size_of,
    stat,
)
from NatureLM.util import format_bytes, format_duration, why_not_loaded

Block = NDArray[np.float32]

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 8_000, 500_000
MAX_CHANNELS = 32
BLOCK_FRAMES = 1 << 16

_MP3_SEEK_SECONDS = 300
_MP3_RUN_UP = 32 * streams.MAX_FRAME_SAMPLES
_MP3_TOLERANCE = 2 * streams.MAX_FRAME_SAMPLES  # encoders disagree on how much delay they count
_UNKNOWN_FRAMES = 1 << 60  # libsndfile gives 2**63 - 1 where a stream does not say
_UNRECOGNISED = (1, 7)  # libsndfile: "Format not recognised", and what its MP3 reader says instead
_STARTS = (b"RIFF", b"fLaC", b"OggS", b"FORM", b"caff", b"RF64", b"BW64")
_READ_FORMATS = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "CAF", "AU", "FLAC", "OGG", "MP3"}
_CONVERT = (
    "Convert it to wav or flac first (for example with ffmpeg) if it is a recording; read are "
    f"{FORMATS}, and where PyAV is installed m4a, mp4, webm, aac, wma and amr"
)
_REPAIR = "The file is damaged or cut off: copy it from the recorder again, or repair it"

# Full scale of the integer types that audio is kept in, and their value of silence.
_INTEGERS = {
    np.dtype(np.int8): (2.0**7, 0.0),
    np.dtype(np.uint8): (2.0**7, 2.0**7),
    np.dtype(np.int16): (2.0**15, 0.0),
    np.dtype(np.uint16): (2.0**15, 2.0**15),
    np.dtype(np.int32): (2.0**31, 0.0),
}

# Codecs and filters overshoot 1 a little; beyond this, floats have another full scale.
_TRUSTED_PEAK = 2.0
FULL_SCALE, FULL_SCALE_8_BITS = 1 - 2.0**-15, 1 - 2.0**-7


@dataclass(frozen=True)
class SoundLimits:
    """What is taken of one recording at most. Services have some; a command line takes any length.

    file_bytes: of the file; seconds: of sound; decoded_bytes: of all its samples as float32
    channels; sample_rate: Hz
    """

    file_bytes: float = math.inf
    seconds: float = math.inf
    decoded_bytes: float = math.inf
    channels: int = MAX_CHANNELS
    sample_rate: int = MAX_SAMPLE_RATE


NO_LIMITS = SoundLimits()


class Scale(NamedTuple):
    """What samples are divided by, and of how many bits that is where they are integers."""

    full: float = 1.0
    bits: int = 0


@dataclass(frozen=True)
class RecordingInfo:
    """What a file's header says. `frames` are samples per channel, `duration` is in seconds."""

    path: AnyPath
    sample_rate: int
    channels: int
    frames: int
    duration: float


def probe(path: str | os.PathLike[str], limits: SoundLimits = NO_LIMITS) -> RecordingInfo:
    """Read what a file is from its header.

    Where the header does not give the length, it is counted: from the frame headers of an MP3,
    else by decoding, up to the limits. Raises an `AudioError` like decoding would.
    """
    with Recording(path, limits) as recording:
        frames = recording.frames
        if frames is None and recording.format == ("MP3", "MPEG_LAYER_III"):
            frames = recording.count_mp3_frames()
            recording.check_length(frames or 0)
        if frames is None:
            frames = sum(len(block) for block in recording.blocks())
            if recording.failure is not None and recording.failure.kind == "RemoteError":
                raise recording.failure
        rate = recording.sample_rate
        name = path if isinstance(path, RemotePath) else Path(path)
        return RecordingInfo(name, rate, recording.channels, frames, frames / rate)


def open_source(
    source: Any, input_sample_rate: float | None, limits: SoundLimits = NO_LIMITS
) -> Recording | ArrayRecording:
    """The file of a path, or samples in memory, which no limit is for."""
    if isinstance(source, str | os.PathLike):
        return Recording(source, limits)
    return ArrayRecording(source, input_sample_rate)


class Recording:
    """An open audio file that is read from front to back.

    Opening raises the error of what is wrong. `blocks` ends where decoding ends; `failure` then
    says why, if that is not where the file should end. So the caller can use what came before, and
    raise `failure` after it. `frames` are the samples per channel that the header promises, None
    if it does not. `format` are libsndfile's words for the container and what is in it. Samples
    above `full_scale` are clipped. More than `limits` allow, by the header or as it is decoded, is
    a TooLongAudio error: `most_frames` are the samples per channel that are let through.
    """

    def __init__(self, path: str | os.PathLike[str], limits: SoundLimits = NO_LIMITS) -> None:
        self.path: str | AnyPath = path if isinstance(path, str | RemotePath) else Path(path)
        self.failure: AudioError | None = None
        self.limits = limits
        self._kept = ExitStack()
        with ExitStack() as stack:
            try:
                _check_file(self.path, limits)
                self._before = stat(self.path) if isinstance(self.path, RemotePath) else None
                self._source = _in_ranges(self.path, stack)
                self._open_all()
            except StorageError as error:
                raise _not_given(self.path, error) from error
            self._kept = stack.pop_all()

    def _open_all(self) -> None:
        """Find where the sound of the file is, open it, and see whether it can be used."""
        limits, contents = self.limits, examine(self._source)
        if not contents.is_known:
            raise self._not_audio()
        self._fault = contents.fault
        self._following = list(contents.streams[1:])
        if contents.demuxer:
            self._handle, self._file = self._open_ffmpeg(contents.demuxer), None
        else:
            self._handle, self._file = self._open(next(iter(contents.streams), None))
        self.sample_rate: int = self._handle.samplerate
        self.channels: int = self._handle.channels
        self.format = (self._handle.format, self._handle.subtype)
        is_coarse = self.format[1] in ("PCM_S8", "PCM_U8")
        self.full_scale = FULL_SCALE_8_BITS if is_coarse else FULL_SCALE
        self.is_wide = self.format[1] in ("FLOAT", "DOUBLE", "PCM_24", "PCM_32")
        self._decoded = 0
        self._error = ""
        try:
            if self.format[0] not in _READ_FORMATS | {streams.FFMPEG}:
                raise self._not_audio()
            _check_sample_rate(self.path, self.sample_rate, limits.sample_rate)
            _check_channels(self.path, self.channels, limits.channels)
            by_bytes = limits.decoded_bytes // (4 * self.channels)
            self.most_frames: float = min(limits.seconds * self.sample_rate, by_bytes)
            self.frames = self._count_frames(contents)
            self.check_length(self._promised() or 0)
            if self.frames == 0:
                raise AudioError(
                    self.path, "the file has a header but no samples", kind="EmptyAudio"
                )
        except AudioError:
            self.close()
            raise

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._close_stream()
        self._kept.close()

    def _close_stream(self) -> None:
        self._handle.close()
        if self._file is not None:
            self._file.close()

    def blocks(self, block_frames: int = BLOCK_FRAMES) -> Iterator[Block]:
        """Yield the rest of the file as float32 arrays (frames, channels) with full scale 1."""
        for block in self._as_they_are(block_frames):
            yield block if self.scale.full == 1 else block / np.float32(self.scale.full)

    def check_length(self, frames: float, *, more: bool = False) -> None:
        """Raise AudioError for more samples per channel than are taken.

        more: there are so many already, and the end has not come
        """
        if frames <= self.most_frames:
            return
        self.close()
        most, rate = self.limits, self.sample_rate
        by_time = frames > most.seconds * rate
        found = (
            format_duration(frames / rate) if by_time else format_bytes(4 * self.channels * frames)
        )
        taken = format_duration(most.seconds) if by_time else format_bytes(most.decoded_bytes)
        what = "lasts" if by_time else "has decoded"
        reason = f"the sound {what} {'more than ' * more}{taken if more else found}"
        advice = f"At most {taken} are taken: cut it"
        raise AudioError(self.path, reason, advice, "TooLongAudio")

    @cached_property
    def scale(self) -> Scale:
        """The full scale of the samples; to know it of floats, all of the file is read."""
        if not self.format[1].startswith(("FLOAT", "DOUBLE", "PCM_F")):
            return Scale()
        if isinstance(self._source, RemotePath):
            return _scale_of_file(self._source, str(stat(self._source)), self.limits)
        found = os.stat(self._source)
        place = os.path.abspath(self._source)
        return _scale_of_file(place, f"{found.st_size} {found.st_mtime_ns}", self.limits)

    def _as_they_are(self, block_frames: int = BLOCK_FRAMES) -> Iterator[Block]:
        size = max(1, min(block_frames, 8 * BLOCK_FRAMES // self.channels))
        while True:
            block = self._read(size)
            self._decoded += len(block)
            self.check_length(self._decoded, more=True)
            if len(block):
                yield block
            if (self._error or len(block) == 0) and not self._next_stream():
                break
        try:
            self._check_unchanged()
            self.failure = self._judge_end()
        except StorageError as error:
            self.failure = _not_given(self.path, error)

    def _check_unchanged(self) -> None:
        """Raise StorageError where a remote file was replaced while its parts were read."""
        if not isinstance(self.path, RemotePath) or self._before is None:
            return
        if self._broken() is None and not is_as_before(self.path, self._before):
            raise StorageError(f"{self.path}: was replaced while it was read")

    def count_mp3_frames(self) -> int | None:
        """Samples per channel of an MP3, by the headers of its frames; None where there are none.

        Raises AudioError where a remote file cannot be read to its end.
        """
        try:
            return streams.count_frames(self._source, self.most_frames) or None
        except StorageError as error:
            raise _not_given(self.path, error) from error

    def skip(self, frames: int) -> None:
        """Move forward by `frames`, or to the end."""
        if self.frames is not None:
            frames = min(frames, self.frames - self._decoded)
        unsought = frames if self._following else self._decoded_before(frames)
        if frames > unsought:
            self._seek(self._decoded + frames - unsought)
        while unsought > 0:
            block = self._read(min(BLOCK_FRAMES, unsought))
            if not len(block) and not self._next_stream():
                break
            self._decoded += len(block)
            self.check_length(self._decoded, more=True)
            unsought -= len(block)

    def _decoded_before(self, frames: int) -> int:
        """How many of the frames to skip are to be decoded, so that those after them are right."""
        container, codec = self.format
        if codec == "VORBIS" or container == streams.FFMPEG:
            # libsndfile 1.2 misses the sample on the last pages of some files.
            return frames
        if container == "MP3":
            # A frame needs bits of frames before it, of more than the decoder goes back, and it
            # prints what it misses: so seek only where that saves a second or so.
            return frames if frames < _MP3_SEEK_SECONDS * self.sample_rate else _MP3_RUN_UP
        return 0

    def _seek(self, frame: int) -> None:
        try:
            self._decoded = self._handle.seek(frame)
        except _soundfile().LibsndfileError as error:
            reason = f"cannot be decoded at {frame / self.sample_rate:.2f} s ({_text(error)})"
            raise _unreadable(self.path, reason) from error

    def _read(self, frames: int) -> Block:
        # On an error soundfile does not say how much was decoded before it: NaN marks the rest.
        block = np.full((frames, self.channels), np.nan, dtype=np.float32)
        try:
            decoded: Block = self._handle.read(out=block)
            return decoded
        except (_soundfile().LibsndfileError, streams.FfmpegError) as error:
            self._error = _text(error)
            # Behind the last frame of FLAC it may be zeros instead.
            known = frames if self.frames is None else max(0, self.frames - self._decoded)
            undecoded = np.isnan(block).all(axis=1)
            return block[: int(undecoded.argmax()) if undecoded.any() else known]

    def _count_frames(self, contents: Contents) -> int | None:
        """Samples per channel that the header promises; streams of another kind are left out."""
        frames = None if self._is_open_ended() else self._handle.frames
        if frames and contents.present:
            frames = round(frames * max(1, contents.promised / contents.present))
        for number, stream in enumerate(self._following):
            handle, file = self._open(stream)
            rate, channels, known = handle.samplerate, handle.channels, handle.frames
            handle.close()
            if (rate, channels) != (self.sample_rate, self.channels):
                self._fault = f"what follows is a stream of {rate} Hz and {channels} channels"
                del self._following[number:]
                break
            frames = None if frames is None or _claims_more(file) else frames + known
        return None if frames is None or frames >= _UNKNOWN_FRAMES else frames

    def _is_open_ended(self) -> bool:
        """Whether the length that the decoder takes the stream for is only an upper bound."""
        return _claims_more(self._file)

    def _next_stream(self) -> bool:
        """Open the stream behind the one that ended; False if there is none."""
        if not self._following or self._broken() is not None or self._goes_on():
            return False
        self._close_stream()
        self._error = ""
        self._handle, self._file = self._open(self._following.pop(0))
        return True

    def _goes_on(self) -> bool:
        """Whether the decoder stopped where the stream has more for it.

        It also stumbles over what may stand behind the sound, such as half an MPEG frame.
        """
        if self._file is not None and self._is_open_ended():
            return streams.find_chain(self._file.rest(streams.SEARCH_BYTES)) is not None
        return bool(self._error)

    def _judge_end(self) -> AudioError | None:
        """Why decoding ended, unless the file ends here."""
        at = f"{self._decoded / self.sample_rate:.2f} s"
        if (broken := self._broken()) is not None:
            return _not_given(self.path, broken, f"decoding stops at {at}: ")
        missing, promised, frames = 0, "", self._promised()
        if frames is not None:
            missing = round(frames) - self._decoded
            if self.frames is None:
                missing -= round(streams.TOLERANCE * self.sample_rate)
            promised = f", the header promises {frames / self.sample_rate:.2f} s"
        is_flac = self.format[0] == "FLAC"
        if self._is_open_ended():
            if self._goes_on():
                return _unreadable(self.path, f"decoding stops at {at}, where the file goes on")
        elif self._error and (missing > 0 or not is_flac):
            return _unreadable(self.path, f"decoding stops at {at}{promised} ({self._error})")
        elif missing > (_MP3_TOLERANCE if self.format[0] == "MP3" else 0):
            return _unreadable(self.path, f"only {at} could be decoded{promised}")
        if is_flac and holds_another_flac(self._source):
            self._fault = "another FLAC stream follows; split the file there"
        if self._fault:
            return _unreadable(self.path, f"decoding stops at {at}: {self._fault}")
        if self._decoded == 0:
            reason = "no sample could be decoded from the file"
            return AudioError(self.path, reason, kind="EmptyAudio")
        return None

    def _broken(self) -> StorageError | None:
        """Why a remote file could be read no further; the decoders take it for its end."""
        return getattr(self._handle if self._file is None else self._file, "failure", None)

    def _promised(self) -> float | None:
        """Samples per channel that there should be; of FFmpeg's containers not exactly."""
        if self.frames is None and self.format[0] == streams.FFMPEG and self._handle.promised:
            return float(self._handle.promised * self.sample_rate)
        return self.frames

    def _open(self, stream: Stream | None) -> tuple[Any, StreamFile | None]:
        """The reader of a stream, or of the file as it is, and the file that it reads."""
        sequential = _sequential_file()
        # Bytes, so that names that are not valid UTF-8 open too.
        name = os.fsencode(self._source) if os.name == "posix" else str(self._source)
        if stream is None and isinstance(self._source, RemotePath):
            stream = Stream(b"", 0, size_of(self._source))
        file = None if stream is None else StreamFile(self._source, stream)
        try:
            handle = sequential(name if file is None else file)
        except _soundfile().LibsndfileError as error:
            if file is not None and file.failure is not None:
                raise file.failure from None
            raise self._not_opened(error) from error
        except (TypeError, ValueError) as error:  # headerless formats such as .raw
            reason = f"cannot be opened ({error})"
            raise AudioError(self.path, reason, _CONVERT, "NotAudio") from error
        if handle.format != "MP3":
            return handle, file
        stream = stream or Stream(b"", 0, size_of(self._source))
        if streams.length_tag(streams.first_frame(self._source, stream.start)):
            return handle, file
        # Between the frames of one stream the bitrate differs by no more than 320 to 8.
        endless = StreamFile(self._source, stream, claimed=64 * (stream.stop - stream.start) + 128)
        try:
            return sequential(endless), endless
        except _soundfile().LibsndfileError:  # known by its suffix only: as libsndfile sees it
            endless.close()
            return handle, file

    def _open_ffmpeg(self, container: str) -> Any:
        try:
            return streams.FfmpegFile(self._source, container)
        except streams.FfmpegError as error:
            if isinstance(error.__cause__, StorageError):
                raise error.__cause__ from None
            raise _unreadable(self.path, f"cannot be opened ({error})") from error
        except ImportError as error:
            absent = "sound of this kind (m4a, mp4, webm, …) needs PyAV, which is not installed"
            reason = why_not_loaded(error, "av", absent)
            advice = "Install it (pip install 'naturelm-audio[media]'), or convert to wav or flac"
            raise AudioError(self.path, reason, advice, "NotAudio") from None

    def _not_opened(self, error: Any) -> AudioError:
        if error.code == 7 and streams.first_frame(self._source):
            return _unreadable(self.path, "holds no whole MPEG frame")
        if error.code in _UNRECOGNISED:
            return self._not_audio()
        return _unreadable(self.path, f"cannot be opened ({_text(error)})")

    def _not_audio(self) -> AudioError:
        reason = "this is not an audio file, or of a format that is not known"
        return AudioError(self.path, reason, _CONVERT, "NotAudio")


class ArrayRecording:
    """An array of samples with the interface of `Recording`.

    samples: numpy array, or anything that turns into one through `__array__` (a torch tensor on
        any device), of shape (samples,), (channels, samples) or (samples, channels): the shorter
        axis is the channels. Floats are full scale at 1, integers at their type's.
    sample_rate: Hz
    """

    path, failure = None, None

    def __init__(self, samples: Any, sample_rate: float | None) -> None:
        if sample_rate is None:
            raise UsageError("input_sample_rate is needed for an array: its sample rate in Hz")
        _check_sample_rate(None, sample_rate)
        self.sample_rate = sample_rate
        self._samples = _frames_first(_as_numpy(samples))
        self.channels = self._samples.shape[1]
        if self._samples.size == 0:
            reason = f"holds no samples (its shape is {np.shape(samples)})"
            raise AudioError(None, reason, kind="EmptyAudio")
        dtype = self._samples.dtype
        self.full_scale = FULL_SCALE_8_BITS if dtype.itemsize == 1 else FULL_SCALE
        self.is_wide = dtype.kind == "f" or dtype.itemsize > 2
        self.scale = Scale()
        if dtype.kind == "f":
            starts = range(0, len(self._samples), BLOCK_FRAMES)
            self.scale = _scale_of(self._samples[at : at + BLOCK_FRAMES] for at in starts)

    def __enter__(self) -> ArrayRecording:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to close."""

    def skip(self, frames: int) -> None:
        """Move forward by `frames`, or to the end."""
        self._samples = self._samples[frames:]

    def blocks(self, block_frames: int = BLOCK_FRAMES) -> Iterator[Block]:
        """Yield float32 arrays (frames, channels)."""
        scale, silence = _INTEGERS.get(self._samples.dtype, (1.0, 0.0))
        for first in range(0, len(self._samples), block_frames):
            samples = self._samples[first : first + block_frames]
            if self.scale.full != 1:
                samples = samples / samples.dtype.type(self.scale.full)
            block = samples.astype(np.float32)
            if scale != 1.0:
                block -= np.float32(silence)
                block /= np.float32(scale)
            yield block


@lru_cache(maxsize=4096)
def _scale_of_file(path: str | RemotePath, version: str, limits: SoundLimits) -> Scale:
    with Recording(path, limits) as recording:
        return _scale_of(recording._as_they_are())


def _scale_of(blocks: Iterable[NDArray[Any]]) -> Scale:
    """The full scale of floats: 1 up to a peak of 2, else that of integers, else the peak."""
    peak, whole = 0.0, True
    for block in blocks:
        finite = block[np.isfinite(block)]
        if finite.size:
            peak = max(peak, float(np.abs(finite).max()))
            whole = whole and bool((finite == np.rint(finite)).all())
    if peak <= _TRUSTED_PEAK:
        return Scale()
    fits = (bits for bits in (16, 24, 32) if whole and peak <= 2.0 ** (bits - 1))
    return next((Scale(2.0 ** (bits - 1), bits) for bits in fits), Scale(peak))


def scale_note(recording: Recording | ArrayRecording) -> str | None:
    """What is said of samples whose full scale is not 1."""
    full, bits = recording.scale
    if full == 1:
        return None
    name = ARRAY_NAME if recording.path is None else printable(recording.path)
    if bits:
        what = (
            f"integers saved as floats; they are divided by {full:.0f}, full scale of {bits} bits"
        )
    else:
        what = f"floats up to {full:.6g}; they are divided by that, their peak"
    return f"{name}: the samples are {what}."


def _as_numpy(samples: Any) -> NDArray[Any]:
    for step in ("detach", "cpu"):  # what a torch tensor needs before it can become an array
        if callable(getattr(samples, step, None)):
            samples = getattr(samples, step)()
    if not hasattr(samples, "__array__"):
        raise UsageError(
            f"audio must be a path, a numpy array or a tensor, not {type(samples).__name__}"
        )
    try:
        array = np.asarray(samples)
    except TypeError:  # bfloat16 has no numpy type
        array = np.asarray(samples.float())
    if array.dtype.kind != "f" and array.dtype not in _INTEGERS:
        raise UsageError(
            f"the audio array is of type {array.dtype}, whose full scale is not clear; "
            "give floats in [-1, 1], int16 or int32"
        )
    return array


def _frames_first(array: NDArray[Any]) -> NDArray[Any]:
    """View an array as (samples, channels)."""
    if array.ndim == 1:
        return array[:, np.newaxis]
    if array.ndim == 2:
        return array.T if array.shape[0] <= array.shape[1] else array
    raise UsageError(
        f"the audio array has shape {array.shape}; give (samples,), (channels, samples) or "
        "(samples, channels)"
    )


def _in_ranges(path: str | AnyPath, stack: ExitStack) -> str | AnyPath:
    """The path, or a copy of a remote file of which no ranges can be read; it goes with `stack`."""
    if isinstance(path, RemotePath) and not stat(path).has_ranges:
        return stack.enter_context(local_copy(path))
    return path


def _not_given(path: str | AnyPath, error: StorageError, what: str = "") -> AudioError:
    """What a store or web server did not give."""
    reason = str(error).removeprefix(f"{path}: ").rstrip(".")
    advice = "What was asked before stands; the same command tries it again"
    return AudioError(path, f"{what}{reason}", advice, "RemoteError")


def _unreadable(path: str | AnyPath, reason: str, advice: str = _REPAIR) -> AudioError:
    return AudioError(path, reason, advice, "UnreadableAudio")


def _check_sample_rate(
    path: str | AnyPath | None, rate: float, highest: int = MAX_SAMPLE_RATE
) -> None:
    if not MIN_SAMPLE_RATE <= rate <= highest:
        raise AudioError(
            path,
            f"the sample rate is {rate:g} Hz, supported are {MIN_SAMPLE_RATE} to {highest} Hz",
            "Resample the recording, or correct its header",
            "SampleRateError",
        )


def _check_channels(path: str | AnyPath | None, channels: int, most: int = MAX_CHANNELS) -> None:
    if not 1 <= channels <= most:
        reason = f"there are {channels} channels, and 1 to {most} are read"
        raise AudioError(path, reason, "Save those that are needed", "ChannelError")


def _check_file(path: str | AnyPath, limits: SoundLimits) -> None:
    """Raise AudioError for what libsndfile has no good words for, and for too large a file."""
    try:
        kind, size = _kind_and_size(path)
        start = b""
        if S_ISREG(kind):
            start = _first_bytes(path)
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise _unreadable(path, "there is no such file", "Check the spelling") from error
    except ValueError as error:  # a character that no name can hold
        reason = f"no file can have this name ({error})"
        raise _unreadable(path, reason, "Check the spelling") from error
    except OSError as error:
        reason = f"the file may not be read ({error.strerror})"
        raise _unreadable(path, reason, "Check its permissions and the disk") from error
    if S_ISDIR(kind):
        raise _unreadable(path, "is a folder, not an audio file", "")
    if not S_ISREG(kind):
        raise _unreadable(path, "is not a regular file", "Copy the sound into a file first")
    if not start:
        advice = "Nothing was recorded or copied"
        raise AudioError(path, "the file is empty (0 bytes)", advice, "EmptyAudio")
    if size > limits.file_bytes:
        reason = f"the file has {format_bytes(size)}"
        advice = f"At most {format_bytes(limits.file_bytes)} are taken: cut it"
        raise AudioError(path, reason, advice, "TooLongAudio")
    is_mp3 = str(path).lower().endswith(".mp3")
    if is_mp3 and start not in _STARTS and not streams.first_frame(path):
        # Told here, because the MPEG decoder would print its own complaints on stderr.
        reason = "this is not an audio file, whatever its name says"
        raise AudioError(path, reason, _CONVERT, "NotAudio")


def _first_bytes(path: str | AnyPath) -> bytes:
    """The first four; of a file that is copied first, as no part can be had, those of a WAV."""
    if isinstance(path, RemotePath) and not stat(path).has_ranges:
        return b"" if stat(path).size == 0 else _STARTS[0]
    with open_file(path) as file:
        return file.read(4)


def _kind_and_size(path: str | AnyPath) -> tuple[int, int]:
    """Whether it is a file, as `stat` says it, and its bytes."""
    if isinstance(path, RemotePath):
        return S_IFREG, stat(path).size or 0
    found = os.stat(path)
    return found.st_mode, found.st_size


def _claims_more(file: StreamFile | None) -> bool:
    return file is not None and file.is_open_ended


def _text(error: Any) -> str:
    """What libsndfile or FFmpeg says."""
    text = getattr(error, "error_string", str(error))
    return str(text).removeprefix("Error : ").rstrip(". ")


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
