"""All sound enters here: recordings on disk or in memory → mono windows at the model's rate.

`find_recordings` lists files, `probe` reads a header, `iter_windows` streams a recording of any
length, `read_clip` reads a part of one. Whatever is wrong with a recording is an `AudioError` that
names it. Nothing here but the filter bank needs torch, and nothing is loaded before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from NatureLM.audio.arrays import parse_channel
    from NatureLM.audio.decode import RecordingInfo, probe
    from NatureLM.audio.errors import (
        AudioError,
        ChannelError,
        EmptyAudio,
        NonFiniteAudio,
        NotAudio,
        SampleRateError,
        TooShortAudio,
        UnreadableAudio,
    )
    from NatureLM.audio.files import AUDIO_SUFFIXES, find_recordings
    from NatureLM.audio.stream import count_windows, iter_windows, read_clip
    from NatureLM.audio.windows import Window, window_starts

__all__ = [
    "AUDIO_SUFFIXES",
    "AudioError",
    "ChannelError",
    "EmptyAudio",
    "NonFiniteAudio",
    "NotAudio",
    "RecordingInfo",
    "SampleRateError",
    "TooShortAudio",
    "UnreadableAudio",
    "Window",
    "count_windows",
    "find_recordings",
    "iter_windows",
    "parse_channel",
    "probe",
    "read_clip",
    "window_starts",
]

_MODULES = {
    "AUDIO_SUFFIXES": "files",
    "RecordingInfo": "decode",
    "Window": "windows",
    "count_windows": "stream",
    "find_recordings": "files",
    "iter_windows": "stream",
    "parse_channel": "arrays",
    "probe": "decode",
    "read_clip": "stream",
    "window_starts": "windows",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_MODULES.get(name, 'errors')}")
    return getattr(module, name)
