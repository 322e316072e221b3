"""What is asked of vLLM, and what our engine answers to the same."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
from torch import Tensor

from NatureLM.generation.engine import Answer, GenerationOptions
from NatureLM.models import NatureLM
from NatureLM.prompts import AUDIO_TAG

QUESTION = "What is the common name for the focal species in the audio?"
SAME = "Are these the same?"
NEW_TOKENS = 12
EXACT = 1e-3  # of a log-probability


def wav(samples: Any, rate: int = 16000) -> str:
    """A sound file in base64; its samples survive."""
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples), rate, format="WAV", subtype="FLOAT")
    return base64.b64encode(file.getvalue()).decode()


def talk(clips: Sequence[Any], question: str) -> list[dict[str, Any]]:
    """A conversation as the OpenAI API has it."""
    parts: list[dict[str, Any]] = [
        {"type": "input_audio", "input_audio": {"data": wav(one), "format": "wav"}} for one in clips
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def ours(
    model: NatureLM, clips: Sequence[Sequence[Tensor]], questions: Sequence[str], alphas: Any
) -> list[Answer]:
    """Our engine's answers to the same."""
    prompts = [
        model.config.prompt_template.replace("{}", " ".join([*[AUDIO_TAG] * len(row), question]))
        for row, question in zip(clips, questions, strict=True)
    ]
    options = GenerationOptions(num_beams=1, max_new_tokens=NEW_TOKENS, logprobs=3)
    return model.answer_prompts(prompts, clips, alpha=list(alphas), options=options)
