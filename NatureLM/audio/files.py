"""Recordings as files: those that a user names, and which of them a row of answers is about.

`find_recordings` takes files as they are and searches folders to the bottom. `KnownRecordings`
knows a recording again whatever its path, and takes one whose content is another for another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from importlib.util import find_spec
from io import RawIOBase
from itertools import takewhile
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

from NatureLM import storage
from NatureLM.errors import UsageError
from NatureLM.progress import printable
from NatureLM.storage import (
    AnyPath,
    RemotePath,
    Stat,
    StorageError,
    is_absolute,
    is_url,
    last_stat,
    stat,
)
from NatureLM.util import digest

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = frozenset(
    {".wav", ".wave", ".bwf", ".w64", ".rf64", ".flac", ".ogg", ".oga", ".opus", ".mp3"}
    | {".aiff", ".aif", ".aifc", ".caf", ".au", ".snd"}
)
"""File suffixes, in lower case, that a folder is searched for."""

FFMPEG_SUFFIXES = frozenset(
    {".m4a", ".m4b", ".mp4", ".mov", ".3gp", ".aac", ".webm", ".mka", ".mkv", ".wma", ".amr"}
)
"""Suffixes that a folder is searched for too where PyAV is installed."""

_OTHER_SUFFIXES = frozenset(
    {".m4p", ".m4r", ".f4a", ".avi", ".mpg", ".mpeg", ".mp2", ".ra", ".rm", ".ac3", ".dts", ".tta"}
    | {".wv", ".ape", ".dsf", ".dff", ".spx", ".gsm", ".voc", ".sph", ".nist", ".pcm", ".wac"}
)
"""Suffixes of sound and video that is left out of a folder, with a note."""
_NAMED = 3


def find_recordings(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """List the recordings that `paths` name.

    A file is taken as named, whatever its suffix: the decoder decides. A folder is searched to the
    bottom for `AUDIO_SUFFIXES` in any case, links to folders included; names that start with a dot
    are left out (`._x.WAV` is how macOS stores attributes, not a recording). Paths come in the
    order named, a folder's content sorted, and no file twice. Where PyAV is installed, sound of
    phones and videos is looked for too (`FFMPEG_SUFFIXES`). Files left out that look like sound, by
    their suffix or their first bytes, are counted in a warning in the log.

    Args:
        paths: files and folders. Folders below them that may not be listed are skipped with a
            warning in the log.

    Raises:
        UsageError: nothing was named, a path does not exist, or a folder holds no audio.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    return list(map(Path, find_anywhere([*map(Path, paths)])))


def find_anywhere(paths: Sequence[AnyPath]) -> list[AnyPath]:
    """List the recordings that paths and addresses name, as `find_recordings` does.

    An address is a file, a folder of a bucket, or a pattern with `*`. Raises UsageError as well,
    and StorageError where a bucket cannot be listed.
    """
    if not paths:
        raise UsageError("No audio was named: give at least one file or folder.")
    found: dict[str, AnyPath] = {}
    for path in paths:
        files: Sequence[AnyPath] = (
            _search_remote(path) if isinstance(path, RemotePath) else _found_here(path)
        )
        for one in files:
            found.setdefault(storage.real_path(one), one)
    return list(found.values())


def _found_here(path: Path) -> list[Path]:
    named = as_on_disk(path)
    if named.is_dir():
        files = _search(named)
        if not files:
            raise UsageError(
                f"{named}: there is no audio in this folder or below it. Looked for "
                f"{', '.join(sorted(searched_suffixes()))} (upper or lower case); a file with "
                "another suffix can be named itself."
            )
        return files
    if not named.exists():
        raise UsageError(
            f"{named}: there is no such file or folder. Check the spelling; "
            f"the current folder is {Path.cwd()}."
        )
    return [named]


def _search_remote(named: RemotePath) -> list[RemotePath]:
    """The file of this address, else the audio files below it or of its pattern."""
    files = storage.find(named)
    if files == [named]:
        return files
    if not files:
        why = (
            "folders of web servers cannot be listed; give --manifest with a list of addresses"
            if named.scheme in ("http", "https")
            else "check the spelling and that the bucket may be listed"
        )
        raise UsageError(f"{named}: there is no such file or folder; {why}")
    depth = 0 if "*" in named.url else len(named.parts)
    files = [one for one in files if not any(p.startswith(".") for p in one.parts[max(1, depth) :])]
    searched = searched_suffixes()
    found = [one for one in files if one.suffix.lower() in searched]
    others = [one for one in files if one.suffix.lower() in _OTHER_SUFFIXES | FFMPEG_SUFFIXES]
    _say_left_out(named, [one for one in others if one not in set(found)])
    if not found:
        raise UsageError(
            f"{named}: there is no audio there. Looked for {', '.join(sorted(searched))} (upper or "
            "lower case); a file with another suffix can be named itself."
        )
    return found


