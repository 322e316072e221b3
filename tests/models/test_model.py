"""The model beside its goldens: batches, delayed windows, other language models, soft answers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPTNeoXConfig, PreTrainedConfig, Qwen2Config

from NatureLM.errors import ConfigError
from NatureLM.generation import audio_cache
from NatureLM.inference.pipeline import Pipeline
from NatureLM.models import NatureLM, beats
from NatureLM.models.modeling import AnswerRows, SoftTarget, answer_loss
from NatureLM.training.objectives import DistillationTargets
from tests.builders import BuildModel

DELAYS = [0.0, 0.08, 0.4]
UNEVEN = [0.0, 0.0813, 0.4]  # no multiples of a hop
SIZES: dict[str, Any] = {
    "vocab_size": 606,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "eos_token_id": 604,
}


@pytest.mark.parametrize("masked", [False, True])
def test_pieces_are_the_whole(
    masked: bool, build_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio_cache, "LEAST_ROWS", 6)  # as with a single core
    model = build_model().double()
    sound = torch.Generator().manual_seed(0)
    wav = torch.randn(5, model.config.window_samples, generator=sound, dtype=torch.float64) * 0.1
    mask = None
    if masked:
        mask = torch.arange(wav.shape[1]) >= torch.tensor([[9], [7], [5], [3], [8]]) * 16000
    sizes: list[int] = []
    model.beats.encoder.layers[0].register_forward_hook(lambda _, x, out: sizes.append(len(out)))
    with torch.no_grad():
        whole = model.encode_audio(wav, mask)
        assert sizes == [5]
        monkeypatch.setattr(beats, "_QUICK_NUMBERS", 1)
        single = model.encode_audio(wav, mask)
    assert sizes == [5, 1, 1, 1, 1, 1]
    torch.testing.assert_close(single, whole, rtol=1e-9, atol=1e-12)
    model.encode_audio(wav, mask)
    assert sizes[-1] == 5, "where something is learnt, a batch stays whole"


@pytest.fixture(scope="module", params=(DELAYS, UNEVEN), ids=("whole hops", "uneven"))
def delayed(request: pytest.FixtureRequest, build_model: BuildModel) -> NatureLM:
    return build_model(window_delays=request.param)


@pytest.fixture(scope="module")
def wav(delayed: NatureLM) -> torch.Tensor:
    noise = torch.randn(
        2, delayed.config.window_samples, generator=torch.Generator().manual_seed(0)
    )
    return noise * 0.1


@torch.no_grad()
def test_the_mean_of_what_each_delay_gives(
    delayed: NatureLM, wav: torch.Tensor, build_model: BuildModel
) -> None:
    plain = build_model()
    each = []
    for delay in delayed.config.window_delays or ():
        samples = round(delay * plain.config.sample_rate)
        later = torch.cat([wav.new_zeros(2, samples), wav[:, : wav.shape[1] - samples]], dim=1)
        each.append(plain.encode_audio(later))
    assert not torch.allclose(each[0], each[1], atol=1e-4), "a delay is heard"
    torch.testing.assert_close(delayed.encode_audio(wav), torch.stack(each).mean(dim=0))


@torch.no_grad()
def test_what_is_padded_moves_along(delayed: NatureLM, wav: torch.Tensor) -> None:
    mask = torch.arange(wav.shape[1]).expand(wav.shape) >= wav.shape[1] // 2
    whole = wav.masked_fill(mask, 0.0)
    assert delayed.encode_audio(whole, mask).shape == delayed.encode_audio(whole).shape


def test_training_hears_the_first(delayed: NatureLM, wav: torch.Tensor) -> None:
    heard: list[int] = []
    handle = delayed.beats.register_forward_hook(lambda *_: heard.append(1))
    try:
        delayed.encode_audio(wav)
        assert len(heard) == len(DELAYS)
        delayed.train()
        delayed.encode_audio(wav)
    finally:
        delayed.eval()
        handle.remove()
    assert len(heard) == len(DELAYS) + 1


def test_delays_must_lie_in_the_window(build_model: BuildModel) -> None:
    for wrong in ([0.1, 10.0], [-0.1]):
        with pytest.raises(ConfigError, match="window_delays must be seconds from 0 to less than"):
            build_model(window_delays=wrong)


def test_delays_are_saved(delayed: NatureLM, tmp_path: Path) -> None:
    delayed.save_pretrained(tmp_path)
    assert NatureLM.from_pretrained(tmp_path).config.window_delays == delayed.config.window_delays


@pytest.mark.parametrize(
    ("text_config", "targets"),
    [
        (Qwen2Config(**SIZES, num_key_value_heads=2), ["q_proj", "v_proj", "up_proj"]),
        (GPTNeoXConfig(**SIZES), ["query_key_value"]),
    ],
)
def test_another_language_model_at_another_rate(
    text_config: PreTrainedConfig, targets: list[str], build_model: Any, tmp_path: Path
) -> None:
    model = build_model(
        text_config=text_config.to_dict(),
        lora_target_modules=targets,
        sample_rate=32000,
        window_seconds=5.0,
        fbank_cfg={"num_mel_bins": 64, "high_frequency": 15000.0},
    )
    adapted = {
        n.split(".lora_A")[0].rpartition(".")[2] for n in model.state_dict() if "lora_A" in n
    }
    assert adapted == set(targets)
    wav = 0.1 * torch.randn(3 * 32000, generator=torch.Generator().manual_seed(0))
    prompt = model.processor.render("What is it?")

    def ask(asked: NatureLM, beams: int) -> list[str]:
        return asked.generate(
            [prompt] * 3, [[wav]] * 3, alpha=[0.0, 0.5, 1.0], max_new_tokens=5, num_beams=beams
        )

    # 498 frames of 5 s make 31 x 4 patches, 124 // 17 groups.
    assert model.encode_audio(model.processor.prepare_audio(wav)[None]).shape == (1, 7, 48)
    model.save_pretrained(tmp_path)
    loaded = NatureLM.from_pretrained(tmp_path)
    assert loaded.config.sample_rate == loaded.processor.sample_rate == 32000
    for beams in (1, 2):
        answers, options = ask(model, beams), {"max_new_tokens": 5, "num_beams": beams}
        assert ask(loaded, beams) == answers
        for alpha, answer in zip((0.0, 0.5, 1.0), answers, strict=True):
            assert model.generate([prompt], [[wav]], alpha=alpha, **options) == [answer]


def test_the_pipeline_cuts_windows_for_the_model(build_model: Any) -> None:
    model = build_model(sample_rate=32000, window_seconds=5.0)
    wav = 0.1 * torch.randn(12 * 16000, generator=torch.Generator().manual_seed(0)).numpy()
    (answer,) = Pipeline(model)(
        [wav], "What is it?", window_length_seconds=5.0, hop_length_seconds=5.0, max_new_tokens=2
    )
    assert "#10.00s - 12.00s#: " in answer


# -- answers with shares ---------------------------------------------------------------------

TEXTS = ("Dog", "Frog", "Green Frog", "Green Treefrog", "None")
PROMPT = "Which animal is it? <Audio><AudioHere></Audio>"


@pytest.fixture(scope="module")
def model(build_model: BuildModel) -> NatureLM:
    return build_model().double()


@pytest.fixture(scope="module")
def heard(model: NatureLM) -> torch.Tensor:
    wav = torch.randn(1, model.config.window_samples, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.encode_audio(wav * 0.1)[0]


def loss_of(model: NatureLM, heard: torch.Tensor, answers: list[str], soft: Any) -> torch.Tensor:
    """Losses of rows, summed over their tokens."""
    rows = len(answers)
    batch = {"prompts": [PROMPT] * rows, "audios": [[heard]] * rows, "answers": answers}
    out = model.loss({**batch, "soft": soft})
    assert out.per_example_loss is not None
    assert out.total_per_sample is not None
    return out.per_example_loss * out.total_per_sample


@settings(max_examples=15)
@given(st.lists(st.floats(0.01, 1.0), min_size=len(TEXTS), max_size=len(TEXTS)))
def test_the_mean_over_own_answers_is_the_cross_entropy(
    model: NatureLM, heard: torch.Tensor, parts: list[float]
) -> None:
    """Drawn by the shares, own answers give the cross-entropy between the lists of answers."""
    shares = {text: part / sum(parts) for text, part in zip(TEXTS, parts, strict=True)}
    weights = torch.tensor(list(shares.values()), dtype=torch.float64)
    with torch.no_grad():
        certain = loss_of(model, heard, list(TEXTS), [])
        soft = loss_of(model, heard, list(TEXTS), [shares] * len(TEXTS))
    assert float(weights @ soft) == pytest.approx(float(weights @ certain), rel=1e-9)


def test_one_certain_answer_is_the_plain_loss(model: NatureLM, heard: torch.Tensor) -> None:
    with torch.no_grad():
        plain = loss_of(model, heard, list(TEXTS), [])
        soft = loss_of(model, heard, list(TEXTS), [{text: 1.0} for text in TEXTS])
        mixed = loss_of(model, heard, list(TEXTS), [None, {}, None, {}, None])
    torch.testing.assert_close(soft, plain)
    torch.testing.assert_close(mixed, plain)


def test_a_row_does_not_change_its_neighbours(model: NatureLM, heard: torch.Tensor) -> None:
    shares = {"Green Frog": 0.5, "Green Treefrog": 0.3, "None": 0.2}
    with torch.no_grad():
        plain = loss_of(model, heard, ["Frog", "Green Frog", "None"], [])
        soft = loss_of(model, heard, ["Frog", "Green Frog", "None"], [None, shares, None])
    changed = (plain - soft).abs() > 1e-12
    assert changed.tolist() == [False, True, False]


def test_the_least_loss_is_where_the_shares_are() -> None:
    """At the shares themselves, cross-entropy is entropy: gradients of the logits vanish."""
    shares = torch.tensor([0.7, 0.3], dtype=torch.float64)
    logits = torch.full((1, 1, 5), -60.0, dtype=torch.float64)
    logits[0, 0, [1, 3]] = shares.log()
    logits.requires_grad_()
    soft = [
        SoftTarget(0, 1, token, float(share)) for token, share in zip((1, 3), shares, strict=True)
    ]
    rows = AnswerRows(torch.zeros(1, 2, 1), torch.ones(1, 2), torch.tensor([[-100, 1]]), soft)
    out = answer_loss(logits, rows)
    assert out.loss is not None
    out.loss.backward()  # type: ignore[no-untyped-call]
    assert out.loss.item() == pytest.approx(float(-(shares * shares.log()).sum()))
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-12


def test_shares_of_the_classifier_and_of_the_right_answer() -> None:
    soft = DistillationTargets(lambda fbank: fbank, {"group": ("bird", "bird", "frog")}, share=0.8)
    assert soft.of("group", "frog", [0.5, 0.25, 0.25]) == pytest.approx({"bird": 0.6, "frog": 0.4})
    assert soft.of("caption", "frog", [0.5, 0.25, 0.25]) == {}, "the task has no texts"
    assert soft.of("group", "bird, frog", [0.5, 0.25, 0.25]) == {}, "a mix is not asked about"


@pytest.mark.parametrize("own", TEXTS)
def test_shares_sum_to_one(own: str) -> None:
    for share, first in itertools.product((0.0, 0.5, 1.0), (0.0, 0.4, 1.0)):
        rest = (1 - first) / (len(TEXTS) - 1)
        given_shares = DistillationTargets(lambda x: x, {"common": TEXTS}, share).of(
            "common", own, [first, *[rest] * (len(TEXTS) - 1)]
        )
        assert sum(given_shares.values()) == pytest.approx(1.0)
