"""How long an experiment takes, about: from what was measured, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from NatureLM.experiments.plan import Plan

USUAL_ANSWER = 20
"""Tokens that an answer has, as a rule; those of a list of species have fewer."""


@dataclass(frozen=True)
class Speed:
    """What a model does on a machine.

    encoding: seconds for a window; token: seconds for a token of one beam, batches being full
    machine: where that was measured, in words
    """

    encoding: float
    token: float
    machine: str


SMALL = Speed(encoding=0.05, token=0.0006, machine="two cores of a processor")
LARGE = Speed(encoding=0.01, token=0.0005, machine="one data-centre GPU")


def estimate_seconds(plan: Plan, speed: Speed, *, max_new_tokens: int, num_beams: int) -> float:
    """Seconds for all encodings and generations, answers being of usual length."""
    tokens = min(USUAL_ANSWER, max_new_tokens)
    return plan.n_encodings * speed.encoding + len(plan) * tokens * num_beams * speed.token
