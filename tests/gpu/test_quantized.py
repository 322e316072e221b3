"""Weights of 8 and 4 bits on a card: its kernels, and steps that are captured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from NatureLM.generation.engine import Engine
from NatureLM.generation.requests import GenerationOptions, Request
from NatureLM.models import NatureLM, quantized

pytestmark = pytest.mark.gpu

SHAPES = {"int8": [(1001, 1040), (1024, 4096), (256, 256)], "int4": [(1088, 4096), (256, 704)]}


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [1, 2, 16, 31, 64, 200])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_kernels_multiply_with_the_matrix_that_processors_have(
    kind: str, rows: int, dtype: torch.dtype
) -> None:
    for shape in SHAPES[kind]:
        made = quantized.KINDS[kind](*shape)
        made.quantize(torch.randn(shape), torch.float32)
        matrix = made.dequantized(torch.float32)
        made.to("cuda")
        if isinstance(made, quantized.Int4Linear):
            made.lie_for_cards()
        assert torch.allclose(made.dequantized(torch.float32).cpu(), matrix, rtol=1e-5, atol=1e-6)
        x = torch.randn(rows, shape[1], device="cuda").to(dtype)
        found = made(x)
        assert relative(found.cpu(), x.float().cpu() @ matrix.T) < 6e-3
        assert torch.equal(found, made(x))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_rounding_on_a_card_is_that_of_a_processor(kind: str) -> None:
    matrix = torch.randn(128, 192)
    weight, scale = quantized.QUANTIZERS[kind](matrix)
    on_card, scale_there = quantized.QUANTIZERS[kind](matrix.cuda())
    assert (on_card.cpu() == weight).float().mean() > 0.99
    assert relative(scale_there.cpu(), scale) < 1e-2


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_captured_steps_answer_as_plain_ones(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from NatureLM.generation import cuda_graphs

    monkeypatch.setattr(cuda_graphs, "_PATIENCE", 1)
    model = NatureLM.from_pretrained("naturelm-tiny", quantize=kind, device="cuda")
    assert model.processor is not None
    text = model.processor.render("<Audio><AudioHere></Audio> What is the common name?")
    clips = {str(n): 0.1 * torch.sin(torch.arange(160000) * 0.02 * (n + 1)) for n in range(3)}
    requests = [
        Request((name, alpha), text, (name,), alpha) for name in clips for alpha in (0.0, 0.5, 1.0)
    ]
    found = []
    for capture in (True, False):
        options = GenerationOptions(max_new_tokens=8)
        engine = Engine(model, options, eos_ids=model.eos_ids, capture=capture)
        answers: list[Any] = list(engine.run(requests, clips.__getitem__))
        assert all(one.error is None for one in answers)
        found.append({one.key: one.text for one in answers})
    same = sum(found[0][key] == found[1][key] for key in found[0])
    assert same >= len(requests) - 1  # bfloat16: a tie may fall to either side


def test_a_written_model_goes_onto_a_card(tmp_path: Path) -> None:
    model = NatureLM.from_pretrained("naturelm-tiny", quantize="int4", dtype="float32")
    model.save_pretrained(tmp_path)
    on_card = NatureLM.from_pretrained(tmp_path, device="cuda", dtype="float32")
    wav = 0.1 * torch.sin(torch.arange(160000) * 0.02)
    scores = []
    for one in (model, on_card):
        assert one.processor is not None
        text = one.processor.render("<Audio><AudioHere></Audio> What is the common name?")
        (found,) = one.score_labels([text], [[wav]], ["Dog", "Cat", "Common Cuckoo"])
        scores.append(torch.tensor(found.log_likelihoods))
    assert (scores[0] - scores[1]).abs().max() < 0.1
    on_card.save_pretrained(tmp_path / "again")
    first, again = (
        NatureLM.from_pretrained(folder, dtype="float32").state_dict()
        for folder in (tmp_path, tmp_path / "again")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
