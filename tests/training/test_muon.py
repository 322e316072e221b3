"""Muon for hidden matrices, AdamW for the rest: who gets which, rates, checkpoints, resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from NatureLM.config.training import OptimsConfig
from NatureLM.errors import ConfigError
from NatureLM.training.checkpoint import load_optimizer, optimizer_tensors
from NatureLM.training.optim import (
    MuonWithAdamW,
    is_hidden_matrix,
    make_optimizer,
    set_rate,
    trainable,
)
from NatureLM.training.train import train


@pytest.mark.parametrize(
    ("name", "shape", "hidden"),
    [
        ("model.layers.0.mlp.up_proj.weight", (8, 4), True),
        ("audio_Qformer.bert.encoder.layer.0.intermediate_query.dense.weight", (8, 4), True),
        ("audio_llama_proj.weight", (8, 4), True),
        ("model.embed_tokens.weight", (8, 4), False),
        ("lm_head.weight", (8, 4), False),
        ("layers.0.q_proj.lora_A.default.weight", (2, 4), False),
        ("beats.encoder.layers.0.self_attn.relative_attention_bias.weight", (8, 4), False),
        ("audio_query_tokens", (1, 1, 4), False),
        ("model.norm.weight", (4,), False),
        ("beats.patch_embedding.weight", (4, 1, 2, 2), False),
    ],
)
def test_which_parameters_are_hidden_matrices(name: str, shape: tuple[int, ...], hidden: bool):
    assert is_hidden_matrix(name, nn.Parameter(torch.zeros(shape))) is hidden


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"embed_tokens": nn.Embedding(5, 4), "up_proj": nn.Linear(4, 6), "norm": nn.LayerNorm(6)}
    )


def backward(module: nn.Module) -> None:
    ids = torch.tensor([0, 1, 2, 3])
    out = module["norm"](module["up_proj"](module["embed_tokens"](ids)))  # type: ignore[index]
    out.square().mul(torch.arange(6.0)).sum().backward()


CONFIG = OptimsConfig(init_lr=1e-3, min_lr=0.0, muon_lr=0.02, weight_decay=0.0)


def test_matrices_make_orthogonal_steps_and_rates_follow_the_schedule():
    module = network()
    parameters = trainable(module)
    optimizer = make_optimizer(parameters, CONFIG)
    assert isinstance(optimizer, MuonWithAdamW)
    set_rate(optimizer, 5e-4)  # half of the full rate
    rates = {round(g["lr"], 9) for g in optimizer.param_groups if not g["muon"]}
    assert rates == {5e-4}
    (muon,) = (g for g in optimizer.param_groups if g["muon"])
    assert muon["lr"] == pytest.approx(0.01)
    assert muon["params"] == [module["up_proj"].weight]  # type: ignore[index]
    before = module["up_proj"].weight.detach().clone()  # type: ignore[index]
    backward(module)
    optimizer.step()
    step = module["up_proj"].weight.detach() - before  # type: ignore[index]
    sizes = torch.linalg.svdvals(step)
    assert float(sizes.max() / sizes.min()) < 2, "all directions move alike"
    optimizer.zero_grad()
    assert all(p.grad is None for p in module.parameters())


def test_state_goes_into_a_checkpoint_and_back():
    one, two = network(), network()
    first, second = (make_optimizer(trainable(m), CONFIG) for m in (one, two))
    for _ in range(2):
        backward(one)
        first.step()
        first.zero_grad()
    two.load_state_dict(one.state_dict())
    held = {k: v.clone() for k, v in optimizer_tensors(first, trainable(one)).items()}
    assert any("momentum_buffer" in name for name in held)
    assert any("exp_avg" in name for name in held)
    load_optimizer(second, trainable(two), held)
    for module, optimizer in ((one, first), (two, second)):
        backward(module)
        optimizer.step()
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


def test_a_run_with_muon_resumes_exactly(make_config, tmp_path: Path):
    def final(folder: str) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / folder / "final" / "model.safetensors")

    optims = {"muon_lr": 0.02}
    train(make_config(optims=optims, output_dir=str(tmp_path / "whole"), save_every=2))
    parts = make_config(optims=optims, output_dir=str(tmp_path / "parts"), save_every=2)
    train(parts)
    checkpoints = tmp_path / "parts" / "checkpoints"
    for folder in sorted(checkpoints.iterdir())[1:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    train(parts, resume=True)
    whole, resumed = final("whole"), final("parts")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_old_torch_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r"muon_lr needs torch 2\.9"):
        make_optimizer(trainable(network()), CONFIG)
