"""The model side of `naturelm infer`: loads the model and asks it what has no answer yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from NatureLM.cli.heavy import import_model
from NatureLM.cli.progress import Reporter
from NatureLM.cli.request import InferRequest
from NatureLM.config import Config
from NatureLM.errors import UsageError
from NatureLM.infer import Pipeline, RecordingError, WindowResult
from NatureLM.infer.loading import load_configured
from NatureLM.outputs import ResultStore
from NatureLM.runs import model_settings, unanswered

if TYPE_CHECKING:
    from NatureLM.models import NatureLM

_KEPT_BYTES = 1 << 24  # of embeddings: no window comes again after its questions, one by one


class PipelineAsker:
    """A loaded pipeline, asked as a request says."""

    def __init__(self, request: InferRequest, reporter: Reporter) -> None:
        self._model = load_model(request)
        longest = self._model.config.window_seconds
        if request.window_length_seconds > longest:
            raise UsageError(
                f"--window-length-seconds is {request.window_length_seconds:g}, and "
                f"{request.model} hears at most {longest:g} s at once"
            )
        self._pipeline = Pipeline(
            self._model,
            config=request.config,
            cache_dir=request.cache_dir,
            max_memory=request.max_memory,
            kept_bytes=_KEPT_BYTES,
        )
        self._warn = reporter.note
        self._asked = request.asked

    def settings(self) -> dict[str, Any]:
        """Weights, precision and template: what changes answers and the model itself knows."""
        return model_settings(self._pipeline, self._asked)

    def results(
        self, recordings: Sequence[Path], request: InferRequest, store: ResultStore
    ) -> Iterator[WindowResult | RecordingError]:
        """Answers and bad recordings as they come, recording by recording."""
        return unanswered(
            self._pipeline,
            recordings,
            request.asked,
            store,
            batch_size=request.batch_size,
            fold=True,
            warn=self._warn,
        )


class ModelRequest(Protocol):
    """What is needed of a request to load its model."""

    @property
    def config(self) -> Config: ...
    @property
    def model(self) -> str: ...
    @property
    def adapter(self) -> str | None: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...


def load_model(request: ModelRequest) -> NatureLM:
    """The model that a request names, with the prompt template of its configuration."""
    import_model()
    return load_configured(
        request.model,
        request.config,
        adapter=request.adapter,
        device=request.device,
        dtype=request.dtype,
    )
