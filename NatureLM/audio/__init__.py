"""All sound enters here: recordings on disk or in memory → mono windows at the model's rate.

`find_recordings` lists files, `decode.probe` reads a header, `windows.iter_windows` streams a
recording of any length, `windows.read_clip` reads a part of one. Whatever is wrong with a recording
is an `AudioError` that names it. What is imported from here needs no numpy.
"""

from __future__ import annotations

import os
from typing import Literal, TypeAlias

from NatureLM.audio.files import AUDIO_SUFFIXES, find_recordings
from NatureLM.errors import NatureLMError

__all__ = ["ARRAY_NAME", "AUDIO_SUFFIXES", "AudioError", "AudioErrorKind", "find_recordings"]

ARRAY_NAME = "the audio array"

AudioErrorKind: TypeAlias = Literal[
    "UnreadableAudio",  # the file is not there, may not be read, or is cut off or damaged
    "NotAudio",  # the content is in no audio format that can be decoded
    "EmptyAudio",  # the file has 0 bytes, or a header and no samples
    "TooShortAudio",  # there is less sound than one analysis frame of the model (25 ms)
    "TooLongAudio",  # there is more of it than a service takes: bytes, seconds, decoded samples
    "NonFiniteAudio",  # some samples are NaN or infinite
    "ChannelError",  # there is no such channel as was asked for, or there are too many
    "SampleRateError",  # the sample rate is outside of what is supported
    "RemoteError",  # a store or web server did not give it (further)
    "UnknownContext",  # a question needs to know of its time or place what nothing says
    "AudioError",  # anything else
]


class AudioError(NatureLMError):
    """A recording cannot be used.

    path: the file (or another name of the sound), or None for samples given as an array
    reason: what is wrong, as the rest of a sentence about the file
    advice: what to do about it
    kind: the word for it in files of results
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        reason: str,
        advice: str = "",
        kind: AudioErrorKind = "AudioError",
    ) -> None:
        # The arguments go to the base class as they are, so that the error survives pickling.
        super().__init__(path, reason, advice, kind)
        self.path, self.reason, self.advice, self.kind = path, reason, advice, kind

    def __str__(self) -> str:
        name = ARRAY_NAME if self.path is None else str(self.path)
        return f"{name}: {self.reason}." + (f" {self.advice}." if self.advice else "")
