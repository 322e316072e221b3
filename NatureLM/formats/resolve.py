"""The recordings that a table names, on this machine: tables come from elsewhere, with their paths.

A recording is found by its name, whatever folder it was in; where several have that name, by as
many folders above it as tell them apart.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from NatureLM.audio.files import find_recordings, recording_below, recordings_named_like
from NatureLM.errors import UsageError
from NatureLM.progress import printable
from NatureLM.results.detections import Detection

logger = logging.getLogger(__name__)
_NAMED = 3


def recordings_of(
    found: Iterable[Detection], table: Path, audio_paths: Sequence[str | Path] = ()
) -> Iterator[Detection]:
    """The detections of a table with the paths that their recordings have here.

    audio_paths: files and folders, of which nothing else is taken; without any, recordings are
        where the table says, or beside it

    Detections whose recording is not found are left out, and a warning in the log counts and names
    these. Raises UsageError for a name that several recordings have, and where none is found.
    """
    places = _Places(table, audio_paths)
    for one in found:
        path = places.find(one.audio_path)
        if path is not None:
            yield replace(one, audio_path=str(path))
    places.tell()


class _Places:
    """Where the recordings of a table are; each name is looked for once."""

    def __init__(self, table: Path, audio_paths: Sequence[str | Path]) -> None:
        self._table = table
        self._folders = [Path(path) for path in audio_paths]
        self._known: dict[str, Path | None] = {}
        self._missing: Counter[str] = Counter()
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in find_recordings(self._folders) if self._folders else ():
            self._by_name[_folded(path.name)].append(path)
            self._by_stem[_folded(path.stem)].append(path)

    def find(self, name: str) -> Path | None:
        """The recording; None where it is not there, which is counted. Raises UsageError."""
        if name not in self._known:
            self._known[name] = self._below(name) if self._folders else self._beside(name)
        if self._known[name] is None:
            self._missing[name] += 1
        return self._known[name]

    def _beside(self, name: str) -> Path | None:
        """Where the table says, below its folder, or there with another suffix."""
        folder = self._table.parent
        if os.path.isfile(folder / name):
            return folder / name
        parts = _parts(name)
        if not parts:
            return None
        alike = recordings_named_like(Path(f"{parts[-1]}."), folder)
        return recording_below(folder, name) or self._one_of(alike, name)

    def _below(self, name: str) -> Path | None:
        """Below the folders that were named, and nowhere else."""
        parts = _parts(name)
        if not parts:
            return None
        last = _folded(parts[-1])
        stem = last.rpartition(".")[0] or last
        found = self._by_name.get(last) or self._by_stem.get(last) or self._by_stem.get(stem, [])
        return self._one_of(found or self._called_like(last), name)

    def _called_like(self, name: str) -> list[Path]:
        """Recordings whose name another one goes on from, as `a.Table.1` does from `a.wav`."""
        while "." in name:
            name = name.rpartition(".")[0]
            if name in self._by_stem:
                return self._by_stem[name]
        return []

    def _one_of(self, found: Sequence[Path], name: str) -> Path | None:
        """That with most folders as the table has them. Raises UsageError where several have."""
        wanted = [_folded(part) for part in reversed(_parts(name))]
        shared = [_shared(wanted, path) for path in found]
        best = [path for path, count in zip(found, shared, strict=True) if count == max(shared)]
        if len(best) > 1:
            shown = ", ".join(printable(path) for path in best[:_NAMED])
            raise UsageError(
                f"{self._table}: {printable(name)} may be each of {len(best)} recordings "
                f"({shown}): give --audio-path the folder of the recorder that the table is about"
            )
        return best[0] if best else None

    def tell(self) -> None:
        """Say what is missing. Raises UsageError where all of it is."""
        if not self._missing:
            return
        where = (
            ", ".join(map(printable, self._folders)) or f"{self._table.parent} and where it says"
        )
        names = [printable(name) for name in self._missing]
        shown = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
        if all(path is None for path in self._known.values()):
            raise UsageError(
                f"{self._table}: none of the recordings that it names ({shown}) is there, looked "
                f"for in {where}: --audio-path says where they are"
            )
        logger.warning(
            "%s: recordings that it names and that are not there: %d (%s), looked for in %s; "
            "their rows are left out: %d",
            *(self._table, len(names), shown, where, self._missing.total()),
        )


def _shared(wanted: Sequence[str], path: Path) -> int:
    """How many folders above it a path has in common with the parts that are wanted."""
    have = [_folded(part) for part in reversed(path.absolute().parts)]
    pairs = zip(wanted[1:], have[1:], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _parts(name: str) -> list[str]:
    """The parts of a path of any system, without its root."""
    return [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..")]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
