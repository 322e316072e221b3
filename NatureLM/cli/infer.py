"""Questions about recordings: `naturelm infer`, whose answers are JSON lines, and the page of
`naturelm inference-app`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import Field, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from NatureLM.cli import options as of
from NatureLM.cli.engines import (
    Engine,
    answers_of,
    on_ray,
    open_store,
    ray_options,
    taught_engine,
    taught_options,
)
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
from NatureLM.errors import UsageError
from NatureLM.progress import say
from NatureLM.storage import AnyPath

if TYPE_CHECKING:
    from NatureLM.config import Config
    from NatureLM.distributed.cluster import RayOptions
    from NatureLM.inference.pipeline import Pipeline
    from NatureLM.inference.windows import AskOptions, WindowResult
    from NatureLM.results.store import WindowStore
    from NatureLM.species import SpeciesList

logger = logging.getLogger(__name__)
_KEPT_BYTES = 1 << 24  # of embeddings: no window comes again after its questions, one by one
_INPUT = "What to ask"
_OUTPUT = "Output"
_SPECIES = "Species lists and confidence"


@dataclass(frozen=True)
class InferRequest(of.ExperimentOptions):
    """The options of `naturelm infer`, in the order of its help."""

    recordings: list[AnyPath] | None = of.argument(
        None, "Recordings or folders, as with --audio-path."
    )
    audio_path: list[AnyPath] | None = of.option(
        None,
        "A recording, or a folder with recordings. May be given several times.",
        _INPUT,
        *("--audio-path", "--audio", "-a"),
    )
    query: list[str] | None = of.option(
        None, "What to ask of every window. May be given several times.", _INPUT, "--query", "-q"
    )
    model: str | None = of.OPTIONAL_MODEL_NAME
    revision: str | None = of.REVISION
    weights_hash: str | None = of.WEIGHTS_HASH
    adapter: str | None = of.ADAPTER
    merging_alpha: float | None = of.option(
        None,
        "Share of the adapter: 0 is the base language model, 1 the adapted one.",
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
        None, "Length of a window.", of.AUDIO, show_default="10, or as the classifier was taught"
    )
    hop_length_seconds: float | None = of.option(
        None,
        "From one start to the next.",
        of.AUDIO,
        show_default="10, or as the classifier was taught",
    )
    channel: str = of.CHANNEL
    time_expansion: float | None = of.option(
        None,
        "Slow the sound down so many times; 10 makes bats audible. Times stay true.",
        of.AUDIO,
        show_default="1, or as the classifier was taught",
    )
    ask_silence: bool = of.ASK_SILENCE
    manifest: AnyPath | None = of.MANIFEST
    shard: str | None = of.SHARD
    engine: str = of.ENGINE
    ray_address: str | None = of.RAY_ADDRESS
    workers: int | None = of.option(
        None,
        "With --engine ray: models at once. In an experiment: threads that decode ahead.",
        of.ARCHIVE,
        show_default="one for each share of a GPU, else one a machine; of an experiment 2",
    )
    gpus: float | None = of.GPUS
    block_seconds: float | None = of.BLOCK_SECONDS
    from_table: Path | None = of.FROM_TABLE
    deployments: Path | None = of.DEPLOYMENTS
    file_times: Path | None = of.FILE_TIMES
    format_name: list[str] | None = of.FORMATS
    per_recording: bool = of.PER_RECORDING
    output_path: AnyPath | None = of.option(
        None,
        "File for the answers, one JSON line for each (of an experiment: a folder). One that "
        "exists is resumed.",
        _OUTPUT,
        show_default="inference_output.jsonl",
    )
    overwrite: bool = of.option(False, "Start the output file anew.", _OUTPUT)
    quiet: bool = of.option(False, "Do not show the answers.", _OUTPUT)
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
    min_confidence: str = of.MIN_CONFIDENCE
    classifier: Path | None = of.CLASSIFIER
    index: Path | None = of.option(
        None,
        "With --classifier: index that `naturelm embed` made. Recordings in it are not heard anew.",
        _SPECIES,
    )

    @property
    def audio_paths(self) -> list[AnyPath]:
        """All recordings and folders that were named."""
        return [*(self.recordings or ()), *(self.audio_path or ())]

    @property
    def output(self) -> AnyPath:
        """The file, or the folder of parts, for the answers."""
        output = self.output_path or Path("inference_output.jsonl")
        return answers_of(self, output_of_shard(output, self.shard))

    def in_vain(self) -> list[str]:
        """The options that were given and mean nothing in an experiment."""
        names = ["--audio-path"] if self.audio_paths else []
        used = {one.name for one in fields(of.ExperimentOptions)} - {"merging_alpha"}
        used |= {"quiet", "recordings", "audio_path"}
        given = [one for one in fields(self) if getattr(self, one.name) not in (one.default, [])]
        return [*names, *(_declared_name(one) for one in given if one.name not in used)]


def _declared_name(declared: Field[Any]) -> str:
    """What an option is called on the command line."""
    names = declared.metadata["option"].param_decls or (_option(declared.name),)
    return str(names[0])


def infer(request: InferRequest) -> None:
    """Ask questions about recordings: one answer for each window and question.

    naturelm infer --audio-path assets --query "Caption the audio"

    A configuration with a section `extended` is an experiment: its samples come from --data-path.

    A run that was stopped goes on where it stopped when the same command is given again.
    """
    config = request.load_config()
    if config.extended is not None:
        from NatureLM.cli import experiment

        experiment.refuse_options(request.cfg_path, request.in_vain())
        raise typer.Exit(experiment.run(request, config, command="naturelm infer"))
    for name in ("data_path", "dry_run"):
        if getattr(request, name) not in (None, False):
            raise UsageError(
                f"{_option(name)} is for experiments, and "
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
    from NatureLM.inference.windows import RecordingError
    from NatureLM.models.registry import EMBEDDED
    from NatureLM.results.rows import RunSettings
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
    formats = checked_formats(request.format_name or (), working_path(request.output))
    field = FieldRecordings.read(request, asked.queries)
    recordings = field.recordings
    if not recordings:
        return 0
    settings = {
        **asked.settings(model=model, adapter=request.adapter, generate=config.generate),
        **field.settings,
    }
    with open_store(request, request.output) as store:
        store.check(settings)
        store.context_of, store.renews_context = field.context_of, field.has_tables
        many = [f"[{n}] {query}" for n, query in enumerate(asked.queries, start=1)]
        shown = RunProgress(
            len(recordings), shows_answers=not request.quiet, legend=many if many[1:] else ()
        )
        with stop_message(lambda: _goodbye(store, request.output)):
            hint = " (the embedded model; --model naturelm-audio is the published one)"
            say(f"Model: {model}{hint if model == EMBEDDED else ''}")
            with _engine(request, config, asked, field, spread) as engine:
                settings.update(engine.settings)
                about = {**names, **field.listed.asked}
                resumed = store.begin(
                    RunSettings(settings, about, revisions=engine.revisions), recordings
                )
                note_what_was_there(resumed, request.output)
                expected = count_windows(field, asked) * len(asked.queries)
                with shown.working(expected - resumed.answers):
                    for made in engine.results(store):
                        if isinstance(made, RecordingError):
                            store.add_error(made.audio_path, made.error, asked.merging_alpha)
                            shown.failed(made.error)
                        elif store.add_answer(made):
                            shown.row(
                                *(made.audio_path, made.start, made.end, _shown(made, asked)),
                                note=made.note,
                                asked=made.asked,
                            )
            shown.summary(store.answers, request.output)
            field.say_what_is_not_known()
            finish(store, formats, request.per_recording)
    return SOME_FAILED if shown.errors else 0


@contextmanager
def _engine(
    request: InferRequest,
    config: Config,
    asked: AskOptions,
    field: FieldRecordings,
    spread: RayOptions | None,
) -> Iterator[Engine]:
    """What answers: the model in this process, or models on a cluster."""
    if request.classifier is not None:
        with taught_engine(request, asked, field, spread) as engine:
            yield engine
        return
    if spread is not None:
        from NatureLM.distributed.askers import AnswerAsker

        load = partial(load_pipeline, request, config, asked)
        make = partial(AnswerAsker, load, asked, batch_size=request.batch_size)
        with on_ray(spread, request.device, make, asked, field) as engine:
            yield engine
        return
    pipeline = load_pipeline(request, config, asked)

    def results(store: WindowStore) -> Iterator[Any]:
        return pipeline.unanswered(
            field.recordings,
            asked,
            store,
            batch_size=request.batch_size,
            fold=True,
            claims=field.claims,
            fill=field.fill,
        )

    yield Engine(pipeline.settings(asked), pipeline.revisions, results, Counter())


def load_pipeline(request: InferRequest, config: Config, asked: AskOptions) -> Pipeline:
    """The model, ready to be asked. (Tests put another one here.)"""
    model = request.load_model(config)
    from NatureLM.inference.pipeline import Pipeline

    of.check_window(asked.window_length_seconds, model, model.name_or_path)
    return Pipeline(
        model,
        config=config,
        cache_dir=request.cache_dir,
        max_memory=of.memory_size(request.max_memory),
        kept_bytes=_KEPT_BYTES,
    )


def _shown(result: WindowResult, asked: AskOptions) -> str:
    """An answer as it is shown: with the number of its question, and of a list how sure it is."""
    queries = asked.queries
    which = f"[{queries.index(result.query) + 1}] " if len(queries) > 1 else ""
    is_free = result.confidence is None or asked.mode == "generate"  # that is in the file
    return f"{which}{result.shown}{'' if is_free else f'  {result.confidence:.2f}'}"


def _goodbye(store: WindowStore, output: AnyPath) -> str:
    if not store.answers:
        return "Stopped before the first answer; nothing was written."
    return f"Stopped. {store.answers} answers are in {output}; {RESUMES}"


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
    from NatureLM.util import check_range

    of.check_named(request)
    species = _species(request, model)
    mode, labels, queries = _answers(request, species)
    if not queries:
        raise UsageError('nothing to ask: give a question, such as --query "Caption the audio"')
    if not all(query.strip() for query in queries):
        raise UsageError("--query is empty: give a question")
    if request.batch_size is not None:
        check_range("--batch-size", request.batch_size, 1, of.MAX_BATCH)
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
    asked = AskOptions(**given, named=_option)
    of.check_device(request.device, request.dtype, request.quantize)
    of.memory_size(request.max_memory)
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


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


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
    check_answers(mode, request.several, request.top_k, sure, _option)
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


# The page

_PAGE = "Page"


def inference_app(
    *,
    cfg_path: Path | None = of.CFG_PATH,
    model: str | None = of.OPTIONAL_MODEL_NAME,
    revision: str | None = of.REVISION,
    weights_hash: str | None = of.WEIGHTS_HASH,
    merging_alpha: float | None = of.option(
        None,
        "Where the page's slider stands at first: 0 is the base language model, 1 the adapted one.",
        of.MODEL,
        show_default="generate.merging_alpha of the configuration, 1.0",
    ),
    device: str = of.DEVICE,
    dtype: str = of.DTYPE,
    quantize: str | None = of.QUANTIZE,
    options: list[str] | None = of.OVERRIDES,
    host: str = of.option(
        "127.0.0.1",
        "Address to listen at; 0.0.0.0 lets others in the network open the page.",
        _PAGE,
    ),
    port: int = of.option(5001, "Port to listen at.", _PAGE, min=1, max=65535),
    assets_dir: Path | None = of.option(
        None,
        "Folder of sample recordings that the page offers.",
        _PAGE,
        show_default="assets, where it is",
    ),
    runs_dir: Path = of.option(
        Path("runs"),
        "Folder of jobs and experiments; all that is in it can be seen on the page.",
        _PAGE,
    ),
    share: bool = of.option(
        False,
        "Let whoever in the internet has the printed address open the page, through a server of "
        "Gradio's makers, which sees what is sent.",
        _PAGE,
    ),
    allow_host: list[str] | None = of.option(
        None,
        "Name of a reverse proxy that visitors reach the page by, such as birds.example.org. May "
        "be repeated.",
        _PAGE,
        metavar="NAME",
    ),
    token: str | None = of.option(
        None,
        "Secret that opens the page, as a part of its address. Better in NATURELM_TOKEN, as others "
        "on the computer see what a command is given.",
        _PAGE,
        show_default="a new one wherever others reach the page",
    ),
    no_token: bool = of.option(
        False, "Let everybody who reaches the page open it, without a token.", _PAGE
    ),
    auth: Path | None = of.option(
        None,
        "File with name:password on each line, of those who may open the page.",
        _PAGE,
        metavar="FILE",
    ),
    disk_quota: float = of.option(
        80.0,
        "GB that files of all visitors may have on the disk together, half of it those of one; "
        "jobs are not counted. Whoever is idle for longest goes where it is full.",
        _PAGE,
        min=0.01,
    ),
) -> None:
    """Open a page on which recordings can be asked about, in the browser, offline.

    naturelm inference-app --cfg-path configs/inference.yml
    """
    from NatureLM.app.settings import (
        AppSettings,
        Limits,
        folder_of_samples,
        need_gradio,
        read_people,
    )
    from NatureLM.config import load_config
    from NatureLM.util import check_place
    from NatureLM.web.guard import token_for

    of.check_choice("--dtype", dtype, of.DTYPES)
    if quantize is not None:
        of.check_choice("--quantize", quantize, of.QUANTIZATIONS)
    check_place(runs_dir, "--runs-dir", folder=True)
    people, hosts = read_people(auth), tuple(allow_host or ())
    token = token_for(host, hosts, share=share, given=token, none=no_token, people=bool(people))
    need_gradio()
    from NatureLM.app.page import serve

    settings = AppSettings(
        model=model,
        revision=revision,
        weights_hash=weights_hash,
        config=load_config(cfg_path, options or []),
        alpha=merging_alpha,
        device=device,
        dtype=dtype,
        quantize=quantize,
        host=host,
        port=port,
        share=share,
        assets_dir=folder_of_samples(assets_dir),
        runs_dir=runs_dir,
        hosts=hosts,
        token=token,
        people=people,
        limits=Limits(disk_bytes=round(disk_quota * 1e9)),
    )
    serve(settings, say)
