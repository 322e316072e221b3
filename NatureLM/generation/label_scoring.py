"""Scores of label lists for prompts with their clips, by the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from NatureLM.generation.audio import EncodedClip
from NatureLM.generation.engine import Engine, EngineModel
from NatureLM.generation.label_scores import LabelScores, Normalize
from NatureLM.generation.ordered import in_order
from NatureLM.generation.requests import Answer, Request, label_choices


def score_labels(
    model: EngineModel,
    prompts: Sequence[str],
    audios: Sequence[Sequence[Any]],
    labels: Sequence[str] | Sequence[Sequence[str]],
    alphas: Sequence[float],
    normalize: Normalize = "sum",
) -> list[LabelScores]:
    """The scores of one list for all prompts, or of one list for each, in their order.

    audios: waveforms (samples,) or encoded audio (Q, D) for the placeholders of each prompt
    """
    clips = {_name(clip): clip for row in audios for clip in row}

    def load(name: str) -> Any:
        clip = clips[name]
        is_encoded = isinstance(clip, Tensor) and clip.ndim == 2
        return EncodedClip(name, clip) if is_encoded else clip

    choices = label_choices(labels, len(prompts), normalize)
    rows = zip(prompts, audios, alphas, choices, strict=True)
    requests = [
        Request(place, prompt, tuple(map(_name, row)), alpha, choice=choice)
        for place, (prompt, row, alpha, choice) in enumerate(rows)
    ]
    found: list[LabelScores] = []
    for answer in in_order(Engine(model).run, requests, load):
        assert isinstance(answer, Answer)
        if answer.error is not None:
            raise answer.error
        assert answer.scores is not None
        found.append(answer.scores)
    return found


def _name(clip: Any) -> str:
    """A name for a clip of this call, as the engine takes it for a hash: hexadecimal."""
    return f"{id(clip):x}"
