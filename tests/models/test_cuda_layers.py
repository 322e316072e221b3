"""The layers that cards compute in another form give the same, on any device."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from NatureLM.models import cuda_layers as kernels
from NatureLM.models.checkpoint.tensors import write_tensors
from NatureLM.models.cuda_layers import (
    AlignedHead,
    FusedAttention,
    FusedRMSNorm,
    align_head,
    rotated,
    use_cuda_layers,
)


def small_llama(dtype: torch.dtype, tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=131,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers are swapped, as where Triton is; on a processor their kernels take nothing."""
    monkeypatch.setattr(kernels, "is_here", lambda: True)


@pytest.mark.parametrize("tied", [False, True])
def test_half_precision_gives_nearly_the_same(tied: bool) -> None:
    model = small_llama(torch.bfloat16, tied)
    exact = copy.deepcopy(model).float()
    ids = torch.randint(0, 131, (3, 7))
    plain, wanted = model(ids).logits, exact(ids).logits
    use_cuda_layers(model)
    assert isinstance(model.lm_head, AlignedHead)
    assert isinstance(model.model.norm, FusedRMSNorm)
    assert isinstance(model.model.layers[0].self_attn, FusedAttention)
    found = model(ids).logits
    assert found.shape == plain.shape
    errors = [(one.float() - wanted).norm() / wanted.norm() for one in (found, plain)]
    assert errors[0] < 1.5 * errors[1] < 0.05


@pytest.mark.parametrize("learns", [False, True])
def test_float32_stays_as_it_is(learns: bool) -> None:
    model = small_llama(torch.float32).train(learns).requires_grad_(learns)
    ids = torch.randint(0, 131, (3, 7))

    def results() -> list[torch.Tensor]:
        first = model(ids, use_cache=True)
        then = model(ids[:, :1], past_key_values=first.past_key_values)
        if not learns:
            return [first.logits, then.logits]
        model.zero_grad()
        first.logits.square().sum().backward()
        gradients = [one.grad.clone() for one in model.parameters() if one.grad is not None]
        assert len(gradients) > 10
        return [first.logits, then.logits, *gradients]

    before = results()
    use_cuda_layers(model)
    assert all(torch.equal(a, b) for a, b in zip(before, results(), strict=True))


@pytest.mark.parametrize("width", [24, 96, 100])
def test_heads_whose_width_the_kernel_does_not_know_are_turned_without_it(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "fits", lambda *_: True)  # as on a card
    query, key = torch.randn(2, 5, 4, width), torch.randn(2, 5, 2, width)
    cos, sin = torch.randn(2, 2, 5, width)
    wanted = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
    found = rotated(query, key, cos, sin)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_card_half_precision_gives_nearly_the_same(dtype: torch.dtype) -> None:
    model = small_llama(dtype).cuda()
    exact = copy.deepcopy(model).float()
    ids = torch.randint(0, 131, (5, 9), device="cuda")

    def results(model: LlamaForCausalLM) -> list[torch.Tensor]:
        with torch.inference_mode():
            first = model(ids, use_cache=True)
            then = model(ids[:, :1], past_key_values=first.past_key_values)
        return [first.logits.float(), then.logits.float()]

    wanted, plain = results(exact), results(model)
    use_cuda_layers(model)
    for one, other, right in zip(results(model), plain, wanted, strict=True):
        errors = [(each - right).norm() / right.norm() for each in (one, other)]
        assert errors[0] < 1.5 * errors[1] < 0.05


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [1, 8, 9, 32])
def test_kernels_of_a_card(heads: int) -> None:
    x = torch.randn(77, heads, 64, device="cuda").bfloat16()
    cos, sin = (torch.randn(77, 64, device="cuda").bfloat16() for _ in range(2))
    turned = torch.cat([-x[..., 32:], x[..., :32]], dim=-1)
    wanted = x.double() * cos.double()[:, None] + turned.double() * sin.double()[:, None]
    kernels.rotate(x, cos, sin)
    assert (x - wanted).norm() < 3e-3 * wanted.norm()
    gate, up = (torch.randn(3, heads * 1001, device="cuda").bfloat16() for _ in range(2))
    wanted = torch.nn.functional.silu(gate.double()) * up.double()
    assert (kernels.gated(gate, up) - wanted).norm() < 3e-3 * wanted.norm()


def test_the_output_layer_is_exact_whatever_becomes_of_its_weight(tmp_path: Path) -> None:
    head = nn.Linear(16, 130, bias=False).to(torch.bfloat16).requires_grad_(False)
    plain, values = copy.deepcopy(head), torch.randn(5, 16, dtype=torch.bfloat16)
    align_head(head)
    assert head.weight.untyped_storage().nbytes() == 192 * 16 * 2
    assert torch.equal(head.weight, plain.weight)
    assert torch.equal(head(values), plain(values))
    write_tensors({"head.weight": head.weight}, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 192 * 16 * 2
    turned = copy.deepcopy(head)
    turned.weight.data = torch.randn(16, 192).bfloat16()[:, :130].T  # there is room behind it
    assert torch.equal(turned(values), nn.functional.linear(values, turned.weight))
    for changed in (copy.deepcopy(head), head):
        changed.weight = nn.Parameter(plain.weight * 2, requires_grad=True)  # no rows behind it
        assert torch.equal(changed(values), (plain(values) * 2))
        changed(values).sum().backward()
        assert changed.weight.grad is not None
