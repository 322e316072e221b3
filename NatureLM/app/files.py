"""Files that visitors give: checked, and kept under names that the app chooses."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from pathlib import Path

from NatureLM.app.limits import LimitError, Limits
from NatureLM.sizes import show_bytes

_LONGEST_NAME = 120
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")


def shown_name(path: str | Path) -> str:
    """The name of a file as people know it: no folders, nothing unprintable, not too long."""
    name = re.split(r"[/\\]", str(path))[-1]
    name = "".join(c if c.isprintable() else "_" for c in name).strip() or "recording"
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 12]}…{name[-11:]}"
    return name


def take(upload: str | Path, folder: Path, limits: Limits) -> Path:
    """Keep an uploaded file in a folder under an unguessable name; the path there.

    The visitor's name of it gives no more than a plain suffix. Raises LimitError for a file that
    is too large.
    """
    source = Path(upload)
    size = source.stat().st_size
    if size > limits.upload_bytes:
        raise LimitError(
            f"{shown_name(source)} has {show_bytes(size)}, and a file may have "
            f"{show_bytes(limits.upload_bytes)} at most."
        )
    suffix = source.suffix if _SUFFIX.fullmatch(source.suffix) else ""
    kept = folder / f"{secrets.token_urlsafe(12)}{suffix.lower()}"
    folder.mkdir(parents=True, exist_ok=True)
    link_or_copy(source, kept)
    return kept


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that cannot be. Raises OSError."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def address(path: Path) -> str:
    """Where the browser finds a file, relative to the page."""
    from urllib.parse import quote

    return f"gradio_api/file={quote(str(path))}"
