"""Windows as vectors: `naturelm embed` makes an index of them, `naturelm search` finds those like a
clip, `naturelm teach` learns a classifier of a few labelled sounds."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import typer

from NatureLM.cli import options as of
from NatureLM.cli.runs import ray_options
from NatureLM.cli.score import COLUMN, WHERE
from NatureLM.cli.terminal import RESUMES, SOME_FAILED, Failures, stop_message
from NatureLM.errors import UsageError
from NatureLM.progress import ProgressBar, printable, say, show
from NatureLM.storage import AnyPath

if TYPE_CHECKING:
    from NatureLM.cli.runs import Listed
    from NatureLM.distributed.cluster import RayOptions
    from NatureLM.inference.windows import Recording, RecordingError, RecordingWindow
    from NatureLM.search.build import Decode, Embedder, Journal, VectorMaker
    from NatureLM.search.index import IndexSettings, Match, VectorIndex
    from NatureLM.teach.classifier import Classifier
    from NatureLM.teach.examples import Examples, Labelled

logger = logging.getLogger(__name__)
_EXAMPLES = "Examples"
_SOME_NAMES = 20


LAYER = of.option(
    "encoder",
    "What is averaged over a window: what the audio encoder hears, its peaks (best for "
    "`naturelm teach`, four times the work), or what the language model is told of it.",
    of.MODEL,
    metavar="encoder|peaks|projected",
)


@dataclass(frozen=True)
class EncoderOptions(of.WeightsOptions):
    """The options of commands that turn windows into vectors."""

    ORDER: ClassVar[tuple[Any, ...]] = (of.WeightsOptions,)
    layer: str = LAYER
    device: str = of.DEVICE
    dtype: str = of.DTYPE
    batch_size: int = of.BATCH_SIZE
    window_length_seconds: float = of.WINDOW_LENGTH
    hop_length_seconds: float = of.HOP_LENGTH
    channel: str = of.CHANNEL
    time_expansion: float = of.TIME_EXPANSION

    def check(self) -> None:
        """Raise UsageError for values that are not allowed."""
        from NatureLM.audio.windows import WindowPlan, parse_channel
        from NatureLM.util import check_range

        cut = (self.window_length_seconds, self.hop_length_seconds, self.time_expansion)
        WindowPlan.of(16000, *cut)
        parse_channel(self.channel)
        check_range("--batch-size", self.batch_size, 1, of.MAX_BATCH)
        of.check_device(self.device, self.dtype)

    def embedder(self, model: str, layer: str) -> Embedder:
        """What makes vectors of a layer."""
        where = (self.device, self.dtype)
        return load_embedder(model, layer, *where, batch=self.batch_size, **self.pinned)

    def checked_embedder(self, model: str) -> Embedder:
        """The same. Raises UsageError for windows that the model cannot hear."""
        made = self.embedder(model, self.layer)
        of.check_window(self.window_length_seconds, made.model, model)
        return made

    def settings(self, model: str, about: Mapping[str, Any]) -> IndexSettings:
        """How windows are cut and heard; `about` is `Embedder.about`."""
        from NatureLM.search.index import IndexSettings

        return IndexSettings(
            model=model,
            **about,
            window_seconds=self.window_length_seconds,
            hop_seconds=self.hop_length_seconds,
            channel=self.channel,
            time_expansion=self.time_expansion,
        )


@dataclass(frozen=True)
class EmbedRequest(EncoderOptions, of.ArchiveOptions):
    """The options of `naturelm embed`."""

    ORDER: ClassVar[tuple[Any, ...]] = (
        "recordings",
        of.ArchiveOptions,
        "output_path",
        EncoderOptions,
    )
    recordings: list[AnyPath] | None = of.argument(None, "Recordings, or folders with recordings.")
    output_path: Path = of.option(
        Path("embeddings.npz"),
        "The index. One that exists is added to. Parquet needs pyarrow.",
        of.OUTPUT,
        *of.OUTPUT_NAMES,
        metavar="X.npz|X.parquet",
    )
    overwrite: bool = of.option(False, "Start the index anew.", of.OUTPUT)


def embed(request: EmbedRequest) -> None:
    """Turn every window of recordings into a vector, and write them to an index.

    naturelm embed recordings/ --output recordings.npz

    A run that was stopped, however it was, goes on where it stopped when the same command is given
    again.
    """
    from NatureLM.cli.runs import Listed, output_of_shard
    from NatureLM.search.build import make_index
    from NatureLM.search.index import writer_of
    from NatureLM.util import check_place

    # What cannot work is refused before the model is loaded.
    output = output_of_shard(request.output_path, request.shard)
    writer_of(output)
    spread = ray_options(request)
    check_place(output, "--output-path")
    request.check()
    listed = Listed.read(request.recordings or (), request.manifest, request.shard)
    files = listed.recordings
    if not files:
        return
    say(f"Model: {request.name}")
    finished, to_do, failed = 0, 0, Failures()

    def begun(rows: int, recordings: int) -> None:
        nonlocal to_do
        to_do = recordings
        if rows:
            logger.warning("%s: %d windows are there already; going on from there", output, rows)

    def report(file: str, result: int | RecordingError) -> None:
        nonlocal finished
        finished += 1
        if isinstance(result, int):
            windows = f"{result} window{'' if result == 1 else 's'}"
            say(f"[{finished}/{to_do}] {printable(file)}: {windows}")
        else:
            failed(result.error)

    with (
        stop_message(f"Stopped. What was made is kept; {RESUMES}"),
        _maker(request, spread, listed) as maker,
    ):
        made = make_index(
            files,
            output,
            request.settings(request.name, maker.about),
            maker.vectors,
            overwrite=request.overwrite,
            begun=begun,
            report=report,
            decode=maker.decode,
        )
    errors = f", {len(made.errors)} errors" if made.errors else ""
    say(f"{output}: {made.rows} windows, {made.new} of them new{errors}")
    if made.errors:
        raise typer.Exit(SOME_FAILED)


class _Maker(NamedTuple):
    """What makes vectors, what an index needs to know of it, and what decodes for it."""

    vectors: VectorMaker
    about: Mapping[str, Any]
    decode: Decode | None = None


@contextmanager
def _maker(request: EmbedRequest, spread: RayOptions | None, listed: Listed) -> Iterator[_Maker]:
    """What makes vectors: the model in this process, or models on a cluster."""
    if spread is None:
        embedder = request.checked_embedder(request.name)
        yield _Maker(embedder, embedder.about)
        return
    from NatureLM.distributed.cluster import connected
    from NatureLM.distributed.flow import Job, MadeVectors, Todo, VectorAsker, described, pieces

    load = partial(request.checked_embedder, request.name)
    make = partial(VectorAsker, load, request.time_expansion)
    with connected(spread, request.device) as cluster:
        about = described(cluster, make)

        def decode(
            recordings: Sequence[Recording], cutting: Mapping[str, Any], journal: Journal
        ) -> Iterator[RecordingWindow | RecordingError]:
            job = Job(make, cutting, spread.block_seconds, is_ordered=True)
            seconds = {str(path): length for path, length in listed.seconds.items()}
            todo = [Todo(one, seconds=seconds.get(one.name)) for one in recordings]
            for piece in pieces(cluster, job, todo, about):
                for name, now in piece.identities.items():
                    journal.know(name, now)
                yield from piece.items

        yield _Maker(MadeVectors(), about, decode)


def search(
    *,
    query_clip: Path = of.argument(..., "What to look for.", "QUERY_CLIP"),
    index: Path = of.option(..., "An index that `naturelm embed` made.", None, "--index", "-i"),
    top_k: int = of.option(20, "How many windows to show."),
    start: float = of.option(0.0, "Seconds in the clip to begin at."),
    end: float | None = of.option(
        None, "Seconds in the clip to end at.", show_default="the end of the clip"
    ),
    others_only: bool = of.option(False, "Leave out windows of the clip's own file."),
    as_json: bool = of.option(False, "JSON lines in place of a table.", None, "--json"),
    output_path: Path | None = of.option(
        None,
        "File for the windows as answers, as `naturelm infer` writes them: `naturelm review` asks "
        "whether they are what --label says, and `naturelm teach` learns from that.",
    ),
    label: str | None = of.option(None, "What the clip is, with --output-path."),
    model: str | None = of.option(
        None, "The model, if it is called otherwise here.", show_default="the index's"
    ),
    revision: str | None = of.option(
        None,
        "Revision of the model on the Hub.",
        metavar="COMMIT|TAG|BRANCH",
        show_default="the index's",
    ),
    weights_hash: str | None = of.option(
        None, "Refuse other weights than those of this hash.", metavar="HASH"
    ),
    device: str = of.DEVICE,
    dtype: str = of.option(
        "auto", "Precision of the weights, that of the index.", metavar="|".join(of.DTYPES)
    ),
) -> None:
    """Find the windows of an index that sound most like a clip.

    naturelm search call.wav --index recordings.npz --top-k 20

    Similarity is the cosine of two vectors, 1 for the same direction. Every window is looked at.
    """
    from NatureLM.search.index import (
        nearest,
        open_index,
        query_windows,
        refuse_other_model,
        same_recording,
    )
    from NatureLM.util import check_range

    check_range("--top-k", top_k, 1, 1_000_000)
    of.check_device(device, dtype)
    if (output_path is None) != (label is None) or not (label is None or label.strip()):
        raise UsageError(
            "--output-path and --label go together: the windows that are found are answers that "
            "say what the clip is"
        )
    opened = open_index(index)
    windows = query_windows(query_clip, opened.settings, start=start, end=end)
    if model is None:
        model, revision = opened.settings.model, revision or opened.settings.revision
    embedder = load_embedder(
        model,
        opened.settings.layer,
        device,
        dtype,
        revision=revision,
        weights_hash=weights_hash,
    )
    refuse_other_model(opened, embedder.fingerprint)
    own = same_recording(query_clip, opened)
    matches = nearest(
        opened,
        embedder.vectors(windows),
        top_k,
        is_wanted=lambda file: not (others_only and own(file)),
    )
    if output_path is not None and label is not None:
        _write_answers(output_path, matches, opened.settings, query_clip.name, label.strip())
    if as_json:
        for rank, match in enumerate(matches, start=1):
            found = {
                "rank": rank,
                "similarity": round(match.similarity, 6),
                "audio_path": match.file,
                "start": match.start,
                "end": match.end,
            }
            text = json.dumps(found, ensure_ascii=False)
            typer.echo(text if text.isprintable() else json.dumps(found))
        return
    columns = ["rank", "similarity", "file", "start", "end"]
    rows = [
        [
            str(rank),
            f"{match.similarity:.4f}",
            match.file,
            f"{match.start:.2f}s",
            f"{match.end:.2f}s",
        ]
        for rank, match in enumerate(matches, start=1)
    ]
    of.print_table(columns, rows, right={*columns} - {"file"})


def _write_answers(
    output: Path, matches: Sequence[Match], settings: IndexSettings, clip: str, label: str
) -> None:
    """The windows as answers with a label; their confidence is the similarity, at least 0."""
    from NatureLM.results.rows import Prediction, RunSettings
    from NatureLM.results.store import WindowStore

    query = f"Does it sound like {clip}?"
    values = {
        "model": settings.model,
        "weights": settings.fingerprint,
        "merging_alpha": 1.0,
        "queries": [query],
        "window_length_seconds": settings.window_seconds,
        "hop_length_seconds": settings.hop_seconds,
        "channel": settings.channel,
        "time_expansion": settings.time_expansion,
        "label": label,
    }
    with WindowStore(output) as store:
        store.begin(RunSettings(values), dict.fromkeys(one.file for one in matches))
        for one in matches:
            sure = min(1.0, max(0.0, one.similarity))
            store.add(Prediction(one.file, one.start, one.end, query, label, 1.0, confidence=sure))
    say(f"Answers: {output}")


def load_embedder(
    model: str, layer: str, device: str, dtype: str, *, batch: int = 16, **pinned: Any
) -> Embedder:
    """The model of this name, as what makes vectors of a layer; its language model is not read."""
    loaded = of.load_model(model, device=device, dtype=dtype, audio_only=True, **pinned)
    from NatureLM.search.build import Embedder

    return Embedder(loaded, layer, batch=batch)


@dataclass(frozen=True)
class TeachRequest(EncoderOptions):
    """The options of `naturelm teach`."""

    ORDER: ClassVar[tuple[Any, ...]] = (
        *("examples", "output_path", "overwrite", "column", "where", "index", "method", "seed"),
        EncoderOptions,
    )
    examples: list[Path] = of.argument(
        ...,
        "Tables of labelled sound (CSV, or of Raven, Audacity, BirdNET, Kaleidoscope ...), and "
        "folders of reviewed clips.",
        "EXAMPLES...",
    )
    output_path: Path = of.option(
        Path("taught"),
        "Folder for the classifier. What one that is there was taught with counts, too.",
        of.OUTPUT,
        *of.OUTPUT_NAMES,
    )
    overwrite: bool = of.option(False, "Forget what is in the folder.", of.OUTPUT)
    column: list[str] | None = of.but(COLUMN, rich_help_panel=_EXAMPLES)
    where: list[str] | None = of.but(
        WHERE,
        help="Only rows with this value, such as split=train. May be given several times.",
        rich_help_panel=_EXAMPLES,
    )
    index: Path | None = of.option(
        None,
        "Index that `naturelm embed` made: examples in it are not heard anew, and its windows and "
        "model are taken.",
        _EXAMPLES,
    )
    method: str = of.option(
        "auto",
        "What tells the names apart; auto takes what is better on held-out recordings.",
        _EXAMPLES,
        metavar="auto|prototypes|logistic",
    )
    seed: int = of.option(
        0, "Another one holds out other recordings.", _EXAMPLES, min=0, max=of.MAX_SEED
    )
    layer: str = of.but(
        LAYER,
        default="peaks",
        help="What of a window counts: its peaks, or a mean, as of `naturelm embed`.",
        metavar="peaks|encoder|projected",
    )


def teach(request: TeachRequest) -> None:
    """Teach a classifier of sounds by a few labelled examples.

    naturelm teach support.csv --output-path mine/

    `naturelm infer recordings/ --classifier mine/` runs it. A second call with reviewed clips adds
    them to what the classifier was taught with.
    """
    from NatureLM.search.index import open_index
    from NatureLM.teach.fit import METHODS, fit_classifier, need_sklearn
    from NatureLM.util import check_place

    check_place(request.output_path, "--output-path", folder=True)
    of.check_choice("--method", request.method, METHODS)
    if request.method == "logistic":
        need_sklearn()
    request.check()
    labelled = _labelled(request)
    index = None if request.index is None else open_index(request.index)
    model = _model(request, index)
    failures = Failures()
    say(f"Model: {model}")
    embedder = _embedder(request, model, index)
    settings = _settings(request, model, embedder, index)
    examples = _heard(labelled, settings, embedder, index, failures)
    classifier, held = fit_classifier(examples, settings, method=request.method, seed=request.seed)
    from NatureLM.teach.fit import save
    from NatureLM.util import writing

    with writing(request.output_path):
        made = save(request.output_path, classifier, examples, held, labelled)
    _show(made, request.output_path)
    raise typer.Exit(failures.exit_code)


def _labelled(request: TeachRequest) -> list[Labelled]:
    """What was said of sounds, of all tables. Raises UsageError where that is nothing."""
    from NatureLM.teach.examples import LABELS_NAME, merged, read_labelled

    columns = of.pairs("--column", request.column, "write it as label=common_name")
    where: dict[str, Any] = of.pairs("--where", request.where, "write it as split=train")
    tables = []
    before = request.output_path / LABELS_NAME
    if before.is_file() and not request.overwrite:
        tables.append(read_labelled(before)[0])
        logger.warning(
            "%s: its %d labels count, too; --overwrite forgets them", before, len(tables[0])
        )
    for path in request.examples:
        found, notes = read_labelled(path, columns=columns, where=where)
        for note in notes:
            logger.warning(note)
        tables.append(found)
    labelled = merged(tables)
    if not labelled:
        named = ", ".join(printable(str(path)) for path in request.examples)
        raise UsageError(f"{named}: there is no labelled sound to learn from")
    return labelled


def _model(request: TeachRequest, index: VectorIndex | None) -> str:
    """The model that is named, else that of the index or of the classifier that is there."""
    from NatureLM.teach.classifier import SETTINGS_NAME, read_classifier

    if request.model is not None:
        return request.model
    if index is not None:
        return index.settings.model
    if (request.output_path / SETTINGS_NAME).is_file() and not request.overwrite:
        return read_classifier(request.output_path).hears.model
    return request.name


def _embedder(request: TeachRequest, model: str, index: VectorIndex | None) -> Embedder:
    """What makes vectors. Raises UsageError where those of the index are of another model."""
    from NatureLM.search.index import refuse_other_model

    if index is None:
        return request.checked_embedder(model)
    embedder = request.embedder(model, index.settings.layer)
    refuse_other_model(index, embedder.fingerprint)
    return embedder


def _settings(
    request: TeachRequest, model: str, embedder: Embedder, index: VectorIndex | None
) -> IndexSettings:
    """How examples are cut and heard."""
    if index is not None:
        return replace(index.settings, model=model, unfinished=(), heard=())
    return request.settings(model, embedder.about)


def _heard(
    labelled: Sequence[Labelled],
    settings: IndexSettings,
    embedder: Embedder,
    index: VectorIndex | None,
    failed: Failures,
) -> Examples:
    """The vectors of the examples: of the index, as far as they are in it."""
    from NatureLM.search.index import HeldRecordings
    from NatureLM.teach.examples import hear_examples, indexed_examples, joined

    parts: list[Examples] = []
    if index is not None:
        held = HeldRecordings(index, [one.recording for one in labelled])
        found, rest = indexed_examples(labelled, index, held.key)
        say(f"{index.path}: holds {len(labelled) - len(rest)} of {len(labelled)} examples")
        labelled, parts = rest, [found] if len(found) else []
    if labelled:
        with ProgressBar("bar", "{task.completed}/{task.total} examples") as bar:
            parts.append(
                hear_examples(
                    labelled,
                    settings,
                    embedder,
                    failed=failed,
                    done=lambda count, total: bar.update(count, total=total),
                )
            )
    return joined(parts)


def _show(made: Classifier, folder: Path) -> None:
    from NatureLM.teach.fit import by_name, summary

    rows = by_name(made.card)
    columns = ["name", "examples", "recordings", "right when held out"]
    of.print_table(columns, rows[:_SOME_NAMES], right={*columns[1:]})
    if len(rows) > _SOME_NAMES:
        show(f"and {len(rows) - _SOME_NAMES} more names")
    show(f"Method: {made.method}. {summary(made.card)}")
    show(f"The classifier is in {folder}: naturelm infer recordings/ --classifier {folder}")
