"""From recordings to an index: windows are heard, their vectors kept, and at the end joined."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from NatureLM.embeddings.errors import VectorIndexError
from NatureLM.embeddings.index import open_index, rows_of_a_block, writer_of
from NatureLM.embeddings.journal import Journal, refuse_other_settings
from NatureLM.embeddings.settings import IndexSettings
from NatureLM.infer import RecordingError
from NatureLM.infer.sound import Heard, Recording, WindowStream
from NatureLM.whole import whole_file

if TYPE_CHECKING:
    from NatureLM.embeddings.embedder import Embedder


@dataclass(frozen=True)
class Ended:
    """A recording was heard to its end."""

    file: str


Event: TypeAlias = Heard | RecordingError | Ended


@dataclass
class Made:
    """What came of it.

    rows: of the index; new: those made now; errors: recordings that could not be heard
    """

    rows: int = 0
    new: int = 0
    errors: list[RecordingError] = field(default_factory=list)


def make_index(
    recordings: Sequence[Path],
    output: Path,
    settings: IndexSettings,
    embedder: Embedder,
    *,
    overwrite: bool = False,
    warn: Callable[[str], None],
    begun: Callable[[int, int], None] = lambda rows, recordings: None,
    report: Callable[[str, int | RecordingError], None] = lambda file, windows: None,
) -> Made:
    """Make an index of recordings, or go on with it.

    What is in an index of this name stays, and recordings that are not in it are added. The work is
    kept in a folder beside it, `<output>.parts`, until the index is whole.

    warn: told what there is to say about recordings
    begun: told how many windows are there already, and how many recordings are to be heard
    report: told of each recording how many windows it has, or what is wrong with it

    Raises VectorIndexError where settings differ from those of what is there, or a recording has
    changed since.
    """
    write = writer_of(output)
    files = [str(path) for path in recordings]
    parts = output.with_name(output.name + ".parts")
    there = open_index(output) if output.exists() and not overwrite else None
    if there is not None:
        refuse_other_settings(output, there.settings, settings)
        whole = set(there.files()) - set(there.settings.unfinished)
        if not parts.exists() and not set(files) - whole:
            return Made(rows=len(there))
    made = Made()
    journal = Journal(parts, settings, overwrite=overwrite)
    try:
        if there is not None:
            _adopt(journal, output)
        changed = journal.changed(files)
        if changed:
            raise VectorIndexError(
                f"{parts}: recordings have changed since their windows were heard: "
                f"{', '.join(changed[:5])}; give --overwrite to start anew"
            )
        before = journal.rows
        begun(before, sum(not journal.is_done(file) for file in files))
        _hear(files, journal, settings, embedder, made, warn, report)
        made.rows, made.new = journal.rows, journal.rows - before
        size = rows_of_a_block(settings.width)
        kept = replace(settings, unfinished=tuple(journal.unfinished()))
        with whole_file(output, alone=True) as unfinished:
            write(unfinished, kept, journal.rows, lambda: journal.blocks(size))
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
    except BaseException:
        journal.close()
        raise
    journal.remove()
    return made


def _adopt(journal: Journal, output: Path) -> None:
    """Take the rows of an index that is there into the work."""
    there = open_index(output)
    known = {file: journal.windows(file) for file in there.files()}
    for block in there.blocks(rows_of_a_block(there.settings.width)):
        first = 0
        while first < len(block.files):
            file = block.files[first]
            end = first
            while end < len(block.files) and block.files[end] == file:
                end += 1
            skipped = min(known[file], end - first)  # a stopped run has taken these already
            known[file] -= skipped
            here = slice(first + skipped, end)
            if not journal.is_done(file):
                journal.add(
                    file,
                    block.starts[here].tolist(),
                    block.ends[here].tolist(),
                    block.vectors[here],
                    heard=False,
                )
            first = end
    for file in known:
        if file not in there.settings.unfinished:
            journal.finish(file)


def _hear(
    files: Sequence[str],
    journal: Journal,
    settings: IndexSettings,
    embedder: Embedder,
    made: Made,
    warn: Callable[[str], None],
    report: Callable[[str, int | RecordingError], None],
) -> None:
    """Make the vectors that are missing."""
    todo = [file for file in files if not journal.is_done(file)]
    stream = WindowStream(
        [
            Recording(number=number, name=file, source=file, queries=())
            for number, file in enumerate(todo)
        ],
        {
            "sample_rate": settings.sample_rate,
            "window_seconds": settings.window_seconds,
            "hop_seconds": settings.hop_seconds,
            "channel": settings.channel,
            "time_expansion": settings.time_expansion,
        },
        input_sample_rate=0,  # files know their own
        warn=warn,
    )
    is_new = (
        event
        for event in _with_ends(stream)
        if not isinstance(event, Heard)
        or event.window.index >= journal.windows(event.recording.name)
    )
    for events in _batches(is_new, lambda: embedder.batch):
        heard = [event for event in events if isinstance(event, Heard)]
        vectors = np.empty((0, settings.width), np.float32)
        if heard:
            vectors = embedder.vectors([one.window for one in heard], settings.time_expansion)
        row = 0
        for windows, event in _by_recording(events):
            if windows:
                journal.add(
                    windows[0].recording.name,
                    [one.window.start for one in windows],
                    [one.window.end for one in windows],
                    vectors[row : row + len(windows)],
                )
                row += len(windows)
            if isinstance(event, Ended):
                journal.finish(event.file)
                report(event.file, journal.windows(event.file))
            elif isinstance(event, RecordingError):
                made.errors.append(event)
                report(event.audio_path, event)


def _with_ends(stream: Iterable[Heard | RecordingError]) -> Iterator[Event]:
    """Windows and errors, and after the last window of a recording that it ended."""
    current: str | None = None
    for item in stream:
        name = item.audio_path if isinstance(item, RecordingError) else item.recording.name
        if current is not None and name != current:
            yield Ended(current)
        yield item
        current = None if isinstance(item, RecordingError) else name
    if current is not None:
        yield Ended(current)


def _batches(events: Iterable[Event], size: Callable[[], int]) -> Iterator[list[Event]]:
    """Events with so many windows among them."""
    waiting: list[Event] = []
    windows = 0
    for event in events:
        waiting.append(event)
        windows += isinstance(event, Heard)
        if windows >= size():
            yield waiting
            waiting, windows = [], 0
    if waiting:
        yield waiting


def _by_recording(events: Sequence[Event]) -> Iterator[tuple[list[Heard], Event | None]]:
    """Windows of one recording that follow one another, and the event that ends them."""
    windows: list[Heard] = []
    for event in events:
        if not isinstance(event, Heard):
            yield windows, event
            windows = []
        elif windows and event.recording is not windows[0].recording:
            yield windows, None
            windows = [event]
        else:
            windows.append(event)
    yield windows, None
