"""Recordings through Ray Data: tasks decode blocks of them, models answer, rows come back.

Recordings are rows with integer ids, in blocks of about as many seconds of sound each. A task
decodes a block and hands its windows on in pieces; an actor with a model takes piece after piece.
What of this is done again after the loss of a worker or a node, Ray decides; what comes of a piece
is the same each time, and who stores it knows what is there.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from NatureLM.audio import AudioError
from NatureLM.audio.decode import probe
from NatureLM.audio.files import Identity, identity
from NatureLM.distributed.cluster import DECODER_CPUS, NO_RAY, Cluster, project_error
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.inference.windows import (
    AskOptions,
    HeardWindows,
    Recording,
    RecordingError,
    RecordingWindow,
    WindowStream,
    filled,
)
from NatureLM.progress import notes_to
from NatureLM.results.rows import bullets, differences
from NatureLM.results.store import question_key
from NatureLM.util import library

if TYPE_CHECKING:
    from NatureLM.field.context import RecordingContext
    from NatureLM.inference.pipeline import Pipeline
    from NatureLM.search.build import Embedder
    from NatureLM.survey.run import Survey
    from NatureLM.teach.classifier import TaughtPipeline

logger = logging.getLogger(__name__)
Table: TypeAlias = Any  # pyarrow.Table, which is imported where it is needed


@dataclass
class Piece:
    """Windows of recordings that follow each other, or what a model made of them.

    items: windows (of a model: what it made of them), and recordings that could not be read
    identities: what those recordings were when they were decoded, by name
    contexts: when and where they were made, by name, where questions ask for it
    ended: how many windows recordings have that end here, by name
    notes: what is to be said once
    unparsed: answers that could not be parsed, by column
    refused: what ends the run; Ray would write its own words and a traceback into an error
    """

    items: list[Any] = field(default_factory=list)
    identities: dict[str, Identity] = field(default_factory=dict)
    contexts: dict[str, RecordingContext] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unparsed: Counter[str] = field(default_factory=Counter)
    refused: NatureLMError | None = None


class Asker(Protocol):
    """A model that is asked about windows.

    about: what decides its answers, as plain values
    """

    about: Mapping[str, Any]

    def answer(self, piece: Piece) -> None:
        """Put what it makes of the items of a piece in their place."""


@dataclass(frozen=True)
class Job:
    """What is to be done.

    make: makes the model; it is called where the model is to be
    cutting: what `WindowStream` is told of windows and channels
    window_seconds, block_seconds: of sound
    is_ordered: what comes back is in the order of the recordings
    """

    make: Callable[[], Asker]
    cutting: Mapping[str, Any]
    block_seconds: float
    is_ordered: bool = False
    folder: str = field(default_factory=os.getcwd)

    @property
    def windows(self) -> int:
        """Windows of a piece at most."""
        return max(1, int(self.block_seconds // self.cutting["window_seconds"]))


@dataclass(frozen=True)
class Todo:
    """A recording that is to be asked about.

    done: what was answered before: starts of windows in microseconds, and questions
    seconds: its length, where it is known
    context: when and where it was made, where questions ask for it
    """

    recording: Recording
    done: frozenset[tuple[int, str]] = frozenset()
    seconds: float | None = None
    context: RecordingContext | None = None


# In the process that gives out the work


def described(cluster: Cluster, make: Callable[[], Asker]) -> Mapping[str, Any]:
    """What decides the answers of a model, as the cluster loads it.

    So what cannot work is said before the work, and this process needs no room for the model.
    """
    task = cluster.ray.remote(max_calls=1, **cluster.of_a_model)(_description)
    with _project_errors():
        about, notes = cluster.ray.get(task.remote(make, os.getcwd()))
    for note in notes:
        logger.warning(note)
    found: Mapping[str, Any] = about
    return found


def pieces(
    cluster: Cluster, job: Job, todo: Sequence[Todo], about: Mapping[str, Any]
) -> Iterator[Piece]:
    """What models make of recordings, piece by piece as it comes.

    about: what decides their answers, by which another model is refused
    """
    tables, count = [], 0
    for block in blocks_of(todo, job.block_seconds):
        tables.append(_as_table(block))
        count += _pieces_of(block, job.block_seconds)
    if not tables:
        return
    data = cluster.ray.data
    _keep_quiet(data, job)
    workers = min(cluster.workers, count)
    flow = (
        data.from_arrow(tables)
        .map_batches(
            partial(_decoded, job=job),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=DECODER_CPUS,
        )
        .map_batches(
            _Model,
            fn_constructor_args=(job.make, about, job.folder),
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=data.ActorPoolStrategy(size=workers),
            **cluster.of_a_model,
        )
    )
    said: set[str] = set()
    with _project_errors():
        for batch in flow.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for piece in _unpacked(batch):
                for note in piece.notes:
                    if note not in said:
                        said.add(note)
                        logger.warning(note)
                if piece.refused is not None:
                    raise piece.refused
                yield piece


def blocks_of(todo: Iterable[Todo], seconds: float) -> Iterator[list[Todo]]:
    """Recordings that follow each other, of at most so many seconds of sound, or one alone; their
    lengths are known then."""
    block: list[Todo] = []
    room = seconds
    for one in todo:
        length = _length(one)
        if block and length > room:
            yield block
            block, room = [], seconds
        block.append(replace(one, seconds=length))
        room -= length
    if block:
        yield block


def _pieces_of(block: Sequence[Todo], seconds: float) -> int:
    """About how many pieces a block comes in."""
    return max(1, math.ceil(sum(one.seconds or 0.0 for one in block) / seconds))


def _length(one: Todo) -> float:
    """Seconds of sound of a recording; 0 where that cannot be told."""
    if one.seconds is None:
        try:
            return probe(one.recording.source).duration
        except AudioError:
            return 0.0
    return one.seconds


def _as_table(block: Sequence[Todo]) -> Table:
    """Recordings as rows: id, name, and what else a task needs to know."""
    pyarrow = library("pyarrow", NO_RAY)
    return pyarrow.table(
        {
            "id": pyarrow.array([one.recording.number for one in block], pyarrow.int64()),
            "name": [os.fsencode(one.recording.name) for one in block],
            "todo": [pickle.dumps(one) for one in block],
        }
    )


def _keep_quiet(data: Any, job: Job) -> None:
    """Let Ray Data show nothing, wait for slow models, and hand on each piece by itself.

    What a task yields is joined until it is larger than `target_max_block_size`: by default the
    pieces of a recording of a day would wait for each other in the memory of who decodes it.
    """
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.verbose_progress = False
    context.execution_options.preserve_order = job.is_ordered
    context.execution_no_progress_timeout_s = -1
    context.issue_detectors_config.detectors = []
    context.target_max_block_size = 1
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _project_errors() -> Iterator[None]:
    """What goes wrong on the cluster is raised as an error of the project."""
    from ray.exceptions import RayError  # type: ignore[import-not-found, unused-ignore]

    try:
        yield
    except RayError as error:
        raise project_error(error) from None


# In tasks and actors


def _enter(folder: str) -> None:
    """Names of files count from where the command was given, if that is here, too."""
    with suppress(OSError):
        os.chdir(folder)


def _packed(*pieces: Piece) -> Table:
    pyarrow = library("pyarrow", NO_RAY)
    values = [pickle.dumps(one) for one in pieces]
    return pyarrow.table({"piece": pyarrow.array(values, pyarrow.large_binary())})


def _unpacked(table: Table) -> Iterator[Piece]:
    for value in table.column("piece"):
        yield pickle.loads(value.as_buffer())


def _decoded(table: Table, job: Job) -> Iterator[Table]:
    """Decode a block of recordings: its windows, in pieces."""
    _enter(job.folder)
    block = [pickle.loads(value.as_py()) for value in table.column("todo")]
    try:
        for piece in decoded(block, job):
            yield _packed(piece)
    except NatureLMError as error:
        yield _packed(Piece(refused=error))


def decoded(block: Sequence[Todo], job: Job) -> Iterator[Piece]:
    """The windows of recordings that are still to be answered, in pieces.

    What is wrong with a recording is in the piece of the last window before it.
    """
    todo = {one.recording.name: one for one in block}
    known: dict[str, Identity] = {}
    notes: list[str] = []
    stream = WindowStream(
        [one.recording for one in block],
        job.cutting,
        input_sample_rate=0,  # files know their own
        warn=notes.append,
        workers=1,
    )
    piece = Piece()
    for name, items in groupby(stream, key=_name_of):
        windows, is_whole = 0, True
        for item in items:
            if isinstance(item, RecordingWindow):
                windows += 1
                if _is_done(item, todo[name]):
                    continue
                if len(piece.items) >= job.windows:
                    yield piece
                    piece = Piece()
            else:
                is_whole = False
            if name not in known:  # all of the file is read for it, once
                known[name] = identity(todo[name].recording.source, has_digest=True)
            piece.identities[name] = known[name]
            if (context := todo[name].context) is not None:
                piece.contexts[name] = context
            piece.items.append(item)
        if is_whole:
            piece.ended[name] = windows
    piece.notes = notes
    yield piece


def _name_of(item: RecordingWindow | RecordingError) -> str:
    return item.recording.name if isinstance(item, RecordingWindow) else item.audio_path


def _is_done(heard: RecordingWindow, one: Todo) -> bool:
    """Whether all questions about a window were answered before."""
    if not one.done:
        return False
    keys = map(heard.key_of, heard.recording.queries or ("",))
    return all(
        (round(key.start * 1e6), question_key(key.query, key.claim)) in one.done for key in keys
    )


class _Model:
    """An actor with a model, which is made once and asked about piece after piece.

    What is wrong with it is said when it is asked.
    """

    def __init__(self, make: Callable[[], Asker], about: Mapping[str, Any], folder: str) -> None:
        _enter(folder)
        self._refused: NatureLMError | None = None
        try:
            self._asker = self._checked(make(), about)
        except NatureLMError as error:
            self._refused = error

    @staticmethod
    def _checked(asker: Asker, about: Mapping[str, Any]) -> Asker:
        """The model. Raises UsageError where it would answer otherwise than `about` says."""
        found = differences(about, asker.about)
        if found:
            raise UsageError(
                "the machines of the cluster would answer differently, and such answers are not "
                f"mixed:\n{bullets(found)}\nName --device and --dtype, and give all the same model"
            )
        return asker

    def __call__(self, table: Table) -> Table:
        made = []
        for piece in _unpacked(table):
            piece.refused = piece.refused or self._refused
            if piece.refused is None:
                self._answer(piece)
            made.append(piece)
        return _packed(*made)

    def _answer(self, piece: Piece) -> None:
        try:
            with _notes_into(piece.notes):
                self._asker.answer(piece)
        except NatureLMError as error:
            piece.refused = error


def _description(make: Callable[[], Asker], folder: str) -> tuple[Mapping[str, Any], list[str]]:
    _enter(folder)
    notes: list[str] = []
    with _notes_into(notes):
        about = make().about
    return about, notes


def _notes_into(notes: list[str]) -> AbstractContextManager[None]:
    return notes_to(lambda record: notes.append(record.getMessage()))


def about_pipeline(
    pipeline: Pipeline | TaughtPipeline, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What a run needs to know of a model before the first answer."""
    return {
        "settings": dict(settings),
        "revisions": dict(pipeline.revisions),
        "sample_rate": pipeline.model.config.sample_rate,
    }


