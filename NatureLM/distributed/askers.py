"""Models of the cluster: each takes pieces of windows and puts its answers in their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from NatureLM.inference.windows import AskOptions, HeardWindows, RecordingWindow, filled

if TYPE_CHECKING:
    from NatureLM.distributed.flow import Piece
    from NatureLM.field.context import RecordingContext
    from NatureLM.inference.pipeline import Pipeline
    from NatureLM.search.build import Embedder
    from NatureLM.survey.run import Survey
    from NatureLM.teach.ask import TaughtPipeline


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