def as_on_disk(path: Path, *, other_slashes: bool = False) -> Path:
    """The path in the letters of the disk: composed and decomposed ones are the same to people.

    other_slashes: a path of Windows is one with slashes, too

    A path that is there stays as it is, and so does one that is not there in any form.
    """
    text = str(path)
    is_windows = other_slashes and "\\" in text and os.sep == "/"
    if (not is_windows and text.isascii()) or os.path.lexists(text):
        return path
    found = _spelled(Path(text.replace("\\", "/"))) if is_windows else _spelled(path)
    return found if os.path.exists(found) else path


def _spelled(path: Path) -> Path:
    if path == path.parent or os.path.lexists(path):
        return path
    parent = _spelled(path.parent)
    wanted = unicodedata.normalize("NFC", path.name)
    try:
        names = sorted(os.listdir(parent))
    except OSError:
        return path
    same = (name for name in names if unicodedata.normalize("NFC", name) == wanted)
    return parent / next(same, path.name)


def recording_below(folder: Path, name: str) -> Path | None:
    """The file below a folder that a path of another machine ends in; None if there is none.

    Of `D:\\card\\site1\\a.wav` it is `site1/a.wav` before `a.wav`; nothing above the folder is
    looked at.
    """
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    if ".." in parts:
        parts = parts[len(parts) - parts[::-1].index("..") :]
    for start in range(len(parts)):
        found = as_on_disk(folder.joinpath(*parts[start:]))
        if os.path.isfile(found):
            return found
    return None


def recordings_named_like(table: Path, folder: Path) -> list[Path]:
    """The recordings in a folder whose names a table's begins with: `a.WAV` of `a.Table.1.txt`.

    The longest such name counts; there are several where only their suffixes differ.
    """
    name = unicodedata.normalize("NFC", table.name).casefold()
    found: dict[int, list[Path]] = {0: []}
    suffixes = AUDIO_SUFFIXES | FFMPEG_SUFFIXES
    with contextlib.suppress(OSError):
        for one in sorted(folder.iterdir()):
            if one.suffix.lower() in suffixes and not one.name.startswith("."):
                for part in (one.name, one.stem):
                    start = unicodedata.normalize("NFC", part).casefold() + "."
                    if name.startswith(start):
                        found.setdefault(len(start), []).append(one)
                        break
    return found[max(found)]


def _search(folder: Path) -> list[Path]:
    """Return the audio files in `folder` and below, sorted by their path's parts."""

    def unlisted(error: OSError) -> None:
        if error.filename == str(folder):
            raise UsageError(
                f"{folder}: this folder may not be read ({error.strerror}). Check its permissions."
            )
        logger.warning("%s: this folder may not be read and is left out.", error.filename)

    files = sorted(_walk(folder, unlisted), key=lambda path: path.parts)
    searched = searched_suffixes()
    found = [path for path in files if path.suffix.lower() in searched]
    others = [path for path in files if path.suffix.lower() not in searched]
    _say_left_out(folder, [path for path in others if _looks_like_sound(path)])
    return found


def searched_suffixes() -> frozenset[str]:
    """Suffixes that a folder is searched for on this machine, in lower case."""
    return AUDIO_SUFFIXES | (FFMPEG_SUFFIXES if find_spec("av") is not None else frozenset())


def _say_left_out(folder: AnyPath, left_out: Sequence[AnyPath]) -> None:
    """Say which files of a folder look like sound and are not taken."""
    if not left_out:
        return
    start = len(str(folder).rstrip("/" + os.sep)) + 1
    names = ", ".join(printable(str(path)[start:]) for path in left_out[:_NAMED])
    more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
    advice = "name a file itself to try it, or convert it to wav or flac"
    if any(path.suffix.lower() in FFMPEG_SUFFIXES for path in left_out):
        advice = (
            "pip install 'naturelm-audio[media]' reads m4a, mp4, webm and the like; or convert them"
        )
    count = f"{len(left_out)} file{'s' if len(left_out) > 1 else ''} left out that may be sound"
    logger.warning("%s: %s: %s%s; %s.", folder, count, names, more, advice)


def _looks_like_sound(path: Path) -> bool:
    if path.suffix.lower() in _OTHER_SUFFIXES | FFMPEG_SUFFIXES:
        return True
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return False
    is_form = head[:4] in (b"RIFF", b"RF64", b"FORM") and head[8:12] in (b"WAVE", b"AIFF", b"AIFC")
    return is_form or head[:4] in (b"fLaC", b"OggS", b"caff", b"BW64")


def _walk(folder: Path, unlisted: Callable[[OSError], None]) -> Iterator[Path]:
    entered = {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, onerror=unlisted, followlinks=True):
        below = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(parent, name))
            # A link may lead back up: each real folder is entered once.
            if not name.startswith(".") and real not in entered:
                entered.add(real)
                below.append(name)
        folders[:] = below
        for name in files:
            if not name.startswith("."):
                yield Path(parent, name)


# Which recording a row is about. Rows name recordings as they were typed. Two names mean one
# recording where they lead to the same file (by real path, hard link, or on disks that know no
# case), or where the file that was heard is not there any more and one of its name and content is
# asked about (an archive that was moved).
#
# Size, time of change and three pieces of the content are looked at; where only the time differs
# (clocks, FAT cards, copies), the whole content decides.

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
