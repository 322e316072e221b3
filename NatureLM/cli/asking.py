"""The model side of `naturelm infer`: loads the model and asks it what has no answer yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from NatureLM.cli.progress import Reporter
from NatureLM.cli.request import InferRequest
from NatureLM.config import Config
from NatureLM.errors import UsageError
from NatureLM.infer import Pipeline, RecordingError, WindowKey, WindowResult, pick_device
from NatureLM.outputs import ResultStore

if TYPE_CHECKING:
    from NatureLM.models import NatureLM, NatureLMProcessor


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
        self._pipeline = Pipeline(self._model, config=request.config)
        self._warn = reporter.note

    def settings(self) -> dict[str, Any]:
        """Weights, precision and template: what changes answers and the model itself knows."""
        kinds = {str(one.dtype).removeprefix("torch.") for one in self._model.parameters()}
        return {
            "weights": self._model.fingerprint,
            "dtype": "+".join(sorted(kinds)),
            "prompt_template": processor_of(self._model).prompt_template,
        }

    def results(
        self, recordings: Sequence[Path], request: InferRequest, store: ResultStore
    ) -> Iterator[WindowResult | RecordingError]:
        """Answers and bad recordings as they come, recording by recording."""

        def is_done(key: WindowKey) -> bool:
            return store.is_done(key.audio_path, key.start, key.query)

        return self._pipeline.windows(
            list(recordings),
            [list(request.queries)] * len(recordings),
            window_length_seconds=request.window_length_seconds,
            hop_length_seconds=request.hop_length_seconds,
            channel=request.channel,
            time_expansion=request.time_expansion,
            alpha=request.merging_alpha,
            batch_size=request.batch_size,
            errors="yield",
            skip=is_done,
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
    from NatureLM.models import NatureLM

    model = NatureLM.from_pretrained(
        request.model,
        llama_path=changed(request.config, "llama_path"),
        dtype=None if request.dtype == "auto" else request.dtype,
        device=pick_device(request.device),
        adapter=request.adapter,
    )
    template = changed(request.config, "prompt_template")
    if template is not None:
        processor_of(model).prompt_template = template
    return model


def processor_of(model: NatureLM) -> NatureLMProcessor:
    """The processor of a model; raises UsageError where it has none."""
    if model.processor is None:
        raise UsageError(
            f"{model.name_or_path}: the model has no tokenizer, so nothing can be asked"
        )
    return model.processor


def changed(config: Config, key: str) -> str | None:
    """A value of the section `model` that is not the default: then it is not the checkpoint's."""
    value: str = getattr(config.model, key)
    return None if value == getattr(Config().model, key) else value
