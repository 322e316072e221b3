"""Questions about recordings: `naturelm infer`, whose answers are JSON lines."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import Field, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import typer

from NatureLM.cli import experiment
from NatureLM.cli import options as of
from NatureLM.cli.runs import (
    Engine,
    FieldRecordings,
    Work,
    answers_of,
    on_ray,
    output_of_shard,
    ray_options,
    taught_engine,
    taught_options,
)
from NatureLM.errors import UsageError
from NatureLM.storage import AnyPath

if TYPE_CHECKING:
    from NatureLM.config import Config
    from NatureLM.distributed.cluster import RayOptions
    from NatureLM.inference.pipeline import Pipeline
    from NatureLM.inference.windows import AskOptions, WindowResult
    from NatureLM.species import SpeciesList

logger = logging.getLogger(__name__)
_KEPT_BYTES = 1 << 24  # of embeddings: no window comes again after its questions, one by one
_SPECIES = "Species lists and confidence"
_AS_TAUGHT = "or as the classifier was taught"


@dataclass(frozen=True)
class InferRequest(of.RecordingOptions, of.AnsweringOptions, experiment.ExperimentOptions):
    """The options of `naturelm infer`."""

    ORDER: ClassVar[tuple[Any, ...]] = (
        *("recordings", "audio_path", "query", of.AnsweringOptions, of.WindowOptions),
        *("ask_silence", of.ArchiveOptions, "from_table", of.TableOptions),
        *("output_path", "overwrite", "quiet"),
    )
    query: list[str] | None = of.option(
        None,
        "What to ask of every window. May be given several times.",
        "What to ask",
        *("--query", "-q"),
    )
    window_length_seconds: float | None = of.but(
        of.WINDOW_LENGTH, default=None, show_default=f"10, {_AS_TAUGHT}"
    )
    hop_length_seconds: float | None = of.but(
        of.HOP_LENGTH, default=None, show_default=f"10, {_AS_TAUGHT}"
    )
    channel: str = of.CHANNEL
    time_expansion: float | None = of.but(
        of.TIME_EXPANSION, default=None, show_default=f"1, {_AS_TAUGHT}"
    )
    workers: int | None = of.option(
        None,
        "With --engine ray: models at once. In an experiment: threads that decode ahead.",
        of.ARCHIVE,
        show_default="one for each share of a GPU, else one a machine; of an experiment 2",
    )
    output_path: AnyPath | None = of.option(
        None,
        "File for the answers, one JSON line for each (of an experiment: a folder). One that "
        "exists is resumed.",
        of.OUTPUT,
        show_default="inference_output.jsonl",
    )
    overwrite: bool = of.option(False, "Start the output file anew.", of.OUTPUT)
    species_list: str | None = of.option(
        None,
        "Species that may be answered: a file, names separated by commas, or a preset such as "
        "naturelm-tiny or cbi.",
        _SPECIES,
        metavar="FILE|NAMES|PRESET",
    )
    mode: str | None = of.option(
        None,
        "Say anything, say nothing but the list, or score every species of the list.",
        _SPECIES,
        metavar="generate|constrained|score",
        show_default="score with a species list, else generate",
    )
    species_names: str = of.option(
        "common",
        "The names to take where a list has both.",
        _SPECIES,
        metavar="common|scientific",
    )
    several: bool = of.option(
        False,
        "With --mode constrained: an answer may be several species, separated by commas.",
        _SPECIES,
    )
    top_k: int = of.option(3, "Species that are named, the answer included.", _SPECIES)
    min_confidence: str = of.option(
        "0.0",
        "Below it the answer is None: a number, or thresholds of each species, at which it is "
        "right with probability 0.95 or another (`naturelm calibrate` of reviewed clips makes "
        "them).",
        _SPECIES,
        metavar="NUMBER|FILE|FILE:PROBABILITY",
    )
    classifier: Path | None = of.option(
        None,
        "Folder of a classifier that `naturelm teach` made: it answers, at the speed of the audio "
        "encoder, in place of the language model.",
        _SPECIES,
        metavar="FOLDER",
    )
    index: Path | None = of.option(
        None,
        "With --classifier: index that `naturelm embed` made. Recordings in it are not heard anew.",
        _SPECIES,
    )

    @property
    def output(self) -> AnyPath:
        """The file, or the folder of parts, for the answers."""
        output = self.output_path or Path("inference_output.jsonl")
        return answers_of(self, output_of_shard(output, self.shard))

    def in_vain(self) -> list[str]:
        """The options that were given and mean nothing in an experiment."""
        names = ["--audio-path"] if self.audio_paths else []
        used = {one.name for one in fields(experiment.ExperimentOptions)} - {"merging_alpha"}
        used |= {"quiet", "recordings", "audio_path"}
        declared = {one.name: one for one in fields(self)}
        given = [declared[name] for name in of.in_order(InferRequest) if name not in used]
        given = [one for one in given if getattr(self, one.name) not in (one.default, [])]
        return [*names, *map(_declared_name, given)]


def _declared_name(declared: Field[Any]) -> str:
    """What an option is called on the command line."""
    names = declared.metadata["option"].param_decls or (of.option_name(declared.name),)
    return str(names[0])


def infer(request: InferRequest) -> None:
    """Ask questions about recordings: one answer for each window and question.

    naturelm infer --audio-path assets --query "Caption the audio"

    A configuration with a section `extended` is an experiment: its samples come from --data-path.

    A run that was stopped goes on where it stopped when the same command is given again.
    """
    config = request.load_config()
    if config.extended is not None:
        experiment.refuse_options(request.cfg_path, request.in_vain())
        raise typer.Exit(experiment.run(request, config, command="naturelm infer"))
    for name in ("data_path", "dry_run"):
        if getattr(request, name) not in (None, False):
            raise UsageError(
                f"{of.option_name(name)} is for experiments, and "
                f"{request.cfg_path or 'the built-in configuration'} has no section `extended`; "
                "recordings are named with --audio-path, and `beans run` asks every sample its own "
                "question"
            )
    raise typer.Exit(run(request, config))


def run(request: InferRequest, config: Config) -> int:
    """Ask all that has no answer yet; the exit code.

    What cannot work is refused before the model is loaded: recordings that are not there, an output
    that cannot be written or holds other answers.
    """
    from NatureLM.cli.answers import check_tables
    from NatureLM.models.registry import EMBEDDED
    from NatureLM.results.uploads import working_path

    spread = ray_options(request)
    model = of.model_name(request.model, config)
    if request.index is not None and (request.classifier is None or request.from_table):
        raise UsageError("--index goes with --classifier, and with whole recordings only")
    if request.classifier is None:
        asked, names = ask_options(request, config, model)
    else:
        model, asked = taught_options(request)
        names = {}
    formats = list(check_tables(working_path(request.output), request.format_name or ()))
    field = FieldRecordings.read(request, asked.queries)
    if not field.recordings:
        return 0
    many = [f"[{n}] {query}" for n, query in enumerate(asked.queries, start=1)]
    hint = " (the embedded model; --model naturelm-audio is the published one)"
    work = Work(
        request=request,
        output=request.output,
        formats=formats,
        asked=asked,
        field=field,
        settings=asked.settings(model=model, adapter=request.adapter, generate=config.generate),
        about=names,
        rows_of_a_window=len(asked.queries),
        unit="answers",
        stopped="answers are in",
        legend=many if many[1:] else (),
        first_lines=[f"Model: {model}{hint if model == EMBEDDED else ''}"],
        shown=lambda result: _shown(result, asked),
    )
    return work.run(lambda: _engine(request, config, asked, field, spread))


def _engine(
    request: InferRequest,
    config: Config,
    asked: AskOptions,
    field: FieldRecordings,
    spread: RayOptions | None,
) -> AbstractContextManager[Engine]:
    """What answers: the model in this process, or models on a cluster."""
    if request.classifier is not None:
        return taught_engine(request, asked, field, spread)
    load = partial(load_pipeline, request, config, asked)
    if spread is not None:
        from NatureLM.distributed.flow import AnswerAsker

        make = partial(AnswerAsker, load, asked, batch_size=request.batch_size)
        return on_ray(spread, request.device, make, asked, field)
    pipeline = load()
    results = partial(
        pipeline.unanswered,
        field.recordings,
        asked,
        batch_size=request.batch_size,
        fold=True,
        claims=field.claims,
        fill=field.fill,
    )
    return nullcontext(Engine(pipeline.settings(asked), pipeline.revisions, results, Counter()))


def load_pipeline(request: InferRequest, config: Config, asked: AskOptions) -> Pipeline:
    """The model, ready to be asked. (Tests put another one here.)"""
    return request.load_pipeline(config, asked.window_length_seconds, _KEPT_BYTES)


def _shown(result: WindowResult, asked: AskOptions) -> str:
    """An answer as it is shown: with the number of its question, and of a list how sure it is."""
    queries = asked.queries
    which = f"[{queries.index(result.query) + 1}] " if len(queries) > 1 else ""
    is_free = result.confidence is None or asked.mode == "generate"  # that is in the file
    return f"{which}{result.shown}{'' if is_free else f'  {result.confidence:.2f}'}"


# What is asked


def ask_options(
    request: InferRequest, config: Config, model: str
) -> tuple[AskOptions, dict[str, Any]]:
    """What was asked for, checked; and what tables say of its names: the scientific ones.

    model: its name, whose known species a list is compared with

    Raises UsageError that names the option, its value and what is allowed.
    """
    from NatureLM.inference.windows import AskOptions
    from NatureLM.merging.recipe import extrapolation_note

    request.check_named()
    species = _species(request, model)
    mode, labels, queries = _answers(request, species)
    if not queries:
        raise UsageError('nothing to ask: give a question, such as --query "Caption the audio"')
    if not all(query.strip() for query in queries):
        raise UsageError("--query is empty: give a question")
    alpha, channel = request.merging_alpha, request.channel
    if channel != "mean" and not (channel.isdecimal() and int(channel) >= 1):
        raise UsageError(f"--channel is {channel!r}, and it must be mean or a number from 1")
    given: dict[str, Any] = {
        one.name: getattr(request, one.name, None) for one in fields(AskOptions)
    }
    given = {name: value for name, value in given.items() if value is not None}
    given |= {
        "queries": tuple(dict.fromkeys(queries)),
        "merging_alpha": float(config.generate.merging_alpha if alpha is None else alpha),
        "channel": channel if channel == "mean" else int(channel),
        "mode": mode,
        "labels": labels,
        "min_confidence": of.min_confidence(request.min_confidence),
    }
    asked = AskOptions(**given, named=of.option_name)
    request.check()
    note = extrapolation_note(asked.merging_alpha)
    if note is not None:
        logger.warning(note)
    if asked.hop_length_seconds > asked.window_length_seconds:
        logger.warning(
            "--hop-length-seconds %g is longer than a window of %g s: what lies between two "
            "windows is not heard",
            asked.hop_length_seconds,
            asked.window_length_seconds,
        )
    both = {} if species is None else dict(species.scientific)
    return asked, {"scientific_names": both} if both else {}


_LIST_PLACE = "{species_list}"
_MOST_HINTS = 10


def _answers(
    request: InferRequest, species: SpeciesList | None
) -> tuple[Any, tuple[str, ...], list[str]]:
    """Mode, labels and questions, with a question of ours where none was asked about a list."""
    from NatureLM.inference.windows import check_answers
    from NatureLM.species import default_question

    queries = request.query or []
    mode = request.mode or ("generate" if request.species_list is None else "score")
    if species is None and mode in ("constrained", "score"):
        raise UsageError(f"--mode {mode} needs species to choose from: give --species-list")
    sure = of.min_confidence(request.min_confidence)
    check_answers(mode, request.several, request.top_k, sure, of.option_name)
    if species is None:
        return mode, (), queries
    names, kind = species.names, species.kind
    asked = [query.replace(_LIST_PLACE, ", ".join(names)) for query in queries]
    if not asked:
        lists_names = request.several or mode == "generate"
        asked = [default_question(names, kind, lists_names=lists_names)]
        short = asked[0] if len(asked[0]) <= 120 else f"{asked[0][:117]}..."
        logger.warning("asking: %s", short)
    if mode != "generate":
        return mode, names, asked
    if not all(_LIST_PLACE in query for query in queries):
        raise UsageError(
            "--mode generate says anything, so the question has to name the list: write "
            f"{_LIST_PLACE} into --query where it goes, or leave --query out"
        )
    return mode, (), asked


def _species(request: InferRequest, model: str) -> SpeciesList | None:
    """The list of species; notes say how it was read, and what is nearly known."""
    from NatureLM.species import hints, known_names, presets, read_species_list

    prefer: Any = request.species_names
    of.check_choice("--species-names", prefer, ("common", "scientific"))
    if request.species_list is None:
        return None
    species = read_species_list(request.species_list, prefer=prefer, presets=presets())
    found = list(hints(species.names, known_names(model)))
    for text in (*species.notes, *found[:_MOST_HINTS]):
        logger.warning(text)
    if len(found) > _MOST_HINTS:
        logger.warning("and %d more names that are close to known ones", len(found) - _MOST_HINTS)
    return species
