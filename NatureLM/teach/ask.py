"""A classifier that is asked about recordings in the place of a language model.

`TaughtPipeline` gives the same results as `inference.pipeline.Pipeline` does for a list of labels,
so that whatever takes answers takes these, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.generation.labels import NOTHING
from NatureLM.inference.claims import claim_of, with_agreement
from NatureLM.inference.windows import (
    AskOptions,
    Recording,
    RecordingError,
    RecordingWindow,
    WindowKey,
    WindowResult,
    WindowStream,
)
from NatureLM.results.thresholds import MinConfidence, least
from NatureLM.search.build import Embedder
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

    Raises UsageError where the model has another encoder.
    """

    def __init__(
        self, model: NatureLM, classifier: Classifier, *, batch: int | None = None
    ) -> None:
        self.model, self.classifier = model, classifier
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
        """As `Pipeline.unanswered`."""
        stream = WindowStream(
            [
                Recording(n, str(one), one, (QUERY,), None if claims is None else claims[one])
                for n, one in enumerate(recordings)
            ],
            {
                "sample_rate": self.model.config.sample_rate,
                "window_seconds": options.window_length_seconds,
                "hop_seconds": options.hop_length_seconds,
                "channel": options.channel,
                "time_expansion": options.time_expansion,
            },
            input_sample_rate=self.model.config.sample_rate,
            warn=warn,
        )

        def wanted() -> Iterator[RecordingWindow | RecordingError]:
            for heard in stream:
                if isinstance(heard, RecordingWindow):
                    key = heard.key_of(QUERY)
                    if store.is_done(key.audio_path, key.start, key.query, key.claim):
                        continue
                    if until is not None and until(key):
                        return
                yield heard

        yield from self.about(wanted(), options)

    def about(
        self, windows: Iterable[RecordingWindow | RecordingError], options: AskOptions
    ) -> Iterator[WindowResult | RecordingError]:
        """Answers about windows, and what went wrong, in their order."""
        waiting: list[RecordingWindow | RecordingError] = []
        heard = 0
        for one in windows:
            waiting.append(one)
            heard += isinstance(one, RecordingWindow)
            if heard >= self._embedder.batch:
                yield from self._answered(waiting, options)
                waiting, heard = [], 0
        yield from self._answered(waiting, options)

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


def _result(
    heard: RecordingWindow, chances: Any, labels: Sequence[str], options: AskOptions
) -> WindowResult:
    """The row of a window."""
    window, recording = heard.window, heard.recording
    blank = WindowResult(
        audio_path=recording.name,
        start=window.start,
        end=window.end,
        query=QUERY,
        text="",
        merging_alpha=options.merging_alpha,
        note=window.note,
        claim=claim_of(heard),
        prompt="",
        window_index=window.index,
        audio_index=recording.number,
        asked=not window.note,
    )
    if window.note:
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
    folder: str | Path, *, model: str | None = None, batch: int | None = None, **options: Any
) -> TaughtPipeline:
    """A classifier of a folder, with its encoder, which is loaded without the language model.

    model: its name, where it is called otherwise here
    options: of `inference.pipeline.load_model`
    """
    from NatureLM.inference.pipeline import load_model
    from NatureLM.teach.classifier import read_classifier

    classifier = read_classifier(folder)
    if model is None:
        model = classifier.hears.model
        options.setdefault("revision", classifier.hears.revision)
    return TaughtPipeline(load_model(model, audio_only=True, **options), classifier, batch=batch)
