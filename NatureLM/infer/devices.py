"""Where a model runs, and loading one there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.errors import UsageError

if TYPE_CHECKING:
    from NatureLM.models import NatureLM


def pick_device(device: str = "auto") -> str:
    """The device to use: as named, or the best that there is."""
    import torch

    if device != "auto":
        kind = device.split(":")[0]
        present = {
            "cuda": torch.cuda.is_available(),
            "mps": torch.backends.mps.is_available(),
        }
        if not present.get(kind, True):
            raise UsageError(f"device {device!r} is not available on this machine; use cpu or auto")
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load(model: str | Path | None, device: str, dtype: Any) -> NatureLM:
    """A model by name, folder or id, on a device; the embedded one where none is named."""
    from NatureLM.models import NatureLM
    from NatureLM.models.registry import EMBEDDED, NATURELM_AUDIO

    if model is None:
        to_stderr(
            f"Loading the embedded model {EMBEDDED}; the published one is "
            f'Pipeline("{NATURELM_AUDIO}").'
        )
        model = EMBEDDED
    return NatureLM.from_pretrained(model, device=pick_device(device), dtype=dtype)


def to_stderr(message: str) -> None:
    """Tell the user, away from what a program prints."""
    print(message, file=sys.stderr)
