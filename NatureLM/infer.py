"""`Pipeline`: recordings and questions in, answers per window out.

from NatureLM.infer import Pipeline

pipeline = Pipeline()  # the embedded model; Pipeline("naturelm-audio") is the published one
pipeline(["assets/synthetic_common_cuckoo.flac"], "What is the common name?")
# ['#0.00s - 6.00s#: Common Cuckoo\\n']
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from NatureLM.audio import AudioError, Window, iter_windows
from NatureLM.errors import UsageError
from NatureLM.prompts import PLACEHOLDER

if TYPE_CHECKING:
    from NatureLM.config import Config
    from NatureLM.models import NatureLM

_BATCH_SIZE = {"cpu": 8}
_ACCELERATOR_BATCH_SIZE = 32


@dataclass(frozen=True)
class WindowResult:
    """The answer to one question about one window; times are seconds in the recording."""

    audio_path: str
    start: float
    end: float
    query: str
    prompt: str
    merging_alpha: float
    text: str
    window_index: int


@dataclass(frozen=True)
class RecordingError:
    """A recording that could not be read (further); the windows before it stand."""

    audio_path: str
    error: AudioError


@dataclass(frozen=True)
class WindowKey:
    """Names a window and a question, so that work already done can be left out."""

    audio_path: str
    start: float
    query: str


@dataclass(frozen=True)
class _Job:
    """A window and the questions that are asked of it."""

    audio_path: str
    window: Window
    queries: tuple[str, ...]


class Pipeline:
    """Asks a model about recordings in sliding windows.

    `model` is a loaded `NatureLM`, or the name, folder or Hugging Face id of one; without it the
    embedded model is loaded. `cfg_path` is a YAML file whose `generate` section is used. `device`
    is `auto`, `cpu`, `cuda` or `mps`.
    """

    def __init__(
        self,
        model: NatureLM | str | Path | None = None,
        cfg_path: str | Path | None = None,
        *,
        config: Config | None = None,
        device: str = "auto",
        dtype: Any = None,
    ) -> None:
        from NatureLM.config import load_config

        self.cfg = config if config is not None else load_config(cfg_path)
        if model is None or isinstance(model, (str, Path)):
            model = _load(model, device, dtype)
        self.model = model

    def __call__(
        self,
        audios: Any,
        queries: str | Sequence[str],
        window_length_seconds: float = 10.0,
        hop_length_seconds: float = 10.0,
        input_sample_rate: int = 16000,
        verbose: bool = False,
        *,
        alpha: float | None = None,
        **options: Any,
    ) -> list[str]:
        """One string per audio, with a line per window: `#0.00s - 10.00s#: Green Treefrog\\n`.

        `audios` are paths or arrays (at `input_sample_rate` Hz); `queries` one question for all or
        one per audio. `options` are those of `windows`. A bad recording raises its `AudioError`.
        """
        items = _as_list(audios)
        asked = [queries] * len(items) if isinstance(queries, str) else list(queries)
        if len(asked) != len(items):
            raise UsageError(f"{len(asked)} queries were given for {len(items)} audios")
        answers: list[str] = []
        for audio, query in zip(items, asked, strict=True):
            results = self.windows(
                [audio],
                query,
                window_length_seconds=window_length_seconds,
                hop_length_seconds=hop_length_seconds,
                input_sample_rate=input_sample_rate,
                alpha=alpha,
                **options,
            )
            lines = (f"#{r.start:.2f}s - {r.end:.2f}s#: {r.text}\n" for r in _only_results(results))
            answers.append("".join(lines))
            if verbose:
                print(f"{_name(audio, len(answers) - 1)}:\n{answers[-1]}")
        return answers

    def windows(
        self,
        audios: Any,
        queries: str | Sequence[str] | Sequence[Sequence[str]],
        *,
        window_length_seconds: float = 10.0,
        hop_length_seconds: float = 10.0,
        input_sample_rate: int = 16000,
        channel: str | int = "mean",
        time_expansion: float = 1.0,
        alpha: float | None = None,
        batch_size: int | None = None,
        errors: Literal["raise", "yield"] = "raise",
        skip: Callable[[WindowKey], bool] | None = None,
        warn: Callable[[str], None] | None = None,
        **generation: Any,
    ) -> Iterator[WindowResult | RecordingError]:
        """Typed results as they come: by audio, then window, then question.

        `queries`: one question for all audios, one per audio, or a list of questions per audio.
        `skip` leaves windows and questions out. With `errors="yield"` a bad recording gives a
        `RecordingError` in its place and the rest goes on. `batch_size` counts windows; it changes
        the speed and never an answer. `generation` overrides the configuration's `generate`.
        """
        self._check_window(window_length_seconds)
        items = _as_list(audios)
        asked = _queries_per_audio(queries, len(items))
        alpha = self.cfg.generate.merging_alpha if alpha is None else alpha
        size = batch_size or _BATCH_SIZE.get(self.model.device.type, _ACCELERATOR_BATCH_SIZE)
        settings = {**self._generation(), **generation}
        waiting: list[_Job] = []
        for index, audio in enumerate(items):
            name = _name(audio, index)
            windows = iter_windows(
                audio,
                input_sample_rate=None if isinstance(audio, (str, Path)) else input_sample_rate,
                sample_rate=self.model.config.sample_rate,
                window_seconds=window_length_seconds,
                hop_seconds=hop_length_seconds,
                channel=channel,
                time_expansion=time_expansion,
                warn=warn if warn is not None else _to_stderr,
            )
            try:
                for window in windows:
                    job = _job(name, window, asked[index], skip)
                    if job.queries:
                        waiting.append(job)
                    if len(waiting) == size:
                        yield from self._answer(waiting, alpha, settings)
                        waiting = []
            except AudioError as error:
                if errors == "raise":
                    raise
                yield from self._answer(waiting, alpha, settings)
                waiting = []
                yield RecordingError(name, error)
        yield from self._answer(waiting, alpha, settings)

    def _answer(
        self, jobs: Sequence[_Job], alpha: float, settings: dict[str, Any]
    ) -> Iterator[WindowResult]:
        """All questions of some windows in one batch; every window is encoded once."""
        import torch

        processor = self.model.processor
        assert processor is not None, "a loaded model has a processor"
        prompts: list[str] = []
        audios: list[list[Any]] = []
        places: list[tuple[_Job, str]] = []
        for job in jobs:
            wav_S = torch.from_numpy(job.window.samples)
            for query in job.queries:
                prompts.append(processor.render(query))
                audios.append([wav_S] * prompts[-1].count(PLACEHOLDER))
                places.append((job, query))
        if not prompts:
            return
        texts = self.model.generate(prompts, audios, alpha=alpha, **settings)
        for (job, query), prompt, text in zip(places, prompts, texts, strict=True):
            window = job.window
            yield WindowResult(
                audio_path=job.audio_path,
                start=window.start,
                end=window.end,
                query=query,
                prompt=prompt,
                merging_alpha=alpha,
                text=text,
                window_index=window.index,
            )

    def _generation(self) -> dict[str, Any]:
        return self.cfg.generate.model_dump(exclude={"merging_alpha"})

    def _check_window(self, seconds: float) -> None:
        longest = self.model.config.window_seconds
        if seconds > longest:
            raise UsageError(
                f"a window of {seconds:g} s is longer than the {longest:g} s that this model "
                f"hears at once; give window_length_seconds of at most {longest:g}"
            )


def pick_device(device: str = "auto") -> str:
    """The device to use: as named, or the best that there is."""
    import torch

    if device != "auto":
        kind = device.split(":")[0]
        present = {
            "cuda": torch.cuda.is_available(),
            "mps": torch.backends.mps.is_available(),
        }
        if not present.get(kind, True):
            raise UsageError(f"device {device!r} is not available on this machine; use cpu or auto")
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _load(model: str | Path | None, device: str, dtype: Any) -> NatureLM:
    from NatureLM.models import NatureLM
    from NatureLM.models.registry import EMBEDDED, NATURELM_AUDIO

    if model is None:
        _to_stderr(
            f"Loading the embedded model {EMBEDDED}; the published one is "
            f'Pipeline("{NATURELM_AUDIO}").'
        )
        model = EMBEDDED
    return NatureLM.from_pretrained(model, device=pick_device(device), dtype=dtype)


def _as_list(audios: Any) -> list[Any]:
    """One audio or several; an array is one audio, a list of numbers too."""
    if isinstance(audios, (str, Path)) or hasattr(audios, "__array__"):
        return [audios]
    return list(audios)


def _queries_per_audio(queries: Any, audios: int) -> list[tuple[str, ...]]:
    if isinstance(queries, str):
        return [(queries,)] * audios
    if len(queries) != audios:
        raise UsageError(f"{len(queries)} queries were given for {audios} audios")
    return [(query,) if isinstance(query, str) else tuple(query) for query in queries]


def _name(audio: Any, index: int) -> str:
    return str(audio) if isinstance(audio, (str, Path)) else f"audio {index}"


def _job(
    name: str,
    window: Window,
    queries: Sequence[str],
    skip: Callable[[WindowKey], bool] | None,
) -> _Job:
    wanted = [q for q in queries if skip is None or not skip(WindowKey(name, window.start, q))]
    return _Job(name, window, tuple(wanted))


def _only_results(results: Iterator[WindowResult | RecordingError]) -> Iterator[WindowResult]:
    for result in results:
        if isinstance(result, RecordingError):
            raise result.error
        yield result


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    from NatureLM.cli.main import infer_main

    infer_main()
