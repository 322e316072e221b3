"""Answers with shares: the loss that several likely answers give, and who gives the shares."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.models import NatureLM
from NatureLM.training.objectives import DistillationTargets
from tests.builders import BuildModel

TEXTS = ("Dog", "Frog", "Green Frog", "Green Treefrog", "None")
PROMPT = "Which animal is it? <Audio><AudioHere></Audio>"


@pytest.fixture(scope="module")
def model(build_model: BuildModel) -> NatureLM:
    return build_model().double()


@pytest.fixture(scope="module")
def heard(model: NatureLM) -> torch.Tensor:
    wav = torch.randn(1, model.config.window_samples, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.encode_audio(wav * 0.1)[0]


def loss_of(model: NatureLM, heard: torch.Tensor, answers: list[str], soft: Any) -> torch.Tensor:
    """Losses of rows, summed over their tokens."""
    rows = len(answers)
    batch = {"prompts": [PROMPT] * rows, "audios": [[heard]] * rows, "answers": answers}
    out = model.loss({**batch, "soft": soft})
    assert out.per_example_loss is not None
    assert out.total_per_sample is not None
    return out.per_example_loss * out.total_per_sample


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0.01, 1.0), min_size=len(TEXTS), max_size=len(TEXTS)))
def test_the_mean_over_own_answers_is_the_cross_entropy(
    model: NatureLM, heard: torch.Tensor, parts: list[float]
) -> None:
    """Drawn by the shares, own answers give the cross-entropy between the lists of answers."""
    shares = {text: part / sum(parts) for text, part in zip(TEXTS, parts, strict=True)}
    weights = torch.tensor(list(shares.values()), dtype=torch.float64)
    with torch.no_grad():
        certain = loss_of(model, heard, list(TEXTS), [])
        soft = loss_of(model, heard, list(TEXTS), [shares] * len(TEXTS))
    assert float(weights @ soft) == pytest.approx(float(weights @ certain), rel=1e-9)


def test_one_certain_answer_is_the_plain_loss(model: NatureLM, heard: torch.Tensor) -> None:
    with torch.no_grad():
        plain = loss_of(model, heard, list(TEXTS), [])
        soft = loss_of(model, heard, list(TEXTS), [{text: 1.0} for text in TEXTS])
        mixed = loss_of(model, heard, list(TEXTS), [None, {}, None, {}, None])
    torch.testing.assert_close(soft, plain)
    torch.testing.assert_close(mixed, plain)


def test_a_row_does_not_change_its_neighbours(model: NatureLM, heard: torch.Tensor) -> None:
    shares = {"Green Frog": 0.5, "Green Treefrog": 0.3, "None": 0.2}
    with torch.no_grad():
        plain = loss_of(model, heard, ["Frog", "Green Frog", "None"], [])
        soft = loss_of(model, heard, ["Frog", "Green Frog", "None"], [None, shares, None])
    changed = (plain - soft).abs() > 1e-12
    assert changed.tolist() == [False, True, False]


def test_the_least_loss_is_where_the_shares_are(model: NatureLM, heard: torch.Tensor) -> None:
    """At the shares themselves, cross-entropy is entropy: gradients of the logits vanish."""
    from NatureLM.models.loss import AnswerRows, SoftTarget, answer_loss

    shares = torch.tensor([0.7, 0.3], dtype=torch.float64)
    logits = torch.full((1, 1, 5), -60.0, dtype=torch.float64)
    logits[0, 0, [1, 3]] = shares.log()
    logits.requires_grad_()
    rows = AnswerRows(
        torch.zeros(1, 2, 1),
        torch.ones(1, 2),
        torch.tensor([[-100, 1]]),
        [
            SoftTarget(0, 1, token, float(share))
            for token, share in zip((1, 3), shares, strict=True)
        ],
    )
    out = answer_loss(logits, rows)
    assert out.loss is not None
    out.loss.backward()  # type: ignore[no-untyped-call]
    assert out.loss.item() == pytest.approx(float(-(shares * shares.log()).sum()))
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-12


def test_shares_of_the_classifier_and_of_the_right_answer() -> None:
    soft = DistillationTargets(lambda fbank: fbank, {"group": ("bird", "bird", "frog")}, share=0.8)
    assert soft.of("group", "frog", [0.5, 0.25, 0.25]) == pytest.approx({"bird": 0.6, "frog": 0.4})
    assert soft.of("caption", "frog", [0.5, 0.25, 0.25]) == {}, "the task has no texts"
    assert soft.of("group", "bird, frog", [0.5, 0.25, 0.25]) == {}, "a mix is not asked about"


@pytest.mark.parametrize("own", TEXTS)
def test_shares_sum_to_one(own: str) -> None:
    for share, first in itertools.product((0.0, 0.5, 1.0), (0.0, 0.4, 1.0)):
        rest = (1 - first) / (len(TEXTS) - 1)
        given_shares = DistillationTargets(lambda x: x, {"common": TEXTS}, share).of(
            "common", own, [first, *[rest] * (len(TEXTS) - 1)]
        )
        assert sum(given_shares.values()) == pytest.approx(1.0)
