"""Questionnaires about recordings: `naturelm survey`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from NatureLM.cli import options as of
from NatureLM.cli.engines import Engine, answers_of, on_ray, open_store, ray_options
from NatureLM.cli.errors import RESUMES, SOME_FAILED, stop_message
from NatureLM.cli.progress import RunProgress
from NatureLM.cli.recordings import (
    FieldRecordings,
    checked_formats,
    count_windows,
    finish,
    note_what_was_there,
    output_of_shard,
)
from NatureLM.progress import say
from NatureLM.storage import AnyPath

if TYPE_CHECKING:
    from NatureLM.cli.infer import InferRequest
    from NatureLM.config import Config
    from NatureLM.distributed.cluster import RayOptions
    from NatureLM.inference.pipeline import Fill
    from NatureLM.inference.windows import AskOptions
    from NatureLM.results.rows import SurveyRow
    from NatureLM.results.store import WindowStore
    from NatureLM.survey.questionnaire import Questionnaire
    from NatureLM.survey.run import Survey

logger = logging.getLogger(__name__)
ANSWERS = "survey.jsonl"
_KEPT_BYTES = 1 << 28  # of embeddings: those of a block are asked about in several waves
_INPUT = "What to ask"
_OUTPUT = "Output"
_OF_WINDOWS = {
    "window_length_seconds": 10.0,
    "hop_length_seconds": 10.0,
    "time_expansion": 1.0,
    "channel": "mean",
}
"""What the questionnaire may say where the command line does not, and the default."""


def _questionnaires() -> str:
    from NatureLM.survey import preset_names

    return f"FILE|{'|'.join(preset_names())}"


@dataclass(frozen=True)
class SurveyRequest(of.ModelOptions):
    """The options of `naturelm survey`, in the order of its help."""

    questions: str = of.argument(
        ..., "Questionnaire: a YAML file, or the name of one that comes along.", _questionnaires
    )
    recordings: list[AnyPath] | None = of.argument(
        None, "Recordings or folders, as with --audio-path."
    )
    audio_path: list[AnyPath] | None = of.option(
        None,
        "A recording, or a folder with recordings, such as a memory card. May be given several "
        "times.",
        _INPUT,
        *("--audio-path", "--audio", "-a"),
    )
    manifest: AnyPath | None = of.MANIFEST
    shard: str | None = of.SHARD
    engine: str = of.ENGINE
    ray_address: str | None = of.RAY_ADDRESS
    workers: int | None = of.RAY_WORKERS
    gpus: float | None = of.GPUS
    block_seconds: float | None = of.BLOCK_SECONDS
    from_table: Path | None = of.FROM_TABLE
    model: str | None = of.OPTIONAL_MODEL_NAME
    revision: str | None = of.REVISION
    weights_hash: str | None = of.WEIGHTS_HASH
    adapter: str | None = of.ADAPTER
    merging_alpha: float | None = of.option(
        None,
        "Share of the adapter for columns that do not name their own: 0 is the base language "
        "model, 1 the adapted one.",
        of.MODEL,
        show_default="generate.merging_alpha of the configuration, 1.0",
    )
    device: str = of.DEVICE
    dtype: str = of.DTYPE
    quantize: str | None = of.QUANTIZE
    batch_size: int | None = of.option(
        None,
        "Answers and windows at a time. Changes the speed, never the answers.",
        of.MODEL,
        show_default="chosen for the device",
    )
    max_memory: str | None = of.MAX_MEMORY
    cache_dir: Path | None = of.CACHE_DIR
    cfg_path: Path | None = of.CFG_PATH
    options: list[str] | None = of.OVERRIDES
    window_length_seconds: float | None = of.option(
        None, "Length of a window.", of.AUDIO, show_default="as the questionnaire says, else 10"
    )
    hop_length_seconds: float | None = of.option(
        None,
        "From one start to the next.",
        of.AUDIO,
        show_default="as the questionnaire says, else 10",
    )
    channel: str | None = of.option(
        None,
        "Channel to listen to; mean mixes them all.",
        of.AUDIO,
        metavar="mean|1|2|...",
        show_default="as the questionnaire says, else mean",
    )
    time_expansion: float | None = of.option(
        None,
        "Slow the sound down so many times; 10 makes bats audible. Times stay true.",
        of.AUDIO,
        show_default="as the questionnaire says, else 1",
    )
    ask_silence: bool = of.ASK_SILENCE
    deployments: Path | None = of.DEPLOYMENTS
    file_times: Path | None = of.FILE_TIMES
    format_name: list[str] | None = of.FORMATS
    per_recording: bool = of.PER_RECORDING
    output_path: AnyPath = of.option(
        Path("survey"),
        "Folder for the answers and the tables. One that exists is resumed.",
        _OUTPUT,
    )
    classifier: Path | None = of.option(
        None,
        "Folder of a classifier that `naturelm teach` made: it answers in place of a "
        "questionnaire, which is not named then.",
        _INPUT,
        metavar="FOLDER",
    )
    overwrite: bool = of.option(False, "Start the answers anew.", _OUTPUT)
    quiet: bool = of.option(False, "Do not show the answers.", _OUTPUT)

    @property
    def audio_paths(self) -> list[AnyPath]:
        """All recordings and folders that were named."""
        return [*(self.recordings or ()), *(self.audio_path or ())]

    @property
    def answers(self) -> AnyPath:
        """The file, or the folder of parts, for the answers."""
        return answers_of(self, output_of_shard(self.output_path / ANSWERS, self.shard))


def survey(request: SurveyRequest) -> None:
    """Ask a questionnaire of recordings: one row a window, a column a question.

    naturelm survey who-calls --audio-path card/ --output-path survey/

    A run that was stopped goes on where it stopped when the same command is given again.
    """
    from NatureLM.config import load_config
    from NatureLM.survey.questionnaire import read_questionnaire

    if request.classifier is not None:
        from NatureLM.cli import infer

        raise typer.Exit(infer.run(taught_request(request), load_config(request.cfg_path)))
    questionnaire = read_questionnaire(request.questions)
    for note in questionnaire.notes:
        logger.warning(note)
    config = load_config(request.cfg_path, request.options or [])
    raise typer.Exit(run(request, questionnaire, config))


def taught_request(request: SurveyRequest) -> InferRequest:
    """What `naturelm infer --classifier` would be told; all that was named are recordings."""
    from NatureLM.cli.infer import InferRequest
    from NatureLM.storage import as_path

    names = {one.name for one in fields(InferRequest)} & {one.name for one in fields(request)}
    given = {name: getattr(request, name) for name in names}
    given |= {
        "recordings": [as_path(request.questions), *(request.recordings or ())],
        "output_path": request.output_path / ANSWERS,
        "format_name": request.format_name or ["csv"],
        "channel": request.channel or "mean",
    }
    return InferRequest(**given)


def run(request: SurveyRequest, questionnaire: Questionnaire, config: Config) -> int:
    """Ask all that has no row yet, and write the tables; the exit code.

    What cannot work is refused before the model is loaded.
    """
    from NatureLM.results.uploads import working_path

    spread = ray_options(request)
    formats = checked_formats(request.format_name or ["csv"], working_path(request.answers))
    asked = ask_options(request, questionnaire, config)
    field = FieldRecordings.read(request, [one.question for one in questionnaire.columns])
    if not field.recordings:
        return 0
    shown = RunProgress(
        len(field.recordings),
        shows_answers=not request.quiet,
        legend=[f"{one.name}: {one.question}" for one in questionnaire.columns],
        unit="windows",
    )
    with open_store(request, request.answers) as store:
        store.context_of, store.renews_context = field.context_of, field.has_tables
        with stop_message(lambda: _goodbye(store.answers, request.answers)):
            unparsed = _ask(request, config, questionnaire, asked, field, spread, store, shown)
            shown.summary(store.answers, request.answers)
            for name, count in unparsed.items():
                say(f"{name}: {count} answers could not be parsed; they are kept as they were said")
            field.say_what_is_not_known()
            finish(store, formats, request.per_recording)
    return SOME_FAILED if shown.errors else 0


def _ask(
    request: SurveyRequest,
    config: Config,
    questionnaire: Questionnaire,
    asked: AskOptions,
    field: FieldRecordings,
    spread: RayOptions | None,
    store: WindowStore,
    shown: RunProgress,
) -> Mapping[str, int]:
    """Ask, and store the rows; gives the number of answers that could not be parsed, by column."""
    from NatureLM.inference.windows import RecordingError
    from NatureLM.results.rows import RunSettings
    from NatureLM.survey.run import known_settings

    model = of.model_name(request.model, config)
    settings = {
        **known_settings(
            questionnaire, asked, model=model, adapter=request.adapter, generate=config.generate
        ),
        **field.settings,
    }
    store.check(settings)
    say(f"Model: {model}. Questionnaire: {questionnaire.title or questionnaire.source}")
    if questionnaire.weights and any(
        one.merging_alpha is not None for one in questionnaire.columns
    ):
        say(f"Its values of α are meant for {questionnaire.weights}")
    with _engine(request, config, questionnaire, asked, field, spread) as engine:
        settings |= engine.settings
        latin = questionnaire.scientific_names
        about = {**({"scientific_names": latin} if latin else {}), **field.listed.asked}
        made_with = RunSettings(settings, about, revisions=engine.revisions)
        resumed = store.begin(made_with, field.recordings)
        note_what_was_there(resumed, request.answers)
        with shown.working(count_windows(field, asked) - resumed.answers):
            for made in engine.results(store):
                if isinstance(made, RecordingError):
                    store.add_error(made.audio_path, made.error, asked.merging_alpha)
                    shown.failed(made.error)
                elif store.add_survey(made):
                    shown.row(
                        *(made.audio_path, made.start, made.end, _shown(made)),
                        note=made.note,
                        asked=len(made.answers),
                    )
    return engine.unparsed


@contextmanager
def _engine(
    request: SurveyRequest,
    config: Config,
    questionnaire: Questionnaire,
    asked: AskOptions,
    field: FieldRecordings,
    spread: RayOptions | None,
) -> Iterator[Engine]:
    """What answers: the model in this process, or models on a cluster."""
    if spread is not None:
        from NatureLM.distributed.askers import SurveyAsker

        make = partial(SurveyAsker, partial(load_survey, request, config, questionnaire, asked))
        with on_ray(spread, request.device, make, asked, field) as engine:
            yield engine
        return
    from NatureLM.inference.windows import Recording

    survey = load_survey(request, config, questionnaire, asked, field.fill)
    recordings = [
        Recording(number, str(one), one, (), field.claims_of(one))
        for number, one in enumerate(field.recordings)
    ]
    yield Engine(
        survey.settings(),
        survey.revisions,
        lambda store: survey.rows(recordings, store),
        survey.unparsed,
    )


def load_survey(
    request: SurveyRequest,
    config: Config,
    questionnaire: Questionnaire,
    asked: AskOptions,
    fill: Fill,
) -> Survey:
    """The questionnaire and the model, ready to be asked. (Tests put another one here.)"""
    loaded = request.load_model(config)
    from NatureLM.inference.pipeline import Pipeline
    from NatureLM.survey.run import Survey

    of.check_window(asked.window_length_seconds, loaded, loaded.name_or_path)
    pipeline = Pipeline(
        loaded,
        config=config,
        cache_dir=request.cache_dir,
        max_memory=of.memory_size(request.max_memory),
        kept_bytes=_KEPT_BYTES,
    )
    return Survey(pipeline, questionnaire, asked, batch_size=request.batch_size, fill=fill)


def ask_options(request: SurveyRequest, questionnaire: Questionnaire, config: Config) -> AskOptions:
    """Windows and α, of the command line, the questionnaire or by default, checked."""
    from NatureLM.inference.windows import AskOptions
    from NatureLM.util import check_range

    of.check_named(request)
    if request.batch_size is not None:
        check_range("--batch-size", request.batch_size, 1, of.MAX_BATCH)
    of.check_device(request.device, request.dtype, request.quantize)
    of.memory_size(request.max_memory)
    alpha = request.merging_alpha
    given: dict[str, Any] = {}
    for name, default in _OF_WINDOWS.items():
        values = (getattr(request, name), getattr(questionnaire, name), default)
        given[name] = next(one for one in values if one is not None)
    return AskOptions(
        queries=(),
        merging_alpha=float(config.generate.merging_alpha if alpha is None else alpha),
        ask_silence=request.ask_silence,
        **given,
        named=lambda name: f"--{name.replace('_', '-')}",
    )


def _shown(row: SurveyRow) -> str:
    """The answers about a window in a line, with how sure they are."""
    from NatureLM.results.rows import value_text

    if not row.answers:
        return row.shown
    sure: Mapping[str, Any] = row.confidences or {}
    said: Mapping[str, Any] = row.said or {}
    parts = []
    for name, value in row.answers.items():
        text = f"{said[name]!r}?" if name in said else value_text(value) or "None"
        parts.append(f"{name}: {text}" + (f" {sure[name]:.2f}" if name in sure else ""))
    return "; ".join(parts)


def _goodbye(windows: int, output: AnyPath) -> str:
    if not windows:
        return "Stopped before the first answer; nothing was written."
    return f"Stopped. {windows} windows are answered in {output}; {RESUMES}"
