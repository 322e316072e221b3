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
import logging
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio.files import Identity, KnownRecordings, identity
from NatureLM.audio.windows import Window
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.inference.windows import Recording, RecordingError, RecordingWindow, WindowStream
from NatureLM.memory import oom_backoff
from NatureLM.results.rows import bullets, differences, read_lines
from NatureLM.results.store import JsonlAppender
from NatureLM.search.index import (
    Block,
    HeldRecordings,
    IndexSettings,
    VectorIndex,
    open_index,
    rows_of_a_block,
    writer_of,
)
from NatureLM.storage import AnyPath, real_path
from NatureLM.util import (
    atomic_write,
    check_range,
    digest,
    parse_json,
    why_not_finite,
    writing,
)

if TYPE_CHECKING:
    from torch import Tensor

    from NatureLM.models import NatureLM

logger = logging.getLogger(__name__)
LAYERS = ("encoder", "peaks", "projected")
_DELAYS, _SHARPNESS = 4, 4.0
"""Of peaks: into how many parts a patch is shifted, and how near a soft maximum is to the largest
value."""


class VectorMaker(Protocol):
    """Makes vectors of windows; `batch` of them at once."""

    batch: int

    def vectors(
        self, windows: Sequence[Window], time_expansion: float = 1.0
    ) -> NDArray[np.float32]:
        """One vector for each window."""


class Embedder:
    """Makes vectors of windows: the mean over the positions of a layer that hold sound.

    layer: `encoder`, the output of the audio encoder for each patch; `projected`, the vectors that
        stand in the language model's prompt; `peaks`, of the encoder's output the soft maximum in
        place of the mean, so that it matters less how much of a window a call fills, and the mean
        of that for the sound at four places within a patch
    batch: windows at once; half as many after each time that memory ran out

    A window shorter than the model's is padded with silence, as everywhere; positions that lie
    wholly in the padding do not count. The vector of a window without sound is zeros.
    """

    def __init__(self, model: NatureLM, layer: str = "encoder", *, batch: int = 16) -> None:
        if layer not in LAYERS:
            raise UsageError(f"the layer is {layer!r}, and it must be one of {', '.join(LAYERS)}")
        check_range("the batch size", batch, 1, 100_000)
        self.model, self.layer, self.batch = model, layer, batch
        self.fingerprint = _fingerprint(model, layer)

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        if self.layer == "projected":
            return int(self.model.audio_llama_proj.out_features)
        return int(self.model.beats.width)

    @property
    def about(self) -> dict[str, Any]:
        """What an index needs to know of the model, as plain values."""
        return {
            "fingerprint": self.fingerprint,
            "layer": self.layer,
            "width": self.width,
            "sample_rate": self.model.config.sample_rate,
            "revision": self.model.revisions.get("revision"),
        }

    def vectors(
        self, windows: Sequence[Window], time_expansion: float = 1.0
    ) -> NDArray[np.float32]:
        """One vector for each window, float32 of shape (windows, width).

        Raises NatureLMError where one would hold NaN or infinity.
        """
        made: list[NDArray[np.float32]] = []
        start = 0
        while start < len(windows):
            batch = windows[start : start + self.batch]
            with oom_backoff(len(batch), "windows were encoded") as backoff:
                made.append(self._encode(batch, time_expansion))
                start += len(batch)
            if backoff.retry_size is not None:
                self.batch = backoff.retry_size
        vectors = np.concatenate(made) if made else np.empty((0, self.width), np.float32)
        vectors[[bool(window.note) for window in windows]] = 0
        if not np.isfinite(vectors).all():
            raise NatureLMError(why_not_finite(self.model, "vector"))
        return vectors

    def _encode(self, windows: Sequence[Window], time_expansion: float) -> NDArray[np.float32]:
        import torch

        processor = self.model.processor
        assert processor is not None, "a loaded model has a processor"
        wav_BS = torch.stack([processor.prepare_audio(window.samples) for window in windows])
        rate, part = self.model.config.sample_rate, 0
        if self.layer == "peaks":
            part = self.model.config.patch_samples // _DELAYS
        made = []
        with torch.inference_mode():
            for delay in range(0, _DELAYS * part, part) if part else [0]:
                delayed_BS = torch.nn.functional.pad(wav_BS, (delay, -delay)) if delay else wav_BS
                seconds = [(one.end - one.start) * time_expansion + delay / rate for one in windows]
                made.append(self._pooled(delayed_BS, seconds))
            vectors: NDArray[np.float32] = torch.stack(made).mean(dim=0).cpu().numpy()
        return vectors

    def _pooled(self, wav_BS: Tensor, seconds: Sequence[float]) -> Tensor:
        """One vector for each waveform (B, E), of the positions that hold sound; it lasts so many
        seconds."""
        import torch

        is_projected = self.layer == "projected"
        encode = self.model.encode_audio if is_projected else self.model.encode_patches
        encoded_BPE = encode(wav_BS).float()
        positions, longest = encoded_BPE.shape[1], self.model.config.window_seconds
        counts = [
            min(positions, max(1, math.ceil(one / longest * positions - 1e-6))) for one in seconds
        ]
        counts_B = torch.tensor(counts, device=encoded_BPE.device)
        is_sound_BP = torch.arange(positions, device=encoded_BPE.device) < counts_B[:, None]
        if self.layer == "peaks":
            hidden_BPE = (encoded_BPE * _SHARPNESS).masked_fill(~is_sound_BP[:, :, None], -math.inf)
            summed_BE = hidden_BPE.logsumexp(dim=1) - counts_B[:, None].log()
            return summed_BE / _SHARPNESS
        summed_BE = (encoded_BPE * is_sound_BP[:, :, None]).sum(dim=1)
        return summed_BE / counts_B[:, None]


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

    rows: int
    new: int = 0
    errors: list[RecordingError] = field(default_factory=list)


