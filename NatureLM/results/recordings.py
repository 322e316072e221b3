"""Which recording a row is about: the same one whatever its path, another one if its content is.

Rows name recordings as they were typed. Two names mean one recording where they lead to the same
file (by real path, hard link, or on disks that know no case), or where the file that was heard is
not there any more and one of its name and content is asked about (an archive that was moved).

Size, time of change and three pieces of the content are looked at; where only the time differs
(clocks, FAT cards, copies), the whole content decides.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from io import RawIOBase
from itertools import takewhile
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

from NatureLM.storage import RemotePath, Stat, StorageError, is_absolute, is_url, last_stat, stat
from NatureLM.util import digest

logger = logging.getLogger(__name__)
_PIECE = 1 << 16  # bytes
_SAMPLED = 16  # hexadecimal digits of a digest that are about three pieces of the content


class Identity(NamedTuple):
    """A recording when it was heard; None is not known.

    size: in bytes
    modified: when it was last changed (UTC, ISO 8601)
    digest: of three pieces of the content, then of all of it
    """

    size: int | None = None
    modified: str | None = None
    digest: str | None = None


def identity(path: str | os.PathLike[str], *, has_digest: bool = False) -> Identity:
    """A recording as it is now; nothing is known of one that is not there."""
    if is_url(os.fspath(path)):
        return _remote_identity(path, has_digest=has_digest)
    try:
        found = os.stat(path)
        if not S_ISREG(found.st_mode):  # a device may never come to an end
            return Identity()
        content = None
        if has_digest:
            with open(path, "rb", buffering=0) as file:
                content = _sample_of(file, found.st_size) + _whole_of(file)
    except (OSError, ValueError):
        return Identity()
    since_1970 = timedelta(microseconds=found.st_mtime_ns // 1000)
    changed = datetime(1970, 1, 1, tzinfo=timezone.utc) + since_1970
    return Identity(found.st_size, _utc(changed), content)


def _utc(time: datetime) -> str:
    return time.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _remote_identity(path: str | os.PathLike[str], *, has_digest: bool) -> Identity:
    """What a store said of a recording when it was last looked at.

    Of an address that is only a string nothing is known: no store is asked because of it.
    """
    if not isinstance(path, RemotePath):
        return Identity()
    try:
        return _identity_of(last_stat(path), has_digest=has_digest)
    except OSError:
        return Identity()


def _identity_of(found: Stat, *, has_digest: bool) -> Identity:
    """Of a file of a store: its ETag is the digest, so that nothing is read for it."""
    content = f"etag {found.etag}" if found.etag and has_digest else None
    changed = None if found.modified is None else _utc(found.modified)
    return Identity(found.size, changed, content)


def _sample_of(file: RawIOBase, size: int) -> str:
    pieces = [f"{size}"]
    for place in (0, max(0, size - _PIECE) // 2, max(0, size - _PIECE)):
        file.seek(place)
        pieces.append((file.read(_PIECE) or b"").hex())
    return digest(pieces, "blake2b", size=_SAMPLED // 2).hex()


def _whole_of(file: RawIOBase) -> str:
    file.seek(0)
    return digest(iter(lambda: file.read(1 << 20) or b"", b""), "blake2b", size=16).hex()


SAME, TOUCHED, SHIFTED, UNTOLD, CHANGED = "same", "touched", "shifted", "untold", "changed"


def compared(path: str | os.PathLike[str], before: Identity) -> str:
    """What has become of a recording.

    TOUCHED: its time of change is another, its content is the same. Where the content of before is
    not known, SHIFTED is a time that clocks account for, and UNTOLD any other.

    Raises StorageError where a store does not say what it is now.
    """
    if isinstance(path, RemotePath):
        return _compared_remote(path, before)
    now = identity(path)
    if now.size is None or now.size != before.size:
        return CHANGED
    is_at_once = now.modified == before.modified
    if before.digest is None:
        return SAME if is_at_once else SHIFTED if _is_shifted(now, before) else UNTOLD
    try:
        with open(path, "rb", buffering=0) as file:
            if _sample_of(file, now.size) != before.digest[:_SAMPLED]:
                return CHANGED
            if is_at_once:
                return SAME
            return TOUCHED if _whole_of(file) == before.digest[_SAMPLED:] else CHANGED
    except (OSError, ValueError):
        return CHANGED


def _compared_remote(path: RemotePath, before: Identity) -> str:
    try:
        now = _identity_of(stat(path), has_digest=True)
    except FileNotFoundError:
        return CHANGED
    if now.size is None or now.size != before.size:
        return CHANGED
    if now.digest is None or before.digest is None:
        return SAME if now.modified == before.modified else CHANGED
    return SAME if now.digest == before.digest else CHANGED


def _is_shifted(now: Identity, before: Identity) -> bool:
    """Whether times differ by quarters of an hour, as of clocks and zones, or by FAT's rounding."""
    try:
        times = [datetime.fromisoformat(str(one.modified)[:-1]) for one in (now, before)]
    except ValueError:
        return False
    apart = abs((times[0] - times[1]).total_seconds())
    return apart <= 26 * 3600 and min(apart % 900, -apart % 900) <= 2