class Fill:
    """Puts what is known of a window into a question.

    contexts: when and where the recordings of a piece were made, by their names
    """

    def __init__(self) -> None:
        self.contexts: Mapping[str, RecordingContext] = {}

    def __call__(self, question: str, heard: RecordingWindow) -> str:
        return filled(question, heard, self.contexts.get(heard.recording.name))


class AnswerAsker:
    """Answers questions about windows, as `naturelm infer` does.

    load: loads the model
    """

    def __init__(
        self, load: Callable[[], Pipeline], asked: AskOptions, *, batch_size: int | None = None
    ) -> None:
        from NatureLM.generation.engine import fold_if_single_alpha

        self._pipeline, self._asked, self._fill = load(), asked, Fill()
        self.about = about_pipeline(self._pipeline, self._pipeline.settings(asked))
        self._prepared = self._pipeline.prepare(asked, batch_size=batch_size)
        self._folded = ExitStack()  # for as long as the process lives
        self._folded.enter_context(
            fold_if_single_alpha(self._pipeline.model, [asked.merging_alpha])
        )

    def answer(self, piece: Piece) -> None:
        """Put the answers in the place of the windows."""
        self._fill.contexts = piece.contexts
        windows = HeardWindows(piece.items)
        answers = self._pipeline.about(windows, self._asked, self._prepared, fill=self._fill)
        piece.items = list(answers)


