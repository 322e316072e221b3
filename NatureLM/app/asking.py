"""The only place of the app that calls the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from NatureLM.app.clips import Clip
from NatureLM.app.settings import AppSettings
from NatureLM.errors import UsageError
from NatureLM.generation.label_scores import NOTHING
from NatureLM.prompts import AUDIO_TAG, PLACEHOLDER
from NatureLM.prompts.examples import example_blocks
from NatureLM.species import SpeciesList, default_question

if TYPE_CHECKING:
    from NatureLM.conversation import Conversation
    from NatureLM.infer import Pipeline

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
NONE_OF_THESE = NOTHING
"""What the model was taught to say where no name of a list is right; scored with every list."""


def load_pipeline(settings: AppSettings) -> Pipeline:
    """Load the model that the settings name. Raises `NatureLMError` where it cannot be."""
    from NatureLM.config import Config
    from NatureLM.infer import Pipeline
    from NatureLM.infer.loading import load_configured
    from NatureLM.models.registry import EMBEDDED

    config = settings.config or Config()
    model = load_configured(
        settings.model or EMBEDDED, config, device=settings.device, dtype=settings.dtype
    )
    return Pipeline(model, config=config)


def converse(pipeline: Pipeline, rate: float, alpha: float) -> Conversation:
    """A new conversation; its clips are samples at `rate` Hz."""
    return pipeline.conversation(alpha=alpha, input_sample_rate=rate)


def compare_alphas(
    pipeline: Pipeline, clips: Sequence[Clip], query: str, alphas: Sequence[float] = ALPHAS
) -> list[str]:
    """The answers at several α, decoded as in a conversation, in one pass."""
    return pipeline.compare_alphas(
        [clip.samples() for clip in clips],
        query,
        alphas,
        input_sample_rate=clips[0].sample_rate,
        num_beams=1,
    )


def answer(pipeline: Pipeline, clips: Sequence[Clip], query: str, alpha: float) -> tuple[str, str]:
    """The answer to a question about several clips, and the whole prompt that the model saw."""
    with converse(pipeline, clips[0].sample_rate, alpha) as conversation:
        text = "".join(conversation.ask(query, [clip.samples() for clip in clips]))
        (turn,) = conversation.turns
        return text.strip(), conversation.prompt.removesuffix(turn.answer)


def examples_query(question: str, labels: Sequence[str]) -> str:
    """A question with labelled examples and the new clip, which is the last of the clips.

    Raises UsageError for a question or label with the mark that stands for sound.
    """
    for text in (question, *labels):
        if PLACEHOLDER in text:
            raise UsageError(f"{PLACEHOLDER} stands for sound and cannot be written in a text.")
    blocks = example_blocks((AUDIO_TAG, label) for label in labels)
    return f"{question}\n\n{blocks}\n\nAudio: {AUDIO_TAG}\nLabel:"


@dataclass(frozen=True)
class Ranked:
    """Labels with their probabilities, best first, of the seconds `start` to `end` of a clip."""

    start: float
    end: float
    labels: tuple[tuple[str, float], ...]


def identify(
    pipeline: Pipeline, clip: Clip, names: SpeciesList, alpha: float, *, none: bool
) -> list[Ranked]:
    """How likely each name is in each window of a clip; `none` lets none of them be right."""
    results = pipeline.windows(
        [clip.path],
        default_question(names.names, names.kind),
        alpha=alpha,
        time_expansion=clip.slowed,
        mode="score",
        labels=names.names,
        top_k=len(names.names) + 1,
        warn=lambda _: None,
    )
    return [_ranked(result, none) for result in results]


def together(windows: Sequence[Ranked]) -> Ranked:
    """Of the whole clip: the mean of the windows' probabilities."""
    sums: dict[str, float] = {}
    for window in windows:
        for label, share in window.labels:
            sums[label] = sums.get(label, 0.0) + share / len(windows)
    ordered = sorted(sums.items(), key=lambda pair: -pair[1])
    return Ranked(windows[0].start, windows[-1].end, tuple(ordered))


def _ranked(result: Any, none: bool) -> Ranked:
    shares = {result.text: result.confidence, **dict(result.alternatives)}
    if not none and len(shares) > 1:
        shares.pop(NONE_OF_THESE, None)
        total = sum(shares.values()) or 1.0
        shares = {label: share / total for label, share in shares.items()}
    ordered = sorted(shares.items(), key=lambda pair: -pair[1])
    return Ranked(result.start, result.end, tuple(ordered))
