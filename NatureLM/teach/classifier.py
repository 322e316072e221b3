"""A taught classifier, and the two files that it is kept in: `classifier.json` and
`classifier.safetensors`.

It is a linear map from a window's vector, made unit length, to a score for each name, and the
examples themselves, by which it tells that a sound is like none of them: what decides is the
squared distance to the nearest example, as a share of the distance that lies between the names.

`TaughtPipeline` gives the same results as `inference.pipeline.Pipeline` does for a list of labels,
so that whatever takes answers takes these, too.

Shapes: N examples, B windows, C classes, E width.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio.windows import Window
from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING
from NatureLM.inference.windows import (
    AskOptions,
    Recording,
    RecordingError,
    RecordingWindow,
    WindowKey,
    WindowResult,
    WindowStream,
    in_blocks,
    recordings_of,
)
from NatureLM.results.thresholds import MinConfidence
from NatureLM.search.build import Embedder
from NatureLM.search.index import HeldRecordings, IndexSettings, VectorIndex, open_index
from NatureLM.storage import AnyPath
from NatureLM.teach.examples import Place
from NatureLM.util import atomic_write, digest, parse_json, write_json

if TYPE_CHECKING:
    from NatureLM.models import NatureLM
    from NatureLM.results.detections import Detection
    from NatureLM.results.store import WindowStore

Floats = NDArray[np.float32]

SETTINGS_NAME, TENSORS_NAME = "classifier.json", "classifier.safetensors"
SCHEMA_VERSION = 1
QUERY = "Which of the taught sounds is this?"
"""The question that rows of a classifier answer."""


@dataclass(frozen=True)
class KnownCurve:
    """The chance that a sound is one of the taught: 1 / (1 + exp(slope · ratio - offset)).

    between: squared distance that lies between the names; a ratio is a share of it
    """

    offset: float
    slope: float
    between: float

    def chance(self, squared: NDArray[np.floating[Any]]) -> Floats:
        """Of squared distances to the nearest example."""
        ratio = np.asarray(squared, np.float64) / self.between
        exponent = np.minimum(self.slope * ratio - self.offset, 500)  # e^710 overflows
        made: Floats = (1 / (1 + np.exp(exponent))).astype(np.float32)
        return made


@dataclass(frozen=True, eq=False)
class Classified:
    """What a classifier says of windows.

    chances: (B, names + 1), of each name and, last, of none of them; a row sums to 1
    nearest: (B,) number of the nearest example
    similarity: (B,) its cosine
    """

    chances: Floats
    nearest: NDArray[np.int64]
    similarity: Floats


@dataclass(frozen=True, eq=False)
class Classifier:
    """What was taught.

    names: that it may answer, besides `NOTHING`
    hears: encoder, layer and windows that the vectors are of
    method: how the linear map was found
    weights, bias: (C, E) and (C,); C counts `NOTHING`, last, where there were examples of it
    examples: (N, E) vectors of unit length; of: (N,) numbers of their classes
    places: where the examples are
    known: tells what is like none of the examples
    card: what was taught with, and how good it is, as plain values
    """

    names: tuple[str, ...]
    hears: IndexSettings
    method: str
    weights: Floats
    bias: Floats
    examples: Floats
    of: NDArray[np.int64]
    places: tuple[Place, ...]
    known: KnownCurve
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """All that it may answer, in the order of its chances."""
        return (*self.names, NOTHING)

    @cached_property
    def fingerprint(self) -> str:
        """Names the exact classifier, its encoder included."""
        about = json.dumps([self.names, self.hears.deciding, vars(self.known)], sort_keys=True)
        parts = (self.weights, self.bias, self.examples, self.of)
        contents = [about, *(np.ascontiguousarray(one).tobytes() for one in parts)]
        return digest(contents, "blake2b", size=8).hex()

    def classify(self, vectors: Floats) -> Classified:
        """Chances for windows; of one without sound, whose vector is zeros, all are NaN.

        Raises UsageError for vectors of another width.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.hears.width:
            raise UsageError(
                f"the classifier takes vectors of {self.hears.width} numbers, got "
                f"{vectors.shape[-1]}"
            )
        unit = unit_vectors(vectors)
        shares = softmax(unit @ self.weights.T + self.bias)
        taught = np.flatnonzero(self.of < len(self.names))
        similar = unit @ self.examples[taught].T
        best = similar.argmax(axis=1)
        similarity = similar[np.arange(len(unit)), best]
        known = self.known.chance(2 - 2 * similarity)
        chances = np.empty((len(unit), len(self.names) + 1), np.float32)
        chances[:, :-1] = known[:, None] * shares[:, : len(self.names)]
        chances[:, -1] = 1 - chances[:, :-1].sum(axis=1)
        chances[~unit.any(axis=1)] = np.nan
        return Classified(chances.clip(0, 1), taught[best], similarity.astype(np.float32))

    def check_encoder(self, fingerprint: str, name: str) -> None:
        """Raise UsageError where vectors are of another encoder than the examples'."""
        if fingerprint != self.hears.fingerprint:
            raise UsageError(
                f"the classifier was taught on what {self.hears.model} hears (encoder "
                f"{self.hears.fingerprint}), and {name} has the encoder {fingerprint}: name the "
                "model that it was taught with, in the same --dtype, or teach it anew with this one"
            )


