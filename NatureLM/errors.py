"""The errors that people see: every exception of the project derives from `NatureLMError`.

A message says what happened, with which file, key or value, and what to do. The command line prints
the message without a stack trace and ends with the error's `exit_code`.
"""

from __future__ import annotations

import os
from typing import Literal, TypeAlias


class NatureLMError(Exception):
    """Base of all errors that the project raises on purpose."""

    exit_code = 1


class UsageError(NatureLMError):
    """The request itself is wrong: a path that is not there, values that exclude each other."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file or override holds an unknown key or a value that is not allowed."""


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

    def renamed(self, name: str) -> AudioError:
        """The same of a file that whoever reads it knows by another name."""
        reason = self.reason.replace(str(self.path), name) if self.path else self.reason
        return AudioError(name, reason, self.advice, self.kind)
