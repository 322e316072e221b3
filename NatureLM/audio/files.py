"""Find the recordings that a user names: files as they are, folders searched to the bottom."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from NatureLM.errors import UsageError

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = frozenset(
    {".wav", ".wave", ".bwf", ".w64", ".rf64", ".flac", ".ogg", ".oga", ".opus", ".mp3"}
    | {".aiff", ".aif", ".aifc", ".caf", ".au", ".snd"}
)
"""File suffixes, in lower case, that a folder is searched for."""


def find_recordings(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """List the recordings that `paths` name.

    A file is taken as named, whatever its suffix: the decoder decides. A folder is searched to the
    bottom for `AUDIO_SUFFIXES` in any case, links to folders included; names that start with a dot
    are left out (`._x.WAV` is how macOS stores attributes, not a recording). Paths come in the
    order named, a folder's content sorted, and no file twice.

    Args:
        paths: files and folders. Folders below them that may not be listed are skipped with a
            warning in the log.

    Raises:
        UsageError: nothing was named, a path does not exist, or a folder holds no audio.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    if not paths:
        raise UsageError("No audio was named: give at least one file or folder.")
    found: dict[str, Path] = {}
    for named in map(Path, paths):
        if named.is_dir():
            files = _search(named)
            if not files:
                raise UsageError(
                    f"{named}: there is no audio in this folder or below it. Looked for "
                    f"{', '.join(sorted(AUDIO_SUFFIXES))} (upper or lower case); a file with "
                    "another suffix can be named itself."
                )
        elif named.exists():
            files = [named]
        else:
            raise UsageError(
                f"{named}: there is no such file or folder. Check the spelling; "
                f"the current folder is {Path.cwd()}."
            )
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _search(folder: Path) -> list[Path]:
    """Return the audio files in `folder` and below, sorted by their path's parts."""

    def unlisted(error: OSError) -> None:
        if error.filename == str(folder):
            raise UsageError(
                f"{folder}: this folder may not be read ({error.strerror}). Check its permissions."
            )
        logger.warning("%s: this folder may not be read and is left out.", error.filename)

    return sorted(_walk(folder, unlisted), key=lambda path: path.parts)


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
            if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES:
                yield Path(parent, name)
