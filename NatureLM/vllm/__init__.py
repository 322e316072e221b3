"""The model inside vLLM, and folders that vLLM and plain transformers load.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`).
"""

from __future__ import annotations

ARCHITECTURE = "NatureLMForConditionalGeneration"


def register() -> None:
    """Teach vLLM the architecture of exported folders, and transformers their configuration."""
    from vllm import ModelRegistry

    import NatureLM.models.configuration  # noqa: F401 (registers it)

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"NatureLM.vllm.model:{ARCHITECTURE}")
