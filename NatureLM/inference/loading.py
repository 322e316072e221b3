"""Loads the model, the same from every command and page, and says what it is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from NatureLM.config import Config
from NatureLM.errors import NatureLMError, UsageError

if TYPE_CHECKING:
    from NatureLM.inference.pipeline import Pipeline
    from NatureLM.models import NatureLM, NatureLMProcessor

logger = logging.getLogger(__name__)


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


def load_model(
    model: str | Path | None = None,
    config: Config | None = None,
    *,
    adapter: str | Path | None = None,
    device: str = "auto",
    dtype: Any = None,
    audio_only: bool = False,
    revision: str | None = None,
    weights_hash: str | None = None,
    quantize: str | None = None,
) -> NatureLM:
    """A model by name, folder or id; the embedded one where none is named, which is logged.

    config: its base language model and prompt template take the place of the checkpoint's, where
        they are not the defaults
    adapter: a LoRA adapter in place of the model's own
    device: "auto" for the best that there is, or its name
    dtype: precision of all weights; None or "auto" for the best that fits the device
    audio_only: the language model is not read; all that the model can do is to encode audio
    revision: commit, tag or branch on the Hub, and weights_hash: what the weights must be; by
        default those of the configuration, where it names this model, too
    quantize: "int8" or "int4" for weights of the language model of so many bits; by default what
        the configuration says

    Raises CheckpointError, and UsageError for a device that is not there.
    """
    from NatureLM.models import NatureLM
    from NatureLM.models.registry import EMBEDDED, NATURELM_AUDIO

    if model is None:
        logger.warning(
            'Loading the embedded model %s; the published one is Pipeline("%s").',
            EMBEDDED,
            NATURELM_AUDIO,
        )
    changed = {} if config is None else config.model.model_dump(exclude_defaults=True)
    if str(model) == changed.get("ckpt"):
        revision = revision or changed.get("revision")
        weights_hash = weights_hash or changed.get("weights_hash")
    loaded = NatureLM.from_pretrained(
        model or EMBEDDED,
        llama_path=changed.get("llama_path"),
        dtype="auto" if dtype is None else dtype,
        device=pick_device(device),
        adapter=adapter,
        audio_only=audio_only,
        revision=revision,
        weights_hash=weights_hash,
        quantize=quantize or changed.get("quantize"),
    )
    if "prompt_template" in changed:
        processor_of(loaded).prompt_template = changed["prompt_template"]
    return loaded


def pick_device(device: str = "auto") -> str:
    """The device to use: as named, or the best that there is."""
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next((kind for kind, is_there in present.items() if is_there), "cpu")
    if not present.get(device.split(":")[0], True):
        raise UsageError(f"device {device!r} is not available on this machine; use cpu or auto")
    return device


def dtype_names(model: NatureLM) -> str:
    """The precisions of a model's weights: `float32`, `bfloat16+float32`, `float32+int4`."""
    kinds = {one.dtype for one in model.parameters()}
    names = {str(kind).removeprefix("torch.") for kind in kinds if kind.is_floating_point}
    names |= {model.config.quantized} if model.config.quantized else set()
    return "+".join(sorted(names))


def processor_of(model: NatureLM) -> NatureLMProcessor:
    """The processor of a model; raises UsageError where it has none."""
    if model.processor is None:
        raise UsageError(
            f"{model.name_or_path}: the model has no tokenizer, so nothing can be asked"
        )
    return model.processor
