"""Loads the model, the same from every command and page, and says what it is."""

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
    revision: str | None = None,
    weights_hash: str | None = None,
    quantize: str | None = None,
) -> NatureLM:
    """A model by name, folder or id; the embedded one where none is named, which is logged.

    config: its base language model and prompt template take the place of the checkpoint's, where
        they are not the defaults
    adapter: a LoRA adapter in place of the model's own
    device: "auto" for the best that there is, or its name
    dtype: precision of all weights; None or "auto" for the best that fits the device
    audio_only: the language model is not read; all that the model can do is to encode audio
    revision: commit, tag or branch on the Hub, and weights_hash: what the weights must be; by
        default those of the configuration, where it names this model, too
    quantize: "int8" or "int4" for weights of the language model of so many bits; by default what
        the configuration says

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
    changed = {} if config is None else config.model.model_dump(exclude_defaults=True)
    if str(model) == changed.get("ckpt"):
        revision = revision or changed.get("revision")
        weights_hash = weights_hash or changed.get("weights_hash")
    loaded = NatureLM.from_pretrained(
        model or EMBEDDED,
        llama_path=changed.get("llama_path"),
        dtype="auto" if dtype is None else dtype,
        device=pick_device(device),
        adapter=adapter,
        audio_only=audio_only,
        revision=revision,
        weights_hash=weights_hash,
        quantize=quantize or changed.get("quantize"),
    )
    if "prompt_template" in changed:
        processor_of(loaded).prompt_template = changed["prompt_template"]
    return loaded


def pick_device(device: str = "auto") -> str:
    """The device to use: as named, or the best that there is."""
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next((kind for kind, is_there in present.items() if is_there), "cpu")
    if not present.get(device.split(":")[0], True):
        raise UsageError(f"device {device!r} is not available on this machine; use cpu or auto")
    return device


def dtype_names(model: NatureLM) -> str:
    """The precisions of a model's weights: `float32`, `bfloat16+float32`, `float32+int4`."""
    kinds = {one.dtype for one in model.parameters()}
    names = {str(kind).removeprefix("torch.") for kind in kinds if kind.is_floating_point}
    names |= {model.config.quantized} if model.config.quantized else set()
    return "+".join(sorted(names))


def processor_of(model: NatureLM) -> NatureLMProcessor:
    """The processor of a model; raises UsageError where it has none."""
    if model.processor is None:
        raise UsageError(
            f"{model.name_or_path}: the model has no tokenizer, so nothing can be asked"
        )
    return model.processor
