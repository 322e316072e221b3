"""Confidence in labels on recordings with known answers: scored, fitted, measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from NatureLM.data.sample import Sample
from NatureLM.errors import NatureLMError
from NatureLM.evaluation.bootstrap import Estimate, clustered_interval
from NatureLM.evaluation.metrics import (
    BINS,
    ReliabilityBin,
    accuracy,
    calibration_error,
    reliability_bins,
)
from NatureLM.experiments.run import ClipLoader
from NatureLM.generation.labels import NOTHING, LabelScores, Normalize
from NatureLM.inference.calibration import Calibration, fit_temperature
from NatureLM.inference.loading import processor_of

if TYPE_CHECKING:
    from NatureLM.generation.audio_cache import EmbeddingCache
    from NatureLM.models import NatureLM

logger = logging.getLogger(__name__)

_SMALLEST = 1e-12  # of a probability, so that its logarithm is finite


@dataclass(frozen=True)
class Scored:
    """A sample and the scores of all labels, `None` among them."""

    sample: Sample
    scores: LabelScores

    def confidence(self, temperature: float) -> float:
        """Probability of the likeliest label."""
        return self.scores.at_temperature(temperature).confidence

    def of_species(self, temperature: float) -> float:
        """Probability of the likeliest label that is not `None`."""
        pairs = self.scores.at_temperature(temperature).ranked()
        return next((share for label, share in pairs if label != NOTHING), 0.0)

    @property
    def is_right(self) -> bool:
        """Whether the likeliest label is the true one."""
        return self.scores.best == self.sample.label


@dataclass(frozen=True)
class Reliability:
    """How far confidences at a temperature mean what they say, with intervals over clusters.

    error: expected calibration error; nll: mean of -log probability of the true label, nats
    """

    temperature: float
    accuracy: Estimate
    error: Estimate
    nll: Estimate
    bins: tuple[ReliabilityBin, ...]

    def plain(self) -> dict[str, Any]:
        """As plain values; bins without samples are left out."""
        return {
            "temperature": self.temperature,
            "accuracy": asdict(self.accuracy),
            "error": asdict(self.error),
            "surprise": asdict(self.nll),
            "bins": [asdict(one) for one in self.bins if one.samples > 0],
        }


def score_samples(
    model: NatureLM,
    samples: Sequence[Sample],
    labels: Sequence[str],
    query: str,
    *,
    alpha: float = 1.0,
    normalize: Normalize = "sum",
    embeddings: EmbeddingCache | None = None,
) -> list[Scored]:
    """The scores of the labels and `None` for the first window of each sample, in their order.

    embeddings: where encoded clips are kept from one call to the next

    Recordings that cannot be read are logged and left out.

    Raises NatureLMError where none can be read, UsageError for a question or a label that is too
    long for the language model.
    """
    from NatureLM.generation.engine import Engine, fold_if_single_alpha, yield_in_input_order
    from NatureLM.generation.labels import LabelChoice
    from NatureLM.generation.requests import Answer, Request
    from NatureLM.prompts import PLACEHOLDER

    load = ClipLoader(model, (sample.clip for sample in samples))
    prompt = processor_of(model).render(query)
    clips = prompt.count(PLACEHOLDER)
    names = tuple(labels) if NOTHING in labels else (*labels, NOTHING)
    choice = LabelChoice(names, normalize=normalize)
    requests = (
        Request(place, prompt, (sample.clip.key,) * clips, alpha, choice=choice)
        for place, sample in enumerate(samples)
    )
    found: list[Scored] = []
    engine = Engine(model, embeddings=embeddings)
    asked = Request(query, prompt, ("",) * clips, alpha, choice=choice)
    if problem := engine.problem_of(asked, clips * model.config.audio_positions()):
        raise problem
    with fold_if_single_alpha(model, [alpha]):
        for answer in yield_in_input_order(engine.run, requests, load):
            assert isinstance(answer, Answer)
            sample = samples[cast(int, answer.key)]
            if answer.scores is not None:
                found.append(Scored(sample, answer.scores))
            else:
                logger.warning("left out: %s", answer.error)
    if not found:
        raise NatureLMError("no recording could be heard, so there is nothing to go by")
    return found


def fit_calibration(
    model: NatureLM,
    scored: Sequence[Scored],
    query: str,
    *,
    alpha: float = 1.0,
    normalize: Normalize = "sum",
) -> Calibration:
    """The temperature of samples whose label is among those that were scored.

    Raises NatureLMError where there is none.
    """
    usable = [one for one in scored if one.sample.label in one.scores.labels]
    if not usable:
        raise NatureLMError(
            "no recording has a label that is in the list, so there is nothing to fit to"
        )
    right = [one.scores.labels.index(one.sample.label) for one in usable]
    temperature = fit_temperature([one.scores.scores for one in usable], right)
    return Calibration(
        temperature=round(temperature, 4),
        normalize=normalize,
        merging_alpha=alpha,
        weights=model.fingerprint,
        query=query,
        labels=len(usable[0].scores.labels),
        samples=len(usable),
        clusters=len({one.sample.cluster for one in usable}),
        revision=model.revisions.get("revision"),
    )


def measure(
    scored: Sequence[Scored], temperature: float, *, bins: int = BINS, repeats: int = 2000
) -> Reliability:
    """How far the confidences mean what they say."""
    sure = np.array([one.confidence(temperature) for one in scored])
    right = np.array([one.is_right for one in scored], dtype=np.float64)
    clusters = [one.sample.cluster for one in scored]
    ranked = [dict(one.scores.at_temperature(temperature).ranked()) for one in scored]
    shares = [of.get(one.sample.label, 0.0) for of, one in zip(ranked, scored, strict=True)]
    nlls = -np.log(np.maximum(shares, _SMALLEST))

    def interval(statistic: Callable[[Any], float]) -> Estimate:
        return clustered_interval(statistic, clusters, repeats=repeats)

    return Reliability(
        temperature,
        interval(lambda weights: accuracy(right, weights)),
        interval(lambda weights: calibration_error(sure, right, weights, bins)),
        interval(lambda weights: float(nlls @ weights / weights.sum())),
        tuple(reliability_bins(sure, right, None, bins)),
    )
