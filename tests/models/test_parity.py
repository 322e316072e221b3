"""The small reference checkpoint gives the reference's numbers. `make parity` prints them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig

from NatureLM.audio.fbank import normalised_fbank
from NatureLM.generation.engine import GenerationOptions
from NatureLM.merging.lora import active_alpha
from NatureLM.models import NatureLM, NatureLMConfig
from NatureLM.models.checkpoint.tensors import tensor_refs
from NatureLM.prompts import prompt_parts

pytestmark = pytest.mark.parity

CLIPS = ("chirps", "trill", "howl")
SAMPLES = ("single_chirps", "single_trill", "single_howl", "icl3")
ALPHAS = (0.0, 0.25, 0.5, 1.0)


@pytest.fixture(scope="module")
def goldens(nano_folder: Path) -> dict[str, Tensor]:
    return load_file(nano_folder / "expected" / "goldens.safetensors")


@pytest.fixture(scope="module")
def manifest(nano_folder: Path) -> dict[str, Any]:
    return json.loads((nano_folder / "expected" / "manifest.json").read_text())


@pytest.fixture(scope="module")
def nano64(nano_folder: Path) -> NatureLM:
    return NatureLM.from_pretrained(nano_folder / "checkpoint", dtype=torch.float64)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def check(name: str, got: Tensor, wanted: Tensor, bound: float) -> None:
    assert got.shape == wanted.shape, name
    difference = (got.double() - wanted.double()).abs().max().item()
    print(f"{name:42s} largest difference {difference:.2e}  (bound {bound:.0e})")
    assert difference <= bound, name


@pytest.mark.parametrize("clip", CLIPS)
def test_audio_path(
    clip: str, nano: NatureLM, nano_waveforms: dict[str, Tensor], goldens: dict[str, Tensor]
) -> None:
    wav_BS = nano_waveforms[clip][None]
    fbank = normalised_fbank(wav_BS, 16000, nano.config.fbank)
    check(f"{clip}: fbank", fbank, goldens[f"{clip}.fbank"], 1e-3)
    check(f"{clip}: BEATs", nano.beats(fbank), goldens[f"{clip}.beats"], 1e-4)
    embeds = nano.encode_audio(wav_BS)
    check(f"{clip}: audio embeddings", embeds, goldens[f"{clip}.audio_embeds"], 1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_a_short_clip_with_and_without_padding_mask(
    masked: bool, nano: NatureLM, nano_waveforms: dict[str, Tensor], goldens: dict[str, Tensor]
) -> None:
    kept = round(3.5 * 16000)
    wav_BS = torch.zeros(1, 160000)
    wav_BS[0, :kept] = nano_waveforms["chirps"][:kept]
    mask_BS = (torch.arange(160000) >= kept)[None] if masked else None
    name = "masked" if masked else "nomask"
    fbank = normalised_fbank(wav_BS, 16000, nano.config.fbank)
    check(
        f"short {name}: BEATs", nano.beats(fbank, mask_BS), goldens[f"short35.beats_{name}"], 1e-4
    )
    embeds = nano.encode_audio(wav_BS, mask_BS)
    check(f"short {name}: audio embeddings", embeds, goldens[f"short35.audio_embeds_{name}"], 1e-4)


@pytest.fixture(scope="module", params=SAMPLES)
def sample(
    request: pytest.FixtureRequest,
    nano: NatureLM,
    nano_waveforms: dict[str, Tensor],
    manifest: dict[str, Any],
) -> tuple[str, dict[str, Any], Tensor]:
    """Name, facts and input embeddings of a prompt."""
    facts = manifest["prompts"][request.param]
    with torch.no_grad():
        clips = [nano_waveforms[clip] for clip in facts["clips"]]
        (embeds,) = nano.input_embeddings([facts["prompt"]], [clips])
    return request.param, facts, embeds


def test_prompt_tokens_and_input_embeddings(
    sample: tuple[str, dict[str, Any], Tensor], nano: NatureLM, goldens: dict[str, Tensor]
) -> None:
    name, facts, embeds = sample
    parts = prompt_parts(facts["prompt"], nano.tokenizer)
    assert parts[0].pop(0) == nano.tokenizer.bos_token_id
    assert parts == facts["part_token_ids"]
    assert embeds.shape[0] == facts["length"]
    check(f"{name}: input embeddings", embeds, goldens[f"{name}.inputs_embeds"][0], 1e-4)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_logits(
    alpha: float,
    sample: tuple[str, dict[str, Any], Tensor],
    nano: NatureLM,
    goldens: dict[str, Tensor],
) -> None:
    name, _, embeds = sample
    with active_alpha(alpha):
        logits = nano.language_model(inputs_embeds=embeds[None]).logits[:, -1]
    check(f"{name}, alpha {alpha}: logits", logits, goldens[f"{name}.logits_alpha{alpha}"], 1e-4)


def test_eos_ids(nano: NatureLM, manifest: dict[str, Any]) -> None:
    assert nano.eos_ids == manifest["eos_token_id"]


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_generated_ids(
    precision: str,
    nano: NatureLM,
    nano64: NatureLM,
    nano_waveforms: dict[str, Tensor],
    manifest: dict[str, Any],
) -> None:
    model = nano64 if precision == "float64" else nano
    cases = [*manifest["generation"], *manifest["generation_eos_override"]]
    encoded = {clip: model.encode_audio(wav[None])[0] for clip, wav in nano_waveforms.items()}
    for (beams, penalty, eos_ids), group in grouped(cases).items():
        facts = [manifest["prompts"][case["sample"]] for case in group]
        # Rows of several prompts and alphas in one batch must give what the reference gave alone.
        found = model.generate_ids(
            [fact["prompt"] for fact in facts],
            [[encoded[clip] for clip in fact["clips"]] for fact in facts],
            alpha=[case["alpha"] for case in group],
            options=GenerationOptions(max_new_tokens=24, num_beams=beams, length_penalty=penalty),
            eos_ids=eos_ids,
        )
        for case, ids in zip(group, found, strict=True):
            assert ids == case["ids"], case
            text = model.tokenizer.decode(ids, skip_special_tokens=True)
            assert text == case.get("text", text), case
    print(f"generated ids in {precision}: {len(cases)} of {len(cases)} equal")


def grouped(cases: list[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
    """Cases by what a call has for all its rows: beams, length penalty, ends of text."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for case in cases:
        eos_ids = case.get("eos_token_id")
        key = (case["num_beams"], case.get("length_penalty", 1.0), eos_ids and tuple(eos_ids))
        groups.setdefault(key, []).append(case)
    return groups


