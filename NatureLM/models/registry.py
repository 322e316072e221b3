"""Models that can be named. Adding one is one entry of `MODELS`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

MODEL_TYPE = "naturelm"  # of config.json
EMBEDDED = "naturelm-tiny"
NATURELM_AUDIO = "EarthSpeciesProject/NatureLM-audio"
LLAMA_BASE = "meta-llama/Llama-3.1-8B-Instruct"
_DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class ModelEntry:
    """A model by name: `source` is a folder of the package or a Hugging Face id."""

    name: str
    source: str
    license: str
    parameters: str
    download_bytes: int | None
    description: str
    embedded: bool = False

    @property
    def folder(self) -> Path | None:
        """Where the model lies on this machine; None if it has to be fetched."""
        if self.embedded:
            path = _DATA / self.source
            return path if (path / "config.json").is_file() else None
        return _cached_snapshot(self.source)

    @property
    def size_bytes(self) -> int | None:
        """Bytes of its weight files here, or of the download."""
        folder = self.folder
        if folder is None:
            return self.download_bytes
        return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


MODELS: tuple[ModelEntry, ...] = (
    ModelEntry(
        name=EMBEDDED,
        source=EMBEDDED,
        license="Apache-2.0",
        parameters="6 million",
        download_bytes=None,
        description="the embedded model: small, offline, for trying everything out",
        embedded=True,
    ),
    ModelEntry(
        name="naturelm-audio",
        source=NATURELM_AUDIO,
        license="CC-BY-NC-SA 4.0; base: Llama 3.1 license",
        parameters="8 billion",
        download_bytes=16_500_000_000,
        description="the published model; needs access to Llama 3.1 8B Instruct",
    ),
)


def find(name: str) -> ModelEntry | None:
    """The entry of a name or of its hub id."""
    return next((entry for entry in MODELS if name in (entry.name, entry.source)), None)


def _cached_snapshot(repository: str) -> Path | None:
    """The newest snapshot of a hub repository in the local cache, if it has weights."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    snapshots = cache / f"models--{repository.replace('/', '--')}" / "snapshots"
    found = [path.parent for path in snapshots.glob("*/config.json")]
    found = [path for path in found if any(path.glob("*.safetensors"))]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
