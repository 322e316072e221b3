"""Alpha belongs to the call and the row, never to the process."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.generation.options import GenerationOptions
from NatureLM.merging.scaling import AlphaScaling, active_alpha, alpha_per_row
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