def test_training_loss(
    nano: NatureLM, nano_folder: Path, nano_waveforms: dict[str, Tensor]
) -> None:
    facts = json.loads((nano_folder / "expected" / "train_forward.json").read_text())
    batch = {
        "prompts": [nano.processor.render(prompt) for prompt in facts["prompt"]],
        "audios": [[nano_waveforms[clip]] for clip in facts["clips"]],
        "answers": facts["text"],
    }
    for result in facts["results"]:
        out = nano.loss(batch, alpha=result["alpha"])
        name = f"alpha {result['alpha']}: training loss"
        check(name, out.loss[None], torch.tensor([result["loss"]]), 1e-4)
        check(
            name + " of each", out.per_example_loss, torch.tensor(result["per_example_loss"]), 1e-4
        )
        assert (out.correct, out.total) == (result["correct"], result["total"])
        assert out.correct_per_sample.tolist() == result["correct_per_sample"]
        assert out.total_per_sample.tolist() == result["total_per_sample"]


def test_full_size_names_and_shapes(fixtures_dir: Path) -> None:
    facts = json.loads((fixtures_dir / "goldens" / "full_size_keys.json").read_text())
    llama = LlamaConfig(
        vocab_size=128257,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        model = NatureLM(NatureLMConfig(text_config=llama.to_dict()))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == {name: shape for name, (shape, _) in facts["keys_cpu"].items()}
    assert len(shapes) == 860
    shared = [ref for ref in tensor_refs(model) if len(ref.names) > 1]
    assert sorted(ref.names for ref in shared) == sorted(
        tuple(sorted(group)) for group in facts["shared_groups"]
    )
    assert {ref.stored_name for ref in shared} == set(facts["saved_name_of_group"])
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == set(facts["trainable"])
    print("full size: 860 names and shapes equal")
