"""Files on this machine, in object stores and on web servers (`s3://`, `gs://`, `az://`, `https://`):
their addresses, what is known of them, and reading them, of stores by fsspec.

A `RemotePath` is made by `as_path` alone, of what the owner of the process typed or wrote into a
list. Further down a string is never taken for an address, so that nothing which a visitor of a
service sends can reach a store. Credentials come only as the libraries find them (environment,
profiles, roles); addresses that hold some are refused, because they would stand in every row.

Remote files are read in ranges: the first reads are small, those of who reads on grow to 4 MiB, and
blocks stay for a while, so that a header that is looked at five times is asked for once.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from stat import S_ISDIR, S_ISREG
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, TypeAlias, TypeVar
from urllib.parse import parse_qsl, quote, unquote

from NatureLM.errors import NatureLMError, UsageError
from NatureLM.memory import ByteBoundedCache
from NatureLM.progress import printable
from NatureLM.util import (
    atomic_write,
    did_you_mean,
    format_bytes,
    library,
    why_not_loaded,
)

SCHEMES = ("s3", "gs", "az", "abfs", "abfss", "https", "http", "memory")
"""Of addresses, besides `file`, which is a local path; `memory` is fsspec's, for tests."""
_ALIASES = {"gcs": "gs", "s3a": "s3"}
WEB = ("https", "http")
_HOST = r"(\[[^]]*\]|[^:]*)(:\d*)?"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_SECRET = re.compile(
    r"sig(nature)?$|^x-(amz|goog)-|token|secret|password|passwd|credential|api_?key|access_?key|auth",
    re.IGNORECASE,
)
HOW_TO_SIGN_IN = (
    "credentials come from the environment or a profile, as the store's own programs take them "
    "(AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME)"
)

BLOCK = 1 << 16  # bytes that are asked for at least
MOST_AT_ONCE = 64 * BLOCK
_GROWTH = 4  # how many times more the next request of who reads on asks for
_KEPT_BYTES = 1 << 26
_MOST_COPIED = 4 << 30
_TRIES, _FIRST_WAIT = 4, 0.25  # seconds, four times as long each time
_SLOWEST = 100_000  # bytes a second that a file comes with at least, besides the grace
_GRACE = 120.0  # seconds
_FRESH = 30.0  # seconds for which what is known of a file is believed

_LIBRARIES = {
    "s3": ("s3fs", "naturelm-audio[remote]"),
    "gs": ("gcsfs", "gcsfs"),
    "az": ("adlfs", "adlfs"),
    "abfs": ("adlfs", "adlfs"),
    "abfss": ("adlfs", "adlfs"),
    "https": ("aiohttp", "naturelm-audio[remote]"),
    "http": ("aiohttp", "naturelm-audio[remote]"),
    "memory": ("fsspec", "naturelm-audio[remote]"),
}
Made = TypeVar("Made")


class StorageError(NatureLMError, OSError):
    """A store or web server did not give or take a file; the message says what it said."""


