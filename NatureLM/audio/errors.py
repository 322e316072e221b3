"""What can be wrong with a recording: every error names the file, the reason and the way out."""

from __future__ import annotations

from pathlib import Path

from NatureLM.errors import NatureLMError

ARRAY_NAME = "the audio array"


class AudioError(NatureLMError):
    """A recording cannot be used.

    Args:
        path: the file (or another name of the sound), or None for samples given as an array.
        reason: what is wrong, as the rest of a sentence about the file.
        advice: what to do about it.
    """

    def __init__(self, path: str | Path | None, reason: str, advice: str = "") -> None:
        # The arguments go to the base class as they are, so that the error survives pickling.
        super().__init__(path, reason, advice)
        self.path = path
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        name = ARRAY_NAME if self.path is None else str(self.path)
        return f"{name}: {self.reason}." + (f" {self.advice}." if self.advice else "")


class UnreadableAudio(AudioError):  # noqa: N818
    """The file is not there, may not be read, or is cut off or damaged."""


class NotAudio(AudioError):  # noqa: N818
    """The content is in no audio format that can be decoded."""


class EmptyAudio(AudioError):  # noqa: N818
    """The file has 0 bytes, or a header and no samples."""


class TooShortAudio(AudioError):  # noqa: N818
    """There is less sound than one analysis frame of the model (25 ms)."""


class NonFiniteAudio(AudioError):  # noqa: N818
    """Some samples are NaN or infinite."""


class ChannelError(AudioError):
    """The recording does not have the channel that was asked for."""


class SampleRateError(AudioError):
    """The sample rate is outside of what is supported."""
