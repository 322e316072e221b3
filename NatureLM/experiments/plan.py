"""What an experiment will do, as data: every (sample, query, α) with its prompt and its audio.

In a query, `{species_list}` becomes the names, `{examples}` a described example of each species,
`{audio_examples}` labelled clips of each, and `{randomize}` nothing: it shuffles the species.

Random orders ask no generator: things are sorted by a hash of seed and names, so that an order is
the same on every machine, in every version, and whatever was drawn before.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from NatureLM.config.schema import (
    AUDIO_EXAMPLES,
    EXAMPLES,
    FLAGS,
    RANDOMIZE,
    SPECIES_LIST,
    ExperimentConfig,
    SpeciesConfig,
)
from NatureLM.data.sample import Clip, Sample, SampleSet, open_samples
from NatureLM.data.table import DataError
from NatureLM.errors import UsageError
from NatureLM.prompts import AUDIO_TAG, PLACEHOLDER, example_blocks, render
from NatureLM.util import did_you_mean, digest

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Trial:
    """One generation: a sample, a query and an α.

    id: hash of all that decides the answer apart from model and decoding, the same on every machine
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
    """The trials of an experiment; they are made as they are asked for.

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
        renderer = replace(self._renderer, template=template)
        return Plan(self.samples, self.queries, self.alphas, renderer)

    def __len__(self) -> int:
        return len(self.samples) * self.n_queries * len(self.alphas)

    def trials(self) -> Iterator[Trial]:
        """All trials: by sample, then query, then α. Can be called again."""
        for sample in self.samples:
            yield from self.trials_of(sample)

    def trials_of(self, sample: Sample) -> Iterator[Trial]:
        """The trials of one sample."""
        for number, query in enumerate(self._queries_of(sample)):
            prompt, audios = self._renderer.render(sample, query)
            keys = [clip.key for clip in audios]
            for alpha in self.alphas:
                contents = [sample.dataset_name, sample.id, query, repr(alpha), prompt, keys]
                yield Trial(
                    id=digest(json.dumps(contents), size=16).hex(),
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
                for clip in self._renderer.render(sample, query)[1]
            }
        )

    def fingerprint(self) -> str:
        """Hash of all trials, whatever their order."""
        return digest(sorted(trial.id for trial in self.trials()), size=8).hex()

    def _queries_of(self, sample: Sample) -> Sequence[str]:
        return (sample.instruction,) if self.queries is None else self.queries


def make_plan(config: ExperimentConfig, template: str) -> Plan:
    """The plan of an experiment; labels are read, sound is not.

    template: text around a query, with `{}`

    Raises DataError or UsageError: data that cannot be read, nothing left to test, too
    few example clips, no question to ask.
    """
    if config.data is None:
        raise DataError("extended.data: no data are named")
    data = open_samples(config.data, config.datasets)
    if config.top_k_species is not None and len(data.datasets) > 1:
        raise DataError(
            f"extended.top_k_species is {config.top_k_species}, and it works with one dataset; "
            f"{data.name} holds {', '.join(data.datasets)}: name one in extended.datasets"
        )
    samples, species = select(config, data.samples)
    for note in (*data.notes, *_unknown_species(config.species or (), data.samples)):
        logger.warning(note)
    silent = next((sample for sample in samples if not sample.instruction.strip()), None)
    if config.queries is None and silent is not None:
        raise DataError(
            f"{data.name}: sample {silent.id!r} brings no question of its own (column "
            "instruction_text), and extended.queries is not set: put at least one question there"
        )
    pool = _few_shot_pool(config, data)
    if pool is not None:
        pool.check([one.name for one in species], samples)
    renderer = Renderer(template, species, pool, config.seed)
    return Plan(samples, config.queries, config.lora_scales, renderer)


def _few_shot_pool(config: ExperimentConfig, data: SampleSet) -> FewShotPool | None:
    if not any(f"{{{AUDIO_EXAMPLES}}}" in query for query in config.queries or ()):
        return None
    table = config.support_table
    if table is None:
        return FewShotPool(data.samples, config.n_examples, config.seed, data.name)
    support = open_samples(table, key_prefix="support:")
    for note in support.notes:
        logger.warning(note)
    return FewShotPool(support.samples, config.n_examples, config.seed, table.path)


_USUAL_ANSWER = 20  # tokens, as a rule; answers from a list of species have fewer


@dataclass(frozen=True)
class Speed:
    """How fast a model answers on a machine, as measured.

    encoding: seconds for a window; token: seconds for a token of one beam, batches being full
    machine: in words
    """

    encoding: float
    token: float
    machine: str


SMALL = Speed(encoding=0.05, token=0.0006, machine="two cores of a processor")
LARGE = Speed(encoding=0.01, token=0.0005, machine="one data-centre GPU")


def estimate_seconds(plan: Plan, speed: Speed, *, max_new_tokens: int, num_beams: int) -> float:
    """Seconds for all encodings and generations, answers being of usual length."""
    tokens = min(_USUAL_ANSWER, max_new_tokens)
    return plan.n_encodings * speed.encoding + len(plan) * tokens * num_beams * speed.token


_SPLIT = re.compile("(" + "|".join(re.escape(f"{{{flag}}}") for flag in FLAGS) + ")")


@dataclass(frozen=True)
class Renderer:
    """Renders queries for samples.

    template: text around a query, with `{}`
    species: those to choose from, in the order in which they are named
    pool: where example clips come from; needed for queries with {audio_examples}
    seed: of the shuffles
    """

    template: str
    species: Sequence[SpeciesConfig] = ()
    pool: FewShotPool | None = None
    seed: int = 0

    def render(self, sample: Sample, query: str) -> tuple[str, tuple[Clip, ...]]:
        """The complete prompt, and the clip of each of its placeholders in order."""
        parts = list(self._parts(sample, query))
        text = "".join(part for part, _ in parts)
        audios = tuple(clip for _, clips in parts for clip in clips)
        if text.count(PLACEHOLDER) != len(audios):
            raise UsageError(
                f"the name or description of a species holds {PLACEHOLDER}, which stands for "
                f"sound: {text[:200]!r}"
            )
        return render(self.template, text), audios

    def _parts(self, sample: Sample, query: str) -> Iterator[tuple[str, tuple[Clip, ...]]]:
        """Stretches of the query: the text of each, and the clips of the placeholders in it."""
        species = self.species
        if f"{{{RANDOMIZE}}}" in query:
            parts = (self.seed, sample.id, query)
            species = hash_shuffle(species, parts, key=lambda one: one.name)
        if PLACEHOLDER not in query:
            yield f"{AUDIO_TAG} ", (sample.clip,)
        for part in _SPLIT.split(query):
            flag = part[1:-1] if _SPLIT.fullmatch(part) else None
            if flag is None:
                yield part, (sample.clip,) * part.count(PLACEHOLDER)
            elif flag == SPECIES_LIST:
                yield ", ".join(one.name for one in species), ()
            elif flag == EXAMPLES:
                yield example_blocks((one.description or "", one.name) for one in species), ()
            elif flag == AUDIO_EXAMPLES:
                if self.pool is None:
                    raise UsageError(f"a query holds {{{flag}}}, and there are no example clips")
                shown = [(one.name, self.pool.examples(one.name, sample)) for one in species]
                text = example_blocks((AUDIO_TAG, name) for name, clips in shown for _ in clips)
                yield text, tuple(clip for _, clips in shown for clip in clips)


class FewShotPool:
    """Labelled example clips, of which each prompt takes `n` of every species.

    The pool has one fixed order, by seed, with clips of different recordings first, and every
    prompt takes the first that it may: so prompts share most examples, and the same sample gets the
    same ones on every machine. Left out are the clip under test and all of its recording.
    """

    def __init__(self, pool: Iterable[Sample], n: int, seed: int, name: str) -> None:
        self.n = n
        self._name = name
        by_label: dict[str, list[Sample]] = defaultdict(list)
        for sample in hash_shuffle(pool, (seed,), key=lambda one: one.clip.key):
            by_label[sample.label].append(sample)
        self._by_label = {label: _recordings_first(found) for label, found in by_label.items()}

    def examples(self, species: str, sample: Sample) -> tuple[Clip, ...]:
        """`n` clips of a species, to be shown with `sample`. Raises UsageError for too few."""
        pool = self._by_label.get(species, ())
        found: list[Clip] = []
        for one in pool:
            if one.cluster != sample.cluster and one.clip.source != sample.clip.source:
                found.append(one.clip)
                if len(found) == self.n:
                    return tuple(found)
        if not pool:
            known = ", ".join(sorted(self._by_label)[:10]) or "none"
            have = f"no clip of {species!r} (its labels: {known})"
        else:
            clips = "1 clip" if len(found) == 1 else f"{len(found)} clips"
            have = f"only {clips} of {species!r}"
            if len(found) < len(pool):
                have += f" beside those of the recording of sample {sample.id!r}, which is tested"
        raise UsageError(
            f"extended.n_examples is {self.n}, and {self._name} has {have}: lower n_examples, or "
            "name a larger table of clips as extended.support"
        )

    def check(self, species: Sequence[str], samples: Sequence[Sample]) -> None:
        """Raise UsageError if a prompt to any of `samples` would find too few clips."""
        for name in species:
            for sample in samples:
                self.examples(name, sample)


def _recordings_first(samples: Sequence[Sample]) -> list[Sample]:
    """One clip of every recording before the second of any; otherwise in the same order."""
    seen: Counter[str] = Counter()
    ranked = []
    for sample in samples:
        ranked.append((seen[sample.cluster], sample))
        seen[sample.cluster] += 1
    return [sample for _, sample in sorted(ranked, key=lambda pair: pair[0])]


def select(
    config: ExperimentConfig, samples: Sequence[Sample]
) -> tuple[list[Sample], list[SpeciesConfig]]:
    """What is tested: samples in the order of the data, and the species in the order named.

    Applies `species` or `top_k_species`, then `samples`, then `limit`. Raises DataError where
    nothing is left, or a sample that is named is not there.
    """
    species = list(config.species or ())
    if config.species is None and config.top_k_species is not None:
        names = most_frequent(samples, config.top_k_species)
        species = [SpeciesConfig(name=name) for name in names]
    tested = list(samples)
    if species:
        names_tested = {one.name for one in species}
        # What has one of the labels is classified, where the data say nothing else.
        tested = [
            sample if sample.task else replace(sample, task="classification")
            for sample in tested
            if sample.label in names_tested
        ]
        if not tested:
            raise DataError(_nothing_left(species, samples))
    if config.samples is not None:
        tested = _named(config.samples, tested)
    if config.limit is not None:
        tested = drawn(tested, config.limit, config.seed)
    return tested, species


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


def _unknown_species(species: Sequence[SpeciesConfig], samples: Sequence[Sample]) -> Iterator[str]:
    """Notes on species that no sample has: they may be there to distract, or be misspelt."""
    labels = {sample.label for sample in samples}
    for one in species:
        if one.name not in labels:
            near = difflib.get_close_matches(one.name, labels, n=1)
            hint = f"; the nearest label is {near[0]!r}" if near else ""
            yield f"extended.species: no sample has the label {one.name!r}{hint}"


def _nothing_left(species: Sequence[SpeciesConfig], samples: Sequence[Sample]) -> str:
    labels = most_frequent(samples, 10)
    more = ", ..." if len({sample.label for sample in samples}) > len(labels) else ""
    described = ", description: ..." if any(one.description for one in species) else ""
    others = ", ".join(f"{{name: {label}{described}}}" for label in labels[: len(species)])
    return (
        f"extended.species names {', '.join(repr(one.name) for one in species)}, and none of the "
        f"{len(samples)} samples has such a label; they have {', '.join(labels)}{more}. To choose "
        f"from those: --options 'extended.species=[{others}]'"
    )


def hash_shuffle(
    items: Iterable[Item], parts: Sequence[object], *, key: Callable[[Item], str]
) -> list[Item]:
    """The items in the random order that `parts` (a seed, names) stand for.

    key: a string that tells the items apart
    """
    return sorted(items, key=lambda item: digest(json.dumps([*parts, key(item)])))
