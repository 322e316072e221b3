"""Questionnaires about recordings: `naturelm survey`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import typer

from NatureLM.cli import options as of
from NatureLM.cli.runs import (
    Engine,
    FieldRecordings,
    Work,
    answers_of,
    on_ray,
    output_of_shard,
    ray_options,
)
from NatureLM.storage import AnyPath

if TYPE_CHECKING:
    from NatureLM.cli.infer import InferRequest
    from NatureLM.config import Config
    from NatureLM.distributed.cluster import RayOptions
    from NatureLM.inference.pipeline import Fill
    from NatureLM.inference.windows import AskOptions
    from NatureLM.results.rows import SurveyRow
    from NatureLM.survey.questionnaire import Questionnaire
    from NatureLM.survey.run import Survey

logger = logging.getLogger(__name__)
ANSWERS = "survey.jsonl"
_KEPT_BYTES = 1 << 28  # of embeddings: those of a block are asked about in several waves
_OF_WINDOWS = {
    "window_length_seconds": 10.0,
    "hop_length_seconds": 10.0,
    "time_expansion": 1.0,
    "channel": "mean",
}
"""What the questionnaire may say where the command line does not, and the default."""


def _window_option(declared: Any, otherwise: object) -> Any:
    shown = f"as the questionnaire says, else {otherwise}"
    return of.but(declared, default=None, show_default=shown)


def _questionnaires() -> str:
    from NatureLM.survey import preset_names

    return f"FILE|{'|'.join(preset_names())}"


@dataclass(frozen=True)
class SurveyRequest(of.RecordingOptions, of.AnsweringOptions):
    """The options of `naturelm survey`."""

    ORDER: ClassVar[tuple[Any, ...]] = (
        *("questions", "recordings", "audio_path", of.ArchiveOptions, "from_table"),
        *(of.AnsweringOptions, of.WindowOptions, "ask_silence", of.TableOptions),
    )
    questions: str = of.argument(
        ..., "Questionnaire: a YAML file, or the name of one that comes along.", _questionnaires
    )
    audio_path: list[AnyPath] | None = of.but(
        of.AUDIO_PATH,
        help="A recording, or a folder with recordings, such as a memory card. May be given "
        "several times.",
    )
    merging_alpha: float | None = of.but(
        of.MERGING_ALPHA,
        help="Share of the adapter for columns that do not name their own: 0 is the base language "
        "model, 1 the adapted one.",
    )
    window_length_seconds: float | None = _window_option(of.WINDOW_LENGTH, 10)
    hop_length_seconds: float | None = _window_option(of.HOP_LENGTH, 10)
    channel: str | None = _window_option(of.CHANNEL, "mean")
    time_expansion: float | None = _window_option(of.TIME_EXPANSION, 1)
    output_path: AnyPath = of.option(
        Path("survey"),
        "Folder for the answers and the tables. One that exists is resumed.",
        "Output",
    )
    classifier: Path | None = of.option(
        None,
        "Folder of a classifier that `naturelm teach` made: it answers in place of a "
        "questionnaire, which is not named then.",
        "What to ask",
        metavar="FOLDER",
    )

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
    from NatureLM.cli.answers import check_tables
    from NatureLM.results.uploads import working_path
    from NatureLM.survey.run import known_settings

    spread = ray_options(request)
    formats = list(check_tables(working_path(request.answers), request.format_name or ["csv"]))
    asked = ask_options(request, questionnaire, config)
    field = FieldRecordings.read(request, [one.question for one in questionnaire.columns])
    if not field.recordings:
        return 0
    model = of.model_name(request.model, config)
    lines = [f"Model: {model}. Questionnaire: {questionnaire.title or questionnaire.source}"]
    if questionnaire.weights and any(
        one.merging_alpha is not None for one in questionnaire.columns
    ):
        lines.append(f"Its values of α are meant for {questionnaire.weights}")
    latin = questionnaire.scientific_names
    work = Work(
        request=request,
        output=request.answers,
        formats=formats,
        asked=asked,
        field=field,
        settings=known_settings(
            questionnaire, asked, model=model, adapter=request.adapter, generate=config.generate
        ),
        about={"scientific_names": latin} if latin else {},
        rows_of_a_window=1,
        unit="windows",
        stopped="windows are answered in",
        legend=[f"{one.name}: {one.question}" for one in questionnaire.columns],
        first_lines=lines,
        shown=_shown,
    )
    return work.run(lambda: _engine(request, config, questionnaire, asked, field, spread))


def _engine(
    request: SurveyRequest,
    config: Config,
    questionnaire: Questionnaire,
    asked: AskOptions,
    field: FieldRecordings,
    spread: RayOptions | None,
) -> AbstractContextManager[Engine]:
    """What answers: the model in this process, or models on a cluster."""
    load = partial(load_survey, request, config, questionnaire, asked)
    if spread is not None:
        from NatureLM.distributed.flow import SurveyAsker

        return on_ray(spread, request.device, partial(SurveyAsker, load), asked, field)
    from NatureLM.inference.windows import recordings_of

    survey = load(field.fill)
    results = partial(survey.rows, recordings_of(field.recordings, (), field.claims))
    return nullcontext(Engine(survey.settings(), survey.revisions, results, survey.unparsed))


def load_survey(
    request: SurveyRequest,
    config: Config,
    questionnaire: Questionnaire,
    asked: AskOptions,
    fill: Fill | None,
) -> Survey:
    """The questionnaire and the model, ready to be asked. (Tests put another one here.)"""
    pipeline = request.load_pipeline(config, asked.window_length_seconds, _KEPT_BYTES)
    from NatureLM.survey.run import Survey

    return Survey(pipeline, questionnaire, asked, batch_size=request.batch_size, fill=fill)


def ask_options(request: SurveyRequest, questionnaire: Questionnaire, config: Config) -> AskOptions:
    """Windows and α, of the command line, the questionnaire or by default, checked."""
    from NatureLM.inference.windows import AskOptions

    request.check_named()
    request.check()
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
        named=of.option_name,
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
