"""Where a model runs, and loading one there.

The model that a configuration and its user ask for.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.config import Config
from NatureLM.errors import UsageError

if TYPE_CHECKING:
    from NatureLM.models import NatureLM, NatureLMProcessor

logger = logging.getLogger(__name__)


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
        logger.warning(
            'Loading the embedded model %s; the published one is Pipeline("%s").',
            EMBEDDED,
            NATURELM_AUDIO,
        )
        model = EMBEDDED
    return NatureLM.from_pretrained(model, device=pick_device(device), dtype=dtype)


def load_configured(
    model: str,
    config: Config,
    *,
    adapter: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> NatureLM:
    """A model by name, folder or id, with the base and the prompt template of a configuration."""
    from NatureLM.models import NatureLM

    loaded = NatureLM.from_pretrained(
        model,
        llama_path=_changed(config, "llama_path"),
        dtype=None if dtype == "auto" else dtype,
        device=pick_device(device),
        adapter=adapter,
    )
    template = _changed(config, "prompt_template")
    if template is not None:
        processor_of(loaded).prompt_template = template
    return loaded


def processor_of(model: NatureLM) -> NatureLMProcessor:
    """The processor of a model; raises UsageError where it has none."""
    if model.processor is None:
        raise UsageError(
            f"{model.name_or_path}: the model has no tokenizer, so nothing can be asked"
        )
    return model.processor


def _changed(config: Config, key: str) -> str | None:
    """A value of the section `model` that is not the default: then it is not the checkpoint's."""
    value: str = getattr(config.model, key)
    return None if value == getattr(Config().model, key) else value
