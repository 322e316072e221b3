"""Which samples an experiment tests, and which species it lets choose from."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from NatureLM.beans.samples.sample import DataError, Sample
from NatureLM.config.extended import ExtendedConfig, SpeciesConfig
from NatureLM.experiments.order import drawn_order

_LABELS_SHOWN = 10


@dataclass(frozen=True)
class Selection:
    """What is tested: samples in the order of the data, and the species in the order named.

    notes: what a user should know about the choice
    """

    samples: tuple[Sample, ...]
    species: tuple[SpeciesConfig, ...]
    notes: tuple[str, ...] = ()


def select(config: ExtendedConfig, samples: Sequence[Sample]) -> Selection:
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
    order = drawn_order(samples, ("limit", seed), key=lambda one: f"{one.dataset_name}/{one.id}")
    kept = {(one.dataset_name, one.id) for one in order[:limit]}
    return [one for one in samples if (one.dataset_name, one.id) in kept]


def _with_task(sample: Sample) -> Sample:
    """One whose label is one of the species is classified, where the data say nothing else."""
    return sample if sample.task else replace(sample, task="classification")


def _named(ids: Sequence[str], samples: Sequence[Sample]) -> list[Sample]:
    known = {sample.id for sample in samples}
    missing = [one for one in ids if one not in known]
    if missing:
        near = difflib.get_close_matches(missing[0], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
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
