"""Answers that go to a bucket: written here, uploaded in segments, and one file at the end.

An object cannot grow. So rows go to a result file in a working folder of this machine, and what is
new in it is uploaded from time to time as a further *segment* beside the address of the answers:

    answers.jsonl.parts/000001-000000.jsonl     generation 1, segment 0: all rows so far
    answers.jsonl.parts/000001-000001.jsonl     the rows after these
    answers.jsonl.parts/000001.run.json         the settings

Segments are never changed, and each is made only where none of its name is. In a row they are the
file. Where rows that were uploaded are taken out again (recordings that failed and are tried anew),
a new generation begins with all rows; the highest one with a segment 0 counts. At the end the whole
file replaces the address, then the segments go: older generations first, of the last one segment 0,
and at every moment what counts is whole.

A run reads what counts before it begins. If the working file begins with the very same bytes it has
rows that were not uploaded yet, and goes on with them. So it does where the file was to replace
what is still there (`replaces` in the working folder says what that was), and could not be
uploaded. Otherwise, on another machine above all, what was uploaded takes its place. So nothing is
lost but what was never uploaded, and nothing is there twice.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from NatureLM import storage
from NatureLM.errors import UsageError
from NatureLM.results.rows import OutputError, Prediction, RunSettings, SurveyRow, record_path
from NatureLM.results.shards import Shard
from NatureLM.results.store import Resumed, WindowStore, lock_beside, unlock
from NatureLM.storage import (
    WEB,
    AnyPath,
    RemotePath,
    StorageError,
    attempt,
    call_store,
    filesystem,
    forget,
    grace,
    stat,
)
from NatureLM.util import atomic_write, digest, format_bytes

logger = logging.getLogger(__name__)
SECONDS, MOST_BYTES = 30.0, 8 << 20  # until a segment is uploaded; how large one is
_SEGMENT = re.compile(r"(\d{6})-(\d{6})\.jsonl")
_SETTINGS = re.compile(r"\d{6}\.run\.json")


def working_path(output: AnyPath) -> Path:
    """Where the rows for an output are written: the file itself, or one in a folder of the cache.

    NATURELM_WORK names another folder for those of buckets. (NATURELM_UPLOAD_SECONDS is how often
    they are uploaded.)
    """
    if isinstance(output, Path):
        return output
    named = os.environ.get("NATURELM_WORK")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = Path(named) if named else Path(cache) / "naturelm" / "outputs"
    return home / digest(output.url).hex()[:16] / output.name


def open_store(output: AnyPath, *, overwrite: bool = False) -> WindowStore:
    """The store of answers for a path or an address. Raises OutputError and StorageError."""
    if isinstance(output, Path):
        return WindowStore(output, overwrite=overwrite)
    return UploadedStore(output, overwrite=overwrite)


@contextmanager
def local_output(output: AnyPath, *, is_read: bool) -> Iterator[Path]:
    """Where to write a file whole: its path, or one here that is uploaded when the block ends.

    is_read: whether what is there is looked at; otherwise only its settings are, and that it is

    Raises OutputError and StorageError. After any other end the work stays in the working folder,
    and counts as what is there.
    """
    if isinstance(output, Path):
        yield output
        return
    check_writable(output)
    # Another folder than that of rows which a run has not uploaded yet.
    here = working_path(output).parent / "whole" / output.name
    here.parent.mkdir(parents=True, exist_ok=True)
    lock = lock_beside(here.parent, _busy(output))
    try:
        pairs = [(output, here), (output.with_name(record_path(here).name), record_path(here))]
        for address, path in pairs if is_read else pairs[1:]:
            if is_read and path.exists():  # it could not be uploaded
                continue
            try:
                storage.download(address, path)
            except FileNotFoundError:
                path.unlink(missing_ok=True)
        if not is_read:
            here.unlink(missing_ok=True)
            if exists(output):
                here.touch()
        yield here
        for address, path in reversed(pairs):
            if path.exists():
                upload(path, address)
        shutil.rmtree(here.parent, ignore_errors=True)
    finally:
        unlock(lock)
    with suppress(OSError):
        here.parent.parent.rmdir()


def _busy(output: RemotePath) -> str:
    return (
        f"{output}: another run is writing this output now; wait for its end, or give another "
        "--output-path"
    )


@contextmanager
def local_runs(runs: Sequence[AnyPath]) -> Iterator[list[Path]]:
    """Result files here: the paths, and copies of those at addresses, which go at the end.

    Of a folder of a bucket it is the files of shards in it. Raises UsageError where none are.
    """
    with TemporaryDirectory(prefix="naturelm-") as folder:
        made: list[Path] = []
        for one in runs:
            if isinstance(one, Path):
                made.append(one)
                continue
            files = [file for file in storage.find(one) if file == one or _is_shard_of(one, file)]
            if not files:
                raise UsageError(f"{one}: has no answers of shards (*.shard-1-of-4.jsonl)")
            for file in files:
                # Files of several folders may have one name.
                here = Path(folder, str(len(made)), file.name)
                here.parent.mkdir()
                storage.download(file, here)
                with suppress(FileNotFoundError):
                    storage.download(file.with_name(record_path(here).name), record_path(here))
                made.append(here)
        yield made


def _is_shard_of(named: RemotePath, file: RemotePath) -> bool:
    """Whether a file is a shard's: one of the folder itself, or of a pattern."""
    is_there = "*" in named.url or file.parent.url == named.url.rstrip("/")
    return is_there and file.suffix == ".jsonl" and Shard.named_in(file.name) is not None


