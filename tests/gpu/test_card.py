"""A card gives what the processor gives: `make test-gpu`, or `make gpu-check` with figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import naturelm, rows
from torch import Tensor

from NatureLM.config.schema import Config
from NatureLM.generation import cuda_graphs
from NatureLM.generation.engine import Engine, GenerationOptions, Request
from NatureLM.infer import Pipeline
from NatureLM.inference.windows import WindowResult
from NatureLM.memory import MEMORY_VARIABLE
from NatureLM.merging.lora import linear_of, lora_layers
from NatureLM.models import NatureLM, quantized
from NatureLM.models.checkpoint.load import open_checkpoint, outline_of
from NatureLM.models.checkpoint.tensors import precision_of
from NatureLM.models.fit import need_of
from NatureLM.training.train import train

pytestmark = pytest.mark.gpu

ASSETS = Path(__file__).parents[2] / "assets"
RECORDINGS = sorted(path for path in ASSETS.iterdir() if path.suffix in (".wav", ".flac", ".ogg"))
QUERY = "What is the common name for the focal species in the audio?"
LABELS = ("Eurasian Wren", "Domestic Dog", "Common Cuckoo", "American Toad")
DEVICES = ("cpu", "cuda")
SHAPES = {"int8": [(1001, 1040), (1024, 4096), (256, 256)], "int4": [(1088, 4096), (256, 704)]}


@pytest.fixture(scope="module")
def both() -> dict[str, Pipeline]:
    """The embedded model in float32, on the processor and on the card."""
    assert torch.cuda.is_available(), "these tests need CUDA"
    return {one: Pipeline(device=one, dtype=torch.float32) for one in DEVICES}


def results(pipe: Pipeline, **how: Any) -> list[WindowResult]:
    found = list(pipe.windows([str(path) for path in RECORDINGS], QUERY, **how))
    assert len(found) >= len(RECORDINGS) > 5
    return [one for one in found if isinstance(one, WindowResult)]


@pytest.mark.parametrize("how", [{"num_beams": 1}, {"num_beams": 2}, {"fold": True}])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_answers(both: dict[str, Pipeline], alpha: float, how: dict[str, Any]) -> None:
    cpu, cuda = (results(both[one], alpha=alpha, **how) for one in DEVICES)
    assert [one.text for one in cuda] == [one.text for one in cpu]


@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_layers_that_stay_in_ram(
    both: dict[str, Pipeline], alpha: float, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A made-up limit lets so many layers lie on the card."""
    outline, _ = outline_of(NatureLM, open_checkpoint("naturelm-tiny"))
    need = need_of(outline, precision_of(torch.float32, torch.device("cuda")), "cuda")
    most = max(need.layers)
    room = need.total - sum(need.layers) * 1.03 + (kept + 2.5) * 1.03 * most
    monkeypatch.setenv(MEMORY_VARIABLE, str(int(room)))
    parted = Pipeline(device="cuda", dtype=torch.float32)
    assert parted.model.offloaded == len(need.layers) - kept
    assert parted.model.device.type == "cuda"
    monkeypatch.delenv(MEMORY_VARIABLE)
    found, whole = (results(one, alpha=alpha) for one in (parted, both["cuda"]))
    assert [one.text for one in found] == [one.text for one in whole]


@pytest.mark.parametrize("mode", ["score", "constrained"])
def test_labels(both: dict[str, Pipeline], mode: str) -> None:
    cpu, cuda = (results(both[one], mode=mode, labels=LABELS) for one in DEVICES)
    assert [one.text for one in cuda] == [one.text for one in cpu]
    for one, other in zip(cpu, cuda, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=1e-3)


def test_audio_embeddings(both: dict[str, Pipeline]) -> None:
    wav_BS = 0.1 * torch.randn(3, both["cpu"].model.config.window_samples)
    with torch.inference_mode():
        cpu, cuda = (both[one].model.encode_audio(wav_BS).cpu() for one in DEVICES)
    assert (cpu - cuda).abs().max() < 1e-3 * cpu.abs().max()


def test_folding_gives_the_weights_back(both: dict[str, Pipeline]) -> None:
    model = both["cuda"].model
    layers = list(lora_layers(model.language_model))
    before = [linear_of(model.language_model, name).weight.clone() for name in layers]
    with model.fold(0.4):
        folded = [linear_of(model.language_model, name).weight.clone() for name in layers]
    after = [linear_of(model.language_model, name).weight for name in layers]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, folded, strict=True))


def test_half_precision_answers_nearly_alike(both: dict[str, Pipeline]) -> None:
    full = results(both["cuda"])
    half = results(Pipeline(device="cuda", dtype=torch.bfloat16))
    equal = sum(a.text == b.text for a, b in zip(full, half, strict=True))
    assert equal >= 0.8 * len(full)


def test_the_command(tmp_path: Path) -> None:
    answers = []
    for device in DEVICES:
        path = tmp_path / f"{device}-answers.jsonl"
        ask = ("--audio-path", ASSETS, "--query", QUERY, "--dtype", "float32")
        done = naturelm("infer", *ask, "--device", device, "--output-path", path)
        assert done.exit_code == 0, done.output
        answers.append(
            {(row["audio_path"], row.get("start")): row.get("text") for row in rows(path)}
        )
    assert answers[0] == answers[1]
    assert len(answers[0]) > 5


@pytest.mark.parametrize("amp", [False, True])
def test_what_is_trained_is_learned(tmp_path: Path, amp: bool) -> None:
    table = tmp_path / "clips.csv"
    lines = [f"{path},{path.stem}" for path in RECORDINGS[:4]]
    table.write_text("path,answer\n" + "\n".join(lines) + "\n", encoding="utf-8")
    settings = {
        "model": {"ckpt": "naturelm-tiny", "freeze_beats": True},
        "datasets": {"train": [{"path": str(table), "prompts": [QUERY]}]},
        "run": {
            "output_dir": str(tmp_path / "run"),
            "batch_size_train": 4,
            "max_steps": 12,
            "log_freq": 1,
            "amp": amp,
            "device": "cuda",
            "num_workers": 2,
            "optims": {"init_lr": 1e-3, "warmup_steps": 1},
        },
    }
    train(Config.model_validate(settings))
    losses = [row["loss"] for row in rows(tmp_path / "run" / "log.jsonl") if "learning_rate" in row]
    assert len(losses) == 12
    assert losses[-1] < 0.8 * losses[0]


# -- weights of 8 and 4 bits ------------------------------------------------------------------


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
