"""The sample recordings of `--assets-dir`, by names that people read."""

from __future__ import annotations

from pathlib import Path

from NatureLM.audio import find_recordings
from NatureLM.errors import NatureLMError


def samples_of(folder: Path | None) -> dict[str, Path]:
    """Name → file, in the order of the names; empty where there are none."""
    if folder is None:
        return {}
    try:
        found = find_recordings([folder], warn=lambda _: None)
    except NatureLMError:
        return {}
    named: dict[str, Path] = {}
    for path in sorted(found):
        name = path.stem.replace("_", " ").replace("synthetic ", "")
        name = f"{name[:1].upper()}{name[1:]}"
        named[name if name not in named else path.name] = path
    return dict(sorted(named.items()))
