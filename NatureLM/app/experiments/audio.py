"""The recording of a sample, where it lies beside the run that asked about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from NatureLM.audio import AUDIO_SUFFIXES
from NatureLM.errors import NatureLMError
from NatureLM.tables import read_rows

_TABLE = "metadata.jsonl"
_NAMES = ("file_name", "path", "file", "audio_path")
_MOST_ROWS = 100_000


def find_audio(sample: str, run: Path, root: Path) -> Path | None:
    """The file of a sample, or None.

    sample: its id, as the answers have it; run: the folder of the answers; root: no file outside
    of it is ever given

    Benchmarks keep their clips beside the answers, under a `metadata.jsonl` with ids and files.
    """
    for table in _tables(run, root):
        try:
            for number, row in read_rows(table):
                if number > _MOST_ROWS:
                    break
                if str(row.get("id")) == sample:
                    return _inside(row, table.parent, root)
        except (NatureLMError, OSError, UnicodeDecodeError):
            continue
    return None


def _tables(run: Path, root: Path) -> Iterator[Path]:
    places = [run, *sorted(path for path in run.iterdir() if path.is_dir())]
    if run != root:
        places += sorted(path for path in run.parent.iterdir() if path.is_dir() and path != run)
    for place in places:
        if (place / _TABLE).is_file():
            yield place / _TABLE


def _inside(row: dict[str, object], folder: Path, root: Path) -> Path | None:
    for name in _NAMES:
        value = row.get(name)
        if not isinstance(value, str) or not value:
            continue
        path = (folder / value).resolve()
        is_allowed = path.is_relative_to(root.resolve()) and path.suffix.lower() in AUDIO_SUFFIXES
        return path if is_allowed and path.is_file() else None
    return None