@dataclass(frozen=True, order=True)
class RemotePath:
    """An address of a file or folder; made by `as_path`. It has the names of a `Path`."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        return self.url

    @property
    def scheme(self) -> str:
        """Such as `s3`."""
        return self.url.partition("://")[0]

    @property
    def parts(self) -> tuple[str, ...]:
        """The bucket or host with its scheme, the folders, and the name."""
        scheme, _, rest = self._plain.partition("://")
        bucket, *others = rest.split("/")
        return (f"{scheme}://{bucket}", *(one for one in others if one))

    @property
    def name(self) -> str:
        """Of the file; of a bucket ""."""
        return self.parts[-1] if len(self.parts) > 1 else ""

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The ending of the name, with the dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        """The folder; of a bucket itself."""
        return RemotePath("/".join(self.parts[:-1] or self.parts))

    def with_name(self, name: str) -> RemotePath:
        """Another file beside it."""
        return self.parent / name

    def __truediv__(self, name: str) -> RemotePath:
        """What has this name below the folder; `..` leads up, never out of the bucket."""
        below = posixpath.normpath("/" + "/".join([*self.parts[1:], name])).lstrip("/")
        if self.scheme in WEB:
            below = quote(below, safe="/%:@!$&'()*+,;=~ ")
        return RemotePath(f"{self.parts[0]}/{below}")

    @property
    def _plain(self) -> str:
        """Without a query, which web addresses may have."""
        return re.split(r"[?#]", self.url)[0] if self.scheme in WEB else self.url


AnyPath: TypeAlias = Path | RemotePath
PathT = TypeVar("PathT", Path, RemotePath, AnyPath)


def local_only(path: AnyPath, option: str) -> Path:
    """A path of this machine. Raises UsageError for an address, where none is taken."""
    if isinstance(path, RemotePath):
        raise UsageError(f"{option} is {path}, and it must be a path of this machine")
    return path


def is_url(text: str) -> bool:
    """Whether a string has the form of an address, of whatever kind."""
    return _URL.match(text) is not None


def as_path(text: str | os.PathLike[str], place: str = "") -> AnyPath:
    """The path that a string is: a local one, or one of a store for `s3://bucket/a.wav`.

    place: where it stands, for messages

    Raises UsageError for addresses of a kind that is not known, and for those with credentials.
    """
    if isinstance(text, RemotePath | Path):
        return text
    text = os.fspath(text)
    found = _URL.match(text)
    if found is None:
        return Path(text)
    scheme, rest = _ALIASES.get(found[1].lower(), found[1].lower()), text[found.end() :]
    start = f"{place}: " if place else ""
    if scheme == "file":
        return _local(rest, start)
    if scheme not in SCHEMES:
        raise UsageError(
            f"{start}addresses of the kind {scheme}:// are not read"
            f"{did_you_mean(scheme, SCHEMES, '{}://')}; there are "
            f"{', '.join(f'{one}://' for one in ('file', *SCHEMES[:-1]))}"
        )
    _refuse_credentials(scheme, rest, start)
    if not rest.strip("/") or rest.startswith("/"):
        raise UsageError(f"{start}{scheme}://{rest}: names no bucket or host")
    return RemotePath(f"{scheme}://{rest}")


def _local(rest: str, start: str) -> Path:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise UsageError(f"{start}file://{rest}: write file:///full/path")
    path = unquote(path)
    return Path(path if re.match(r"[A-Za-z]:", path) else f"/{path}")


def _refuse_credentials(scheme: str, rest: str, start: str) -> None:
    """Raise UsageError, which does not repeat them, for an address that holds credentials."""
    authority = re.split(r"[/?#]", rest)[0]
    user, at, host = authority.rpartition("@")
    is_container = scheme in ("abfs", "abfss", "az") and ":" not in user
    query = rest.partition("?")[2] if "?" in rest else ""
    names = [name for name, _ in parse_qsl(query, keep_blank_values=True)]
    # Behind the slash of a secret the rest of it and the @ would be taken for folders.
    is_cut = not at and not re.fullmatch(_HOST if scheme in WEB else "[^:]*", authority)
    if (at and not is_container) or is_cut or any(map(_SECRET.search, names)):
        raise UsageError(
            f"{start}the address {scheme}://{'' if is_cut else host}/... holds credentials, and "
            f"results name their recordings; give it without them: {HOW_TO_SIGN_IN}"
        )


def real_path(path: str | os.PathLike[str]) -> str:
    """What all names of one file share: its real path, or its address."""
    text = os.fspath(path)
    return text if is_url(text) else os.path.realpath(text)


def full_path(path: str | os.PathLike[str]) -> str:
    """A name that means the same from every folder: links are not followed."""
    text = os.fspath(path)
    return text if is_url(text) else os.path.abspath(text)


def is_absolute(text: str) -> bool:
    """Whether a name means the same from every folder."""
    return is_url(text) or os.path.isabs(text)


def join(folder: AnyPath, name: str, place: str = "") -> AnyPath:
    """What a list in a folder means by a name: an address, or a path that counts from the folder.

    Raises UsageError where a list from elsewhere names a file of this machine.
    """
    path = as_path(name, place)
    if isinstance(path, RemotePath):
        return path
    if isinstance(folder, Path):
        return folder / path
    if path.is_absolute() or name.startswith(("/", "\\")) or is_url(name):
        raise UsageError(
            f"{place + ': ' if place else ''}{printable(name)}: a list that was read from "
            f"{folder.parts[0]} may not name files of this machine; its rows are addresses, or "
            "paths that count from its folder"
        )
    return folder / name.replace("\\", "/")


# What there is


@dataclass(frozen=True)
class Stat:
    """What is known of a file without reading it; None is not known.

    size: bytes
    etag: another one where the content is another
    has_ranges: whether a part of it can be asked for
    """

    size: int | None
    modified: datetime | None = None
    etag: str | None = None
    has_ranges: bool = True


_stats: dict[str, tuple[float, Stat]] = {}
_stats_lock = threading.Lock()


def stat(path: RemotePath) -> Stat:
    """Raises FileNotFoundError where there is no such file, and StorageError."""
    with _stats_lock:
        known = _stats.get(path.url)
    if known is not None and time.monotonic() - known[0] < _FRESH:
        return known[1]
    return _remember(path, _asked(path))


def _asked(path: RemotePath) -> Stat:
    system, key = filesystem(path)
    info = attempt(path, lambda seconds: call_store(system, "info", seconds, key))
    if info.get("type") == "directory":
        raise FileNotFoundError(errno.ENOENT, "is a folder, not a file", path.url)
    found = _stat_of(info)
    if path.scheme in WEB and found.has_ranges and (found.size or 0) > 1:
        host = path.parts[0]
        if host not in _with_ranges:
            _with_ranges[host] = attempt(path, lambda _: _gives_ranges(system, key, found.size))
        found = replace(found, has_ranges=_with_ranges[host])
    return found


def last_stat(path: RemotePath) -> Stat:
    """What was last known of a file, however long ago; of one that was not looked at, `stat`.

    It is the state in which a recording was opened, also where the store has failed since.
    """
    with _stats_lock:
        known = _stats.get(path.url)
    return stat(path) if known is None else known[1]


def is_as_before(path: RemotePath, before: Stat) -> bool:
    """Whether a file still is what it was. What is known of it stays. Raises StorageError."""
    try:
        now = _asked(path)
    except FileNotFoundError:
        return False
    if path.scheme in WEB and before.modified is not None:  # mirrors have ETags of their own
        return (now.size, now.modified) == (before.size, before.modified)
    return (now.size, now.modified, now.etag) == (before.size, before.modified, before.etag)


_with_ranges: dict[str, bool] = {}  # by host


def _gives_ranges(system: Any, key: str, size: int | None) -> bool:
    """Whether a web server gives the second byte of a file alone, when it is asked for it."""
    with system.open(key, size=size, cache_type="none") as file:
        file.seek(1)
        try:
            return len(file.read(1)) == 1
        except ValueError:
            return False


def forget(path: RemotePath) -> None:
    """What is known of the file is asked anew."""
    with _stats_lock:
        _stats.pop(path.url, None)


def _remember(path: RemotePath, found: Stat) -> Stat:
    with _stats_lock:
        if len(_stats) >= 4096:
            _stats.clear()
        _stats[path.url] = (time.monotonic(), found)
    return found


def _stat_of(info: dict[str, Any]) -> Stat:
    by_name = {name.lower().replace("-", "_"): value for name, value in info.items()}
    times = ("last_modified", "lastmodified", "updated", "mtime", "created")
    modified = next((_time(by_name[name]) for name in times if by_name.get(name)), None)
    # In some stores the ETag changes with a file's storage class, its MD5 does not.
    etag = by_name.get("content_md5") or by_name.get("md5hash") or by_name.get("etag")
    size = by_name.get("size")
    return Stat(
        None if size is None else int(size),
        modified,
        None if etag is None else str(etag).strip('"'),
        by_name.get("partial") is not False and size is not None,
    )


def _time(value: Any) -> datetime | None:
    try:
        if isinstance(value, int | float):
            value = datetime.fromtimestamp(value, timezone.utc)
        elif isinstance(value, str):
            is_iso = re.match(r"\d{4}-", value)
            value = (
                datetime.fromisoformat(value.replace("Z", "+00:00"))
                if is_iso
                else parsedate_to_datetime(value)
            )
        zoned = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
    except (ValueError, TypeError, AttributeError, OverflowError, OSError):
        return None
    return zoned if isinstance(zoned, datetime) else None


def find(path: RemotePath) -> list[RemotePath]:
    """The file of this address, all files below the folder, or those that a pattern with `*` means.

    They are sorted by their parts. Empty where there is nothing; raises StorageError.
    """
    system, key = filesystem(path)
    if "*" not in path.url:
        try:
            if not path.url.endswith("/"):
                stat(path)
                return [path]
        except FileNotFoundError:
            pass
    if path.scheme in WEB:
        return []
    looked = "glob" if "*" in path.url else "find"
    try:
        found = attempt(path, lambda seconds: call_store(system, looked, None, key, detail=True))
    except FileNotFoundError:
        return []
    made = []
    for name, info in found.items():
        if info.get("type") == "file" and not name.endswith("/"):
            made.append(RemotePath(f"{path.scheme}://{name.lstrip('/')}"))
    return sorted(made, key=lambda one: one.parts)


def filesystem(path: RemotePath) -> tuple[Any, str]:
    """fsspec's file system of an address, one in a process, and what it calls the file.

    Raises UsageError where the library that it needs is not installed.
    """
    system = _filesystem(path.scheme, os.getpid())
    return system, system._strip_protocol(path.url)


@lru_cache(maxsize=16)
def _filesystem(scheme: str, process: int) -> Any:
    name, install = _LIBRARIES[scheme]
    absent = f"{scheme}:// needs {name}, which is not installed: pip install '{install}'"
    spec = library("fsspec", absent)
    try:
        kind = spec.get_filesystem_class(scheme)
    except ImportError as error:
        cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        raise UsageError(why_not_loaded(cause, name, absent)) from None
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in WEB:
        timeouts = library("aiohttp", absent).ClientTimeout(
            total=None, sock_connect=15, sock_read=30
        )
        options["client_kwargs"] = {"timeout": timeouts}
    return kind(**options)


# Attempts


def grace(size: int = 0) -> float:
    """Seconds that a request may take with all its retries, or a file of so many bytes."""
    return seconds_of("NATURELM_REMOTE_SECONDS", _GRACE) + size / _SLOWEST


def seconds_of(variable: str, otherwise: float) -> float:
    """What a variable of the environment says, which is a time in seconds. Raises UsageError."""
    said = os.environ.get(variable, "")
    try:
        seconds = float(said) if said else otherwise
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UsageError(f"{variable} is {said!r}, and it must be a number above 0")
    return seconds


def attempt(path: RemotePath, call: Callable[[float], Made], seconds: float | None = None) -> Made:
    """What a call of a library gives, which is made again a few times where the network fails.

    call: is told the seconds that are left
    seconds: that all of it may take

    Raises FileNotFoundError, FileExistsError and StorageError.
    """
    end = time.monotonic() + (grace() if seconds is None else seconds)
    for tried in range(1, _TRIES + 1):
        left = end - time.monotonic()
        try:
            return call(max(left, 0.001))
        except (FileNotFoundError, FileExistsError):
            raise
        except (NatureLMError, AttributeError, TypeError, NameError):
            raise
        except Exception as error:  # each library has its own
            wait = min(10.0, _FIRST_WAIT * 4 ** (tried - 1)) * random.uniform(0.5, 1)
            if not _is_passing(error) or tried == _TRIES or end - time.monotonic() <= wait:
                raise _told(path, error, tried) from error
        time.sleep(wait)
    raise AssertionError("the last try ends the loop")


def _is_passing(error: Exception) -> bool:
    """Whether the same call may go well a little later."""
    if isinstance(error, PermissionError | IsADirectoryError | NotImplementedError):
        return False
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429):
        return False
    return type(error).__name__ not in ("NoCredentialsError", "ProfileNotFound", "NoSuchBucket")


def _told(path: RemotePath, error: Exception, tried: int) -> StorageError:
    name, status = type(error).__name__, getattr(error, "status", None)
    is_denied = isinstance(error, PermissionError) or status in (401, 403)
    if is_denied or name in ("NoCredentialsError", "ProfileNotFound"):
        return StorageError(f"{path}: access is denied ({_said(error)}); {HOW_TO_SIGN_IN}")
    times = "" if tried == 1 else f" after {tried} tries"
    return StorageError(f"{path}: cannot be reached{times} ({_said(error)})")


def _said(error: Exception) -> str:
    text = " ".join(str(getattr(error, "strerror", "") or error).split()).rstrip(".")
    text = re.sub(r"\?\S+", "", text)  # queries of addresses may hold what is nobody's business
    text = text if len(text) <= 200 else f"{text[:197]}..."
    return text or type(error).__name__.removeprefix("FS").replace(
        "TimeoutError", "no answer in time"
    )


def call_store(system: Any, method: str, seconds: float | None, *given: Any, **more: Any) -> Any:
    """Call a file system, which is given up after so many seconds where it can be."""
    if seconds is not None and system.async_impl:
        more["timeout"] = seconds
    return getattr(system, method)(*given, **more)


# Reading


_blocks: ByteBoundedCache[tuple[str, str, int], bytes] = ByteBoundedCache(_KEPT_BYTES)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A file for reading: a local one, or ranges of a remote one.

    Raises OSError as `open` does, and for a pipe or a device, which may never come to an end; of a
    remote one FileNotFoundError and StorageError, reads too.
    """
    if not isinstance(path, RemotePath):
        mode = os.stat(path).st_mode
        if not (S_ISREG(mode) or S_ISDIR(mode)):  # folders `open` itself refuses
            raise OSError(errno.EINVAL, "is not a regular file", os.fspath(path))
        return open(path, "rb")
    return io.BufferedReader(RangeFile(path), BLOCK)


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of a file."""
    return (stat(path).size or 0) if isinstance(path, RemotePath) else os.path.getsize(path)


def file_size(file: BinaryIO) -> int:
    """Bytes of an open file, whose position is at its start then."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