class UploadedStore(WindowStore):
    """The answers about windows of recordings, of which the bucket gets what is new.

    Rows of an earlier run are read from there. `finish` puts the whole file in its place; without
    it, as after Ctrl-C, what is there stays to be resumed.
    """

    def __init__(self, output: RemotePath, *, overwrite: bool = False) -> None:
        self._uploads = _Uploads(output, working_path(output))
        try:
            self._uploads.prepare(overwrite=overwrite)
            super().__init__(self._uploads.path, overwrite=overwrite, named=output)
        except BaseException:
            self._uploads.release()
            raise

    def begin(self, settings: RunSettings, recordings: Iterable[str | AnyPath] = ()) -> Resumed:
        """Start writing answers of a run, or resume it: see `WindowStore.begin`."""
        resumed = super().begin(settings, recordings)
        self._uploads.start()
        return resumed

    def add(self, answer: Prediction | SurveyRow) -> bool:
        """Write the row of a window: see `WindowStore.add`."""
        self._uploads.check()
        return super().add(answer)

    def finish(self, tables: Sequence[Path] = ()) -> list[str]:
        """Upload the whole file and tables of it; their addresses. Raises StorageError."""
        return self._uploads.finish(tables)

    def close(self) -> None:
        """Close the file, and upload what is new in it, as far as that goes."""
        self._uploads.stop()
        super().close()
        self._uploads.release()


