"""A classifier that is asked about recordings in the place of a language model.

`TaughtPipeline` gives the same results as `inference.pipeline.Pipeline` does for a list of labels,
so that whatever takes answers takes these, too.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
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
    with_agreement,
)
from NatureLM.results.thresholds import MinConfidence, least
from NatureLM.search.build import Embedder
from NatureLM.search.index import VectorIndex, known_recordings, open_index
from NatureLM.storage import AnyPath
from NatureLM.teach.classifier import QUERY, Classifier, ranked

if TYPE_CHECKING:
    from NatureLM.models import NatureLM
    from NatureLM.results.detections import Detection
    from NatureLM.results.store import WindowStore

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
    known, keys = known_recordings(index)
    paths = [one.source for one in recordings]
    known.match(paths, is_noted=False)
    changed = known.changed(paths)
    unfinished = set(index.settings.unfinished)
    names = {
        key: name for name, key in keys.items() if key not in changed and name not in unfinished
    }
    held: dict[str, Recording] = {}
    lacking = []
    for one in recordings:
        name = names.get(known.key(one.source))
        if name is None or name in held:  # of two names of one recording the second is heard
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
    for shard in index.shards():
        windows, rows = [], []
        for row, file in enumerate(shard.files):
            number = counts[file]
            counts[file] += 1
            if file not in held:
                continue
            recording, times = held[file], (float(shard.starts[row]), float(shard.ends[row]))
            note = "" if shard.vectors[row].any() else "silent"
            window = Window(number, *times, np.empty(0, np.float32), note)
            windows.append(RecordingWindow(recording, window, f"{recording.number}/{number}"))
            rows.append(row)
        if rows:
            yield windows, shard.vectors[rows]


def _result(
    heard: RecordingWindow, chances: Any, labels: Sequence[str], options: AskOptions
) -> WindowResult:
    """The row of a window."""
    blank = heard.result(QUERY, "", options)
    if not blank.asked:
        return blank
    (text, confidence), *others = ranked(chances, labels)[: options.top_k]
    if text != NOTHING and confidence < least(options.min_confidence, text, QUERY):
        others = [(text, confidence), *others][: options.top_k]
        text = NOTHING
    return replace(
        blank,
        text=text,
        confidence=confidence,
        alternatives=tuple(others),
        claim=with_agreement(blank.claim, text),
    )


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
    from NatureLM.teach.classifier import read_classifier

    classifier = read_classifier(folder)
    if model is None:
        model = classifier.hears.model
        options.setdefault("revision", classifier.hears.revision)
    vectors = None if index is None else open_index(index)
    if vectors is not None:
        check_index(vectors, classifier, asked)
    loaded = load_model(model, audio_only=True, **options)
    return TaughtPipeline(loaded, classifier, batch=batch, index=vectors)
