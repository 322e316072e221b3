"""Layers of the language model that stay in RAM answer as those that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from NatureLM.generation.engine import Engine, fold_if_single_alpha
from NatureLM.generation.requests import GenerationOptions, Request
from NatureLM.models import NatureLM
from NatureLM.models.checkpoint import load
from NatureLM.models.fit import Placement, copy_to_run, layers_of

PROMPT = "<Audio><AudioHere></Audio> What is it?"
ALPHAS = (0.0, 0.3, 1.0)


def loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, layers: int | None, **options: Any
) -> NatureLM:
    """The small reference checkpoint with so many layers on the device, here the processor."""
    plain = load.choose

    def chosen(*given: Any) -> Placement:
        return Placement(plain(*given).precision, layers)

    monkeypatch.setattr(load, "choose", chosen)
    return NatureLM.from_pretrained(folder / "checkpoint", **options)


def answers(model: NatureLM, waves: dict[str, Tensor]) -> list[tuple[str | None, float | None]]:
    """Of the engine, at several α at once and with beams."""
    engine = Engine(model, GenerationOptions(max_new_tokens=6, num_beams=2))
    requests = [
        Request((name, alpha), PROMPT, (name,), alpha) for name in waves for alpha in ALPHAS
    ]
    found = {one.key: one for one in engine.run(requests, waves.__getitem__)}
    return [(found[one.key].text, found[one.key].log_probability) for one in requests]


@pytest.mark.parametrize(
    "options", [{}, {"dtype": "bfloat16"}, {"quantize": "int8"}], ids=["float32", "bf16", "int8"]
)
@pytest.mark.parametrize("layers", [0, 1])
def test_answers_are_the_same(
    nano_folder: Path,
    nano_waveforms: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    layers: int,
    options: dict[str, Any],
) -> None:
    whole = loaded(nano_folder, monkeypatch, None, **options)
    parted = loaded(nano_folder, monkeypatch, layers, **options)
    assert whole.offloaded == 0
    assert parted.offloaded == len(layers_of(parted.language_model)) - layers > 0
    assert answers(parted, nano_waveforms) == answers(whole, nano_waveforms)
    with fold_if_single_alpha(parted, [1.0]):
        assert parted.folded is None
    scores = [
        one.score_labels([PROMPT], [[nano_waveforms["howl"]]], ["Wren", "Owl"], alpha=0.5)
        for one in (whole, parted)
    ]
    assert scores[0] == scores[1]


def test_a_layer_runs_with_copies_and_has_its_own_tensors_again() -> None:
    layer = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    own = dict(layer.named_parameters())
    assert copy_to_run([layer], torch.device("cpu")) == 1
    seen: list[int] = []
    layer[0].register_forward_hook(lambda *_: seen.append(id(layer[0].weight)))
    with torch.inference_mode():
        layer(torch.ones(2, 3))
    assert len(seen) == 1
    assert seen[0] != id(own["0.weight"])
    assert all(one is own[name] for name, one in layer.named_parameters())
    with pytest.raises(RuntimeError):
        layer(torch.ones(2, 5))
    assert all(one is own[name] for name, one in layer.named_parameters())
