"""Groups, schedule, clipping and the moving average."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from NatureLM.config.training import OptimsConfig
from NatureLM.errors import ConfigError
from NatureLM.training.optim import (
    MovingAverage,
    finish_gradients,
    has_decay,
    learning_rate,
    make_optimizer,
    part_of,
    set_rate,
    trainable,
)

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
    set_rate(optimizer, 1.0)
    found = {(len(g["params"]), g["weight_decay"], g["lr"]) for g in optimizer.param_groups}
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