class RangeFile(io.RawIOBase):
    """A remote file that is read in ranges.

    failure: why the last read failed, for who cannot be told by an exception
    """

    def __init__(self, path: RemotePath) -> None:
        super().__init__()
        self.path = path
        self.failure: StorageError | None = None
        found = stat(path)
        if found.size is None or not found.has_ranges:
            raise StorageError(f"{path}: the server gives no parts of it; copy it to a disk first")
        self.size = found.size
        self._version = f"{found.etag}-{found.modified}-{found.size}"
        self._system, self._key = filesystem(path)
        self._position = 0
        self._span, self._start = b"", 0  # what was fetched last, and where it stands
        self._next = BLOCK
        self._left = grace(self.size)
        self._web: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if origin + offset < 0:
            raise OSError(errno.EINVAL, "a position before the start of the file", self.path.url)
        self._position = origin + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self.size - self._position)
        if wanted <= 0:
            return 0
        part = self._held(wanted)  # what is at hand: who wants more asks again
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _held(self, wanted: int) -> memoryview:
        """Bytes from the position on, `wanted` at most and one at least."""
        at = self._position - self._start
        if not 0 <= at < len(self._span):
            first = self._position // BLOCK
            known = _blocks.get((self.path.url, self._version, first))
            if known is None:
                self._fetch(first, wanted)
            else:
                self._span, self._start = known, first * BLOCK
            at = self._position - self._start
        return memoryview(self._span)[at : at + wanted]

    def _fetch(self, first: int, wanted: int) -> None:
        """Ask for blocks from the first on: more of them each time that reading goes on."""
        start = first * BLOCK
        goes_on = self._span and start == self._start + len(self._span)
        self._next = min(MOST_AT_ONCE, self._next * _GROWTH) if goes_on else BLOCK
        blocks = -(-(self._position - start + wanted) // BLOCK)
        stop = min(self.size, start + min(MOST_AT_ONCE, max(self._next, blocks * BLOCK)))
        begun = time.monotonic()
        try:
            if self._left <= 0:
                raise StorageError(
                    f"{self.path}: comes too slowly, less than {format_bytes(_SLOWEST)} a second"
                )
            data = attempt(
                self.path, lambda left: self._range(start, stop, left), min(grace(), self._left)
            )
        except (StorageError, FileNotFoundError) as error:
            self.failure = (
                error if isinstance(error, StorageError) else StorageError(f"{self.path}: is gone")
            )
            raise self.failure from None
        finally:
            self._left -= time.monotonic() - begun
        self._span, self._start = data, start
        for at in range(0, len(data), BLOCK):
            block = data[at : at + BLOCK]
            _blocks.put((self.path.url, self._version, first + at // BLOCK), block, len(block))

    def _range(self, start: int, stop: int, seconds: float) -> bytes:
        if self.path.scheme in WEB:  # that may answer with all of the file
            if self._web is None:
                self._web = self._system.open(self._key, size=self.size, cache_type="none")
            self._web.seek(start)
            data = self._web.read(stop - start)
        else:
            data = call_store(self._system, "cat_file", seconds, self._key, start=start, end=stop)
        if len(data) != stop - start:
            raise OSError(f"{len(data)} bytes came of {stop - start}")
        return bytes(data)

    def close(self) -> None:
        self._span = b""
        super().close()


def read_bytes(path: AnyPath, most: int = 1 << 30) -> bytes:
    """All of a small file. Raises OSError, and StorageError for one that is larger than `most`."""
    if isinstance(path, Path):
        return path.read_bytes()
    with open_file(path) as file:
        size = file_size(file)
        if size > most:
            raise StorageError(
                f"{path}: has {format_bytes(size)}, and at most {format_bytes(most)} are read"
            )
        return file.read()


@contextmanager
def local_copy(path: AnyPath, most: int = _MOST_COPIED) -> Iterator[Path]:
    """A file on this machine: the path itself, or a copy that goes when the block ends.

    Raises OSError as `open_file` does, and StorageError for one that is larger than `most` bytes.
    """
    if isinstance(path, Path):
        yield path
        return
    size = stat(path).size or 0
    if size > most:
        raise StorageError(
            f"{path}: has {format_bytes(size)}, and at most {format_bytes(most)} are copied"
        )
    with TemporaryDirectory(prefix="naturelm-") as folder:
        target = Path(folder, path.name or "file")
        download(path, target)
        yield target


def download(path: RemotePath, target: Path) -> None:
    """Copy a remote file to a local one, whole or not at all.

    Raises FileNotFoundError and StorageError.
    """
    system, key = filesystem(path)

    def get(seconds: float) -> None:
        with atomic_write(target) as own:  # an attempt that was given up may write on
            call_store(system, "get_file", seconds, key, str(own))

    attempt(path, get, grace(stat(path).size or 0))
