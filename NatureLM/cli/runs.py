"""Runs of commands that ask about recordings: which these are, what answers, and where it goes.

`FieldRecordings` says which recordings are asked about, when and where they were made, and what a
table of another program says about them. `Work` asks what has no answer yet: in this process
(`plain`), or with Ray Data on many machines (`--engine ray`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from NatureLM.cli import options as of
from NatureLM.cli.terminal import RESUMES, RunProgress, stop_message
from NatureLM.errors import UsageError
from NatureLM.progress import printable, say
from NatureLM.storage import AnyPath, PathT, RemotePath

if TYPE_CHECKING:
    from NatureLM.distributed.cluster import RayOptions
    from NatureLM.distributed.flow import Todo
    from NatureLM.field.context import FieldClock
    from NatureLM.inference.pipeline import Fill
    from NatureLM.inference.windows import AskOptions, RecordingWindow
    from NatureLM.results.detections import Detection
    from NatureLM.results.manifest import Entry
    from NatureLM.results.parts import PartsStore
    from NatureLM.results.shards import Shard, ShardPicker
    from NatureLM.results.store import Resumed, WindowStore
    from NatureLM.teach.classifier import TaughtPipeline


logger = logging.getLogger(__name__)
_NAMED = 3  # recordings that a summary names


@dataclass
class Listed:
    """The recordings that --audio-path, --manifest and --shard name, each once.

    entries: what a manifest says of those that it names
    shards: how many recordings each shard has, of all that were named; empty without --shard
    shard: the one that these are of
    """

    recordings: list[AnyPath]
    entries: Mapping[AnyPath, Entry] = field(default_factory=dict)
    shards: Sequence[int] = ()
    shard: Shard | None = None

    @classmethod
    def read(cls, paths: Sequence[AnyPath], manifest: AnyPath | None, shard: str | None) -> Listed:
        """Of a manifest no more is held than the recordings of the shard.

        A list at an address among the paths is a manifest, too.

        Raises UsageError for recordings that are not there, and a manifest that is none.
        """
        from NatureLM.audio.files import RealPaths, find_anywhere
        from NatureLM.results.manifest import SUFFIXES, listed_in

        lists: list[AnyPath] = [
            one for one in paths if isinstance(one, RemotePath) and one.suffix.lower() in SUFFIXES
        ]
        paths = [one for one in paths if one not in lists]
        lists = [*([] if manifest is None else [manifest]), *lists]
        picker = _picker(shard, [*paths, *(one.parent for one in lists)])
        wanted = (lambda one: True) if picker is None else picker.holds
        entries: dict[AnyPath, Entry] = {}
        for one in lists:
            entries |= listed_in(one, wanted)
        recordings = list(entries)
        if paths or not lists:
            real = RealPaths()
            known = set(map(real, recordings))
            found = find_anywhere(paths)
            recordings += [one for one in found if real(one) not in known and wanted(one)]
        return cls(recordings, entries)._of(picker)

    def part(self, shard: str | None, folders: Sequence[AnyPath]) -> Listed:
        """The recordings of a shard; all of them where none is named.

        folders: from which the names count that decide the shards
        """
        picker = _picker(shard, folders)
        kept = [one for one in self.recordings if picker is None or picker.holds(one)]
        return Listed(kept, self.entries)._of(picker)

    def _of(self, picker: ShardPicker | None) -> Listed:
        """These recordings as those that were picked."""
        if picker is None:
            return self
        counts = picker.counts()
        if not self.recordings:
            say(f"Shard {picker.shard} holds none of the {sum(counts)} recordings")
        return Listed(self.recordings, self.entries, counts, picker.shard)

    @property
    def seconds(self) -> Mapping[AnyPath, float]:
        """Lengths of those whose manifest gives them."""
        return {
            path: entry.seconds for path, entry in self.entries.items() if entry.seconds is not None
        }

    @property
    def asked(self) -> dict[str, Any]:
        """What the record of the answers says of it."""
        if self.shard is None:
            return {}
        values = (str(self.shard), list(self.shards))
        return dict(zip(self.shard.RECORDED, values, strict=True))


def _picker(shard: str | None, folders: Sequence[AnyPath]) -> ShardPicker | None:
    from NatureLM.results.shards import Shard, ShardPicker

    return None if shard is None else ShardPicker(Shard.parse(shard), folders)


@dataclass
class FieldRecordings:
    """The recordings of a run.

    recordings: in the order in which they are asked about
    clock: when and where they were made
    claims: detections of a table that are asked about, by recording; None to ask about windows
    settings: what of all this changes the answers
    needs_context: whether a question has a place for what only the context says
    has_tables: whether a table says when or where recordings were made
    listed: how they were named
    """

    recordings: list[AnyPath]
    clock: FieldClock
    claims: Mapping[AnyPath, tuple[Detection, ...]] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    needs_context: bool = False
    has_tables: bool = False
    listed: Listed = field(default_factory=lambda: Listed([]))

    @classmethod
    def read(cls, request: Any, questions: Sequence[str]) -> FieldRecordings:
        """What --audio-path, --manifest, --shard, --from, --deployments and --file-times say.

        Raises UsageError for recordings that are not there, and for tables that cannot be read.
        """
        from NatureLM.field.context import asks_context
        from NatureLM.inference.windows import LABEL_PLACE

        claims, named = None, Listed([])
        if request.from_table is not None:
            if request.manifest is not None:
                named = Listed.read((), request.manifest, None)
            claims = _claims(request.from_table, [*request.audio_paths, *named.recordings])
        elif any(LABEL_PLACE in question for question in questions):
            raise UsageError(
                f"{LABEL_PLACE} in a question is what a table of detections says: give it with "
                "--from"
            )
        if claims is None:
            listed = Listed.read(request.audio_paths, request.manifest, request.shard)
        else:
            folder = [] if request.manifest is None else [request.manifest.parent]
            listed = Listed(list(claims), named.entries).part(
                request.shard, [*request.audio_paths, *folder]
            )
            claims = {one: claims[one] for one in listed.recordings}
        tables = (request.deployments, request.file_times)
        clock = field_clock(*tables, listed.recordings, listed.entries)
        has_tables = tables != (None, None)
        made = cls(listed.recordings, clock, claims, has_tables=has_tables, listed=listed)
        made.needs_context = any(map(asks_context, questions))
        if made.needs_context:  # the answers depend on what the tables say
            from NatureLM.util import digest

            made.settings["context"] = {
                name: None if one is None else digest(one.read_bytes(), size=8).hex()
                for name, one in zip(("deployments", "file_times"), tables, strict=True)
            }
        return made

    def context_of(self, audio_path: str, seconds: float) -> Mapping[str, Any] | None:
        """When and where a window was recorded, as rows say it."""
        return self.clock.of(self.path_of(audio_path)).at(seconds) or None

    def path_of(self, name: str) -> str | AnyPath:
        """The recording that rows call so; an address is one only if it was asked about."""
        return self._remote.get(name, name)

    @cached_property
    def _remote(self) -> dict[str, RemotePath]:
        return {one.url: one for one in self.recordings if isinstance(one, RemotePath)}

    @property
    def fill(self) -> Fill | None:
        """Puts what is known of a window into a question; None where no question needs it."""
        return self._filled if self.needs_context or self.claims is not None else None

    def _filled(self, question: str, heard: RecordingWindow) -> str:
        """Raises AudioError where too little is known."""
        from NatureLM.inference.windows import filled

        is_told = self.needs_context
        known = self.clock.of(self.path_of(heard.recording.name)) if is_told else None
        return filled(question, heard, known)

    def say_what_is_not_known(self) -> None:
        """Name clocks that disagree, and recordings whose place is not known."""
        conflicts, without = Counter[str](), Counter[str]()
        first: dict[str, str] = {}
        for recording in self.recordings:
            known = self.clock.of(recording)
            for counter, texts in ((conflicts, known.conflicts), (without, known.notes)):
                for text in texts:
                    counter[text] += 1
                    first.setdefault(text, printable(recording))
        for counter in (conflicts, without):
            for text, count in counter.most_common(_NAMED):
                more = f" (and {count - 1} more)" if count > 1 else ""
                say(f"Note: {first[text]}{more}: {text}")
            if len(counter) > _NAMED:
                say(f"Note: and {len(counter) - _NAMED} more of such notes; rows hold them")


def field_clock(
    deployments: Path | None,
    file_times: Path | None,
    recordings: Sequence[AnyPath],
    entries: Mapping[AnyPath, Entry] | None = None,
) -> FieldClock:
    """Where and when recordings were made, by the tables of --deployments and --file-times.

    entries: what a manifest says of the recordings
    """
    from NatureLM.field.context import FieldClock
    from NatureLM.field.deployments import FileTimes, read_deployments
    from NatureLM.results.manifest import ToldByManifest

    clock = FieldClock(
        None if deployments is None else read_deployments(deployments),
        None if file_times is None else FileTimes(file_times, recordings),
        ToldByManifest(entries) if entries else None,
    )
    for note in clock.notes:
        logger.warning(note)
    return clock


def output_of_shard(output: PathT, shard: str | None) -> PathT:
    """The file that a shard writes: one of its own, beside those of the others."""
    from NatureLM.results.shards import Shard

    return output if shard is None else Shard.parse(shard).file(output)


def _claims(table: Path, named: Sequence[AnyPath]) -> dict[AnyPath, tuple[Detection, ...]]:
    """The detections of a table by recording, in the order of their times."""
    audio_paths = [one for one in named if isinstance(one, Path)]
    if len(audio_paths) < len(named):
        raise UsageError(
            "--from takes recordings of this machine only; name those of stores without it"
        )
    from NatureLM.formats import read
    from NatureLM.results.detections import recordings_of

    found: dict[AnyPath, list[Detection]] = {}
    points = 0
    for one in recordings_of(read(table), table, audio_paths):
        if one.end > one.start:
            found.setdefault(Path(one.audio_path), []).append(one)
        points += one.end <= one.start
    if points:
        logger.warning("%s: labels that mark a point, which is not asked about: %d", table, points)
    if not found:
        raise UsageError(f"{table}: has no detection in the recordings that were named")
    return {
        path: tuple(sorted(found[path], key=lambda one: (one.start, one.end, one.label)))
        for path in sorted(found, key=str)
    }


def count_windows(asked_about: FieldRecordings, asked: AskOptions) -> int:
    """How many windows there will be, by a manifest or headers; bad recordings count none."""
    from NatureLM.audio import AudioError
    from NatureLM.audio import windows as audio_windows
    from NatureLM.audio.decode import probe

    if asked_about.claims is not None:
        return sum(map(len, asked_about.claims.values()))
    cut = (asked.window_length_seconds, asked.hop_length_seconds, asked.time_expansion)
    total, told = 0, asked_about.listed.seconds
    for path in asked_about.recordings:
        with suppress(AudioError):
            seconds = told[path] if path in told else probe(path).duration
            total += audio_windows.count_windows(seconds, *cut)
    return total


def note_what_was_there(resumed: Resumed, output: AnyPath) -> None:
    """Say what of an earlier run is in the file."""
    if resumed.cut_off:
        logger.warning("%s: the last line was not whole and has been taken off", output)
    if resumed.answers:
        logger.warning(
            "%s: has %d answers of this run; going on from there", output, resumed.answers
        )
    if resumed.retried:
        logger.warning("%s: %d recordings that had failed are tried again", output, resumed.retried)
    if resumed.moved:
        logger.warning(
            "%s: rows of %d recordings have the times and places of the tables given now",
            *(output, resumed.moved),
        )
    for path in resumed.repaired:
        logger.warning("%s: has changed since it failed; all of it is asked anew", path)


def finish(store: WindowStore, formats: Sequence[str], per_recording: bool) -> None:
    """Write the tables that --format asks for, beside the answers; also one a recording.

    Answers for a bucket are uploaded with them.
    """
    from NatureLM.cli.answers import write_tables
    from NatureLM.formats import FORMATS

    made = write_tables(store.path, formats) if store.answers and formats else []
    apart = [name for name in formats if not FORMATS[name].is_one] if per_recording else []
    if store.answers and apart:
        made += write_tables(store.path, apart, per_recording=True)
    for address in store.finish([one.path for one in made]):
        say(f"{address}: uploaded")


# What works them off

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
        return progress.failed.exit_code

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
                if store.add(made):
                    progress.row(
                        *(made.audio_path, made.start, made.end, self.shown(made)),
                        note=made.note,
                        asked=len(made.answers) if isinstance(made, SurveyRow) else made.asked,
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
    """The model that a classifier needs, and what is asked of it; see `teach.classifier`.

    Raises UsageError for options that are for the language model, and for what is no classifier.
    """
    from NatureLM.teach.classifier import ask_options, read_classifier

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
        from NatureLM.distributed.flow import TaughtAsker

        return on_ray(spread, request.device, partial(TaughtAsker, load, asked), asked, field)
    pipeline = load()
    of.check_window(asked.window_length_seconds, pipeline.model, pipeline.model.name_or_path)
    pipeline.check(asked)
    results = partial(pipeline.unanswered, field.recordings, asked, claims=field.claims)
    return nullcontext(Engine(pipeline.settings(asked), pipeline.revisions, results, Counter()))


def load_taught(folder: Path, asked: AskOptions, **options: Any) -> TaughtPipeline:
    """A classifier with its encoder, ready to be asked."""
    of.import_model()
    from NatureLM.teach import classifier

    return classifier.load_taught(folder, asked, **options)


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
    from NatureLM.inference.windows import recordings_of

    seconds = field.listed.seconds
    return [
        Todo(
            one,
            done=frozenset(store.answered(one.source)),
            seconds=seconds.get(one.source),
            context=field.clock.of(one.source) if field.needs_context else None,
        )
        for one in recordings_of(field.recordings, tuple(queries), field.claims)
        if not store.is_whole(one.source)
    ]
