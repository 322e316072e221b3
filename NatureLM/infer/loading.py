"""The model that a configuration and its user ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from NatureLM.config import Config
from NatureLM.errors import UsageError
from NatureLM.infer.devices import pick_device

if TYPE_CHECKING:
    from NatureLM.models import NatureLM, NatureLMProcessor


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
