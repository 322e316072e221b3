"""Loading a model, the same from every command and page, and where it runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.config import Config
from NatureLM.errors import UsageError

if TYPE_CHECKING:
    from NatureLM.models import NatureLM, NatureLMProcessor

logger = logging.getLogger(__name__)


def load_model(
    model: str | Path | None = None,
    config: Config | None = None,
    *,
    adapter: str | Path | None = None,
    device: str = "auto",
    dtype: Any = None,
    audio_only: bool = False,
) -> NatureLM:
    """A model by name, folder or id; the embedded one where none is named, which is logged.

    config: its base language model and prompt template take the place of the checkpoint's, where
        they are not the defaults
    adapter: a LoRA adapter in place of the model's own
    device: "auto" for the best that there is, or its name
    dtype: precision of all weights; None or "auto" for that which `NatureLM.from_pretrained` takes
    audio_only: the language model is not read; all that the model can do is to encode audio

    Raises CheckpointError, and UsageError for a device that is not there.
    """
    from NatureLM.models import NatureLM
    from NatureLM.models.registry import EMBEDDED, NATURELM_AUDIO

    if model is None:
        logger.warning(
            'Loading the embedded model %s; the published one is Pipeline("%s").',
            EMBEDDED,
            NATURELM_AUDIO,
        )
    config = config or Config()
    loaded = NatureLM.from_pretrained(
        model or EMBEDDED,
        llama_path=_changed(config, "llama_path"),
        dtype=None if dtype == "auto" else dtype,
        device=pick_device(device),
        adapter=adapter,
        audio_only=audio_only,
    )
    template = _changed(config, "prompt_template")
    if template is not None:
        processor_of(loaded).prompt_template = template
    return loaded


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


def dtype_names(model: NatureLM) -> str:
    """The precisions of a model's weights: `float32`, or `bfloat16+float32`."""
    return "+".join(sorted({str(one.dtype).removeprefix("torch.") for one in model.parameters()}))


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
