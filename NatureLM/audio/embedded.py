"""Sound as it lies in the rows of datasets: encoded bytes, samples, or the path of a file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio.clip import clip_array, read_clip
from NatureLM.audio.errors import AudioError, EmptyAudio, NotAudio
from NatureLM.errors import UsageError


def read_embedded(
    value: Any,
    *,
    name: str,
    array_rate: float | None = None,
    folder: Path | None = None,
    start: float = 0.0,
    duration: float | None = None,
    sample_rate: int = 16_000,
) -> NDArray[np.float32]:
    """Read a clip from the cell of a dataset, like `read_clip` from a file.

    Args:
        value: bytes of a file; a path; samples; or a mapping with `bytes`, `path`, or `array` and
            `sampling_rate`, as Hugging Face datasets keep them.
        name: what errors call it.
        array_rate: sample rate of samples that name none, in Hz.
        folder: where relative paths start from.

    Returns:
        float32 in [-1, 1], shape (samples,).

    Raises:
        AudioError: there is no sound in the cell, or it cannot be used.
    """
    content, suffix = value, ""
    if isinstance(value, Mapping):
        array_rate = value.get("sampling_rate") or array_rate
        suffix = Path(value.get("path") or "").suffix
        content = next(
            (value[key] for key in ("bytes", "array", "path") if value.get(key) is not None), None
        )
    if content is None:
        raise EmptyAudio(name, "there is no sound in the data")
    if isinstance(content, (str, os.PathLike)):
        path = Path(content) if folder is None else folder / content
        return read_clip(path, start=start, duration=duration, sample_rate=sample_rate)
    try:
        if isinstance(content, (bytes, bytearray, memoryview)):
            return _from_bytes(bytes(content), suffix, start, duration, sample_rate)
        return clip_array(
            np.asarray(content),
            array_rate,
            start=start,
            duration=duration,
            sample_rate=sample_rate,
        )
    except AudioError as error:
        raise type(error)(name, error.reason, error.advice) from error
    except UsageError as error:
        raise NotAudio(name, f"the sound in the data cannot be used ({error})") from error


def _from_bytes(
    data: bytes, suffix: str, start: float, duration: float | None, sample_rate: int
) -> NDArray[np.float32]:
    """Through a file of its own, because that is how everything else is decoded and checked."""
    handle, name = tempfile.mkstemp(suffix=suffix, prefix="naturelm-")
    try:
        with open(handle, "wb") as file:
            file.write(data)
        return read_clip(name, start=start, duration=duration, sample_rate=sample_rate)
    finally:
        Path(name).unlink(missing_ok=True)
