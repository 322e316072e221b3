"""Files that are there whole or not at all, whatever stops the program in between."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(target: Path, *, alone: bool = False) -> Iterator[Path]:
    """A path beside `target` to write to, which takes its place when the block ends well.

    Otherwise what was written goes, and `target` is as before.

    alone: nobody else writes the file meanwhile, so that the rest which a killed program left is
        written over; otherwise each block has a name of its own, and the last to end wins
    """
    own = "" if alone else f".{os.getpid()}-{secrets.token_hex(4)}"
    unfinished = target.with_name(f".{target.name}{own}.partial")
    try:
        yield unfinished
        unfinished.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
