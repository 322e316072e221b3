"""What an experiment will do, as data: every (sample, query, α) with its prompt and its audio.

A cell's `id` is a hash of all that decides its answer apart from model and decoding: dataset,
sample, query text, exact α, rendered prompt and names of the clips. So it is the same on every
machine, in every order, and after any resume. Cells come by sample, then query, then α: those that
share audio are neighbours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from NatureLM.beans.samples.clip import Clip, load_window
from NatureLM.beans.samples.sample import Sample
from NatureLM.experiments.render import Renderer

__all__ = ["Cell", "Clip", "Plan", "load_window"]


@dataclass(frozen=True)
class Cell:
    """One generation: a sample, a query and an α.

    id: stable hash of the contents
    query: number of the query, from 0 on
    prompt: complete text, template included
    audios: the i-th belongs to the i-th placeholder of the prompt
    task: classification, detection or captioning, empty if it is not said
    """

    id: str
    sample_id: str
    dataset_name: str
    label: str
    cluster: str
    query: int
    alpha: float
    prompt: str
    audios: tuple[Clip, ...]
    task: str = ""


class Plan:
    """The cells of an experiment; they are made as they are asked for.

    samples: those that are tested, in order
    queries: texts with flags; None asks each sample its dataset's own prompt, as query 0
    alphas: in the order of the configuration
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        queries: Sequence[str] | None,
        alphas: Sequence[float],
        renderer: Renderer,
    ) -> None:
        self.samples = tuple(samples)
        self.queries = None if queries is None else tuple(queries)
        self.alphas = tuple(float(alpha) for alpha in alphas)
        self._renderer = renderer

    def with_template(self, template: str) -> Plan:
        """The same plan with another text around the queries."""
        renderer = self._renderer.with_template(template)
        return Plan(self.samples, self.queries, self.alphas, renderer)

    def __len__(self) -> int:
        return self.n_samples * self.n_queries * len(self.alphas)

    def cells(self) -> Iterator[Cell]:
        """All cells: by sample, then query, then α. Can be called again."""
        for sample in self.samples:
            yield from self.cells_of(sample)

    def cells_of(self, sample: Sample) -> Iterator[Cell]:
        """The cells of one sample."""
        for number, query in enumerate(self._queries_of(sample)):
            prompt, audios = self._renderer.render(sample, query)
            for alpha in self.alphas:
                yield Cell(
                    id=_cell_id(sample, query, alpha, prompt, audios),
                    sample_id=sample.id,
                    dataset_name=sample.dataset_name,
                    label=sample.label,
                    cluster=sample.cluster,
                    query=number,
                    alpha=alpha,
                    prompt=prompt,
                    audios=audios,
                    task=sample.task,
                )

    @property
    def n_samples(self) -> int:
        """Samples that are tested."""
        return len(self.samples)

    @property
    def n_queries(self) -> int:
        """Queries to each sample."""
        return 1 if self.queries is None else len(self.queries)

    @cached_property
    def n_encodings(self) -> int:
        """Different clips: each is encoded once, however many queries and α it has."""
        return len(
            {
                clip
                for sample in self.samples
                for query in self._queries_of(sample)
                for clip in self._renderer.audios(sample, query)
            }
        )

    def fingerprint(self) -> str:
        """Hash of all cells, whatever their order."""
        together = hashlib.sha256()
        for one in sorted(cell.id for cell in self.cells()):
            together.update(one.encode())
        return together.hexdigest()[:16]

    def _queries_of(self, sample: Sample) -> Sequence[str]:
        return (sample.instruction,) if self.queries is None else self.queries


def _cell_id(sample: Sample, query: str, alpha: float, prompt: str, audios: Sequence[Clip]) -> str:
    contents = [
        sample.dataset_name,
        sample.id,
        query,
        repr(alpha),
        prompt,
        [clip.key for clip in audios],
    ]
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:32]
