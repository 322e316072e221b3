"""Answers that a classifier gives with their probabilities, for the whole model to learn.

A classifier that hears the same changed window is unsure where the window is hard to tell. Learning
how sure it is says more than the one right answer (distillation, Hinton et al., arXiv 1503.02531).

Shapes: B windows, T frames, M mel bins, C classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

Classifier = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SoftAnswers:
    """What a classifier would answer.

    classifier: spectrograms (B, T, M) → probabilities (B, C), without gradients
    texts: for each task, the answer that stands for each class; other tasks keep their answers
    share: what part of the aim is the classifier's; the rest is the right answer
    """

    classifier: Classifier
    texts: Mapping[str, Sequence[str]]
    share: float = 0.9

    def of(self, task: str, answer: str, probabilities_C: Sequence[float]) -> dict[str, float]:
        """Answers and their shares; empty where the classifier has no say."""
        texts = self.texts.get(task, ())
        if answer not in texts:
            return {}
        shares: dict[str, float] = defaultdict(float)
        shares[answer] = 1 - self.share
        for text, probability in zip(texts, probabilities_C, strict=True):
            shares[text] += self.share * probability
        return dict(shares)
