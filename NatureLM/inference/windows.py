"""Recordings as windows, decoded ahead of the model, and the results that a `Pipeline` gives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio import AudioError
from NatureLM.audio.windows import Window, iter_windows
from NatureLM.results.rows import Prediction
from NatureLM.util import prefetch


@dataclass(frozen=True, kw_only=True)
class WindowResult(Prediction):
    """The answer to one question about one window; times are seconds in the recording.

    audio_path, start, end, query, text, merging_alpha: as they stand in a row of a result file
    confidence: 0 to 1. Of scored labels the probability of the answer among them, of a constrained
        answer the probability that the model says just that, of a free one the mean (geometric) of
        the probabilities of its tokens
    alternatives: other labels and their probabilities, best first, where they were scored
    prompt: the question as the model gets it
    window_index: number of the window, from 0 on
    audio_index: place of the recording among those that were given
    """

    prompt: str
    window_index: int
    audio_index: int = 0

    @property
    def window(self) -> str:
        """Names the sound of the window among all that were given."""
        return f"{self.audio_index}/{self.window_index}"


@dataclass(frozen=True)
class RecordingError:
    """A recording that could not be read (further); the windows before it stand."""

    audio_path: str
    error: AudioError


@dataclass(frozen=True)
class WindowKey:
    """Names a window and a question, so that work already done can be left out."""

    audio_path: str
    start: float
    query: str


logger = logging.getLogger(__name__)
_CHUNK = 4  # windows that a recording is read on at a time


@dataclass(frozen=True)
class Recording:
    """A recording and what is asked of each of its windows.

    number: place in the list of those that are asked about
    source: path of a file, or samples
    """

    number: int
    name: str
    source: Any
    queries: tuple[str, ...]


@dataclass(frozen=True)
class RecordingWindow:
    """A window of a recording; `key` names its sound."""

    recording: Recording
    window: Window
    key: str


class WindowStream:
    """The windows of recordings, one after the other, and in their place what went wrong.

    cutting: what `iter_windows` is told of windows and channels
    input_sample_rate: Hz, of recordings that are samples
    warn: told the notes about a recording when its turn comes; without it they are logged
    workers: recordings that are decoded at once, ahead of who takes the windows
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        cutting: Mapping[str, Any],
        *,
        input_sample_rate: float,
        warn: Callable[[str], None] | None = None,
        workers: int = 2,
    ) -> None:
        self._recordings, self._cutting = recordings, cutting
        self._rate, self._workers = input_sample_rate, workers
        self._warn = warn or logger.warning
        self._held: dict[str, NDArray[np.float32]] = {}
        self._once: set[str] = set()

    def __iter__(self) -> Iterator[RecordingWindow | RecordingError]:
        streams = map(self._decode, self._recordings)
        for item in prefetch(streams, workers=self._workers, chunk=_CHUNK):
            if isinstance(item, str):
                self._warn(item)
            else:
                yield item

    def hold(self, heard: RecordingWindow, *, once: bool = False) -> None:
        """Keep the sound of a window, so that `load` finds it; `once`: it is loaded once only."""
        self._held[heard.key] = heard.window.samples
        if once:
            self._once.add(heard.key)

    def load(self, key: str) -> NDArray[np.float32]:
        """The samples of a window that is held."""
        if key not in self._once:
            return self._held[key]
        self._once.remove(key)
        return self._held.pop(key)

    def let_go(self, key: str) -> None:
        """Nothing more is asked of this window."""
        self._once.discard(key)
        self._held.pop(key, None)

    def _decode(self, recording: Recording) -> Iterator[RecordingWindow | RecordingError | str]:
        """Windows, and in their place notes and what went wrong."""
        notes: list[str] = []
        is_file = isinstance(recording.source, (str, Path))
        try:
            for window in iter_windows(
                recording.source,
                input_sample_rate=None if is_file else self._rate,
                warn=notes.append,
                **self._cutting,
            ):
                while notes:
                    yield notes.pop(0)
                yield RecordingWindow(recording, window, f"{recording.number}/{window.index}")
        except AudioError as error:
            yield from notes
            yield RecordingError(recording.name, error)
        else:
            yield from notes
