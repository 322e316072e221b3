"""A short name for exact weights, cheap enough to make at every load."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

_BLOCK = 64 * 2**10
_BLOCKS = 256  # files up to 16 MiB are read whole, larger ones at evenly spaced places


def fingerprint(files: Iterable[Path]) -> str:
    """Hexadecimal digest of files' names, sizes and contents (of large files, 256 places and the
    header); it changes with any other model, not with the folder that the files lie in."""
    # Sorted by what they hold: a checkpoint and its base may each have a model.safetensors.
    digests = sorted(_file_digest(path) for path in set(files))
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def _file_digest(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(f"{path.name}:{size};".encode())
    step = max(_BLOCK, size // _BLOCKS)
    with path.open("rb") as file:
        for offset in range(0, size, step):
            file.seek(offset)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()
