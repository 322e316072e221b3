"""From recordings to an index: windows become vectors, which are kept until the index is whole.

The work so far is a `Journal`: a folder with two files that only grow, so that nothing is lost when
the run is stopped. `vectors.f32` holds the numbers of row after row; `rows.jsonl` says whose they
are, in whole lines (`results.store`). Numbers are written before the line that counts them: after
`kill -9` there may be numbers that no line counts, which are cut off, and never a line without its
numbers. After a loss of power there may be; such lines are cut off too.

Shapes: B windows, S samples, P positions in time, E width. torch is imported where it is needed:
the journal and the search work without it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio.windows import Window
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.inference.windows import Recording, RecordingError, RecordingWindow, WindowStream
from NatureLM.results.rows import Identity, bullets, differences, identity, read_lines
from NatureLM.results.store import JsonlAppender
from NatureLM.search.index import (
    IndexSettings,
    Shard,
    open_index,
    rows_of_a_shard,
    writer_of,
)
from NatureLM.util import atomic_write, digest

if TYPE_CHECKING:
    from torch import Tensor

    from NatureLM.models import NatureLM


LAYERS = ("encoder", "projected")


class Embedder:
    """Makes vectors of windows: the mean over the positions of a layer that hold sound.

    layer: `encoder`, the output of the audio encoder for each patch; `projected`, the vectors that
        stand in the language model's prompt
    batch: windows at once; half as many after each time that memory ran out

    A window shorter than the model's is padded with silence, as everywhere; positions that lie
    wholly in the padding do not count.
    """

    def __init__(self, model: NatureLM, layer: str = "encoder", *, batch: int = 16) -> None:
        if layer not in LAYERS:
            raise UsageError(f"the layer is {layer!r}, and it must be one of {', '.join(LAYERS)}")
        if batch < 1:
            raise UsageError(f"the batch size is {batch}, and it must be at least 1")
        self.model, self.layer, self.batch = model, layer, batch
        self.fingerprint = _fingerprint(model, layer)

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        if self.layer == "encoder":
            return int(self.model.beats.width)
        return int(self.model.audio_llama_proj.out_features)

    def vectors(
        self, windows: Sequence[Window], time_expansion: float = 1.0
    ) -> NDArray[np.float32]:
        """One vector for each window, float32 of shape (windows, width)."""
        from NatureLM.util import oom_backoff

        made: list[NDArray[np.float32]] = []
        start = 0
        while start < len(windows):
            batch = windows[start : start + self.batch]
            with oom_backoff(len(batch), "windows were encoded") as backoff:
                made.append(self._encode(batch, time_expansion))
                start += len(batch)
            if backoff.retry_size is not None:
                self.batch = backoff.retry_size
        return np.concatenate(made) if made else np.empty((0, self.width), np.float32)

    def _encode(self, windows: Sequence[Window], time_expansion: float) -> NDArray[np.float32]:
        import torch

        processor = self.model.processor
        assert processor is not None, "a loaded model has a processor"
        wav_BS = torch.stack([processor.prepare_audio(window.samples) for window in windows])
        encode = self.model.encode_patches if self.layer == "encoder" else self.model.encode_audio
        with torch.inference_mode():
            encoded_BPE = encode(wav_BS).float()
            positions = encoded_BPE.shape[1]
            share = time_expansion / self.model.config.window_seconds
            counts = [
                min(positions, max(1, math.ceil((one.end - one.start) * share * positions - 1e-6)))
                for one in windows
            ]
            counts_B = torch.tensor(counts, device=encoded_BPE.device)
            is_sound_BP = torch.arange(positions, device=encoded_BPE.device) < counts_B[:, None]
            summed_BE = (encoded_BPE * is_sound_BP[:, :, None]).sum(dim=1)
            vectors: NDArray[np.float32] = (summed_BE / counts_B[:, None]).cpu().numpy()
        return vectors


def _fingerprint(model: Any, layer: str) -> str:
    """Names the exact weights and settings that decide the vectors.

    Adapters of the language model have no part in them, so an index outlives a fine-tuning of the
    language model.
    """
    import torch

    config = model.config
    parts = ["beats"]
    names = ["sample_rate", "window_seconds", "fbank_cfg"]
    if layer == "projected":
        parts += ["ln_audio", "audio_Qformer", "audio_query_tokens", "audio_llama_proj"]
        names += ["max_pooling", "downsample_factor", "window_level_Qformer"]
        names += ["second_per_window", "second_stride", "patches_per_second"]
        names += ["window_delays"] if config.window_delays else []
    settings = {name: getattr(config, name) for name in names}

    def contents() -> Iterator[Any]:
        yield json.dumps([layer, settings], sort_keys=True)
        for name in parts:
            part = getattr(model, name, None)
            state: dict[str, Tensor] = {}
            if part is not None:
                state = {"": part} if isinstance(part, torch.Tensor) else part.state_dict()
            for key in sorted(state):
                tensor = state[key].detach()
                yield f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)};"
                yield tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data

    return digest(contents(), "blake2b", size=8).hex()


@dataclass
class BuildResult:
    """What came of building an index.

    rows: of the index; new: those made now; errors: recordings that could not be read
    """

    rows: int = 0
    new: int = 0
    errors: list[RecordingError] = field(default_factory=list)


Report: TypeAlias = Callable[[str, int | RecordingError], None]
"""Told of each recording how many windows it has, or what is wrong with it."""


def make_index(
    recordings: Sequence[Path],
    output: Path,
    settings: IndexSettings,
    embedder: Embedder,
    *,
    overwrite: bool = False,
    begun: Callable[[int, int], None] = lambda rows, recordings: None,
    report: Report = lambda file, windows: None,
) -> BuildResult:
    """Make an index of recordings, or resume it.

    What is in an index of this name stays, and recordings that are not in it are added. The work is
    kept in a folder beside it, `<output>.parts`, until the index is whole.

    begun: told how many windows are there already, and how many recordings are to be read

    Raises UsageError where settings differ from those of what is there, or a recording has
    changed since.
    """
    write = writer_of(output)
    files = [str(path) for path in recordings]
    parts = output.with_name(output.name + ".parts")
    index = open_index(output) if output.exists() and not overwrite else None
    if index is not None:
        refuse_other_settings(output, index.settings, settings)
        whole = set(index.files()) - set(index.settings.unfinished)
        if not parts.exists() and not set(files) - whole:
            return BuildResult(rows=len(index))
    result = BuildResult()
    journal = Journal(parts, settings, overwrite=overwrite)
    try:
        if index is not None:
            _adopt(journal, output)
        changed = journal.changed(files)
        if changed:
            raise UsageError(
                f"{parts}: recordings have changed since their windows were heard: "
                f"{', '.join(changed[:5])}; give --overwrite to start anew"
            )
        before = journal.rows
        begun(before, sum(not journal.is_done(file) for file in files))
        _embed_missing(files, journal, embedder, result, report)
        result.rows, result.new = journal.rows, journal.rows - before
        size = rows_of_a_shard(settings.width)
        kept = replace(settings, unfinished=tuple(journal.unfinished()))
        with atomic_write(output, alone=True) as unfinished:
            write(unfinished, kept, journal.rows, lambda: journal.shards(size))
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
    except BaseException:
        journal.close()
        raise
    journal.remove()
    return result


def refuse_other_settings(path: Path, before: IndexSettings, now: IndexSettings) -> None:
    """Raise UsageError where vectors of a file were made otherwise than those to come."""
    found = differences(before.deciding, now.deciding)
    if found:
        raise UsageError(
            f"{path}: holds vectors that were made with other settings, and these are not mixed:\n"
            f"{bullets(found)}\nGive another --output-path, or --overwrite to start anew."
        )


def _adopt(journal: Journal, output: Path) -> None:
    """Take the rows of an index that is there into the journal."""
    index = open_index(output)
    known = {file: journal.windows(file) for file in index.files()}
    for shard in index.shards(rows_of_a_shard(index.settings.width)):
        first = 0
        for file, group in groupby(shard.files):
            end = first + sum(1 for _ in group)
            skipped = min(known[file], end - first)  # a stopped run has taken these already
            known[file] -= skipped
            here = slice(first + skipped, end)
            if not journal.is_done(file):
                starts, ends = shard.starts[here].tolist(), shard.ends[here].tolist()
                journal.add(file, starts, ends, shard.vectors[here], is_present=False)
            first = end
    for file in known:
        if file not in index.settings.unfinished:
            journal.finish(file)


Event: TypeAlias = RecordingWindow | RecordingError | str
"""A window, a recording that broke off, or the name of a recording that was read to its end."""


def _embed_missing(
    files: Sequence[str],
    journal: Journal,
    embedder: Embedder,
    result: BuildResult,
    report: Report,
) -> None:
    """Make the vectors that are missing; a batch may hold windows of several recordings."""
    settings = journal.settings
    todo = [file for file in files if not journal.is_done(file)]
    stream = WindowStream(
        [Recording(number, file, file, queries=()) for number, file in enumerate(todo)],
        {
            "sample_rate": settings.sample_rate,
            "window_seconds": settings.window_seconds,
            "hop_seconds": settings.hop_seconds,
            "channel": settings.channel,
            "time_expansion": settings.time_expansion,
        },
        input_sample_rate=0,  # files know their own
    )
    missing = (
        event
        for event in _with_ends(stream)
        if not isinstance(event, RecordingWindow)
        or event.window.index >= journal.windows(event.recording.name)
    )
    for events in _batches(missing, lambda: embedder.batch):
        windows = [event.window for event in events if isinstance(event, RecordingWindow)]
        vectors = np.empty((0, settings.width), np.float32)
        if windows:
            vectors = embedder.vectors(windows, settings.time_expansion)
        for file, group in groupby(events, key=_file_of):
            of_file = list(group)
            own = [event.window for event in of_file if isinstance(event, RecordingWindow)]
            if own:
                starts, ends = [one.start for one in own], [one.end for one in own]
                journal.add(file, starts, ends, vectors[: len(own)])
                vectors = vectors[len(own) :]
            for event in of_file:
                if isinstance(event, str):
                    journal.finish(file)
                    report(file, journal.windows(file))
                elif isinstance(event, RecordingError):
                    result.errors.append(event)
                    report(file, event)


def _file_of(event: Event) -> str:
    if isinstance(event, RecordingWindow):
        return event.recording.name
    return event if isinstance(event, str) else event.audio_path


def _with_ends(stream: Iterable[RecordingWindow | RecordingError]) -> Iterator[Event]:
    """Windows and errors, and after the last window of a recording its name."""
    for file, group in groupby(stream, key=_file_of):
        is_whole = True
        for item in group:
            is_whole = isinstance(item, RecordingWindow)
            yield item
        if is_whole:
            yield file


def _batches(events: Iterable[Event], size: Callable[[], int]) -> Iterator[list[Event]]:
    """Events with so many windows among them."""
    waiting: list[Event] = []
    windows = 0
    for event in events:
        waiting.append(event)
        windows += isinstance(event, RecordingWindow)
        if windows >= size():
            yield waiting
            waiting, windows = [], 0
    if waiting:
        yield waiting


_ROWS, _VECTORS, _SETTINGS = "rows.jsonl", "vectors.f32", "settings.json"
_CHUNK = 64  # rows of a line at most


class _Chunk(NamedTuple):
    """A line: windows of a recording from number `first` on, whose vectors begin at a row."""

    recording: int
    first: int
    row: int
    rows: int
    offset: int


class Journal:
    """The work so far on an index.

    folder: made if it is not there
    overwrite: forget what is in it

    Raises UsageError where it holds vectors that were made otherwise.
    """

    def __init__(self, folder: Path, settings: IndexSettings, *, overwrite: bool = False) -> None:
        self.folder, self.settings = folder, settings
        self._bytes_of_row = 4 * settings.width
        self._recordings: dict[str, int] = {}
        self._windows: dict[str, int] = {}
        self._identities: dict[str, Identity] = {}
        self._done: set[str] = set()
        self._chunks: list[_Chunk] = []
        self.rows = 0
        self._lines = JsonlAppender(folder / _ROWS)
        try:
            self._prepare(overwrite)
            self._vectors = open(folder / _VECTORS, "r+b", buffering=0)  # noqa: SIM115
        except BaseException:
            self._lines.close()
            raise

    def is_done(self, file: str) -> bool:
        """Whether all windows of a recording are there."""
        return file in self._done

    def unfinished(self) -> list[str]:
        """Recordings of which there are windows, but not all."""
        return [file for file in self._recordings if file not in self._done]

    def windows(self, file: str) -> int:
        """How many windows of a recording are there, from the first one on."""
        return self._windows.get(file, 0)

    def changed(self, files: Sequence[str]) -> list[str]:
        """Recordings that are others than when their windows were read."""
        known = self._identities
        return [file for file in files if file in known and identity(file) != known[file]]

    def add(
        self,
        file: str,
        starts: Sequence[float],
        ends: Sequence[float],
        vectors: NDArray[np.float32],
        *,
        is_present: bool = True,
    ) -> None:
        """Append the next windows of a recording. is_present: it is here to be looked at."""
        seen = list(identity(file)) if is_present else None
        for begin in range(0, len(starts), _CHUNK):
            end = begin + _CHUNK
            line = {
                "file": file,
                "first": self.windows(file),
                "starts": list(starts[begin:end]),
                "ends": list(ends[begin:end]),
                "heard": seen,
            }
            self._write_vectors(np.ascontiguousarray(vectors[begin:end], np.float32))
            offset = self._lines.size
            self._lines.append(_line(line))
            self._take(line, offset)

    def finish(self, file: str) -> None:
        """All windows of a recording are there."""
        if file not in self._done:
            self._lines.append(_line({"done": file}))
            self._done.add(file)

    def shards(self, rows: int) -> Iterator[Shard]:
        """All rows, recording by recording, so many at a time (a few more at most)."""
        waiting: list[_Chunk] = []
        for chunk in sorted(self._chunks):
            waiting.append(chunk)
            if sum(one.rows for one in waiting) >= rows:
                yield self._shard(waiting)
                waiting = []
        if waiting:
            yield self._shard(waiting)

    def close(self) -> None:
        """Close the files; what was written is on the disk."""
        if not self._vectors.closed:
            os.fsync(self._vectors.fileno())
            self._vectors.close()
        self._lines.close()

    def remove(self) -> None:
        """The index is there: the folder goes."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _prepare(self, overwrite: bool) -> None:
        """Read what is there, and cut off what was not written whole."""
        path, vectors = self.folder / _SETTINGS, self.folder / _VECTORS
        if overwrite or not path.exists():
            self._lines.truncate(0)
            vectors.write_bytes(b"")
            with atomic_write(path, alone=True) as unfinished:
                unfinished.write_text(self.settings.to_json() + "\n", encoding="utf-8")
            return
        before = IndexSettings.from_json(path.read_text(encoding="utf-8"), path)
        refuse_other_settings(self.folder, before, self.settings)
        vectors.touch()
        room = vectors.stat().st_size // self._bytes_of_row
        end = 0
        for text in read_lines(self.folder / _ROWS):
            try:
                line = json.loads(text)
            except ValueError:
                break
            if not isinstance(line, dict) or not self._take(line, end, room):
                break
            end += len(text)
        self._lines.truncate(end)
        os.truncate(vectors, self.rows * self._bytes_of_row)

    def _take(self, line: dict[str, Any], offset: int, room: int | None = None) -> bool:
        """Count a line in; False if it speaks of vectors that are not there."""
        if "done" in line:
            self._done.add(line["done"])
            return True
        file, count = line["file"], len(line["starts"])
        if room is not None and self.rows + count > room:
            return False
        number = self._recordings.setdefault(file, len(self._recordings))
        self._chunks.append(_Chunk(number, line["first"], self.rows, count, offset))
        self._windows[file] = line["first"] + count
        if line["heard"] is not None:
            self._identities[file] = (line["heard"][0], line["heard"][1])
        self.rows += count
        return True

    def _write_vectors(self, vectors: NDArray[np.float32]) -> None:
        data = memoryview(vectors.tobytes())
        try:
            self._vectors.seek(self.rows * self._bytes_of_row)
            while data:
                data = data[self._vectors.write(data) :]
        except OSError as error:
            raise NatureLMError(
                f"{self.folder}: the vectors cannot be written further: {error.strerror}. When "
                "this is fixed, the same command goes on from there."
            ) from None

    def _shard(self, chunks: Sequence[_Chunk]) -> Shard:
        """The rows of chunks, read again from the two files."""
        files: list[str] = []
        starts: list[float] = []
        ends: list[float] = []
        vectors: list[NDArray[np.float32]] = []
        with open(self.folder / _ROWS, "rb") as lines, open(self.folder / _VECTORS, "rb") as data:
            for chunk in chunks:
                lines.seek(chunk.offset)
                line = json.loads(lines.readline())
                files += [line["file"]] * chunk.rows
                starts += line["starts"]
                ends += line["ends"]
                data.seek(chunk.row * self._bytes_of_row)
                raw = data.read(chunk.rows * self._bytes_of_row)
                vectors.append(np.frombuffer(raw, np.float32).reshape(chunk.rows, -1))
        return Shard(files, np.array(starts), np.array(ends), np.concatenate(vectors))


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"
