"""Decoded clips, kept in memory up to a limit, and an account of the files that cannot be read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from NatureLM.audio.errors import AudioError
from NatureLM.errors import NatureLMError
from NatureLM.training.augment import Wave
from NatureLM.training.table import Clip, RowClip
from NatureLM.util import ByteBoundedCache

Reader = Callable[[Clip], Wave]
_ENOUGH = 20  # bad files from which on their share of the files tried so far tells enough


class TooManyBadFilesError(NatureLMError):
    """More audio files are unreadable than the configuration allows."""


def clip_reader(sample_rate: int) -> Reader:
    """Decode, mix to mono and resample with the project's own audio module."""
    from NatureLM.audio import read_clip

    def read(clip: Clip) -> Wave:
        if isinstance(clip, RowClip):
            return clip.read(sample_rate)
        wav: Wave = read_clip(
            clip.path, start=clip.start, duration=clip.duration, sample_rate=sample_rate
        )
        return wav

    return read


class AudioCache:
    """Reads clips, each at most once as long as they fit into `cache_bytes`; safe under threads."""

    def __init__(self, reader: Reader, cache_bytes: int) -> None:
        self._reader = reader
        self._clips: ByteBoundedCache[Clip, Wave] = ByteBoundedCache(cache_bytes)

    def read(self, clip: Clip) -> Wave:
        """The clip's waveform, not to be written to. Raises `AudioError`."""
        wav = self._clips.get(clip)
        if wav is None:
            wav = self._reader(clip)
            wav.setflags(write=False)
            self._clips.put(clip, wav, wav.nbytes)
        return wav


@dataclass
class BadFiles:
    """Which files could not be read, why, and whether they are too many.

    max_share: allowed part of `total`; from twenty bad files on, also of the files tried so far
    total: number of files that the data names
    """

    max_share: float
    total: int
    reasons: dict[str, str] = field(default_factory=dict)
    _tried: set[str] = field(default_factory=set)
    _tried_before: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tried(self, clips: Iterable[Clip]) -> None:
        """These clips are being read."""
        with self._lock:
            self._tried.update(clip.path for clip in clips)

    @property
    def tried_so_far(self) -> int:
        """How many files were read, also before the run was resumed."""
        return max(len(self._tried), self._tried_before)

    def restore(self, reasons: Mapping[str, str], tried: int) -> None:
        """Go on with the account of a run that is resumed."""
        with self._lock:
            self.reasons = dict(reasons)
            self._tried_before = tried

    def add(self, error: AudioError) -> None:
        """A file could not be read; raises `TooManyBadFilesError` above the limit."""
        with self._lock:
            self.reasons[str(error.path)] = error.reason
            bad, tried = len(self.reasons), self.tried_so_far
            if bad > self.max_share * self.total:
                raise TooManyBadFilesError(self._report(f"the {self.total} audio files"))
            if bad >= _ENOUGH and bad > self.max_share * tried:
                raise TooManyBadFilesError(self._report(f"the first {tried} audio files"))

    def _report(self, of_what: str) -> str:
        shown = [f"  {path}: {reason}" for path, reason in list(self.reasons.items())[:5]]
        more = len(self.reasons) - len(shown)
        lines = [
            f"{len(self.reasons)} of {of_what} cannot be used, more than "
            f"datasets.max_bad_share = {self.max_share:g} allows:",
            *shown,
            *([f"  and {more} more"] if more > 0 else []),
        ]
        return "\n".join(lines)
