"""A model whose numbers overflow says so, and answers nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import BuildModel
from torch import Tensor

from NatureLM.generation.engine import Engine
from NatureLM.generation.labels import LabelChoice
from NatureLM.generation.request import GenerationOptions, Request
from NatureLM.generation.sampling import NonFiniteLogitsError
from NatureLM.inference.pipeline import Pipeline
from NatureLM.models import NatureLM


@pytest.fixture
def overflowing(build_model: BuildModel) -> NatureLM:
    model = build_model()
    with torch.no_grad():
        model.language_model.lm_head.weight.fill_(torch.nan)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1},
        {"num_beams": 2},
        {"num_beams": 1, "do_sample": True},
        {"num_beams": 1, "do_sample": True, "top_k": 3, "top_p": 0.9},
    ],
)
@pytest.mark.parametrize("how", [None, "score", "constrained"])
def test_there_is_no_answer_and_the_reason_is_said(
    options: dict[str, Any],
    how: Any,
    overflowing: NatureLM,
    nano_waveforms: dict[str, Tensor],
) -> None:
    choice = None if how is None else LabelChoice(("Owl", "Wolf"), how)
    assert overflowing.processor is not None
    prompt = overflowing.processor.render("What is it?")
    request = Request("a", prompt, ("howl",), choice=choice)
    engine = Engine(overflowing, GenerationOptions(max_new_tokens=3, **options))
    (answer,) = engine.run([request], nano_waveforms.__getitem__)
    assert answer.text is None
    assert isinstance(answer.error, NonFiniteLogitsError)
    assert "--dtype" in str(answer.error)


def test_a_conversation_says_so_too(
    overflowing: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    talk = Pipeline(overflowing).conversation([nano_waveforms["howl"]])
    with pytest.raises(NonFiniteLogitsError):
        list(talk.ask("What is it?"))
    assert talk.turns == ()
