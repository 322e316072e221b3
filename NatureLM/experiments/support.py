"""Labelled example clips for few-shot prompts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from NatureLM.beans.samples.clip import Clip
from NatureLM.beans.samples.sample import Sample
from NatureLM.errors import UsageError
from NatureLM.experiments.order import drawn_order


class Support:
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
            label: _recordings_first(drawn_order(samples, (seed,), key=_identity))
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
