"""The engine against plain generation where rounding and chance play a part, and the goldens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding import ENDS, decode
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from NatureLM.generation.audio_cache import EmbeddingCache
from NatureLM.generation.engine import Engine, GenerationOptions, Request
from NatureLM.merging.lora import active_alpha
from NatureLM.models import NatureLM

TAG = "<Audio><AudioHere></Audio>"
QUERIES = (
    "What is it?",
    "What is the scientific name for the focal species in the audio?",
    f"Audio: {TAG}\nLabel: Gray Wolf\n\nAudio: {TAG}\nLabel: Trill\n\nAudio: {TAG}\nLabel:",
    f"{TAG} and {TAG}: the same?",
)
DECIDED = 1e-3  # logits that are further apart than this are no matter of rounding
NAMES = ("chirps", "trill", "howl")

WORK = st.lists(
    st.tuples(
        st.sampled_from(QUERIES),
        st.lists(st.sampled_from(NAMES), min_size=3, max_size=3),
        st.sampled_from([0.0, 0.4, 1.0, 1.5]),
        st.integers(0, 5),
    ),
    min_size=1,
    max_size=14,
)
ENGINES = st.fixed_dictionaries(
    {
        "batch_tokens": st.sampled_from([1, 400, 100_000]),
        "batch_rows": st.sampled_from([1, 3, None]),
        "lookahead": st.sampled_from([1, 5, 100]),
    }
)


def requests_of(model: NatureLM, work: list[Any]) -> list[Request]:
    requests = []
    for number, (query, clips, alpha, stream) in enumerate(work):
        prompt = model.processor.render(query)
        audios = tuple(clips[: prompt.count("<AudioHere>")])
        requests.append(Request(number, prompt, audios, alpha, stream))
    return requests


@pytest.fixture(scope="module")
def clips32(nano: NatureLM, nano_waveforms: dict[str, Tensor]) -> dict[str, Any]:
    return Engine(nano, batch_rows=1).encode(nano_waveforms, nano_waveforms.__getitem__)


def embeddings(model: NatureLM, request: Request, clips: dict[str, Any]) -> Tensor:
    with torch.inference_mode():
        (embeds_LD,) = model.input_embeddings(
            [request.prompt], [[clips[name].audio_QD for name in request.audios]]
        )
    return embeds_LD


@settings(max_examples=8)
@given(work=WORK, how=ENGINES, seed=st.integers(0, 3))
def test_sampled_answers_are_those_of_each_row_alone(
    work: list[Any],
    how: dict[str, Any],
    seed: int,
    double: NatureLM,
    clips: dict[str, Any],
) -> None:
    options = GenerationOptions(
        max_new_tokens=5, num_beams=1, do_sample=True, temperature=1.5, top_k=80, seed=seed
    )
    requests = requests_of(double, work)
    engine = Engine(double, options, eos_ids=ENDS, **how)
    found = {one.key: one for one in engine.run(requests, clips.__getitem__)}
    for request in requests:
        (alone,) = decode(
            double.language_model,
            [embeddings(double, request, clips)],
            alphas=[request.alpha],
            eos_ids=ENDS,
            options=options,
            row_numbers=[request.stream],
        )
        answer = found[request.key]
        assert answer.text == double.tokenizer.decode(alone.ids, skip_special_tokens=True)
        assert answer.log_probability == pytest.approx(alone.log_probability, abs=1e-9)


@settings(max_examples=8)
@given(work=WORK, how=ENGINES)
def test_float32_answers_differ_only_where_rounding_decides(
    work: list[Any], how: dict[str, Any], nano: NatureLM, clips32: dict[str, Any]
) -> None:
    options = GenerationOptions(max_new_tokens=6, num_beams=1)
    requests = requests_of(nano, work)
    engine = Engine(nano, options, eos_ids=ENDS, **how)
    found = {one.key: one.text for one in engine.run(requests, clips32.__getitem__)}
    for request in requests:
        embeds_LD = embeddings(nano, request, clips32)
        (alone,) = decode(
            nano.language_model,
            [embeds_LD],
            alphas=[request.alpha],
            eos_ids=ENDS,
            options=options,
        )
        text = nano.tokenizer.decode(alone.ids, skip_special_tokens=True)
        if found[request.key] != text:
            assert min(margins(nano, embeds_LD, alone.ids, request.alpha)) < DECIDED


def margins(model: NatureLM, embeds_LD: Tensor, ids: list[int], alpha: float) -> list[float]:
    """How far the likeliest token is before the next at each step of an answer."""
    with torch.inference_mode(), active_alpha(alpha):
        said = model.llama_embed_tokens(torch.tensor(ids[:-1], dtype=torch.long))
        whole = torch.cat([embeds_LD, said])[None]
        logits = model.language_model(inputs_embeds=whole).logits[0, len(embeds_LD) - 1 :]
    best = logits.topk(2, dim=-1).values
    return (best[:, 0] - best[:, 1]).tolist()


@pytest.mark.parity
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_goldens_hold_through_the_engine(
    precision: str,
    nano: NatureLM,
    double: NatureLM,
    nano_folder: Path,
    nano_waveforms: dict[str, Tensor],
) -> None:
    model = double if precision == "float64" else nano
    manifest = json.loads((nano_folder / "expected" / "manifest.json").read_text())
    cases = [*manifest["generation"], *manifest["generation_eos_override"]]
    groups: dict[Any, list[dict[str, Any]]] = {}
    for case in cases:
        ends = case.get("eos_token_id")
        key = (case["num_beams"], case.get("length_penalty", 1.0), ends and tuple(ends))
        groups.setdefault(key, []).append(case)
    kept = EmbeddingCache()
    windows = 0
    for (beams, penalty, ends), group in groups.items():
        options = GenerationOptions(max_new_tokens=24, num_beams=beams, length_penalty=penalty)
        engine = Engine(model, options, eos_ids=ends, batch_rows=5, embeddings=kept)
        requests = [
            Request(
                place,
                manifest["prompts"][case["sample"]]["prompt"],
                tuple(manifest["prompts"][case["sample"]]["clips"]),
                case["alpha"],
            )
            for place, case in enumerate(group)
        ]
        found = {one.key: one.text for one in engine.run(requests, nano_waveforms.__getitem__)}
        windows += engine.encoded
        for place, case in enumerate(group):
            assert found[place] == model.tokenizer.decode(case["ids"], skip_special_tokens=True)
    assert windows == len(NAMES)
