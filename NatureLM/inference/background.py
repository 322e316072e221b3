"""Which model a page or service loads, and its pipeline while it is loaded in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from NatureLM.config import Config
from NatureLM.errors import NatureLMError
from NatureLM.inference.loading import load_model

if TYPE_CHECKING:
    from NatureLM.inference.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which model a page or service was told to load, and how: see `load_model`.

    model: name, id or folder; None for the embedded one
    config: None for the built-in settings; its `generate` decides how answers are decoded
    alpha: where none is chosen; None for that of the configuration
    max_memory: bytes that batches may take beside the model's weights
    """

    model: str | None = None
    revision: str | None = None
    weights_hash: str | None = None
    config: Config | None = None
    alpha: float | None = None
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    max_memory: int | None = None

    @property
    def name(self) -> str:
        """Name, id or folder."""
        from NatureLM.models.registry import EMBEDDED

        return self.model or EMBEDDED

    @property
    def default_alpha(self) -> float:
        """The share of the adapter where none is chosen."""
        config = self.config or Config()
        return config.generate.merging_alpha if self.alpha is None else self.alpha

    def load(self) -> Pipeline:
        """The pipeline, with the model as every command loads it. Raises NatureLMError."""
        from NatureLM.inference.pipeline import Pipeline

        config = self.config or Config()
        model = load_model(
            self.name,
            config,
            device=self.device,
            dtype=self.dtype,
            quantize=self.quantize,
            revision=self.revision,
            weights_hash=self.weights_hash,
        )
        return Pipeline(model, config=config, max_memory=self.max_memory)


class PipelineLoader:
    """A pipeline that is loaded in a thread of its own, and how far that is.

    load: gives the pipeline, or raises
    """

    def __init__(self, load: Callable[[], Pipeline]) -> None:
        self._load = load
        self._found: futures.Future[Pipeline] = futures.Future()
        self._starting = threading.Lock()

    @property
    def state(self) -> Literal["waiting", "loading", "ready", "failed"]:
        if self._found.done():
            return "ready" if self._found.exception() is None else "failed"
        return "loading" if self._found.running() else "waiting"

    @property
    def loaded(self) -> Pipeline | None:
        """The pipeline where it is ready."""
        return self._found.result() if self.state == "ready" else None

    @property
    def error(self) -> str:
        """Why it has failed."""
        return str(self._found.exception()) if self.state == "failed" else ""

    def start(self) -> None:
        """Begin to load; a second call does nothing."""
        with self._starting:
            if self.state == "waiting":
                self._found.set_running_or_notify_cancel()
                threading.Thread(target=self._run, name="load model", daemon=True).start()

    def wait(self, timeout: float | None = None) -> Pipeline:
        """The loaded pipeline; waits for it. Raises NatureLMError that says why there is none."""
        self.start()
        futures.wait([self._found], timeout)
        if not self._found.done():
            raise NatureLMError("The model is still loading. Try again in a moment.")
        if self.loaded is None:
            raise NatureLMError(f"The model could not be loaded. {self.error}")
        return self.loaded

    def _run(self) -> None:
        try:
            self._found.set_result(self._load())
        except Exception as error:  # whatever a library raised: pages and services live on
            is_ours = isinstance(error, NatureLMError)
            said = str(error) if is_ours else f"{type(error).__name__}: {error}"
            self._found.set_exception(NatureLMError(said))  # without what its traceback holds