Decode: TypeAlias = Callable[
    [Sequence[Recording], Mapping[str, Any], "Journal"], Iterable[RecordingWindow | RecordingError]
]
"""Gives the windows of recordings, cut as is said; the journal may be told what they are."""
Report: TypeAlias = Callable[[str, int | RecordingError], None]
"""Told of each recording how many windows it has, or what is wrong with it."""


def make_index(
    recordings: Sequence[AnyPath],
    output: Path,
    settings: IndexSettings,
    embedder: VectorMaker,
    *,
    overwrite: bool = False,
    begun: Callable[[int, int], None] = lambda rows, recordings: None,
    report: Report = lambda file, windows: None,
    decode: Decode | None = None,
) -> BuildResult:
    """Make an index of recordings, or resume it.

    What is in an index of this name stays, and recordings that are not in it are added. The work is
    kept in a folder beside it, `<output>.parts`, until the index is whole.

    begun: told how many windows are there already, and how many recordings are to be read
    decode: gives the windows of recordings; where it is not told, they are decoded here

    Raises UsageError where settings differ from those of what is there, or a recording has
    changed since.
    """
    write = writer_of(output)
    parts = output.with_name(output.name + ".parts")
    index = open_index(output) if output.exists() and not overwrite else None
    if index is not None:
        refuse_other_settings(output, index.settings, settings)
        held = HeldRecordings(index, recordings)
        if not parts.exists() and all(held.name(one) is not None for one in recordings):
            _refuse_changed(held.known, recordings, output)
            return BuildResult(len(index))
    journal = Journal(parts, settings, overwrite=overwrite)
    try:
        if index is not None:
            _adopt(journal, index)
        files = journal.match(recordings)
        before = len(journal)
        begun(before, sum(not journal.is_done(file) for file in files))
        errors = _embed_missing(files, journal, embedder, report, decode or _decoded_here)
        journal.settings = replace(
            settings, unfinished=tuple(journal.unfinished()), heard=journal.heard()
        )
        advice = f". What was heard is kept in {parts}; the same command goes on from there"
        with writing(output, advice), atomic_write(output, alone=True) as unfinished:
            write(unfinished, journal)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
    except BaseException:
        journal.close()
        raise
    journal.remove()
    return BuildResult(len(journal), len(journal) - before, errors)


