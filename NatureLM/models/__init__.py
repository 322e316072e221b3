"""The model: audio encoder, Q-Former, projection and language model with LoRA.

`NatureLM`, `NatureLMConfig` and `NatureLMProcessor` are imported when first asked for, because
they bring torch and transformers with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from NatureLM.models.configuration import NatureLMConfig
    from NatureLM.models.modeling import LossOutput, NatureLM, NatureLMProcessor

_MODULES = {
    "NatureLM": "NatureLM.models.modeling",
    "LossOutput": "NatureLM.models.modeling",
    "NatureLMConfig": "NatureLM.models.configuration",
    "NatureLMProcessor": "NatureLM.models.modeling",
}

__all__ = ["LossOutput", "NatureLM", "NatureLMConfig", "NatureLMProcessor"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
