"""What `naturelm infer` is asked to do, checked before any work is done."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from NatureLM.cli.options import ListOptions, choose
from NatureLM.config import Config
from NatureLM.errors import UsageError
from NatureLM.inference.answers import AnswerOptions
from NatureLM.inference.run import WindowQuestions, question_settings
from NatureLM.merging.recipe import extrapolation_note
from NatureLM.util import parse_bytes

logger = logging.getLogger(__name__)
DEFAULT_MODEL = "naturelm-tiny"
_DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class InferRequest:
    """A checked request: recordings and questions, model, windows, output."""

    audio_paths: tuple[Path, ...]
    queries: tuple[str, ...]
    config: Config
    model: str
    adapter: str | None
    merging_alpha: float
    device: str
    dtype: str
    batch_size: int | None
    max_memory: int | None
    window_length_seconds: float
    hop_length_seconds: float
    channel: str | int
    time_expansion: float
    output_path: Path
    overwrite: bool
    choosing: AnswerOptions
    cache_dir: Path | None = None

    @property
    def asked(self) -> WindowQuestions:
        """What is asked of every window."""
        return WindowQuestions(
            queries=self.queries,
            merging_alpha=self.merging_alpha,
            window_length_seconds=self.window_length_seconds,
            hop_length_seconds=self.hop_length_seconds,
            channel=self.channel,
            time_expansion=self.time_expansion,
            choosing=self.choosing,
        )

    def settings(self) -> dict[str, Any]:
        """What changes the answers, as far as it is known without the model."""
        return question_settings(
            self.asked,
            model=self.model,
            adapter=self.adapter,
            generate=self.config.generate.model_dump(mode="json", exclude={"merging_alpha"}),
        )


def make_request(
    *,
    audio_paths: Sequence[Path],
    queries: Sequence[str],
    model: str | None,
    adapter: str | None,
    merging_alpha: float | None,
    device: str,
    dtype: str,
    batch_size: int | None,
    max_memory: str | None = None,
    cache_dir: Path | None = None,
    config: Config,
    window_length_seconds: float,
    hop_length_seconds: float,
    channel: str,
    time_expansion: float,
    output_path: Path,
    overwrite: bool,
    listed: ListOptions | None = None,
) -> InferRequest:
    """Check what was asked for.

    Raises UsageError that names the option, its value and what is allowed.
    """
    if not audio_paths:
        raise UsageError("nothing to listen to: name a recording or a folder with --audio-path")
    named = model or config.model.ckpt or DEFAULT_MODEL
    choosing, queries = choose(listed or ListOptions(), queries, named)
    if not queries:
        raise UsageError('nothing to ask: give a question, such as --query "Caption the audio"')
    for query in queries:
        if not query.strip():
            raise UsageError("--query is empty: give a question")
    for name, value in (
        ("--window-length-seconds", window_length_seconds),
        ("--hop-length-seconds", hop_length_seconds),
        ("--time-expansion", time_expansion),
    ):
        if not (math.isfinite(value) and value > 0):
            raise UsageError(f"{name} is {value:g}, and it must be above 0")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size is {batch_size}, and it must be at least 1")
    alpha = config.generate.merging_alpha if merging_alpha is None else merging_alpha
    if not math.isfinite(alpha):
        raise UsageError(f"--merging-alpha is {alpha:g}, and it must be a finite number")
    note = extrapolation_note(alpha)
    if note is not None:
        logger.warning(note)
    if hop_length_seconds > window_length_seconds:
        logger.warning(
            f"--hop-length-seconds {hop_length_seconds:g} is longer than a window of "
            f"{window_length_seconds:g} s: what lies between two windows is not heard"
        )
    return InferRequest(
        audio_paths=tuple(audio_paths),
        queries=tuple(dict.fromkeys(queries)),
        config=config,
        model=named,
        adapter=adapter,
        merging_alpha=float(alpha),
        device=device_option(device),
        dtype=dtype_option(dtype),
        batch_size=batch_size,
        max_memory=None if max_memory is None else parse_bytes(max_memory, "--max-memory"),
        window_length_seconds=window_length_seconds,
        hop_length_seconds=hop_length_seconds,
        channel=_channel(channel),
        time_expansion=time_expansion,
        output_path=output_path,
        overwrite=overwrite,
        choosing=choosing,
        cache_dir=cache_dir,
    )


def _one_of(option: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise UsageError(f"{option} is {value!r}, and it must be one of {', '.join(choices)}")
    return value


def dtype_option(value: str) -> str:
    """The value of --dtype; raises UsageError."""
    return _one_of("--dtype", value, _DTYPES)


def device_option(value: str) -> str:
    """The value of --device; raises UsageError."""
    if value.startswith("cuda:") and value.removeprefix("cuda:").isdecimal():
        return value
    return _one_of("--device", value, ("auto", "cpu", "cuda", "mps"))


def _channel(value: str) -> str | int:
    if value == "mean":
        return value
    if value.isdecimal() and int(value) >= 1:
        return int(value)
    raise UsageError(f"--channel is {value!r}, and it must be mean or a number from 1")
