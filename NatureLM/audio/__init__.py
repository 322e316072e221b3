"""All sound enters here: recordings on disk or in memory → mono windows at the model's rate.

`find_recordings` lists files, `decode.probe` reads a header, `windows.iter_windows` streams a
recording of any length, `windows.read_clip` reads a part of one. Whatever is wrong with a recording
is an `AudioError` that names it. What is imported from here needs no numpy.
"""

from __future__ import annotations

from NatureLM.audio.files import AUDIO_SUFFIXES, find_recordings
from NatureLM.errors import ARRAY_NAME, AudioError, AudioErrorKind

__all__ = ["ARRAY_NAME", "AUDIO_SUFFIXES", "AudioError", "AudioErrorKind", "find_recordings"]
