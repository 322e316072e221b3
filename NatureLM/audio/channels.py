"""From any number of channels to one: the mean, or the channel that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio.errors import ChannelError
from NatureLM.errors import UsageError

MEAN = "mean"


def parse_channel(channel: str | int) -> int | None:
    """Return the number of the channel, from 1 on, or None for the mean of all.

    Raises:
        UsageError: neither `mean` nor a whole number from 1 on.
    """
    text = str(channel).strip().lower()
    if text == MEAN:
        return None
    if text.isascii() and text.isdigit() and int(text) >= 1:
        return int(text)
    raise UsageError(
        f"channel: {channel!r} is not known; give mean, or the number of a channel: 1, 2, ..."
    )


class Mixer:
    """Makes blocks (frames, channels) mono. Raises `ChannelError` if there is no such channel."""

    def __init__(self, path: str | Path | None, channels: int, channel: int | None) -> None:
        if channel is not None and channel > channels:
            has = "one channel" if channels == 1 else f"channels 1 to {channels}"
            raise ChannelError(
                path,
                f"channel {channel} was asked for, the recording has {has}",
                "Choose one of them, or mean",
            )
        self._channel = 1 if channels == 1 else channel
        self._weights = np.full(channels, 1 / channels, dtype=np.float32)

    def mono(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the samples (frames,) of the chosen channel or the mean."""
        if self._channel is not None:
            return np.ascontiguousarray(block[:, self._channel - 1])
        # A matrix product: ten times as fast as numpy's mean over a short axis.
        return block @ self._weights
