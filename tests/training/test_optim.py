"""What learns and how fast: groups, schedule, clipping, Muon, the moving average; its memory."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from NatureLM.config.schema import Config, ModelConfig, OptimsConfig, RunConfig
from NatureLM.errors import ConfigError
from NatureLM.memory import MEMORY_VARIABLE
from NatureLM.models import NatureLM, NatureLMConfig
from NatureLM.models.checkpoint.load import build_on_meta
from NatureLM.models.checkpoint.tensors import precision_of, tensor_refs
from NatureLM.models.fit import Outline
from NatureLM.training.build import batch_bytes, check_memory, learnt_bytes, make_objective
from NatureLM.training.optim import (
    MovingAverage,
    MuonWithAdamW,
    finish_gradients,
    has_decay,
    is_hidden_matrix,
    learning_rate,
    make_optimizer,
    part_of,
    trainable,
)
from NatureLM.training.train import train

from .conftest import LLAMA_8B

PUBLISHED = OptimsConfig(init_lr=9e-5, min_lr=1e-5, warmup_steps=5000)


def test_the_published_schedule():
    rates = [learning_rate(step, 500_000, PUBLISHED) for step in range(0, 500_000, 1)]
    assert rates[0] == pytest.approx(9e-5 / 5000)
    assert rates[4999] == pytest.approx(9e-5)
    assert rates[5000 + 495_000 // 2] == pytest.approx(5e-5, rel=1e-3)
    assert rates[-1] == pytest.approx(1e-5)
    assert max(rates) == pytest.approx(9e-5)
    steps = [abs(b - a) for a, b in pairwise(rates)]
    assert max(steps) <= 9e-5 / 5000 + 1e-15  # no jump anywhere


def test_a_warm_up_longer_than_the_run():
    assert learning_rate(9, 10, PUBLISHED) == pytest.approx(9e-5)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.beats.encoder.layers.0.fc1.weight", "beats"),
        ("model.audio_Qformer.bert.encoder.layer.0.output.dense.bias", "qformer"),
        ("model.audio_query_tokens", "qformer"),
        ("model.ln_audio.weight", "qformer"),
        ("model.audio_llama_proj.bias", "projection"),
        ("model.llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.d.w", "lora"),
        ("model.llama_model.base_model.model.lm_head.weight", "language_model"),
        ("model.model.embed_tokens.weight", "language_model"),
    ],
)
def test_parts(name: str, part: str):
    assert part_of(name) == part


def test_decay_is_for_matrices():
    assert has_decay(torch.zeros(3, 4))
    assert not any(has_decay(torch.zeros(*s)) for s in ((4,), (1, 1, 8), (1, 4, 1, 1), (1, 1, 16)))


def test_groups_and_rates():
    module = nn.ModuleDict({"beats": nn.Linear(2, 2), "audio_llama_proj": nn.Linear(2, 2)})
    module["beats"].bias.requires_grad_(False)
    config = OptimsConfig(weight_decay=0.1, part_rates={"beats": 0.5})
    optimizer = make_optimizer(trainable(module), config)
    found = {(len(g["params"]), g["weight_decay"], g["rate"]) for g in optimizer.param_groups}
    assert found == {(1, 0.1, 0.5), (1, 0.1, 1.0), (1, 0.0, 1.0)}
    with pytest.raises(ConfigError, match="names ears; parts are beats"):
        make_optimizer(trainable(module), OptimsConfig(part_rates={"ears": 1.0}))


def test_gradients_are_scaled_then_clipped():
    one, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    one.grad = torch.tensor([30.0, 40.0])
    config = OptimsConfig(max_grad_norm=1.0, max_grad_value=0.7)
    norm = finish_gradients([one, unused], torch.tensor(0.1), config)
    assert norm == pytest.approx(5.0)
    assert one.grad.tolist() == pytest.approx([0.6, 0.7])
    assert unused.grad.tolist() == [0.0, 0.0]


def test_without_limits_gradients_stay():
    one = nn.Parameter(torch.zeros(1))
    one.grad = torch.tensor([30.0])
    config = OptimsConfig(max_grad_norm=None, max_grad_value=None)
    finish_gradients([one], torch.tensor(1.0), config)
    assert one.grad.item() == 30.0


def test_moving_average():
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    average = MovingAverage(trainable(module), decay=0.5)
    nn.init.ones_(module.weight)
    average.update(step=1000)
    assert average.values["weight"].item() == 0.5
    with average.in_place():
        assert module.weight.item() == 0.5
    assert module.weight.item() == 1.0
    average.update(step=0)  # the first steps follow closely
    assert average.values["weight"].item() == pytest.approx(0.95)


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


MUON = OptimsConfig(init_lr=1e-3, min_lr=0.0, muon_lr=0.02, weight_decay=0.0)


def test_matrices_make_orthogonal_steps_and_rates_follow_the_schedule():
    module = network()
    parameters = trainable(module)
    optimizer = make_optimizer(parameters, MUON)
    assert isinstance(optimizer, MuonWithAdamW)
    assert {g["rate"] for g in optimizer.param_groups if not g["muon"]} == {1.0}
    (muon,) = (g for g in optimizer.param_groups if g["muon"])
    assert muon["rate"] * MUON.init_lr == pytest.approx(0.02)
    muon["lr"] = 0.01
    assert muon["params"] == [module["up_proj"].weight]  # type: ignore[index]
    before = module["up_proj"].weight.detach().clone()  # type: ignore[index]
    backward(module)
    optimizer.step()
    step = module["up_proj"].weight.detach() - before  # type: ignore[index]
    sizes = torch.linalg.svdvals(step)
    assert float(sizes.max() / sizes.min()) < 2, "all directions move alike"
    optimizer.zero_grad()
    assert all(p.grad is None for p in module.parameters())


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
        make_optimizer(trainable(network()), MUON)


CARD = torch.device("cuda")
GB = 10**9


@pytest.fixture(scope="module")
def published() -> Outline:
    """The sizes of the published model."""
    config = NatureLMConfig(text_config=LLAMA_8B.to_dict())
    model = build_on_meta(NatureLM, config, None)
    return Outline(model, tensor_refs(model), {})


def settings(batch: int = 8, **run: object) -> tuple[ModelConfig, RunConfig]:
    return ModelConfig(), RunConfig(batch_size_train=batch, amp=True, **run)  # type: ignore[arg-type]


def test_clips_take_what_was_measured_on_a_card(published: Outline) -> None:
    """An H200: 23.2 GB with 8 clips, 32.2 GB with 32 (docs/explanation/performance)."""
    (model, few), (_, many) = settings(8), settings(32)
    each = (batch_bytes(published, model, many) - batch_bytes(published, model, few)) / 24
    assert each == pytest.approx((32.2 - 23.2) / 24 * GB, rel=0.4)


def test_what_learns_counts(published: Outline) -> None:
    half = precision_of(None, CARD)
    model, run = settings()
    adapter = learnt_bytes(published, half, ModelConfig(freeze_audio_QFormer=True), run)
    more = learnt_bytes(published, half, model, run)
    everything = learnt_bytes(published, half, ModelConfig(freeze_llama=False), run)
    assert 0.5 * GB < adapter < more < 1.5 * GB
    assert everything > 150 * GB


@pytest.mark.parametrize(
    ("gigabytes", "said"),
    [(27, "run.batch_size_train: "), (19, "run.gradient_checkpointing: true")],
)
def test_what_is_too_large_is_refused_with_what_fits(
    published: Outline, monkeypatch: pytest.MonkeyPatch, gigabytes: int, said: str
) -> None:
    half, (model, run) = precision_of(None, CARD), settings(64)
    monkeypatch.setenv(MEMORY_VARIABLE, "80GB")
    check_memory(published, half, CARD, model, run)
    monkeypatch.setenv(MEMORY_VARIABLE, f"{gigabytes}GB")
    with pytest.raises(ConfigError, match=said):
        check_memory(published, half, CARD, model, run)


@pytest.mark.parametrize("from_checkpoint", [True, False])
def test_a_run_is_refused_before_it_loads(
    nano_folder: Path, monkeypatch: pytest.MonkeyPatch, from_checkpoint: bool
) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, "50MB")
    base = str(nano_folder / "llama")
    named = {"ckpt": str(nano_folder / "checkpoint")} if from_checkpoint else {"llama_path": base}
    config = Config.model_validate({"model": named, "run": {"output_dir": "unused"}})
    with pytest.raises(ConfigError, match=r"training needs .* of what NATURELM_MEMORY allows"):
        make_objective(config, [])