class _Uploads:
    """What of a working file is in the bucket.

    output: address of the whole file; path: the working file
    """

    def __init__(self, output: RemotePath, path: Path) -> None:
        self.output, self.path = output, path
        self._parts = output.with_name(f"{output.name}.parts")
        self._generation, self._segment, self._offset = 0, 0, 0
        self._pending = 0  # bytes of a segment of which it is not known whether it is there
        self._known = b""  # digest of the first `_offset` bytes
        self._whole = -1  # bytes of the file that is in its place, and the same as this
        self._stand = ""  # what counted in the bucket when the run began
        self._replaces = path.with_name("replaces")
        self._taken: OutputError | None = None
        self._told = self._is_done = False
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{path.parent}: cannot be made a folder ({error.strerror}), and answers for "
                f"{output} are kept there; name another one in NATURELM_WORK"
            ) from None
        self._seconds = storage.seconds_of("NATURELM_UPLOAD_SECONDS", SECONDS)
        self._lock: Any = lock_beside(path.parent / "uploads", _busy(output))

    # Before the run

    def prepare(self, *, overwrite: bool) -> None:
        """Let the working file hold what the bucket does, and what was not uploaded of it."""
        check_writable(self.output)
        segments = self._segments()
        if segments:
            self._generation = segments[-1][0]
        counts = [one for one in segments if one[0] == self._whole_generation(segments)]
        self._stand = self._described(counts)
        if overwrite:
            return
        earlier = self.path.with_name("earlier.jsonl")
        try:
            self._download(counts, earlier)
            self._compare(counts, earlier)
        finally:
            earlier.unlink(missing_ok=True)

    def _compare(self, counts: Sequence[tuple[int, int]], earlier: Path) -> None:
        """Let what counts in the bucket take the place of the working file, unless that has it
        all, or was to replace it."""
        size = earlier.stat().st_size
        known = _digest(earlier, size)
        here = self.path.stat().st_size if self.path.exists() else 0
        is_same = not (size or here) or _digest(self.path, size) == known
        more = here - size if is_same else here if self._is_to_replace() else 0
        if more > 0:
            logger.warning(
                "%s: rows of %s are here that were not uploaded; they are now",
                *(self.output, format_bytes(more)),
            )
        if not is_same and more:
            return
        if counts:
            self._generation = counts[0][0]
        self._segment, self._offset, self._known = len(counts), size, known
        self._take_settings(counts)
        if not is_same:
            earlier.replace(self.path)

    def _is_to_replace(self) -> bool:
        """Whether the working file was begun in the place of what still counts."""
        try:
            return self._replaces.read_text(encoding="utf-8") == self._stand
        except OSError:
            return False

    def _described(self, counts: Sequence[tuple[int, int]]) -> str:
        """What tells the rows that count from all others that ever will."""
        first = self._named(*counts[0]) if counts else self.output
        forget(first)
        try:
            found = stat(first)
        except FileNotFoundError:
            return "nothing"
        return f"{counts[-1] if counts else 'whole'} {found.etag} {found.modified} {found.size}"

    def _segments(self) -> list[tuple[int, int]]:
        """Generation and number of the segments in the bucket, sorted."""
        found = (_SEGMENT.fullmatch(one.name) for one in storage.find(self._parts / ""))
        return sorted((int(one[1]), int(one[2])) for one in found if one)

    @staticmethod
    def _whole_generation(segments: Sequence[tuple[int, int]]) -> int:
        return max((generation for generation, number in segments if number == 0), default=0)

    def _download(self, counts: Sequence[tuple[int, int]], target: Path) -> None:
        """The rows that count: those of segments, else of the whole file, else none."""
        if [number for _, number in counts] != list(range(len(counts))):
            raise OutputError(
                f"{self._parts}: segments of generation {counts[0][0]} are missing; put them back, "
                "or give --overwrite to start anew"
            )
        rows = [self._named(*one) for one in counts] or [self.output]
        target.write_bytes(b"")
        piece = target.with_name("piece")
        for one in rows:
            forget(one)
            try:
                storage.download(one, piece)
            except FileNotFoundError:
                if counts:
                    raise StorageError(f"{one}: is gone") from None
                break
            with open(piece, "rb") as source, open(target, "ab") as joined:
                shutil.copyfileobj(source, joined)
            piece.unlink()

    def _take_settings(self, counts: Sequence[tuple[int, int]]) -> None:
        """Those of the rows that count."""
        record = self.output.with_name(f"{self.output.name}.run.json")
        if counts:
            record = self._parts / f"{counts[0][0]:06}.run.json"
        try:
            settings = storage.read_bytes(record)
        except FileNotFoundError:
            return
        with atomic_write(record_path(self.path)) as unfinished:
            unfinished.write_bytes(settings)

    # While it runs

    def start(self) -> None:
        """The file is as the run goes on with it: upload what is new from now on."""
        has_segments = self._segment > 0
        is_same = _digest(self.path, self._offset) == self._known
        if self._offset and is_same and not has_segments:
            self._whole = self._offset
        if not has_segments or not is_same:
            self._generation, self._segment, self._offset = self._generation + 1, 0, 0
            with atomic_write(self._replaces) as unfinished:
                unfinished.write_text(self._stand, encoding="utf-8")
        self._ending.clear()
        self._thread = threading.Thread(target=self._work, name="naturelm-uploads", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise OutputError where another run has taken over the output."""
        if self._taken is not None:
            raise self._taken

    def _work(self) -> None:
        last = time.monotonic()
        while not self._ending.wait(0.5) and self._taken is None:
            unsent = self.path.stat().st_size - max(self._offset, self._whole)
            if unsent >= MOST_BYTES or (unsent and time.monotonic() - last >= self._seconds):
                self._try_to_send()
                last = time.monotonic()

    def _try_to_send(self) -> bool:
        """Upload what is new; False, and a note, where the network does not let it."""
        try:
            while self._send():
                pass
        except OSError as error:  # of the store, or of the disk here
            if not self._told:
                logger.warning("%s. Answers are kept in %s, and uploaded later", error, self.path)
            self._told = True
            return False
        except OutputError as error:
            self._taken = error
            return False
        return True

    def _send(self) -> bool:
        """Upload the next segment; False where no whole line is new."""
        new = self.path.with_name("segment")
        # All of a new generation is in its first segment.
        most = MOST_BYTES if self._segment else 1 << 62
        # One that may be there, though no answer came, is sent as it was.
        size = self._pending or _copy_lines(self.path, self._offset, most, new)
        if not size:
            return False
        self._pending = size
        self._check_generation()
        if self._segment == 0:
            record = record_path(self.path)
            if record.exists():
                name = f"{self._generation:06}.run.json"
                write_bytes(self._parts / name, record.read_bytes())
        self._make(new)
        self._offset += size
        self._pending = 0
        self._segment += 1
        if self._segment == 1:
            self._remove([one for one in self._segments() if one[0] < self._generation])
        self._told = False
        return True

    def _make(self, new: Path) -> None:
        """Write a segment. Raises OutputError where another run has made it."""
        path = self._named(self._generation, self._segment)
        try:
            upload(new, path, is_new=True)
        except FileExistsError:
            # The answer to our own write may have been lost on the way.
            there = new.with_name("piece")
            storage.download(path, there)
            sizes = [one.stat().st_size for one in (new, there)]
            if sizes[0] != sizes[1] or _digest(new, sizes[0]) != _digest(there, sizes[0]):
                raise self._taken_over() from None

    def _check_generation(self) -> None:
        segments = self._segments()
        if segments and segments[-1] > (self._generation, self._segment):
            raise self._taken_over()

    def _taken_over(self) -> OutputError:
        return OutputError(
            f"{self.output}: another run has begun to write this output, so this one ends; its "
            f"answers that were not uploaded are in {self.path}"
        )

    def _named(self, generation: int, segment: int) -> RemotePath:
        return self._parts / f"{generation:06}-{segment:06}.jsonl"

    # After it

    def stop(self) -> None:
        """End the uploads, with what is new."""
        if self._thread is None:
            return
        self._ending.set()
        self._thread.join()
        self._thread = None
        if self._taken is None and self.path.exists() and not self._is_there():
            self._try_to_send()

    def finish(self, tables: Sequence[Path]) -> list[str]:
        """Put the whole file in its place, and tables beside it; the segments go."""
        self.stop()
        self.check()
        if not self.path.exists() or not self.path.stat().st_size:
            return []
        try:
            self._check_generation()
            record = record_path(self.path)
            made = [self.output, self.output.with_name(f"{self.output.name}.run.json")]
            if self._is_there():
                made.clear()
            else:
                if record.exists():
                    upload(record, made[1])
                upload(self.path, made[0])
            for table in tables:
                made += self._upload_table(table)
            self._remove(self._segments())
            for one in storage.find(self._parts / ""):
                if _SETTINGS.fullmatch(one.name):
                    remove(one)
        except StorageError as error:
            raise StorageError(
                f"{error}. All answers are in {self.path}; the same command without --overwrite "
                "uploads them"
            ) from None
        self._is_done = True
        return [one.url for one in made]

    def _is_there(self) -> bool:
        """Whether the whole file is in its place already."""
        return self._segment == 0 and self.path.stat().st_size == self._whole

    def _upload_table(self, table: Path) -> list[RemotePath]:
        files = sorted(one for one in table.rglob("*") if one.is_file()) or [table]
        made = []
        for one in files:
            name = one.relative_to(self.path.parent).as_posix()
            upload(one, self.output.parent / name)
            made.append(self.output.parent / name)
        return made[:1] if len(made) == 1 else [self.output.parent / table.name]

    def _remove(self, segments: Iterable[tuple[int, int]]) -> None:
        """Remove segments, so that at no moment an older generation counts again."""
        for one in sorted(segments):
            remove(self._named(*one))

    def release(self) -> None:
        """Let others write; what is in its place in the bucket is kept here no longer."""
        if self._is_done:
            shutil.rmtree(self.path.parent, ignore_errors=True)
        unlock(self._lock)


def _copy_lines(source: Path, offset: int, most: int, target: Path) -> int:
    """Copy whole lines from an offset on, of `most` bytes at most; how many bytes they have."""
    whole = 0
    with open(source, "rb") as file, open(target, "wb") as copy:
        file.seek(offset)
        while most > 0 and (piece := file.read(min(most, 1 << 20))):
            if end := piece.rfind(b"\n") + 1:
                whole = copy.tell() + end
            copy.write(piece)
            most -= len(piece)
        copy.truncate(whole)
    return whole


def _digest(path: Path, size: int) -> bytes:
    """Of the first bytes of a file; another one where it has fewer."""
    if not path.exists() or path.stat().st_size < size:
        return b""

    def pieces() -> Iterable[bytes]:
        left = size
        with open(path, "rb") as file:
            while left and (piece := file.read(min(left, 1 << 20))):
                left -= len(piece)
                yield piece

    return digest(pieces(), "blake2b")


# Writing to stores


def write_bytes(path: RemotePath, data: bytes, *, is_new: bool = False) -> None:
    """Write a remote file, whole or not at all.

    is_new: refuse to replace one; raises FileExistsError then, as far as the store can tell

    Raises StorageError.
    """
    _write(path, "pipe_file", lambda key: (key, data), len(data), is_new=is_new)


def upload(source: Path, path: RemotePath, *, is_new: bool = False) -> None:
    """Write a local file to a store as `write_bytes` does, a few megabytes at a time."""
    size = source.stat().st_size
    _write(path, "put_file", lambda key: (str(source), key), size, is_new=is_new)


def _write(
    path: RemotePath,
    method: str,
    given: Callable[[str], tuple[Any, ...]],
    size: int,
    *,
    is_new: bool,
) -> None:
    _refuse_web(path)
    system, key = filesystem(path)
    if is_new and exists(path):
        raise FileExistsError(errno.EEXIST, "is there already", path.url)
    more = {"mode": "create"} if is_new and path.scheme == "s3" else {}
    try:
        attempt(
            path,
            lambda seconds: call_store(system, method, seconds, *given(key), **more),
            grace(size),
        )
    except FileNotFoundError:
        raise _without_bucket(path) from None
    forget(path)


def exists(path: RemotePath) -> bool:
    """Whether there is such a file, now."""
    forget(path)
    try:
        stat(path)
    except FileNotFoundError:
        return False
    return True


def remove(path: RemotePath) -> None:
    """Remove a remote file; none is there afterwards. Raises StorageError."""
    system, key = filesystem(path)
    with suppress(FileNotFoundError):
        attempt(path, lambda seconds: call_store(system, "rm_file", seconds, key))
    forget(path)


def check_writable(path: RemotePath) -> None:
    """Raise UsageError or StorageError where it is known before the work that nothing can be
    written: to a web server, and to a bucket of S3 that is not there."""
    _refuse_web(path)
    if path.scheme == "s3":
        system, key = filesystem(path)
        try:
            attempt(path, lambda seconds: call_store(system, "find", seconds, key))
        except FileNotFoundError:
            raise _without_bucket(path) from None


def _without_bucket(path: RemotePath) -> StorageError:
    return StorageError(f"{path}: there is no bucket {path.parts[0]}; check the spelling")


def _refuse_web(path: RemotePath) -> None:
    if path.scheme in WEB:
        raise UsageError(
            f"{path}: nothing can be written to a web server; give s3://, gs:// or az://"
        )
