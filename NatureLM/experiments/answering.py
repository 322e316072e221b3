"""Answers to the cells of a plan at any α: each clip is encoded once, α are rows of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from NatureLM.beans.samples import Clip
from NatureLM.errors import NatureLMError
from NatureLM.experiments.hearing import Ears
from NatureLM.experiments.plan import Cell
from NatureLM.experiments.tune import Row

if TYPE_CHECKING:
    from torch import Tensor

    from NatureLM.models import NatureLM

Report: TypeAlias = Callable[[int, int], None]
"""Told how many answers of how many are there."""

ROWS = 32
"""Rows of a batch, each with an α of its own."""


class NothingHeardError(NatureLMError):
    """None of the clips could be read."""


class Answerer:
    """Answers the same cells again and again at other α.

    The sound of all cells is read and encoded when this is made, and kept (29 vectors for ten
    seconds in the published model: half a megabyte for a clip).

    left_out: what is wrong with the clips that cannot be read; their cells are not answered

    Raises NothingHeardError where no cell is left.
    """

    def __init__(
        self,
        model: NatureLM,
        cells: Sequence[Cell],
        *,
        rows: int = ROWS,
        report: Report = lambda done, total: None,
        **generation: Any,
    ) -> None:
        self._model = model
        self._rows = rows
        self._report = report
        self._generation = generation
        self.left_out: dict[str, str] = {}
        self._encoded = self._encode(clip for cell in cells for clip in cell.audios)
        self.cells = [
            cell for cell in cells if all(one.key in self._encoded for one in cell.audios)
        ]
        if not self.cells:
            why = "; ".join(list(self.left_out.values())[:3]) or "there are no samples"
            raise NothingHeardError(f"there is nothing to answer: {why}")

    def __call__(self, alphas: Sequence[float]) -> list[Row]:
        """A row for every cell at every α, as `beans score` reads them."""
        asked = [(cell, alpha) for cell in self.cells for alpha in alphas]
        made: list[Row] = []
        for start in range(0, len(asked), self._rows):
            made += self._answer(asked[start : start + self._rows])
            self._report(len(made), len(asked))
        return made

    def _answer(self, asked: Sequence[tuple[Cell, float]]) -> Iterator[Row]:
        texts = self._model.generate(
            [cell.prompt for cell, _ in asked],
            [[self._encoded[clip.key] for clip in cell.audios] for cell, _ in asked],
            alpha=[alpha for _, alpha in asked],
            **self._generation,
        )
        for (cell, alpha), text in zip(asked, texts, strict=True):
            yield {
                "prediction": text,
                "label": cell.label,
                "id": cell.sample_id,
                "dataset_name": cell.dataset_name,
                "prompt": cell.prompt,
                "lora_scale": alpha,
                "query": cell.query,
                "cluster": cell.cluster,
            }

    def _encode(self, clips: Iterable[Clip]) -> dict[str, Tensor]:
        """Audio embeddings (Q, D) of the clips that can be read, by key; all are kept."""
        from NatureLM.generation.audio import AudioEncoder

        processor = self._model.processor
        assert processor is not None, "a loaded model has a processor"
        by_key = {clip.key: clip for clip in clips}
        ears = Ears(self._model, by_key.values())
        with AudioEncoder(ears, processor.prepare_audio, self._model.encode_audio) as audio:
            found = audio.get(by_key)
        self.left_out |= {key: str(one) for key, one in found.items() if isinstance(one, Exception)}
        return {key: one for key, one in found.items() if not isinstance(one, Exception)}
