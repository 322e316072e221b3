"""Find the recordings that a user names: files as they are, folders searched to the bottom."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from NatureLM import storage
from NatureLM.errors import UsageError
from NatureLM.progress import printable
from NatureLM.storage import AnyPath, RemotePath

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
