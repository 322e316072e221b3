"""The small reference checkpoint in float64, and what it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_stand_in import cuda_stand_in  # noqa: F401
from decoding import QUERIES
from torch import Tensor

from NatureLM.generation.decoding import Prompt
from NatureLM.generation.engine import Engine
from NatureLM.models import NatureLM


@pytest.fixture(scope="session")
def double(nano_folder: Path) -> NatureLM:
    """In float64 no rounding decides between tokens. Tests must leave it as it is."""
    return NatureLM.from_pretrained(nano_folder / "checkpoint", dtype=torch.float64)


@pytest.fixture(scope="session")
def clips(double: NatureLM, nano_waveforms: dict[str, Tensor]) -> dict[str, Any]:
    """The clips encoded already, where encoding is not what is tested."""
    return Engine(double).encode(nano_waveforms, nano_waveforms.__getitem__)


@pytest.fixture(scope="session")
def prompts(double: NatureLM, nano_waveforms: dict[str, Tensor]) -> list[Prompt]:
    """Of several lengths, α mixed."""
    with torch.inference_mode():
        clips = [double.encode_audio(wav[None])[0] for wav in nano_waveforms.values()]
        return [
            Prompt(embeds_LD, alpha, stream)
            for stream, (query, clip, alpha) in enumerate(
                (query, clip, alpha) for query in QUERIES for clip in clips for alpha in (0.3, 1.0)
            )
            for embeds_LD in double.input_embeddings([double.processor.render(query)], [[clip]])
        ]
