"""On Apple's cards answers are the processor's: on a stand-in anywhere, on the card where one is.

Run on a Mac, the same tests ask the card itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from NatureLM.config.schema import QUANTIZATIONS
from NatureLM.infer import Pipeline
from NatureLM.inference.loading import pick_device
from NatureLM.inference.windows import WindowResult
from NatureLM.memory import free_unused_memory
from NatureLM.models.quantized import KINDS
from tests.mps_stand_in import Machine, kernels_of_mps, stand_in

ASSETS = Path(__file__).parents[2] / "assets"
RECORDINGS = sorted(str(path) for path in ASSETS.iterdir() if path.suffix in (".wav", ".flac"))[:2]
QUERY = "What is the common name for the focal species in the audio?"
LABELS = ("Barn Owl", "Domestic Dog", "Common Cuckoo", "American Toad")
HAS_CARD = torch.backends.mps.is_available()
CARD = pytest.param("card", marks=pytest.mark.skipif(not HAS_CARD, reason="there is no Apple card"))


@pytest.fixture(scope="module", params=["stand-in", CARD])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine | None]:
    """What the stand-in saw; None on a card."""
    if request.param == "card":
        yield None
        return
    with stand_in() as made:
        yield made


@pytest.fixture(scope="module")
def both(machine: Machine | None) -> dict[str, Pipeline]:
    return {one: Pipeline(device=one, dtype=torch.float32) for one in ("cpu", "mps")}


def results(pipe: Pipeline, **how: Any) -> list[WindowResult]:
    found = [one for one in pipe.windows(RECORDINGS, QUERY, **how) if isinstance(one, WindowResult)]
    assert len(found) >= len(RECORDINGS) == 2
    return found


@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 1, "alpha": 0.4},
        {"num_beams": 2, "alpha": 1.0, "fold": True},
        {"mode": "constrained", "labels": LABELS},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "seed": 3},
    ],
    ids=["greedy", "beams", "constrained", "sampled"],
)
def test_answers(both: dict[str, Pipeline], how: dict[str, Any]) -> None:
    cpu, mps = (results(one, **how) for one in both.values())
    assert [one.text for one in mps] == [one.text for one in cpu]


def test_labels(both: dict[str, Pipeline]) -> None:
    """Their sums are taken in numbers of 64 bits, which the card does not have."""
    cpu, mps = (results(one, mode="score", labels=LABELS) for one in both.values())
    for one, other in zip(cpu, mps, strict=True):
        assert one.text == other.text
        assert one.confidence == pytest.approx(other.confidence, abs=1e-3)


def test_audio_embeddings(both: dict[str, Pipeline]) -> None:
    wav_BS = 0.1 * torch.randn(3, both["cpu"].model.config.window_samples)
    with torch.inference_mode():
        cpu, mps = (one.model.encode_audio(wav_BS).cpu() for one in both.values())
    assert (cpu - mps).abs().max() < 1e-3 * cpu.abs().max()


def test_half_precision(machine: Machine | None) -> None:
    """What is taken there unless something else is asked for."""
    pipe = Pipeline(device="mps")
    kinds = {one.dtype for one in pipe.model.language_model.parameters()}
    assert kinds == {torch.bfloat16}
    assert next(pipe.model.beats.parameters()).dtype == torch.float32
    (answer,) = pipe.windows(RECORDINGS[:1], QUERY, num_beams=1)
    assert isinstance(answer, WindowResult)


@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("rows", [1, 40])
def test_weights_of_few_bits(machine: Machine | None, kind: str, rows: int) -> None:
    """No kernel of torch's for the processor is asked for."""
    weight_OI, x_MI = 0.1 * torch.randn(128, 192), torch.randn(rows, 192)
    layer = KINDS[kind](128, 192)
    layer.quantize(weight_OI, torch.bfloat16)
    wanted = x_MI @ layer.dequantized(torch.float32).T
    layer.quantize(weight_OI.to("mps"), torch.bfloat16)
    found = layer(x_MI.to("mps", torch.bfloat16)).cpu().float()
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_the_device_is_found_and_its_memory_given_back(machine: Machine | None) -> None:
    assert pick_device("auto") == "mps"
    free_unused_memory()
    assert machine is None or machine.emptied == 1


def test_nothing_falls_back_to_the_processor(
    both: dict[str, Pipeline], machine: Machine | None
) -> None:
    """Every operation has a kernel by torch's own list, and a step waits for the card but once."""
    if machine is None:
        pytest.skip("the card itself has no list")
    assert machine.lacking() == []
    assert "aten::linalg_eig" not in kernels_of_mps()
    before = machine.waits
    results(both["mps"], num_beams=1, max_new_tokens=8)
    assert machine.waits - before < 2 * 8


def test_the_stand_in_refuses_what_a_card_does(machine: Machine | None) -> None:
    here = torch.arange(3.0, device="mps")
    with pytest.raises(TypeError, match="Cannot convert a MPS Tensor to"):
        here.double()
    with pytest.raises(TypeError, match="can't convert mps:0 device type tensor to numpy"):
        here.numpy()
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        here + torch.arange(3.0)
    assert (here + torch.tensor(1.0)).tolist() == [1, 2, 3]