class RealPaths:
    """`storage.real_path` for many recordings: the path of a folder is followed once."""

    def __init__(self) -> None:
        self._folder = lru_cache(maxsize=4096)(os.path.realpath)

    def __call__(self, path: str | os.PathLike[str]) -> str:
        if is_url(os.fspath(path)):
            return os.fspath(path)
        folder, name = os.path.split(path)
        if os.name == "nt" or name in ("", ".", "..") or os.path.islink(path):
            return os.path.realpath(path)
        return os.path.join(self._folder(os.path.join(os.getcwd(), folder)), name)


class KnownRecordings:
    """The recordings that a file of rows speaks of, by their real paths.

    path: the file; notes name it
    folder: where its relative paths count from; None where an older version wrote it, whose paths
        may count from the current folder or from that of the file
    """

    def __init__(
        self, path: Path, folder: str | None = None, real_paths: RealPaths | None = None
    ) -> None:
        self.path, self.folder = path, folder
        self._real_path = real_paths or RealPaths()
        self.found: dict[str, Identity] = {}
        self._keys: dict[tuple[str, str | None], str] = {}
        self._guessed: set[str] = set()
        self._now: dict[str, str] = {}  # real paths of what is asked about → those of before
        self._asked: dict[str, str] = {}  # names → keys

    def add(self, name: str, before: Identity, folder: str | None = None) -> str:
        """Count a row in; the key of its recording. folder: where its name counts from."""
        named = (name, folder)
        if named not in self._keys:
            self._keys[named] = self.locate(name, before, folder)
        self.found[self._keys[named]] = before
        return self._keys[named]

    def key(self, path: str | os.PathLike[str]) -> str:
        """The key of a recording that is asked about."""
        named = str(path)
        if named not in self._asked:
            real = self._real_path(path)
            self._asked[named] = self._now.get(real, real)
        return self._asked[named]

    def match(self, asked: Iterable[str | os.PathLike[str]], *, is_noted: bool = True) -> None:
        """Find those that are asked about, whatever they are called; it is noted what moved.

        An address is a name that does not change.
        """
        self._asked.clear()
        reals = dict.fromkeys(map(self._real_path, asked))
        left = {key for key in self.found if key not in reals and not is_url(key)}
        new = [one for one in reals if one not in self.found and not is_url(one)] if left else []
        nodes = {node: key for key in left if (node := _node(key)) is not None}
        gone: dict[tuple[str, int | None], list[str]] = defaultdict(list)
        for one in sorted(left):  # not there, or another is in its place
            if identity(one)[:2] != self.found[one][:2]:
                gone[_name(one), self.found[one].size].append(one)
        moved: dict[str, str] = {}
        for real in new:
            key = nodes.get(_node(real) or (0, 0))
            if key is None:
                alike = gone[_name(real), identity(real).size]
                key = self._moved(real, alike)
                if key is not None:
                    alike.remove(key)
                    moved[real] = key
            if key is not None:
                self._now[real] = key
        if is_noted:
            self._note(
                moved, [key for keys in gone.values() for key in keys], len(new) - len(self._now)
            )

    def changed(self, asked: Iterable[str | os.PathLike[str]]) -> dict[str, str]:
        """Recordings that are others than before: key → CHANGED, or UNTOLD.

        One line says how many have another time of change only. What a store does not say counts
        as it was: that it cannot be reached shows when it is read.
        """
        found: dict[str, str] = {}
        unsaid: list[StorageError] = []
        for path in asked:
            key = self.key(path)
            try:
                if key in self.found:
                    found[key] = compared(path, self.found[key])
            except StorageError as error:
                unsaid.append(error)
        if unsaid:
            logger.warning(
                "%s: recordings of which it is not known whether they have changed: %d, such as %s",
                *(self.path, len(unsaid), unsaid[0]),
            )
        for kind, why in (
            (TOUCHED, "and the same content"),
            (
                SHIFTED,
                "as clocks and cards make it (by hours or seconds), and the same size",
            ),
        ):
            if count := list(found.values()).count(kind):
                logger.warning(
                    "%s: recordings with another time of change than before, %s: %d; they are "
                    "taken to be the same",
                    *(self.path, why, count),
                )
        return {key: kind for key, kind in found.items() if kind in (CHANGED, UNTOLD)}

    @property
    def folder_of_names(self) -> str | None:
        """Where all relative names of the file count from, as far as one folder is known."""
        if self.folder is None and len(self._guessed) < 2:
            return next(iter(self._guessed), os.getcwd())
        return self.folder

    def locate(self, name: str, before: Identity, folder: str | None = None) -> str:
        """The key of the recording that a row names; nothing is counted in.

        folder: where its name counts from, if not from that of all names
        """
        folder = folder or self.folder
        if is_absolute(name):
            return self._real_path(name)
        bases = [*([folder] if folder else []), os.getcwd()]
        bases.append(os.path.dirname(os.path.realpath(self.path)))
        places = {base: self._real_path(os.path.join(base, name)) for base in bases}
        there = [base for base in places if os.path.exists(places[base])] or list(places)
        if folder is not None:  # elsewhere only if all was moved, and the content is the same
            if folder not in there:
                there = [b for b in there if compared(places[b], before) in (SAME, TOUCHED)]
            return places[(there or [folder])[0]]
        fitting = [base for base in there if identity(places[base])[:2] == before[:2]]
        base = (fitting or there)[0]
        if os.path.exists(places[base]):
            self._guessed.add(base)
        return places[base]

    def _moved(self, real: str, alike: list[str]) -> str | None:
        """Of recordings of this name and size that are gone, the one that is this; else None."""
        fitting = [
            key
            for key in alike
            if compared(key, self.found[key]) == CHANGED  # what is there no longer is that
            and compared(real, self.found[key]) in (SAME, TOUCHED)
        ]
        shared = [_alike(key, real) for key in fitting]
        best = max(shared, default=0)
        if any(self.found[k].digest is None for k in fitting) and shared.count(best) > 1:
            return None  # which of them cannot be told
        return fitting[shared.index(best)] if fitting else None

    def _note(self, moved: dict[str, str], gone: list[str], new: int) -> None:
        if moved:
            now, before = next(iter(moved.items()))
            logger.warning(
                "%s: recordings under other paths than before, found by name and content: %d, "
                "such as %s, which is %s now",
                *(self.path, len(moved), before, now),
            )
        gone = [key for key in gone if not os.path.exists(key)]
        if gone and new > 0:
            logger.warning(
                "%s: recordings of before that are no longer there: %d, such as %s; new ones: %d",
                *(self.path, len(gone), gone[0], new),
            )


def _node(path: str) -> tuple[int, int] | None:
    """What all names of a file share; None for one that is not there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return (found.st_dev, found.st_ino) if found.st_ino else None


def _alike(one: str, other: str) -> int:
    """How many names, from the last one on, two paths share."""
    pairs = zip(reversed(Path(one).parts), reversed(Path(other).parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _name(path: str) -> str:
    return unicodedata.normalize("NFC", os.path.basename(path))
