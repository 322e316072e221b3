"""From a query with flags to the complete prompt of a sample, and the clips of its placeholders.

`{species_list}` becomes the names, `{examples}` a described example of each species,
`{audio_examples}` labelled clips of each, and `{randomize}` nothing: it shuffles the species.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from NatureLM.beans.samples.clip import Clip
from NatureLM.beans.samples.sample import Sample
from NatureLM.config.extended import (
    AUDIO_EXAMPLES,
    EXAMPLES,
    FLAGS,
    RANDOMIZE,
    SPECIES_LIST,
    SpeciesConfig,
)
from NatureLM.errors import UsageError
from NatureLM.experiments.order import drawn_order
from NatureLM.experiments.support import Support
from NatureLM.prompts import AUDIO_TAG, PLACEHOLDER, render
from NatureLM.prompts.examples import example_blocks

_SPLIT = re.compile("(" + "|".join(re.escape(f"{{{flag}}}") for flag in FLAGS) + ")")


@dataclass(frozen=True)
class _Piece:
    """A stretch of a query: its text, and the clips of the placeholders in it."""

    text: str
    audios: tuple[Clip, ...] = ()


class Renderer:
    """Renders queries for samples.

    template: text around a query, with `{}`
    species: those to choose from, in the order in which they are named
    support: where example clips come from; needed for queries with {audio_examples}
    seed: of the shuffles
    """

    def __init__(
        self,
        template: str,
        species: Sequence[SpeciesConfig] = (),
        support: Support | None = None,
        seed: int = 0,
    ) -> None:
        self._template = template
        self._species = tuple(species)
        self._support = support
        self._seed = seed

    def with_template(self, template: str) -> Renderer:
        """The same with another text around queries."""
        return Renderer(template, self._species, self._support, self._seed)

    def render(self, sample: Sample, query: str) -> tuple[str, tuple[Clip, ...]]:
        """The complete prompt, and the clip of each of its placeholders in order."""
        pieces = list(self._pieces(sample, query))
        text = "".join(piece.text for piece in pieces)
        audios = tuple(clip for piece in pieces for clip in piece.audios)
        if text.count(PLACEHOLDER) != len(audios):
            raise UsageError(
                f"the name or description of a species holds {PLACEHOLDER}, which stands for "
                f"sound: {text[:200]!r}"
            )
        return render(self._template, text), audios

    def audios(self, sample: Sample, query: str) -> tuple[Clip, ...]:
        """The clips of the prompt alone."""
        return tuple(clip for piece in self._pieces(sample, query) for clip in piece.audios)

    def shuffled(self, sample: Sample, query: str) -> tuple[SpeciesConfig, ...]:
        """The species in the order of this prompt: as named, or by (seed, sample id, query)."""
        if f"{{{RANDOMIZE}}}" not in query:
            return self._species
        parts = (self._seed, sample.id, query)
        return tuple(drawn_order(self._species, parts, key=lambda one: one.name))

    def _pieces(self, sample: Sample, query: str) -> Iterator[_Piece]:
        species = self.shuffled(sample, query)
        if PLACEHOLDER not in query:
            yield _Piece(f"{AUDIO_TAG} ", (sample.clip,))
        for part in _SPLIT.split(query):
            flag = part[1:-1] if _SPLIT.fullmatch(part) else None
            if flag is None:
                yield _Piece(part, (sample.clip,) * part.count(PLACEHOLDER))
            elif flag == SPECIES_LIST:
                yield _Piece(", ".join(one.name for one in species))
            elif flag == EXAMPLES:
                yield _blocks((one.description or "", one.name, None) for one in species)
            elif flag == AUDIO_EXAMPLES:
                yield _blocks(self._audio_examples(species, sample))

    def _audio_examples(
        self, species: Sequence[SpeciesConfig], sample: Sample
    ) -> Iterator[tuple[str, str, Clip | None]]:
        if self._support is None:
            raise UsageError(f"a query holds {{{AUDIO_EXAMPLES}}}, and there are no example clips")
        for one in species:
            for clip in self._support.examples(one.name, sample):
                yield AUDIO_TAG, one.name, clip


def _blocks(examples: Iterator[tuple[str, str, Clip | None]]) -> _Piece:
    """Examples (what is heard, label, clip), a blank line between them."""
    listed = list(examples)
    text = example_blocks((heard, name) for heard, name, _ in listed)
    return _Piece(text, tuple(clip for *_, clip in listed if clip is not None))
