"""Runs of `naturelm infer` and `survey`, and what works them off.

That is this process (`plain`), or Ray Data on many machines (`--engine ray`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from NatureLM.cli import options as of
from NatureLM.cli.errors import RESUMES, SOME_FAILED, stop_message
from NatureLM.cli.progress import RunProgress
from NatureLM.cli.recordings import FieldRecordings, count_windows, finish, note_what_was_there
from NatureLM.errors import UsageError
from NatureLM.progress import say
from NatureLM.storage import AnyPath

if TYPE_CHECKING:
    from NatureLM.distributed.cluster import RayOptions
    from NatureLM.distributed.flow import Todo
    from NatureLM.inference.windows import AskOptions
    from NatureLM.results.parts import PartsStore
    from NatureLM.results.store import WindowStore
    from NatureLM.teach.ask import TaughtPipeline

ENGINES = ("plain", "ray")
_OF_RAY = ("ray_address", "workers", "gpus", "block_seconds")
_OF_LANGUAGE_MODEL = (
    *("query", "adapter", "merging_alpha", "quantize", "max_memory", "cache_dir"),
    *("species_list", "mode"),
)


class Engine(NamedTuple):
    """What answers: its part of the settings, the model's revisions, and the work itself.

    results: what comes of recordings that the store has no answers of
    unparsed: how many answers could not be parsed, by column
    """

    settings: Mapping[str, Any]
    revisions: Mapping[str, str]
    results: Callable[[Any], Iterator[Any]]
    unparsed: Counter[str]


@dataclass(frozen=True)
class Work:
    """A run: all that has no answer yet is asked, stored and shown.

    request: the options of the command
    output: file, or folder of parts, for the answers
    formats: of the tables beside them
    settings, about: what changes the answers, as far as it is known without the model, and what the
        record of the run says besides
    rows_of_a_window: how many rows a window has
    unit, stopped: what a row is, and what is said of rows where the run was stopped
    legend: lines above the answers
    first_lines: lines before the model is loaded
    shown: a row as it is shown
    """

    request: of.RecordingOptions
    output: AnyPath
    formats: Sequence[str]
    asked: AskOptions
    field: FieldRecordings
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    rows_of_a_window: int
    unit: str
    stopped: str
    legend: Sequence[str]
    first_lines: Sequence[str]
    shown: Callable[[Any], str]

    def run(self, engine: Callable[[], AbstractContextManager[Engine]]) -> int:
        """The exit code. Raises UsageError for an output that holds other answers, before `engine`
        makes what answers."""
        settings = {**self.settings, **self.field.settings}
        progress = RunProgress(
            len(self.field.recordings),
            shows_answers=not self.request.quiet,
            legend=self.legend,
            unit=self.unit,
        )
        with open_store(self.request, self.output) as store:
            store.check(settings)
            store.context_of, store.renews_context = self.field.context_of, self.field.has_tables
            with stop_message(lambda: self._goodbye(store)):
                for line in self.first_lines:
                    say(line)
                with engine() as made:
                    self._ask(made, settings, store, progress)
                progress.summary(store.answers, self.output)
                for name, count in made.unparsed.items():
                    what = f"{count} answers could not be parsed"
                    say(f"{name}: {what}; they are kept as they were said")
                self.field.say_what_is_not_known()
                finish(store, self.formats, self.request.per_recording)
        return SOME_FAILED if progress.errors else 0

    def _ask(
        self, engine: Engine, settings: dict[str, Any], store: WindowStore, progress: RunProgress
    ) -> None:
        from NatureLM.inference.windows import RecordingError
        from NatureLM.results.rows import RunSettings, SurveyRow

        settings |= engine.settings
        about = {**self.about, **self.field.listed.asked}
        made_with = RunSettings(settings, about, revisions=engine.revisions)
        resumed = store.begin(made_with, self.field.recordings)
        note_what_was_there(resumed, self.output)
        expected = count_windows(self.field, self.asked) * self.rows_of_a_window
        with progress.working(expected - resumed.answers):
            for made in engine.results(store):
                if isinstance(made, RecordingError):
                    store.add_error(made.audio_path, made.error, self.asked.merging_alpha)
                    progress.failed(made.error)
                    continue
                is_survey = isinstance(made, SurveyRow)
                if store.add_survey(made) if is_survey else store.add_answer(made):
                    progress.row(
                        *(made.audio_path, made.start, made.end, self.shown(made)),
                        note=made.note,
                        asked=len(made.answers) if is_survey else made.asked,
                    )

    def _goodbye(self, store: WindowStore) -> str:
        if not store.answers:
            return "Stopped before the first answer; nothing was written."
        return f"Stopped. {store.answers} {self.stopped} {self.output}; {RESUMES}"


def ray_options(request: of.ArchiveOptions) -> RayOptions | None:
    """How Ray Data is to spread the work; None where it is to have no part in it.

    Raises UsageError for values that are not allowed, and where Ray is not installed.
    """
    of.check_choice("--engine", request.engine, ENGINES)
    given = {name: getattr(request, name) for name in _OF_RAY if getattr(request, name) is not None}
    if request.engine == "plain":
        if given:
            name = of.option_name(next(iter(given)))
            raise UsageError(f"{name} is for --engine ray, and the engine is plain")
        return None
    from NatureLM.distributed.cluster import RayOptions, check_ray

    given["address"] = given.pop("ray_address", None)
    made = RayOptions(**given)
    check_ray()
    return made


def answers_of(request: Any, answers: AnyPath) -> AnyPath:
    """Where the answers go: the file itself, or, with Ray, the folder of parts beside it.

    Raises UsageError for parts that are not of this machine.
    """
    from NatureLM.results.parts import SUFFIX

    if request.engine != "ray":
        return answers
    if not isinstance(answers, Path):
        raise UsageError(
            f"--output-path {answers}: with --engine ray the command that gives out the work "
            "writes the answers, on a disk of its own: give a folder there, and copy it at the end"
        )
    return answers.with_suffix(SUFFIX)


def open_store(request: Any, answers: AnyPath) -> WindowStore:
    """What keeps the answers, opened and locked; see `answers_of`."""
    from NatureLM.results import uploads
    from NatureLM.results.parts import PartsStore

    if request.engine == "ray" and isinstance(answers, Path):
        return PartsStore(answers, overwrite=request.overwrite)
    return uploads.open_store(answers, overwrite=request.overwrite)


@contextmanager
def on_ray(
    options: RayOptions,
    device: str,
    make: Callable[[], Any],
    asked: AskOptions,
    field: FieldRecordings,
) -> Iterator[Engine]:
    """Models on a cluster, which are asked what `asked` says about the recordings.

    make: makes a model there
    """
    from NatureLM.distributed.cluster import connected
    from NatureLM.distributed.flow import Job, described

    with connected(options, device) as cluster:
        about = described(cluster, make)
        job = Job(make, asked.cutting(about["sample_rate"]), options.block_seconds)
        unparsed = Counter[str]()

        def results(store: PartsStore) -> Iterator[Any]:
            from NatureLM.distributed.flow import pieces

            todo = _todo(field, asked.queries, store)
            told: set[str] = set()
            for piece in pieces(cluster, job, todo, about):
                for name, now in piece.identities.items():
                    store.know(name, now)
                yield from (one for one in piece.items if not _is_told(one, told))
                for name, windows in piece.ended.items():
                    store.ended(name, windows)
                store.end_part()
                unparsed.update(piece.unparsed)

        yield Engine(about["settings"], about["revisions"], results, unparsed)


def taught_options(request: Any) -> tuple[str, AskOptions]:
    """The model that a classifier needs, and what is asked of it; see `teach.ask`.

    Raises UsageError for options that are for the language model, and for what is no classifier.
    """
    from NatureLM.teach.ask import ask_options
    from NatureLM.teach.classifier import read_classifier

    request.check_named()
    given = [name for name in _OF_LANGUAGE_MODEL if getattr(request, name, None) not in (None, [])]
    given += [name for name in ("several", "ask_silence") if getattr(request, name, False)]
    if given:
        name = of.option_name(given[0])
        raise UsageError(f"{name} is for the language model, which a --classifier does not ask")
    classifier = read_classifier(request.classifier)
    request.check()
    channel = str(classifier.hears.channel) if request.channel == "mean" else request.channel
    options = ask_options(
        classifier,
        channel=int(channel) if channel.isdecimal() else channel,
        window_length_seconds=request.window_length_seconds,
        hop_length_seconds=request.hop_length_seconds,
        time_expansion=request.time_expansion,
        top_k=getattr(request, "top_k", 3),
        min_confidence=of.min_confidence(getattr(request, "min_confidence", "0.0")),
        named=of.option_name,
    )
    return request.model or classifier.hears.model, options


def taught_engine(
    request: Any, asked: AskOptions, field: FieldRecordings, spread: RayOptions | None
) -> AbstractContextManager[Engine]:
    """A classifier that answers: in this process, or on a cluster."""
    load = partial(
        load_taught,
        request.classifier,
        asked,
        model=request.model,
        batch=request.batch_size,
        index=getattr(request, "index", None),
        device=request.device,
        dtype=request.dtype,
        **{name: value for name, value in request.pinned.items() if value is not None},
    )
    if spread is not None:
        if getattr(request, "index", None) is not None:
            raise UsageError("--index is read by one process: leave out --engine ray")
        from NatureLM.distributed.askers import TaughtAsker

        return on_ray(spread, request.device, partial(TaughtAsker, load, asked), asked, field)
    pipeline = load()
    of.check_window(asked.window_length_seconds, pipeline.model, pipeline.model.name_or_path)
    pipeline.check(asked)
    results = partial(pipeline.unanswered, field.recordings, asked, claims=field.claims)
    return nullcontext(Engine(pipeline.settings(asked), pipeline.revisions, results, Counter()))


def load_taught(folder: Path, asked: AskOptions, **options: Any) -> TaughtPipeline:
    """A classifier with its encoder, ready to be asked."""
    of.import_model()
    from NatureLM.teach import ask

    return ask.load_taught(folder, asked, **options)


def _is_told(item: Any, told: set[str]) -> bool:
    """Whether it is that nothing says when or where a recording was made, and this was said: each
    piece of a recording says it once."""
    from NatureLM.inference.windows import RecordingError

    if not isinstance(item, RecordingError) or item.error.kind != "UnknownContext":
        return False
    is_told = item.audio_path in told
    told.add(item.audio_path)
    return is_told


def _todo(field: FieldRecordings, queries: Sequence[str], store: PartsStore) -> list[Todo]:
    """The recordings that are not answered whole, and what is known of them."""
    from NatureLM.distributed.flow import Todo
    from NatureLM.inference.windows import Recording

    todo = []
    for number, path in enumerate(field.recordings):
        if store.is_whole(path):
            continue
        entry = field.listed.entries.get(path)
        todo.append(
            Todo(
                Recording(number, str(path), path, tuple(queries), field.claims_of(path)),
                done=frozenset(store.answered(path)),
                seconds=None if entry is None else entry.seconds,
                context=field.clock.of(path) if field.needs_context else None,
            )
        )
    return todo
