"""What can be wrong with a recording; each error names the file and the reason."""

from __future__ import annotations

from pathlib import Path

from NatureLM.errors import NatureLMError


class AudioError(NatureLMError):
    """A recording that cannot be used: `path` is the file, `reason` what is wrong with it."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


class TooShortAudio(AudioError):
    """Less audio than one frame of the encoder (25 ms)."""