def unit_vectors(vectors: NDArray[np.floating[Any]]) -> Floats:
    """Vectors of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    made: Floats = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return made


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Shares of the last axis."""
    shifted = np.exp(np.float64(logits - logits.max(axis=-1, keepdims=True)))
    made: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return made


def write_classifier(folder: Path, classifier: Classifier) -> None:
    """Write the two files. Raises OSError."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: np.ascontiguousarray(getattr(classifier, name))
        for name in ("weights", "bias", "examples", "of")
    }
    with atomic_write(folder / TENSORS_NAME) as unfinished:
        save_file(tensors, unfinished)
    write_json(
        folder / SETTINGS_NAME,
        {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": classifier.fingerprint,
            "names": list(classifier.names),
            "method": classifier.method,
            "hears": json.loads(classifier.hears.to_json()),
            "known": vars(classifier.known),
            "card": dict(classifier.card),
            "examples": [list(place) for place in classifier.places],
        },
    )


def read_classifier(folder: str | Path) -> Classifier:
    """What `write_classifier` wrote. Raises UsageError that names file and fault."""
    settings, tensors = Path(folder) / SETTINGS_NAME, Path(folder) / TENSORS_NAME
    for path in (settings, tensors):
        if not path.is_file():
            raise UsageError(
                f"{path}: there is no such file, so {folder} is no classifier; `naturelm teach` "
                "makes one"
            )
    try:
        values = parse_json(settings.read_bytes())
        version = values["schema_version"]
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"{settings}: is of schema version {version}, and this program reads "
                f"{SCHEMA_VERSION}"
            )
        made = _classifier(values, _tensors(tensors), settings)
        is_whole = values["fingerprint"] == made.fingerprint
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise UsageError(f"{settings}: cannot be read; was it made by `naturelm teach`?") from None
    if not is_whole:
        raise UsageError(f"{tensors}: is not the file that {settings.name} was written with")
    return made


def _tensors(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None


def _classifier(
    values: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], path: Path
) -> Classifier:
    names = tuple(map(str, values["names"]))
    hears = IndexSettings.from_json(json.dumps(values["hears"]), path)
    weights, bias, examples, of = (tensors[name] for name in ("weights", "bias", "examples", "of"))
    classes = len(bias)
    fits = (
        classes in (len(names), len(names) + 1) and bias.shape == (classes,),
        of.ndim == 1 and of.dtype == np.int64,
        weights.shape == (classes, hears.width) and examples.shape == (len(of), hears.width),
        len(of) and of.min() >= 0 and of.max() < classes and (of < len(names)).any(),
        len(values["examples"]) == len(of),
        all(
            one.dtype == np.float32 and np.isfinite(one).all() for one in (weights, bias, examples)
        ),
    )
    if not all(fits):
        raise UsageError(f"{path}: its parts do not fit together; teach it anew")
    known = KnownCurve(*(float(values["known"][name]) for name in ("offset", "slope", "between")))
    if not np.isfinite(list(vars(known).values())).all():
        raise UsageError(f"{path}: 'known' holds what is no finite number; teach it anew")
    places = tuple(Place(str(file), float(a), float(b)) for file, a, b in values["examples"])
    return Classifier(
        names,
        hears,
        str(values["method"]),
        weights,
        bias,
        examples,
        of,
        places,
        known,
        values["card"],
    )


def ranked(chances: Sequence[float] | Floats, labels: Sequence[str]) -> list[tuple[str, float]]:
    """Labels with their chances, best first; of equal ones the earlier."""
    order = np.argsort(-np.asarray(chances, np.float64), kind="stable")
    return [(labels[place], float(chances[place])) for place in order]


# Asked about recordings

logger = logging.getLogger(__name__)


def ask_options(classifier: Classifier, **given: Any) -> AskOptions:
    """What is asked of every window; `given` are fields of `AskOptions`.

    Windows and slowing down are those that it was taught with, unless others are given.
    """
    hears = classifier.hears
    by_default = {
        "window_length_seconds": hears.window_seconds,
        "hop_length_seconds": hears.hop_seconds,
        "time_expansion": hears.time_expansion,
    }
    chosen = {name: given.get(name) or value for name, value in by_default.items()}
    return AskOptions(
        **{
            **given,
            **chosen,
            "queries": (QUERY,),
            "mode": "score",
            "labels": classifier.names,
            "several": False,
        }
    )


class TaughtPipeline:
    """A classifier and the encoder that it was taught with.

    batch: windows at once
    index: recordings that it holds are not heard anew; see `check_index`

    Raises UsageError where the model has another encoder.
    """

    def __init__(
        self,
        model: NatureLM,
        classifier: Classifier,
        *,
        batch: int | None = None,
        index: VectorIndex | None = None,
    ) -> None:
        self.model, self.classifier, self._index = model, classifier, index
        self._embedder = Embedder(model, classifier.hears.layer, batch=batch or 16)
        classifier.check_encoder(self._embedder.fingerprint, str(model.name_or_path))

    @property
    def revisions(self) -> dict[str, str]:
        """Commits of what the model came from."""
        return self.model.revisions

    def settings(self, options: AskOptions) -> dict[str, Any]:
        """What changes answers and is not in `AskOptions.settings`."""
        return {
            "weights": self.classifier.fingerprint,
            "classifier": self.classifier.fingerprint,
            "encoder": self.classifier.hears.fingerprint,
        }

    def check(self, options: AskOptions) -> None:
        """Log what may not fit. Raises UsageError for thresholds of something else."""
        if isinstance(options.min_confidence, MinConfidence):
            now = {
                **self.settings(options),
                "merging_alpha": options.merging_alpha,
                "choosing": {"mode": options.mode, "labels": options.labels},
            }
            for note in options.min_confidence.check(now, options.queries):
                logger.warning(note)
        hears, seconds = self.classifier.hears, options.window_length_seconds
        if seconds != hears.window_seconds:
            logger.warning(
                "windows of %g s are heard, and the classifier was taught on windows of %g s: its "
                "chances may mean something else",
                *(seconds, hears.window_seconds),
            )

    def unanswered(
        self,
        recordings: Sequence[AnyPath],
        options: AskOptions,
        store: WindowStore,
        *,
        warn: Callable[[str], None] | None = None,
        until: Callable[[WindowKey], bool] | None = None,
        claims: Mapping[AnyPath, tuple[Detection, ...]] | None = None,
        **_: Any,
    ) -> Generator[WindowResult | RecordingError, None, None]:
        """As `Pipeline.unanswered`; recordings of the index come first, in its order."""
        asked = recordings_of(recordings, (QUERY,), claims)
        if self._index is not None:
            asked, held = _parted(asked, self._index)
            if asked:
                logger.warning(
                    "%s: it lacks %d of %d recordings, or they have changed since; they are heard",
                    *(self._index.path, len(asked), len(recordings)),
                )
            for windows, vectors in _indexed(self._index, held):
                chances = self.classifier.classify(vectors).chances
                for one, shares in zip(windows, chances, strict=True):
                    if not store.is_done(one.recording.name, one.window.start, QUERY, ""):
                        yield _result(one, shares, self.classifier.labels, options)
        stream = WindowStream(
            asked,
            options.cutting(self.model.config.sample_rate),
            input_sample_rate=self.model.config.sample_rate,
            warn=warn,
        )
        yield from self.about(stream.unanswered(QUERY, store, until), options)

    def about(
        self, windows: Iterable[RecordingWindow | RecordingError], options: AskOptions
    ) -> Iterator[WindowResult | RecordingError]:
        """Answers about windows, and what went wrong, in their order."""
        for block in in_blocks(windows, self._embedder.batch):
            yield from self._answered(block, options)

    def _answered(
        self, items: Sequence[RecordingWindow | RecordingError], options: AskOptions
    ) -> Iterator[WindowResult | RecordingError]:
        windows = [one.window for one in items if isinstance(one, RecordingWindow)]
        vectors = self._embedder.vectors(windows, options.time_expansion)
        chances = iter(self.classifier.classify(vectors).chances)
        for one in items:
            if isinstance(one, RecordingError):
                yield one
            else:
                yield _result(one, next(chances), self.classifier.labels, options)


def check_index(index: VectorIndex, classifier: Classifier, options: AskOptions) -> None:
    """Raise UsageError for an index of another layer, encoder or windows than are asked about."""
    settings, layer = index.settings, classifier.hears.layer
    if settings.layer != layer:
        raise UsageError(
            f"{index.path}: was made with --layer {settings.layer}, and the classifier was taught "
            f"with {layer}: make an index with `naturelm embed --layer {layer}`"
        )
    classifier.check_encoder(settings.fingerprint, str(index.path))
    pairs = {
        "--window-length-seconds": (settings.window_seconds, options.window_length_seconds),
        "--hop-length-seconds": (settings.hop_seconds, options.hop_length_seconds),
        "--time-expansion": (settings.time_expansion, options.time_expansion),
        "--channel": (settings.channel, options.channel),
    }
    for name, (held, asked) in pairs.items():
        if str(held) != str(asked):
            raise UsageError(
                f"{index.path}: was made with {name} {held}, and {asked} is asked for: make an "
                "index with the same windows, or leave out --index"
            )


def _parted(
    recordings: Sequence[Recording], index: VectorIndex
) -> tuple[list[Recording], dict[str, Recording]]:
    """Recordings that an index lacks, or that have changed since; the others by its names."""
    paths = [one.source for one in recordings]
    there = HeldRecordings(index, paths)
    changed = there.known.changed(paths)
    held: dict[str, Recording] = {}
    lacking = []
    for one in recordings:
        name = there.name(one.source)
        # Of two names of one recording the second is heard.
        if name is None or name in held or there.known.key(one.source) in changed:
            lacking.append(one)
        else:
            held[name] = one
    return lacking, held


def _indexed(
    index: VectorIndex, held: Mapping[str, Recording]
) -> Iterator[tuple[list[RecordingWindow], NDArray[np.float32]]]:
    """Windows of an index with their vectors, some at a time; their sound is not there.

    held: recordings by their names in the index
    """
    counts: Counter[str] = Counter()
    for block in index.blocks():
        windows, rows = [], []
        for row, file in enumerate(block.files):
            number = counts[file]
            counts[file] += 1
            if file not in held:
                continue
            recording, times = held[file], (float(block.starts[row]), float(block.ends[row]))
            note = "" if block.vectors[row].any() else "silent"
            window = Window(number, *times, np.empty(0, np.float32), note)
            windows.append(RecordingWindow(recording, window, f"{recording.number}/{number}"))
            rows.append(row)
        if rows:
            yield windows, block.vectors[rows]


def _result(
    heard: RecordingWindow, chances: Any, labels: Sequence[str], options: AskOptions
) -> WindowResult:
    """The row of a window."""
    blank = heard.result(QUERY, "", options)
    return blank.chosen(ranked(chances, labels)[: options.top_k], options) if blank.asked else blank


def load_taught(
    folder: str | Path,
    asked: AskOptions,
    *,
    model: str | None = None,
    batch: int | None = None,
    index: Path | None = None,
    **options: Any,
) -> TaughtPipeline:
    """A classifier of a folder, with its encoder, which is loaded without the language model.

    model: its name, where it is called otherwise here
    index: file that `naturelm embed` made; one that does not fit is refused first
    options: of `inference.loading.load_model`
    """
    from NatureLM.inference.loading import load_model

    classifier = read_classifier(folder)
    if model is None:
        model = classifier.hears.model
        options.setdefault("revision", classifier.hears.revision)
    vectors = None if index is None else open_index(index)
    if vectors is not None:
        check_index(vectors, classifier, asked)
    loaded = load_model(model, audio_only=True, **options)
    return TaughtPipeline(loaded, classifier, batch=batch, index=vectors)
