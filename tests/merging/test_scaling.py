"""Alpha belongs to the call and the row, never to the process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.generation.request import GenerationOptions
from NatureLM.inference.pipeline import Pipeline
from NatureLM.merging.lora import (
    AlphaScaling,
    active_alpha,
    active_scales,
    active_scaling,
    alpha_per_row,
)
from NatureLM.merging.recipe import extrapolation_note
from NatureLM.models import NatureLM

PROMPTS = ("What is it?", "Caption the audio.")


def logits(model: NatureLM, embeds: Tensor, alpha: Any) -> Tensor:
    with torch.no_grad(), active_alpha(alpha):
        out: Tensor = model.language_model(inputs_embeds=embeds).logits[:, -1]
    return out


@pytest.fixture(scope="module")
def embeds(nano: NatureLM, nano_waveforms: dict[str, Tensor]) -> Tensor:
    prompt = nano.processor.render("What is it?")
    with torch.no_grad():
        rows = nano.input_embeddings([prompt] * 3, [[wav] for wav in nano_waveforms.values()])
    return torch.stack(rows)


def test_zero_is_the_base_model_and_one_the_adapters(nano: NatureLM, embeds: Tensor) -> None:
    with torch.no_grad(), nano.llama_model.disable_adapter():
        base = nano.language_model(inputs_embeds=embeds).logits[:, -1]
    assert torch.allclose(logits(nano, embeds, 0.0), base, atol=1e-6)
    with torch.no_grad():
        as_stored = nano.language_model(inputs_embeds=embeds).logits[:, -1]
    assert torch.equal(logits(nano, embeds, 1.0), as_stored)
    assert not torch.allclose(as_stored, base, atol=1e-2)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(alphas=st.lists(st.floats(-1, 2), min_size=3, max_size=3))
def test_one_alpha_per_row_equals_one_at_a_time(
    alphas: list[float], nano: NatureLM, embeds: Tensor
) -> None:
    together = logits(nano, embeds, torch.tensor(alphas))
    for row, alpha in enumerate(alphas):
        alone = logits(nano, embeds[row : row + 1], alpha)
        assert torch.allclose(together[row], alone[0], atol=1e-4)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_sweep_in_one_call_gives_the_ids_of_single_calls(
    beams: int, nano: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    prompt, wav = nano.processor.render("Caption the audio."), nano_waveforms["trill"]
    alphas = [0.0, 0.25, 0.57, 1.0, 1.3]
    options = GenerationOptions(max_new_tokens=8, num_beams=beams)
    sweep = nano.generate_ids([prompt] * 5, [[wav]] * 5, alpha=alphas, options=options)
    for alpha, ids in zip(alphas, sweep, strict=True):
        assert nano.generate_ids([prompt], [[wav]], alpha=alpha, options=options) == [ids]
    assert len({tuple(ids) for ids in sweep}) > 1


def test_nothing_is_left_behind_by_errors_and_other_threads(nano: NatureLM, embeds: Tensor) -> None:
    wanted = logits(nano, embeds, 1.0)
    with pytest.raises(RuntimeError, match="on purpose"), active_alpha(0.3):
        raise RuntimeError("on purpose")
    assert torch.equal(logits(nano, embeds, 1.0), wanted)

    expected = {alpha: logits(nano, embeds, alpha) for alpha in (0.0, 0.5, 1.0, 2.0)}
    wrong: list[float] = []

    def ask(alpha: float) -> None:
        for _ in range(10):
            if not torch.equal(logits(nano, embeds, alpha), expected[alpha]):
                wrong.append(alpha)

    threads = [threading.Thread(target=ask, args=(alpha,)) for alpha in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_interleaved_blocks_restore_each_other(nano: NatureLM, embeds: Tensor) -> None:
    half = logits(nano, embeds, 0.5)
    with active_alpha(0.5):
        with active_alpha(2.0):
            pass
        with torch.no_grad():
            inside = nano.language_model(inputs_embeds=embeds).logits[:, -1]
    assert torch.equal(inside, half)


def test_the_stored_scale_is_multiplied_never_recomputed(nano_folder: Any) -> None:
    model = NatureLM.from_pretrained(nano_folder / "checkpoint")
    layers = [m for m in model.llama_model.modules() if isinstance(m, LoraLayer)]
    assert {layer.scaling.stored("default") for layer in layers} == {2.0}
    for layer in layers:
        assert isinstance(layer.scaling, AlphaScaling)
        layer.scaling["default"] = 0.7  # an adapter with a base scale of its own
    with active_alpha(0.5):
        assert {layer.scaling["default"] for layer in layers} == {0.35}
    assert {layer.scaling["default"] for layer in layers} == {0.7}


def test_rank_stabilised_adapters_keep_their_scale(build_model: Any) -> None:
    model = build_model(use_rslora=True, lora_rank=4, lora_alpha=8)
    layer = next(m for m in model.llama_model.modules() if isinstance(m, LoraLayer))
    assert layer.scaling.stored("default") == 4.0  # 8 / sqrt(4)


@pytest.mark.parametrize(
    ("alpha", "says"),
    [([0.1, 0.2], "2 values of alpha were given for 3"), (float("nan"), "finite")],
)
def test_wrong_alphas_are_refused(alpha: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        alpha_per_row(alpha, 3)


def test_a_model_without_adapter_takes_only_one(build_model: Any) -> None:
    model = build_model(lora=False)
    prompt = model.processor.render("What is it?")
    with pytest.raises(UsageError, match="alpha must be 1"):
        model.generate([prompt], [[torch.zeros(160000)]], alpha=0.5)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    alphas=st.lists(st.floats(-1, 2), min_size=2, max_size=3),
    order=st.lists(st.integers(0, 2), min_size=4, max_size=9),
    failing=st.integers(0, 2),
)
def test_interleaved_requests_leave_nothing_to_each_other(
    alphas: list[float],
    order: list[int],
    failing: int,
    nano: NatureLM,
    nano_waveforms: dict[str, Tensor],
) -> None:
    """Requests that take turns, one of which breaks off, answer as they do alone."""
    pipeline = Pipeline(nano)
    wavs = [wav.numpy() for wav in nano_waveforms.values()]

    def request(alpha: float) -> Iterator[Any]:
        return pipeline.windows(
            wavs, "What is it?", alpha=alpha, batch_size=1, num_beams=1, max_new_tokens=3
        )

    alone = [[result.text for result in request(alpha)] for alpha in alphas]
    running = [request(alpha) for alpha in alphas]
    got: list[list[str]] = [[] for _ in alphas]
    for turn in order:
        turn %= len(alphas)
        if turn == failing:
            running[turn].close()
        result = next(running[turn], None)
        if result is not None:
            got[turn].append(result.text)
    for texts, wanted in zip(got, alone, strict=True):
        assert texts == wanted[: len(texts)]
    assert active_scaling() == (None, None)
    assert [result.text for result in request(alphas[0])] == alone[0]


@given(alphas=st.lists(st.floats(-1, 2), max_size=4), error=st.booleans())
def test_blocks_end_whatever_happens_in_them(alphas: list[float], error: bool) -> None:
    scales = {("q", "default"): 0.5}
    try:
        with ExitStack() as blocks:
            for alpha in alphas:
                blocks.enter_context(active_alpha(alpha))
                blocks.enter_context(active_scales(scales))
                assert active_scaling() == (alpha, scales)
                with active_scales(None):
                    assert active_scaling() == (alpha, None)
            if error:
                raise RuntimeError("on purpose")
    except RuntimeError:
        pass
    assert active_scaling() == (None, None)


@pytest.mark.parametrize(
    ("alphas", "says"),
    [
        (1.0, None),
        ([0.0, 0.5, 1.0], None),
        (1.5, "alpha 1.5 lies outside 0 to 1"),
        ([0.5, -1, 2, 2], "alpha -1, 2 lies outside"),
    ],
)
def test_extrapolation_gets_a_note(alphas: Any, says: str | None) -> None:
    note = extrapolation_note(alphas)
    assert note is None if says is None else says in note