class TaughtAsker:
    """Classifies windows, as `naturelm infer --classifier` does.

    load: loads the classifier with its encoder
    """

    def __init__(self, load: Callable[[], TaughtPipeline], asked: AskOptions) -> None:
        self._pipeline, self._asked = load(), asked
        self._pipeline.check(asked)
        self.about = about_pipeline(self._pipeline, self._pipeline.settings(asked))

    def answer(self, piece: Piece) -> None:
        """Put the answers in the place of the windows."""
        piece.items = list(self._pipeline.about(piece.items, self._asked))


class SurveyAsker:
    """Asks a questionnaire about windows, as `naturelm survey` does.

    load: loads the model with the questionnaire; it is told what fills its questions
    """

    def __init__(self, load: Callable[[Fill], Survey]) -> None:
        from NatureLM.generation.engine import fold_if_single_alpha

        self._fill = Fill()
        self._survey = load(self._fill)
        self.about = about_pipeline(self._survey.pipeline, self._survey.settings())
        self._folded = ExitStack()  # for as long as the process lives
        if alphas := self._survey.alphas:
            self._folded.enter_context(fold_if_single_alpha(self._survey.pipeline.model, alphas))

    def answer(self, piece: Piece) -> None:
        """Put the rows in the place of the windows."""
        self._fill.contexts = piece.contexts
        piece.items = list(self._survey.about(HeardWindows(piece.items)))
        piece.unparsed.update(self._survey.unparsed)
        self._survey.unparsed.clear()


class VectorAsker:
    """Makes vectors of windows, as `naturelm embed` does.

    load: loads the model
    """

    def __init__(self, load: Callable[[], Embedder], time_expansion: float) -> None:
        self._embedder, self._expansion = load(), time_expansion
        self.about: Mapping[str, Any] = self._embedder.about

    def answer(self, piece: Piece) -> None:
        """Put the vector of each window in the place of its sound."""
        heard = [one for one in piece.items if isinstance(one, RecordingWindow)]
        vectors = iter(self._embedder.vectors([one.window for one in heard], self._expansion))
        piece.items = [
            replace(one, window=replace(one.window, samples=next(vectors)))
            if isinstance(one, RecordingWindow)
            else one
            for one in piece.items
        ]


class MadeVectors:
    """Windows that hold vectors in the place of sound, as what makes the vectors.

    batch: windows that are taken at once
    """

    def __init__(self, batch: int = 16) -> None:
        self.batch = batch

    def vectors(self, windows: Sequence[Any], time_expansion: float = 1.0) -> Any:
        """One vector for each window."""
        import numpy as np

        return np.stack([one.samples for one in windows])
