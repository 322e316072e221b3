"""What decides the answers of an experiment, as plain values that two runs are compared by.

Random orders that depend on what is named, and on nothing else.

No generator is asked: things are sorted by a hash of seed and names, so that an order is the same
on every machine, in every version, and whatever was drawn before.

Which samples an experiment tests, and which species it lets choose from.

Labelled example clips for few-shot prompts.

From a query with flags to the complete prompt of a sample, and the clips of its placeholders.

`{species_list}` becomes the names, `{examples}` a described example of each species,
`{audio_examples}` labelled clips of each, and `{randomize}` nothing: it shuffles the species.

What an experiment will do, as data: every (sample, query, α) with its prompt and its audio.

A cell's `id` is a hash of all that decides its answer apart from model and decoding: dataset,
sample, query text, exact α, rendered prompt and names of the clips. So it is the same on every
machine, in every order, and after any resume. Cells come by sample, then query, then α: those that
share audio are neighbours.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from NatureLM.config.experiment import (
    AUDIO_EXAMPLES,
    EXAMPLES,
    FLAGS,
    RANDOMIZE,
    SPECIES_LIST,
    ExperimentConfig,
    SpeciesConfig,
)
from NatureLM.data.clip import Clip
from NatureLM.data.sample import Sample
from NatureLM.data.table import DataError
from NatureLM.errors import UsageError
from NatureLM.prompts import AUDIO_TAG, PLACEHOLDER, example_blocks, render
from NatureLM.results.settings import RunSettings
from NatureLM.util import did_you_mean, digest

if TYPE_CHECKING:
    from NatureLM.config import GenerateConfig
    from NatureLM.models import NatureLM


def run_settings(model: NatureLM, plan: Plan, generate: GenerateConfig) -> RunSettings:
    """The settings of a run; batch size, threads, device and paths are none, they change nothing.

    What is asked of which samples is none either: cells have names of their own, so a run may be
    gone on with that asks for more.
    """
    return RunSettings(
        {
            "weights": weights_of(model),
            "dtype": "+".join(sorted({_name(one.dtype) for one in model.parameters()})),
            "prompt_template": model.processor.prompt_template if model.processor else None,
            "generate": generate.model_dump(exclude={"merging_alpha"}),
        },
        asked={
            "lora_scales": list(plan.alphas),
            "queries": None if plan.queries is None else list(plan.queries),
            "datasets": dict(_counts(plan)),
            "plan": plan.fingerprint(),
        },
    )


def weights_of(model: NatureLM) -> str:
    """Name of exact weights: that of the files they came from, or of the tensors themselves."""
    if model.fingerprint is not None:
        return model.fingerprint
    import torch

    def contents() -> Iterator[str | bytes]:
        for name, parameter in sorted(model.named_parameters()):
            yield f"{name} {tuple(parameter.shape)}"
            yield parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()

    return digest(contents(), size=8).hex()


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _counts(plan: Plan) -> dict[str, int]:
    """How many samples of each dataset."""
    counts: dict[str, int] = {}
    for sample in plan.samples:
        counts[sample.dataset_name] = counts.get(sample.dataset_name, 0) + 1
    return counts


Item = TypeVar("Item")


def hash_shuffle(
    items: Iterable[Item], parts: Sequence[object], *, key: Callable[[Item], str]
) -> list[Item]:
    """The items in the random order that `parts` (a seed, names) stand for.

    key: a text that tells the items apart
    """

    def place(item: Item) -> bytes:
        return digest(json.dumps([*parts, key(item)]))

    return sorted(items, key=place)


_LABELS_SHOWN = 10


@dataclass(frozen=True)
class Selection:
    """What is tested: samples in the order of the data, and the species in the order named.

    notes: what a user should know about the choice
    """

    samples: tuple[Sample, ...]
    species: tuple[SpeciesConfig, ...]
    notes: tuple[str, ...] = ()


def select(config: ExperimentConfig, samples: Sequence[Sample]) -> Selection:
    """Apply `species` or `top_k_species`, then `samples`, then `limit`.

    Raises DataError where nothing is left, or a sample that is named is not there.
    """
    if config.species is not None:
        species, notes = tuple(config.species), _strange_names(config.species, samples)
    elif config.top_k_species is not None:
        names = most_frequent(samples, config.top_k_species)
        species, notes = tuple(SpeciesConfig(name=name) for name in names), []
    else:
        species, notes = (), []
    tested = list(samples)
    if species:
        names_tested = {one.name for one in species}
        tested = [_with_task(sample) for sample in tested if sample.label in names_tested]
        if not tested:
            raise DataError(_nothing_left(species, samples))
    if config.samples is not None:
        tested = _named(config.samples, tested)
    if config.limit is not None:
        tested = drawn(tested, config.limit, config.seed)
    return Selection(tuple(tested), species, tuple(notes))


def most_frequent(samples: Sequence[Sample], k: int) -> list[str]:
    """The k most frequent labels, of ties the alphabetically first; all if there are fewer."""
    counts = Counter(sample.label for sample in samples)
    return sorted(counts, key=lambda label: (-counts[label], label))[:k]


def drawn(samples: Sequence[Sample], limit: int, seed: int) -> list[Sample]:
    """At most `limit` samples, drawn by seed, in the order of the data.

    A larger limit draws the same ones and more.
    """
    order = hash_shuffle(samples, ("limit", seed), key=lambda one: f"{one.dataset_name}/{one.id}")
    kept = {(one.dataset_name, one.id) for one in order[:limit]}
    return [one for one in samples if (one.dataset_name, one.id) in kept]


def _with_task(sample: Sample) -> Sample:
    """One whose label is one of the species is classified, where the data say nothing else."""
    return sample if sample.task else replace(sample, task="classification")


def _named(ids: Sequence[str], samples: Sequence[Sample]) -> list[Sample]:
    known = {sample.id for sample in samples}
    missing = [one for one in ids if one not in known]
    if missing:
        hint = did_you_mean(missing[0], known)
        more = f" (nor {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise DataError(
            f"extended.samples: {missing[0]!r} is no id of a sample that is tested{more}{hint}"
        )
    wanted = set(ids)
    return [sample for sample in samples if sample.id in wanted]


def _strange_names(species: Sequence[SpeciesConfig], samples: Sequence[Sample]) -> list[str]:
    labels = {sample.label for sample in samples}
    notes = []
    for one in species:
        if one.name not in labels:
            near = difflib.get_close_matches(one.name, labels, n=1)
            hint = f"; the nearest label is {near[0]!r}" if near else ""
            notes.append(f"extended.species: no sample has the label {one.name!r}{hint}")
    return notes


def _nothing_left(species: Sequence[SpeciesConfig], samples: Sequence[Sample]) -> str:
    labels = most_frequent(samples, _LABELS_SHOWN)
    more = ", ..." if len({sample.label for sample in samples}) > len(labels) else ""
    described = ", description: ..." if any(one.description for one in species) else ""
    others = ", ".join(f"{{name: {label}{described}}}" for label in labels[: len(species)])
    return (
        f"extended.species names {', '.join(repr(one.name) for one in species)}, and none of the "
        f"{len(samples)} samples has such a label; they have {', '.join(labels)}{more}. To choose "
        f"from those: --options 'extended.species=[{others}]'"
    )


class FewShotPool:
    """A pool of example clips, from which each prompt takes `n` of every species.

    The pool has one fixed order, by seed, with clips of different recordings first, and every
    prompt takes the first that it may: so prompts share most examples, and the same sample gets the
    same ones on every machine. Left out are the clip under test and all of its recording.
    """

    def __init__(self, pool: Iterable[Sample], n: int, seed: int, name: str) -> None:
        self.n = n
        self._name = name
        by_label: dict[str, list[Sample]] = defaultdict(list)
        for sample in pool:
            by_label[sample.label].append(sample)
        self._by_label = {
            label: _recordings_first(hash_shuffle(samples, (seed,), key=_identity))
            for label, samples in by_label.items()
        }

    def examples(self, species: str, sample: Sample) -> tuple[Clip, ...]:
        """`n` clips of a species, to be shown with `sample`. Raises UsageError for too few."""
        found: list[Clip] = []
        for one in self._by_label.get(species, ()):
            if not _is_same_sound(one, sample):
                found.append(one.clip)
                if len(found) == self.n:
                    return tuple(found)
        raise UsageError(self._too_few(species, len(found), sample))

    def check(self, species: Sequence[str], samples: Sequence[Sample]) -> None:
        """Raise UsageError if a prompt to any of `samples` would find too few clips."""
        for name in species:
            if self._left_at_worst(name) < self.n:
                for sample in samples:
                    self.examples(name, sample)

    def _left_at_worst(self, species: str) -> int:
        """At least so many clips are left, whatever sample is tested."""
        pool = self._by_label.get(species, ())
        recordings = Counter(one.cluster for one in pool)
        sources = Counter(one.clip.source for one in pool)
        taken = [max(recordings.values(), default=0), max(sources.values(), default=0)]
        return len(pool) - sum(taken)

    def _too_few(self, species: str, found: int, sample: Sample) -> str:
        total = len(self._by_label.get(species, ()))
        if total == 0:
            known = ", ".join(sorted(self._by_label)[:10]) or "none"
            have = f"no clip of {species!r} (its labels: {known})"
        else:
            have = f"only {_clips(found)} of {species!r}"
            if found < total:
                have += f" beside those of the recording of sample {sample.id!r}, which is tested"
        return (
            f"extended.n_examples is {self.n}, and {self._name} has {have}: lower n_examples, or "
            "name a larger table of clips as extended.support"
        )


def _identity(sample: Sample) -> str:
    return sample.clip.key


def _recordings_first(samples: Sequence[Sample]) -> list[Sample]:
    """One clip of every recording before the second of any; otherwise in the same order."""
    seen: Counter[str] = Counter()
    ranked = []
    for sample in samples:
        ranked.append((seen[sample.cluster], sample))
        seen[sample.cluster] += 1
    return [sample for _, sample in sorted(ranked, key=lambda pair: pair[0])]


def _is_same_sound(example: Sample, sample: Sample) -> bool:
    return (
        example.clip == sample.clip
        or example.cluster == sample.cluster
        or example.clip.source == sample.clip.source
    )


def _clips(number: int) -> str:
    return "1 clip" if number == 1 else f"{number} clips"


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
        support: FewShotPool | None = None,
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
        return tuple(hash_shuffle(self._species, parts, key=lambda one: one.name))

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


@dataclass(frozen=True)
class Trial:
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

    def cells(self) -> Iterator[Trial]:
        """All cells: by sample, then query, then α. Can be called again."""
        for sample in self.samples:
            yield from self.cells_of(sample)

    def cells_of(self, sample: Sample) -> Iterator[Trial]:
        """The cells of one sample."""
        for number, query in enumerate(self._queries_of(sample)):
            prompt, audios = self._renderer.render(sample, query)
            for alpha in self.alphas:
                yield Trial(
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
        return digest(sorted(cell.id for cell in self.cells()), size=8).hex()

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
    return digest(json.dumps(contents), size=16).hex()