def refuse_other_settings(path: Path, before: IndexSettings, now: IndexSettings) -> None:
    """Raise UsageError where vectors of a file were made otherwise than those to come."""
    found = differences(before.deciding, now.deciding)
    if found:
        raise UsageError(
            f"{path}: holds vectors that were made with other settings, and these are not mixed:\n"
            f"{bullets(found)}\nGive another --output-path, or --overwrite to start anew."
        )


def _refuse_changed(known: KnownRecordings, recordings: Sequence[AnyPath], path: Path) -> None:
    is_told = {key for key, before in known.found.items() if before.size is not None}
    changed = known.changed([one for one in recordings if known.key(one) in is_told])
    if changed:
        names = [str(one) for one in recordings if known.key(one) in changed]
        raise UsageError(
            f"{path}: recordings have changed since their windows were heard: "
            f"{', '.join(names[:5])}; give --overwrite to start anew"
        )


def _adopt(journal: Journal, index: VectorIndex) -> None:
    """Take the rows of an index that is there into the journal."""
    known = {file: journal.windows(file) for file in index.files()}
    for block in index.blocks():
        first = 0
        for file, group in groupby(block.files):
            end = first + sum(1 for _ in group)
            skipped = min(known[file], end - first)  # a stopped run has taken these already
            known[file] -= skipped
            here = slice(first + skipped, end)
            if not journal.is_done(file):
                starts, ends = block.starts[here].tolist(), block.ends[here].tolist()
                journal.add(file, starts, ends, block.vectors[here], is_present=False)
            first = end
    for file, real, *before in index.settings.heard:
        is_whole = file not in index.settings.unfinished  # others are read on when they are mended
        journal.place(file, Heard(real, Identity(*before) if is_whole else Identity()))
    for file in known:
        if file not in index.settings.unfinished:
            journal.finish(file)


def _decoded_here(
    recordings: Sequence[Recording], cutting: Mapping[str, Any], journal: Journal
) -> WindowStream:
    return WindowStream(recordings, cutting, input_sample_rate=0)  # files know their own


def _embed_missing(
    files: Sequence[str],
    journal: Journal,
    embedder: VectorMaker,
    report: Report,
    decode: Decode,
) -> list[RecordingError]:
    """Make the vectors that are missing; a batch may hold windows of several recordings."""
    settings = journal.settings
    todo = [file for file in files if not journal.is_done(file)]
    cutting = ("sample_rate", "window_seconds", "hop_seconds", "channel", "time_expansion")
    stream = decode(
        [Recording(n, file, journal.source(file), queries=()) for n, file in enumerate(todo)],
        {name: getattr(settings, name) for name in cutting},
        journal,
    )
    waiting: list[RecordingWindow] = []
    ended: list[tuple[str, RecordingError | None]] = []  # after the windows that wait

    def flush() -> None:
        vectors = np.empty((0, settings.width), np.float32)
        if waiting:
            windows = [one.window for one in waiting]
            vectors = embedder.vectors(windows, settings.time_expansion)
        for file, group in groupby(waiting, key=_file_of):
            own = [one.window for one in group]
            starts, ends = [one.start for one in own], [one.end for one in own]
            journal.add(file, starts, ends, vectors[: len(own)])
            vectors = vectors[len(own) :]
        for file, error in ended:
            if error is None:
                journal.finish(file)
            report(file, error or journal.windows(file))
        waiting.clear()
        ended.clear()

    errors: list[RecordingError] = []
    for file, items in groupby(stream, key=_file_of):
        error, silent = None, 0
        for item in items:
            if isinstance(item, RecordingError):
                error = item
                errors.append(item)
                # A short window before it ends where the recording breaks off, not where it ends.
                if waiting and _file_of(waiting[-1]) == file and _is_short(waiting[-1], settings):
                    waiting.pop()
            elif item.window.index >= journal.windows(file):
                if len(waiting) >= embedder.batch:
                    flush()
                waiting.append(item)
                silent += bool(item.window.note)
        ended.append((file, error))
        if silent:
            logger.warning("%s: %d windows hold no sound; no search finds them", file, silent)
    flush()
    return errors


def _is_short(item: RecordingWindow, settings: IndexSettings) -> bool:
    return item.window.end - item.window.start < settings.window_seconds - 1e-6


