"""The model side of `naturelm infer`: loads the model and asks it what has no answer yet.

The work of `naturelm infer`: recordings through the model into the result store.

`naturelm infer`: questions about recordings, answers as JSON lines.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from NatureLM.cli import options as lists
from NatureLM.cli import options as of_model
from NatureLM.cli import options as options_of
from NatureLM.cli.errors import SOME_FAILED, Stopped
from NatureLM.cli.imports import import_model
from NatureLM.cli.progress import InferProgress, Reporter
from NatureLM.cli.request import InferRequest, make_request
from NatureLM.config import Config
from NatureLM.errors import UsageError
from NatureLM.inference.loading import load_configured
from NatureLM.inference.pipeline import Pipeline
from NatureLM.inference.run import model_settings, unanswered
from NatureLM.inference.windows import RecordingError, WindowResult
from NatureLM.results.settings import RunSettings
from NatureLM.results.store import Resumed, WindowStore

if TYPE_CHECKING:
    from NatureLM.models import NatureLM


logger = logging.getLogger(__name__)
_KEPT_BYTES = 1 << 24  # of embeddings: no window comes again after its questions, one by one


class PipelineAsker:
    """A loaded pipeline, asked as a request says."""

    def __init__(self, request: InferRequest) -> None:
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
        self._asked = request.asked

    def settings(self) -> dict[str, Any]:
        """Weights, precision and template: what changes answers and the model itself knows."""
        return model_settings(self._pipeline, self._asked)

    def results(
        self, recordings: Sequence[Path], request: InferRequest, store: WindowStore
    ) -> Iterator[WindowResult | RecordingError]:
        """Answers and bad recordings as they come, recording by recording."""
        return unanswered(
            self._pipeline,
            recordings,
            request.asked,
            store,
            batch_size=request.batch_size,
            fold=True,
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


class Asker(Protocol):
    """What is needed of a pipeline."""

    def settings(self) -> dict[str, Any]:
        """What is known once the model is loaded and changes answers: weights, dtype, template."""

    def results(
        self, recordings: Sequence[Path], request: InferRequest, store: WindowStore
    ) -> Iterator[Any]:
        """`WindowResult` or `RecordingError` as they come, windows that have an answer left out."""


def run(request: InferRequest, reporter: Reporter) -> int:
    """Ask all that has no answer yet; the exit code.

    What cannot work is refused before the model is loaded: recordings that are not there, an output
    that cannot be written or holds other answers.
    """
    from NatureLM.audio import find_recordings

    recordings = find_recordings(request.audio_paths)
    with WindowStore(request.output_path, overwrite=request.overwrite) as store:
        store.check(request.settings())
        tally = InferProgress(recordings=len(recordings))
        try:
            reporter.loading(request)
            asker = load(request)
            settings = RunSettings({**request.settings(), **asker.settings()})
            resumed = store.begin(settings, recordings)
            _note_what_was_there(resumed, request)
            tally.expected = _expected_windows(recordings, request) - resumed.answers
            with reporter.working(tally, request):
                _ask(asker.results(recordings, request, store), store, tally, reporter, request)
        except KeyboardInterrupt as interrupt:
            raise Stopped(_goodbye(store, request), interrupt) from None
        reporter.summary(tally, store.answers, request)
    return SOME_FAILED if tally.errors else 0


def load(request: InferRequest) -> Asker:
    """The model, ready to be asked. (Tests put another one here.)"""

    return PipelineAsker(request)


def _ask(
    results: Iterable[Any],
    store: WindowStore,
    tally: InferProgress,
    reporter: Reporter,
    request: InferRequest,
) -> None:
    from NatureLM.inference.run import keep

    for result in results:
        if not keep(result, store, request.merging_alpha):
            continue
        error = getattr(result, "error", None)
        if error is None:
            tally.count(result)
            reporter.answer(result, tally)
        else:
            tally.errors += 1
            reporter.failed(result.audio_path, error)


def _expected_windows(recordings: Sequence[Path], request: InferRequest) -> int:
    """How many answers there will be, from the headers of the recordings; bad ones count none."""
    from NatureLM.audio import AudioError, count_windows, probe

    total = 0
    for path in recordings:
        try:
            duration = probe(path).duration
        except AudioError:
            continue
        total += count_windows(
            duration,
            request.window_length_seconds,
            request.hop_length_seconds,
            request.time_expansion,
        )
    return total * len(request.queries)


def _note_what_was_there(resumed: Resumed, request: InferRequest) -> None:
    name = request.output_path
    if resumed.cut_off:
        logger.warning(f"{name}: the last line was not whole and has been taken off")
    if resumed.answers:
        logger.warning(f"{name}: has {resumed.answers} answers of this run; going on from there")
    if resumed.retried:
        logger.warning(f"{name}: {resumed.retried} recordings that had failed are tried again")
    for path in resumed.repaired:
        logger.warning(f"{path}: has changed since it failed; all of it is asked anew")


def _goodbye(store: WindowStore, request: InferRequest) -> str:
    if not store.answers:
        return "Stopped before the first answer; nothing was written."
    return (
        f"Stopped. {store.answers} answers are in {request.output_path}; "
        "the same command goes on from there."
    )


_INPUT = "What to ask"
_OUTPUT = "Output"


def infer(
    recordings: Annotated[
        list[Path] | None,
        typer.Argument(help="Recordings or folders, as with --audio-path.", show_default=False),
    ] = None,
    audio_path: Annotated[
        list[Path] | None,
        typer.Option(
            "--audio-path",
            "--audio",
            "-a",
            help="A recording, or a folder with recordings. May be given several times.",
            show_default=False,
            rich_help_panel=_INPUT,
        ),
    ] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(
            "--query",
            "-q",
            help="What to ask of every window. May be given several times.",
            show_default=False,
            rich_help_panel=_INPUT,
        ),
    ] = None,
    model: of_model.OptionalModelName = None,
    adapter: of_model.Adapter = None,
    merging_alpha: Annotated[
        float | None,
        typer.Option(
            help="Share of the adapter: 0 is the base language model, 1 the adapted one.",
            show_default="generate.merging_alpha of the configuration, 1.0",
            rich_help_panel=of_model.MODEL,
        ),
    ] = None,
    device: of_model.Device = "auto",
    dtype: of_model.Dtype = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Answers and windows at a time. Changes the speed, never the answers.",
            show_default="chosen for the device",
            rich_help_panel=of_model.MODEL,
        ),
    ] = None,
    max_memory: of_model.MaxMemory = None,
    cache_dir: of_model.CacheDir = None,
    cfg_path: of_model.CfgPath = None,
    options: of_model.Overrides = None,
    window_length_seconds: of_model.WindowLength = 10.0,
    hop_length_seconds: of_model.HopLength = 10.0,
    channel: of_model.Channel = "mean",
    time_expansion: of_model.TimeExpansion = 1.0,
    output_path: Annotated[
        Path | None,
        typer.Option(
            help="File for the answers, one JSON line for each (of an experiment: a folder). One "
            "that exists is gone on with.",
            show_default="inference_output.jsonl",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Start the output file anew.", rich_help_panel=_OUTPUT),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", help="Do not show the answers.", rich_help_panel=_OUTPUT),
    ] = False,
    species_list: lists.SpeciesListOption = None,
    mode: lists.ModeOption = None,
    species_names: lists.SpeciesNames = "common",
    several: lists.Several = False,
    top_k: lists.TopK = 3,
    min_confidence: lists.MinConfidence = 0.0,
    data_path: options_of.DataPath = None,
    dry_run: options_of.DryRun = False,
    workers: options_of.Workers = 2,
) -> None:
    """Ask questions about recordings: one answer for each window and question.

    naturelm infer --audio-path assets --query "Caption the audio"

    A configuration with a section `extended` is an experiment: its samples come from --data-path.

    A run that was stopped goes on where it stopped when the same command is given again.
    """
    from NatureLM.cli.progress import make_reporter
    from NatureLM.config import load_config

    reporter = make_reporter(show_answers=not quiet)
    overrides = options_of.with_data_path(options, data_path)
    config = load_config(cfg_path, overrides)
    audio_paths, queries = [*(recordings or []), *(audio_path or [])], query or []
    if config.extended is not None:
        from NatureLM.cli import experiment

        experiment.refuse_options(
            cfg_path,
            {
                "--audio-path": bool(audio_paths),
                "--query": bool(queries),
                "--merging-alpha": merging_alpha is not None,
                "--batch-size": batch_size is not None,
                "--window-length-seconds": window_length_seconds != 10.0,
                "--hop-length-seconds": hop_length_seconds != 10.0,
                "--channel": channel != "mean",
                "--time-expansion": time_expansion != 1.0,
                "--overwrite": overwrite,
                "--species-list": species_list is not None,
                "--mode": mode is not None,
                "--species-names": species_names != "common",
                "--several": several,
                "--top-k": top_k != 3,
                "--min-confidence": min_confidence != 0.0,
            },
        )
        asked = experiment.make_experiment(
            config,
            cfg_path=cfg_path,
            command="naturelm infer",
            data_path=data_path,
            model=model,
            adapter=adapter,
            device=device,
            dtype=dtype,
            output_path=output_path,
            workers=workers,
            max_memory=max_memory,
            cache_dir=cache_dir,
        )
        raise typer.Exit(experiment.run(asked, dry_run=dry_run))

    options_of.refuse_without_experiment(data_path, dry_run, cfg_path)
    request = make_request(
        audio_paths=audio_paths,
        queries=queries,
        model=model,
        adapter=adapter,
        merging_alpha=merging_alpha,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        max_memory=max_memory,
        cache_dir=cache_dir,
        config=config,
        window_length_seconds=window_length_seconds,
        hop_length_seconds=hop_length_seconds,
        channel=channel,
        time_expansion=time_expansion,
        output_path=output_path or Path("inference_output.jsonl"),
        overwrite=overwrite,
        listed=lists.ListOptions(species_list, mode, species_names, several, top_k, min_confidence),
    )
    raise typer.Exit(run(request, reporter))
