"""Labelled sound as vectors: what a classifier is taught with.

A table of any program that support sets are read from, a folder of reviewed clips, or the table of
labels that an earlier classifier keeps (`teach.labels`). A clip longer than a window becomes
several windows, which share its label.

Shapes: N windows, E width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio import AudioError
from NatureLM.audio.windows import Window, iter_windows, read_noted_clip
from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING
from NatureLM.search.build import VectorMaker
from NatureLM.search.index import IndexSettings, VectorIndex
from NatureLM.teach.labels import Labelled

_LONGEST_SECONDS = 600.0  # of one example


class Place(NamedTuple):
    """A stretch of a recording, in seconds."""

    file: str
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class Examples:
    """Windows of labelled sound.

    vectors: (N, E) float32
    labels: what each window is; `NOTHING` where it is none of the names
    is_not: what a reviewer says that it is not, where nobody says what it is; else ""
    clips: number of the example that each is a window of
    recordings: which recording each is of, so that none is on both sides of a test
    places: where each is
    """

    vectors: NDArray[np.float32]
    labels: tuple[str, ...]
    is_not: tuple[str, ...]
    clips: tuple[int, ...]
    recordings: tuple[str, ...]
    places: tuple[Place, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that are taught, in alphabetical order; `NOTHING` is none of them."""
        return tuple(sorted({*self.labels} - {NOTHING, ""}))

    def taken(self, rows: Sequence[int] | NDArray[Any]) -> Examples:
        """Only these windows."""
        numbers = [int(row) for row in np.arange(len(self))[rows]]
        columns = (tuple(column[row] for row in numbers) for column in self._columns)
        return Examples(self.vectors[numbers], *columns)

    @property
    def _columns(self) -> tuple[tuple[Any, ...], ...]:
        return self.labels, self.is_not, self.clips, self.recordings, self.places


def hear_examples(
    labelled: Sequence[Labelled],
    settings: IndexSettings,
    maker: VectorMaker,
    *,
    failed: Callable[[AudioError], None],
    done: Callable[[int, int], None] = lambda *_: None,
) -> Examples:
    """Make the vectors of labelled sound.

    settings: how it is cut into windows, and of which encoder the vectors are
    failed: told of each example that cannot be read or has no sound; the others count
    done: told how many examples were heard, of how many

    Raises UsageError where nothing is left.
    """
    windows: list[Window] = []
    rows: list[tuple[int, Place]] = []
    made: list[NDArray[np.float32]] = []

    def flush() -> None:
        if windows:
            made.append(maker.vectors(windows, settings.time_expansion))
            windows.clear()

    for number, one in enumerate(labelled):
        try:
            for window in windows_of(one, settings):
                windows.append(window)
                rows.append((number, Place(one.recording, window.start, window.end)))
                if len(windows) >= maker.batch:
                    flush()
        except AudioError as error:
            failed(error)
        done(number + 1, len(labelled))
    flush()
    if not made:
        raise UsageError("none of the examples can be heard, so there is nothing to learn from")
    return _examples(np.concatenate(made), rows, labelled)


def windows_of(one: Labelled, settings: IndexSettings) -> Iterator[Window]:
    """The windows of an example that hold sound, with times in its recording.

    Raises AudioError where it cannot be read, or has no sound.
    """
    length = None if one.end is None else one.end - one.start
    if length is not None:
        length = min(length, _LONGEST_SECONDS)
    expansion = settings.time_expansion
    samples, note = read_noted_clip(
        one.source,
        start=one.start,
        duration=length,
        sample_rate=settings.sample_rate,
        channel=settings.channel,
        time_expansion=expansion,
    )
    found = 0
    for window in iter_windows(
        samples,
        input_sample_rate=settings.sample_rate,
        sample_rate=settings.sample_rate,
        window_seconds=settings.window_seconds,
        hop_seconds=settings.hop_seconds,
        warn=lambda text: None,
    ):
        if not window.note:
            found += 1
            start, end = (one.start + time / expansion for time in (window.start, window.end))
            yield Window(window.index, start, end, window.samples)
    if not found:
        why = f" ({note})" if note else ""
        raise AudioError(one.recording, f"this example holds no sound{why}", "Take it out")


def indexed_examples(
    labelled: Sequence[Labelled], index: VectorIndex, key: Callable[[str], str]
) -> tuple[Examples, list[Labelled]]:
    """Examples whose windows stand in an index, without hearing them; and those that are not there.

    key: names the recording of a path, the same however it is written

    A window of the index counts where at least half of it, or half of the example, is the other.
    """
    wanted: dict[str, list[tuple[int, Labelled]]] = {}
    for number, one in enumerate(labelled):
        wanted.setdefault(key(one.recording), []).append((number, one))
    rows: list[tuple[int, Place]] = []
    vectors: list[NDArray[np.float32]] = []
    for shard in index.shards():
        for row, file in enumerate(shard.files):
            start, end = float(shard.starts[row]), float(shard.ends[row])
            for number, one in wanted.get(key(file), ()):
                if shard.vectors[row].any() and _is_of(start, end, one):
                    rows.append((number, Place(file, start, end)))
                    vectors.append(shard.vectors[row])
    found = {number for number, _ in rows}
    missing = [one for number, one in enumerate(labelled) if number not in found]
    width = index.settings.width
    matrix = np.stack(vectors) if vectors else np.empty((0, width), np.float32)
    return _examples(matrix, rows, labelled), missing


def _is_of(start: float, end: float, one: Labelled) -> bool:
    shared = min(end, one.end if one.end is not None else end) - max(start, one.start)
    length = (one.end if one.end is not None else end) - one.start
    return shared > 0 and shared >= 0.5 * min(end - start, length)


def _examples(
    vectors: NDArray[np.float32],
    rows: Sequence[tuple[int, Place]],
    labelled: Sequence[Labelled],
) -> Examples:
    about = [labelled[number] for number, _ in rows]
    return Examples(
        vectors,
        tuple(one.label for one in about),
        tuple(one.is_not for one in about),
        tuple(number for number, _ in rows),
        tuple(one.group for one in about),
        tuple(place for _, place in rows),
    )


def joined(parts: Sequence[Examples]) -> Examples:
    """Examples of several sources as one; their clips have numbers of their own."""
    clips: list[int] = []
    for one in parts:
        first = max(clips, default=-1) + 1
        clips += [first + number for number in one.clips]
    columns = zip(*(one._columns for one in parts), strict=True)
    vectors = np.concatenate([one.vectors for one in parts])
    return replace(
        Examples(vectors, *map(tuple, map(chain.from_iterable, columns))), clips=tuple(clips)
    )


def counted(examples: Examples) -> Mapping[str, tuple[int, int]]:
    """By name: how many examples and how many recordings there are."""
    found: dict[str, tuple[set[int], set[str]]] = {}
    for label, clip, recording in zip(
        examples.labels, examples.clips, examples.recordings, strict=True
    ):
        clips, recordings = found.setdefault(label, (set(), set()))
        clips.add(clip)
        recordings.add(recording)
    return {label: (len(one), len(other)) for label, (one, other) in sorted(found.items())}
