"""Answers to the cells of a plan at any α: each clip is encoded once, α are rows of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from NatureLM.errors import NatureLMError
from NatureLM.experiments.hearing import Ears
from NatureLM.experiments.plan import Cell
from NatureLM.experiments.tune import Row

if TYPE_CHECKING:
    from NatureLM.generation.audio import EncodedClip
    from NatureLM.models import NatureLM

Report: TypeAlias = Callable[[int, int], None]
"""Told how many answers of how many are there."""

ROWS = 32
"""Answers of a batch at most, each with an α of its own."""


class NothingHeardError(NatureLMError):
    """None of the clips could be read."""


class Answerer:
    """Answers the same cells again and again at other α.

    The sound of all cells is read and encoded when this is made, and kept (29 vectors for ten
    seconds in the published model: half a megabyte for a clip).

    rows: most answers that are decoded at once
    max_memory: bytes that batches and kept embeddings may take beside the model's weights
    cache_dir: folder of audio embeddings; None takes that of the environment, if there is one
    note: told where memory runs out, or the folder cannot be used
    left_out: what is wrong with the clips that cannot be read; their cells are not answered

    Raises NothingHeardError where no cell is left.
    """

    def __init__(
        self,
        model: NatureLM,
        cells: Sequence[Cell],
        *,
        rows: int = ROWS,
        max_memory: int | None = None,
        cache_dir: Path | None = None,
        note: Callable[[str], None] = lambda text: None,
        report: Report = lambda done, total: None,
        **generation: Any,
    ) -> None:
        from NatureLM.generation.embedding_files import kept_embeddings
        from NatureLM.generation.engine import Engine
        from NatureLM.generation.options import GenerationOptions

        self._report = report
        self._engine = Engine(
            model,
            GenerationOptions(**generation),
            batch_rows=rows,
            max_memory=max_memory,
            embeddings=kept_embeddings(cache_dir, note, max_memory=max_memory),
            note=note,
        )
        self.left_out: dict[str, str] = {}
        self._clips = self._encode(model, cells)
        self.cells = [cell for cell in cells if all(one.key in self._clips for one in cell.audios)]
        if not self.cells:
            why = "; ".join(list(self.left_out.values())[:3]) or "there are no samples"
            raise NothingHeardError(f"there is nothing to answer: {why}")

    def __call__(self, alphas: Sequence[float]) -> list[Row]:
        """A row for every cell at every α, as `beans score` reads them."""
        from NatureLM.generation.requests import Request

        asked = [(cell, alpha) for cell in self.cells for alpha in alphas]
        requests = [
            Request(
                key=place,
                prompt=cell.prompt,
                audios=tuple(clip.key for clip in cell.audios),
                alpha=alpha,
                stream=int(cell.id[:7], 16),
            )
            for place, (cell, alpha) in enumerate(asked)
        ]
        texts: dict[Any, str | None] = {}
        for answer in self._engine.run(requests, self._clips.__getitem__):
            if answer.error is not None:
                raise answer.error
            texts[answer.key] = answer.text
            self._report(len(texts), len(asked))
        return [_row(cell, alpha, texts[place]) for place, (cell, alpha) in enumerate(asked)]

    def _encode(self, model: NatureLM, cells: Sequence[Cell]) -> dict[str, EncodedClip]:
        """The clips that can be read, by key."""
        by_key = {clip.key: clip for cell in cells for clip in cell.audios}
        found = self._engine.encode(by_key, Ears(model, by_key.values()))
        self.left_out |= {key: str(one) for key, one in found.items() if isinstance(one, Exception)}
        return {key: one for key, one in found.items() if not isinstance(one, Exception)}


def _row(cell: Cell, alpha: float, text: str | None) -> Row:
    return {
        "prediction": text,
        "label": cell.label,
        "id": cell.sample_id,
        "dataset_name": cell.dataset_name,
        "prompt": cell.prompt,
        "lora_scale": alpha,
        "query": cell.query,
        "cluster": cell.cluster,
    }