def _file_of(item: RecordingWindow | RecordingError) -> str:
    return item.recording.name if isinstance(item, RecordingWindow) else item.audio_path


_ROWS, _VECTORS, _SETTINGS = "rows.jsonl", "vectors.f32", "settings.json"
_CHUNK = 64  # rows of a line at most


class Heard(NamedTuple):
    """Where a recording was when it was heard, and what it was."""

    real: str
    before: Identity


@dataclass
class _Known:
    """What is there of a recording: for each line the row of its first vector, and its windows."""

    lines: list[tuple[int, NDArray[np.float64], NDArray[np.float64]]] = field(default_factory=list)
    windows: int = 0
    heard: Heard | None = None
    is_done: bool = False


class Journal(VectorIndex):
    """The work so far on an index: it is one, and grows.

    folder: made if it is not there
    overwrite: forget what is in it

    Raises UsageError where it holds vectors that were made otherwise.
    """

    def __init__(self, folder: Path, settings: IndexSettings, *, overwrite: bool = False) -> None:
        self.path, self.settings = folder, settings
        self._bytes_of_row = 4 * settings.width
        self._known: defaultdict[str, _Known] = defaultdict(_Known)
        self._sources: dict[str, AnyPath] = {}
        self._looked_at: dict[str, Heard] = {}
        self._rows = 0
        self._lines = JsonlAppender(folder / _ROWS)
        try:
            self._prepare(overwrite)
            self._vectors = open(folder / _VECTORS, "r+b", buffering=0)  # noqa: SIM115
        except BaseException:
            self._lines.close()
            raise

    def __len__(self) -> int:
        return self._rows

    def files(self) -> list[str]:
        return list(self._known)

    def blocks(self) -> Iterator[Block]:
        """All rows, recording by recording; a block has as many as lines bring above its size."""
        waiting: list[tuple[str, int, NDArray[np.float64], NDArray[np.float64]]] = []
        size = rows_of_a_block(self.settings.width)
        rows = 0
        for file, known in self._known.items():
            for line in known.lines:
                waiting.append((file, *line))
                rows += len(line[1])
                if rows >= size:
                    yield self._block(waiting)
                    waiting, rows = [], 0
        if waiting:
            yield self._block(waiting)

    def _block(
        self, lines: Sequence[tuple[str, int, NDArray[np.float64], NDArray[np.float64]]]
    ) -> Block:
        files, vectors = [], []
        with open(self.path / _VECTORS, "rb") as data:
            for file, row, starts, _ in lines:
                files += [file] * len(starts)
                data.seek(row * self._bytes_of_row)
                raw = data.read(len(starts) * self._bytes_of_row)
                vectors.append(np.frombuffer(raw, np.float32).reshape(len(starts), -1))
        starts, ends = (np.concatenate([line[column] for line in lines]) for column in (2, 3))
        return Block(files, starts, ends, np.concatenate(vectors))

    def is_done(self, file: str) -> bool:
        """Whether all windows of a recording are there."""
        return file in self._known and self._known[file].is_done

    def unfinished(self) -> list[str]:
        """Recordings of which there are windows, but not all."""
        return [file for file, known in self._known.items() if not known.is_done]

    def windows(self, file: str) -> int:
        """How many windows of a recording are there, from the first one on."""
        return self._known[file].windows if file in self._known else 0

    def match(self, recordings: Sequence[AnyPath]) -> list[str]:
        """The names of recordings here, where they are known by others.

        Raises UsageError where one has changed since its windows were read.
        """
        known, names = KnownRecordings(self.path), dict[str, str]()
        for file, one in self._known.items():
            real, before = one.heard or (file, Identity())
            names.setdefault(known.add(real, before), file)
        known.match(recordings)
        _refuse_changed(known, recordings, self.path)
        taken = {path: names.get(known.key(path), str(path)) for path in recordings}
        self._sources = {name: path for path, name in taken.items()}
        return list(dict.fromkeys(taken.values()))

    def source(self, file: str) -> str | AnyPath:
        """Where a recording of this name is now."""
        return self._sources.get(file, file)

    def heard(self) -> tuple[tuple[Any, ...], ...]:
        """What `IndexSettings.heard` says of the recordings."""
        return tuple(
            (file, one.heard.real, *one.heard.before)
            for file, one in self._known.items()
            if one.heard is not None
        )

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
        seen = self._seen(file) if is_present else None
        for begin in range(0, len(starts), _CHUNK):
            end = begin + _CHUNK
            line = {
                "file": file,
                "first": self.windows(file),
                "starts": list(starts[begin:end]),
                "ends": list(ends[begin:end]),
                "heard": seen and list(seen.before),
                "real": seen and seen.real,
            }
            self._write_vectors(np.ascontiguousarray(vectors[begin:end], np.float32))
            self._write_line(line)

    def finish(self, file: str) -> None:
        """All windows of a recording are there."""
        if not self.is_done(file):
            self._write_line({"done": file})

    def place(self, file: str, heard: Heard) -> None:
        """What an index knows of a recording, where nothing is known yet."""
        if self._known[file].heard is None:
            windows = {"first": self.windows(file), "starts": [], "ends": []}
            seen = {"heard": list(heard.before), "real": heard.real}
            self._write_line({"file": file, **windows, **seen})

    def know(self, file: str, now: Identity) -> None:
        """A recording as who decoded it found it."""
        self._looked_at[file] = Heard(real_path(self.source(file)), now)

    def _seen(self, file: str) -> Heard:
        """The recording as it is now, looked at once."""
        if file not in self._looked_at:
            source = self.source(file)
            now = identity(source, has_digest=True)
            self._looked_at[file] = Heard(real_path(source), now)
        return self._looked_at[file]

    def close(self) -> None:
        """Close the files; what was written is on the disk."""
        if not self._vectors.closed:
            os.fsync(self._vectors.fileno())
            self._vectors.close()
        self._lines.close()

    def remove(self) -> None:
        """The index is there: the folder goes."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def _prepare(self, overwrite: bool) -> None:
        """Read what is there, and cut off what was not written whole."""
        path, vectors = self.path / _SETTINGS, self.path / _VECTORS
        if overwrite or not path.exists():
            self._lines.truncate(0)
            vectors.write_bytes(b"")
            with atomic_write(path, alone=True) as unfinished:
                unfinished.write_text(self.settings.to_json() + "\n", encoding="utf-8")
            return
        before = IndexSettings.from_json(path.read_text(encoding="utf-8"), path)
        refuse_other_settings(self.path, before, self.settings)
        vectors.touch()
        room = vectors.stat().st_size // self._bytes_of_row
        end = 0
        for text in read_lines(self.path / _ROWS):
            try:
                line = parse_json(text)
            except ValueError:
                break
            if not isinstance(line, dict) or self._rows + len(line.get("starts", ())) > room:
                break  # it speaks of vectors that are not there
            self._take(line)
            end += len(text)
        self._lines.truncate(end)
        os.truncate(vectors, self._rows * self._bytes_of_row)

    def _take(self, line: dict[str, Any]) -> None:
        """Count a line in."""
        if "done" in line:
            self._known[line["done"]].is_done = True
            return
        known = self._known[line["file"]]
        if line["heard"] is not None:  # lines of older versions lack the real path
            known.heard = Heard(line.get("real") or line["file"], Identity(*line["heard"]))
        starts, ends = (np.array(line[name], np.float64) for name in ("starts", "ends"))
        if len(starts):
            known.lines.append((self._rows, starts, ends))
        known.windows += len(starts)
        self._rows += len(starts)

    def _write_line(self, line: dict[str, Any]) -> None:
        self._lines.append(json.dumps(line).encode() + b"\n")
        self._take(line)

    def _write_vectors(self, vectors: NDArray[np.float32]) -> None:
        data = memoryview(vectors.tobytes())
        try:
            self._vectors.seek(self._rows * self._bytes_of_row)
            while data:
                data = data[self._vectors.write(data) :]
        except OSError as error:
            raise NatureLMError(
                f"{self.path}: the vectors cannot be written further: {error.strerror}. When "
                "this is fixed, the same command goes on from there."
            ) from None
