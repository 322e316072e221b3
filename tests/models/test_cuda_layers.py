"""The layers that cards compute in another form give the same, on any device."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from NatureLM.models.checkpoint.tensors import write_tensors
from NatureLM.models.cuda_layers import AlignedHead, FusedRMSNorm, align_head, use_cuda_layers


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


@pytest.mark.parametrize("tied", [False, True])
def test_half_precision_gives_nearly_the_same(tied: bool) -> None:
    model = small_llama(torch.bfloat16, tied)
    exact = copy.deepcopy(model).float()
    ids = torch.randint(0, 131, (3, 7))
    plain, wanted = model(ids).logits, exact(ids).logits
    use_cuda_layers(model)
    assert isinstance(model.lm_head, AlignedHead)
    assert isinstance(model.model.norm, FusedRMSNorm)
    found = model(ids).logits
    assert found.shape == plain.shape
    errors = [(one.float() - wanted).norm() / wanted.norm() for one in (found, plain)]
    assert errors[0] < 1.5 * errors[1] < 0.05


def test_float32_stays_as_it_is() -> None:
    model = small_llama(torch.float32)
    ids = torch.randint(0, 131, (3, 7))
    before = model(ids).logits
    use_cuda_layers(model)
    assert torch.equal(model(ids).logits, before)


def test_the_output_layer_is_exact_whatever_becomes_of_its_weight(tmp_path: Path) -> None:
    head = nn.Linear(16, 130, bias=False).to(torch.bfloat16).requires_grad_(False)
    plain, values = copy.deepcopy(head), torch.randn(5, 16, dtype=torch.bfloat16)
    align_head(head)
    assert head.weight.untyped_storage().nbytes() == 192 * 16 * 2
    assert torch.equal(head.weight, plain.weight)
    assert torch.equal(head(values), plain(values))
    write_tensors({"head.weight": head.weight}, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 192 * 16 * 2
    for changed in (copy.deepcopy(head), head):
        changed.weight = nn.Parameter(plain.weight * 2, requires_grad=True)  # no rows behind it
        assert torch.equal(changed(values), (plain(values) * 2))
        changed(values).sum().backward()
        assert changed.weight.grad is not None
