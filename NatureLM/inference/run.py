"""Recordings through a pipeline into a result store: the same for every door that asks windows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.inference.answers import AnswerOptions
from NatureLM.inference.loading import processor_of
from NatureLM.results.store import WindowStore

if TYPE_CHECKING:
    from NatureLM.inference.pipeline import Pipeline
    from NatureLM.inference.windows import RecordingError, WindowKey, WindowResult


@dataclass(frozen=True)
class WindowQuestions:
    """What is asked of every window of the recordings, and how they are cut.

    queries: each is asked of every window
    merging_alpha: share of the adapter
    window_length_seconds, hop_length_seconds: in heard time
    channel: `mean`, or the number of a channel from 1 on
    time_expansion: the sound is slowed down so many times
    choosing: whether answers are free, or chosen from a list of labels
    """

    queries: tuple[str, ...]
    merging_alpha: float = 1.0
    window_length_seconds: float = 10.0
    hop_length_seconds: float = 10.0
    channel: str | int = "mean"
    time_expansion: float = 1.0
    choosing: AnswerOptions = field(default_factory=AnswerOptions)


def model_settings(pipeline: Pipeline, asked: WindowQuestions) -> dict[str, Any]:
    """Weights, precision, template, calibration: what changes answers and the model itself knows.

    Raises UsageError where the model has no tokenizer.
    """
    model = pipeline.model
    template = processor_of(model).prompt_template
    kinds = {str(one.dtype).removeprefix("torch.") for one in model.parameters()}
    return {
        "weights": model.fingerprint,
        "dtype": "+".join(sorted(kinds)),
        "prompt_template": template,
        **pipeline.confidence_settings(asked.choosing, asked.merging_alpha),
    }


def question_settings(
    asked: WindowQuestions, *, model: str, adapter: str | None, generate: dict[str, Any]
) -> dict[str, Any]:
    """What changes the answers, as far as it is known without the model.

    generate: the section of the configuration, without α
    """
    return {
        "model": model,
        "adapter": adapter,
        "merging_alpha": asked.merging_alpha,
        "queries": list(asked.queries),
        "window_length_seconds": asked.window_length_seconds,
        "hop_length_seconds": asked.hop_length_seconds,
        "channel": asked.channel,
        "time_expansion": asked.time_expansion,
        "generate": generate,
        **asked.choosing.settings(),
    }


def unanswered(
    pipeline: Pipeline,
    recordings: Sequence[Path],
    asked: WindowQuestions,
    store: WindowStore,
    *,
    batch_size: int | None = None,
    fold: bool = False,
    warn: Callable[[str], None] | None = None,
) -> Generator[WindowResult | RecordingError, None, None]:
    """Answers and bad recordings as they come; windows that have an answer are left out.

    warn: told the notes about recordings in place of the log
    fold: whether nobody else uses the model meanwhile, so that α may be written into it
    """

    def is_done(key: WindowKey) -> bool:
        return store.is_done(key.audio_path, key.start, key.query)

    yield from pipeline.windows(
        list(recordings),
        [list(asked.queries)] * len(recordings),
        window_length_seconds=asked.window_length_seconds,
        hop_length_seconds=asked.hop_length_seconds,
        channel=asked.channel,
        time_expansion=asked.time_expansion,
        alpha=asked.merging_alpha,
        batch_size=batch_size,
        fold=fold,
        errors="yield",
        skip=is_done,
        warn=warn,
        **asked.choosing.arguments(),
    )


def keep(result: Any, store: WindowStore, merging_alpha: float) -> bool:
    """Write the row of a result; False, and no row, where there is one already."""
    error = getattr(result, "error", None)
    if error is not None:
        store.add_error(result.audio_path, error, merging_alpha)
        return True
    return store.add_answer(
        result.audio_path,
        result.start,
        result.end,
        result.query,
        result.text,
        result.merging_alpha,
        getattr(result, "confidence", None),
        getattr(result, "alternatives", ()),
    )
