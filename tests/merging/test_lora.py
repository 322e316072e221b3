"""α belongs to the call and the row, never to the process; folded weights answer as it does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from merging.helpers import answer_ids, last_logits, same_state, state_copy
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.inference.pipeline import Pipeline
from NatureLM.merging.lora import (
    active_alpha,
    active_scales,
    active_scaling,
    alpha_per_row,
    lora_layers,
)
from NatureLM.merging.plan import MergePlan
from NatureLM.merging.recipe import extrapolation_note
from NatureLM.models import NatureLM
from tests.builders import BuildModel

RULES = """
alpha: [0.2, 0.9]
rules:
  - {layers: 1, modules: [q, v_proj], alpha: 1.4}
  - {modules: [self_attn.o_proj], alpha: -0.3}
"""


@pytest.fixture(scope="module")
def model(nano_folder: Path) -> NatureLM:
    """A model that these tests may change."""
    return NatureLM.from_pretrained(nano_folder / "checkpoint")


@pytest.fixture(scope="module")
def exact(nano_folder: Path) -> NatureLM:
    """The same in float64."""
    return NatureLM.from_pretrained(nano_folder / "checkpoint", dtype="float64")


@pytest.fixture(scope="module")
def wav(nano_waveforms: dict[str, Tensor]) -> Tensor:
    return nano_waveforms["trill"]


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    (tmp_path / "r.yml").write_text(RULES)
    return tmp_path / "r.yml"


# -- while the model runs --------------------------------------------------------------------


@pytest.fixture(scope="module")
def embeds(nano: NatureLM, nano_waveforms: dict[str, Tensor]) -> Tensor:
    prompt = nano.processor.render("What is it?")
    with torch.no_grad():
        rows = nano.input_embeddings([prompt] * 3, [[wav] for wav in nano_waveforms.values()])
    return torch.stack(rows)


def logits(model: NatureLM, embeds: Tensor, alpha: Any = None) -> Tensor:
    with torch.no_grad(), nullcontext() if alpha is None else active_alpha(alpha):
        out: Tensor = model.language_model(inputs_embeds=embeds).logits[:, -1]
    return out


def test_zero_is_the_base_model_and_one_the_adapters(nano: NatureLM, embeds: Tensor) -> None:
    layers = lora_layers(nano.language_model).values()
    with pytest.MonkeyPatch.context() as changed:
        for layer in layers:
            changed.setattr(layer, "is_folded", True)  # so that it takes no part
        base = logits(nano, embeds)
    assert torch.allclose(logits(nano, embeds, 0.0), base, atol=1e-6)
    as_stored = logits(nano, embeds)
    assert torch.equal(logits(nano, embeds, 1.0), as_stored)
    assert not torch.allclose(as_stored, base, atol=1e-2)


@examples(8)
@given(alphas=st.lists(st.floats(-1, 2), min_size=3, max_size=3))
def test_one_alpha_per_row_equals_one_at_a_time(
    alphas: list[float], nano: NatureLM, embeds: Tensor
) -> None:
    together = logits(nano, embeds, torch.tensor(alphas))
    for row, alpha in enumerate(alphas):
        alone = logits(nano, embeds[row : row + 1], alpha)
        assert torch.allclose(together[row], alone[0], atol=1e-4)


def test_threads_do_not_meet(model: NatureLM, wav: Tensor, tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("rules: [{layers: 0, alpha: 0.0}]\n")
    (tmp_path / "b.yml").write_text("rules: [{layers: 1, alpha: 2.0}]\n")
    blocks: list[Callable[[], AbstractContextManager[Any]]] = [
        nullcontext,
        lambda: active_alpha(0.0),
        lambda: active_alpha(0.5),
        lambda: model.use_recipe(tmp_path / "a.yml"),
        lambda: model.use_recipe(tmp_path / "b.yml"),
    ]

    def ask(block: Callable[[], AbstractContextManager[Any]]) -> Tensor:
        with block():
            return last_logits(model, wav)

    expected = [ask(block) for block in blocks]
    assert len({bytes(one.numpy().tobytes()) for one in expected}) == len(blocks)
    wrong: list[int] = []

    def ask_often(number: int) -> None:
        for _ in range(5):
            if not torch.equal(ask(blocks[number]), expected[number]):
                wrong.append(number)
            if not torch.equal(ask(nullcontext), expected[0]):
                wrong.append(0)

    threads = [threading.Thread(target=ask_often, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_stored_scale_is_multiplied_never_recomputed(build_model: BuildModel) -> None:
    layers = list(lora_layers(build_model().language_model).values())
    assert {layer.scaling.stored("default") for layer in layers} == {2.0}
    for layer in layers:
        layer.scaling["default"] = 0.7  # an adapter with a base scale of its own
    with active_alpha(0.5):
        assert {layer.scaling["default"] for layer in layers} == {0.35}
    assert {layer.scaling["default"] for layer in layers} == {0.7}


@pytest.mark.parametrize(
    ("alpha", "says"),
    [([0.1, 0.2], "2 values of alpha were given for 3"), (float("nan"), "finite")],
)
def test_wrong_alphas_are_refused(alpha: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        alpha_per_row(alpha, 3)


def test_a_merged_model_takes_only_one_and_folds_nothing(build_model: BuildModel) -> None:
    model = build_model(lora=False)
    prompt = model.processor.render("What is it?")
    with pytest.raises(UsageError, match="alpha must be 1"):
        model.generate([prompt], [[torch.zeros(160000)]], alpha=0.5)
    with pytest.raises(UsageError, match="no LoRA adapter"):
        model.fold(0.5)


@examples(4)
@given(
    alphas=st.lists(st.floats(-1, 2), min_size=2, max_size=3),
    order=st.lists(st.integers(0, 2), min_size=4, max_size=9),
    failing=st.integers(0, 2),
)
def test_interleaved_requests_leave_nothing_to_each_other(
    alphas: list[float],
    order: list[int],
    failing: int,
    nano: NatureLM,
    nano_waveforms: dict[str, Tensor],
) -> None:
    """Requests that take turns, one of which breaks off, answer as they do alone."""
    pipeline = Pipeline(nano)
    wavs = [wav.numpy() for wav in nano_waveforms.values()]

    def request(alpha: float) -> Iterator[Any]:
        return pipeline.windows(
            wavs, "What is it?", alpha=alpha, batch_size=1, num_beams=1, max_new_tokens=3
        )

    alone = [[result.text for result in request(alpha)] for alpha in alphas]
    running = [request(alpha) for alpha in alphas]
    got: list[list[str]] = [[] for _ in alphas]
    for turn in order:
        turn %= len(alphas)
        if turn == failing:
            running[turn].close()
        result = next(running[turn], None)
        if result is not None:
            got[turn].append(result.text)
    for texts, wanted in zip(got, alone, strict=True):
        assert texts == wanted[: len(texts)]
    assert active_scaling() == (None, None)
    assert [result.text for result in request(alphas[0])] == alone[0]


@given(alphas=st.lists(st.floats(-1, 2), max_size=4), error=st.booleans())
def test_blocks_end_whatever_happens_in_them(alphas: list[float], error: bool) -> None:
    scales = {("q", "default"): 0.5}
    try:
        with ExitStack() as blocks:
            for alpha in alphas:
                blocks.enter_context(active_alpha(alpha))
                blocks.enter_context(active_scales(scales))
                with active_scales(None), active_alpha(2.5):
                    assert active_scaling() == (2.5, None)
                assert active_scaling() == (alpha, scales)
            if error:
                raise RuntimeError("on purpose")
    except RuntimeError:
        pass
    assert active_scaling() == (None, None)


@pytest.mark.parametrize(
    ("alphas", "says"),
    [
        (1.0, None),
        ([0.0, 0.5, 1.0], None),
        (1.5, "alpha 1.5 lies outside 0 to 1"),
        ([0.5, -1, 2, 2], "alpha -1, 2 lies outside"),
    ],
)
def test_extrapolation_gets_a_note(alphas: Any, says: str | None) -> None:
    note = extrapolation_note(alphas)
    assert note is None if says is None else says in note


def test_alpha_of_rows_multiplies_a_recipe(model: NatureLM, wav: Tensor, rules: Path) -> None:
    prompt, options = model.processor.render("Caption the audio"), {"max_new_tokens": 24}
    with model.use_recipe(rules):
        together = model.generate([prompt] * 3, [[wav]] * 3, alpha=[0.0, 0.5, 1.0], **options)
        alone = [model.generate([prompt], [[wav]], alpha=a, **options)[0] for a in (0.0, 0.5, 1.0)]
    assert together == alone
    assert len(set(alone)) == 3


# -- folded ----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0, 1.7, -0.5])
def test_folded_answers_are_those_of_the_runtime_alpha(
    alpha: float, model: NatureLM, exact: NatureLM, wav: Tensor
) -> None:
    before, runtime = state_copy(model), last_logits(model, wav, alpha)
    exact_ids = answer_ids(exact, wav.double(), alpha)
    with model.fold(alpha) as state, exact.fold(alpha):
        assert (state.kept_bytes == 0) == (alpha == 0)
        assert (last_logits(model, wav) - runtime).abs().max() <= 1e-4
        assert answer_ids(exact, wav.double(), alpha) == exact_ids
        assert answer_ids(exact, wav.double()) == exact_ids  # the folded α is the default
    assert same_state(model, before)
    assert torch.equal(last_logits(model, wav, alpha), runtime)


def test_folded_layers_do_no_adapter_arithmetic(model: NatureLM, wav: Tensor) -> None:
    calls: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in model.named_modules()
        if name.endswith((".lora_A.default", ".lora_B.default"))
    ]
    last_logits(model, wav)
    assert len(calls) == len(hooks) == 16
    calls.clear()
    with model.fold(0.5):
        last_logits(model, wav)
    for hook in hooks:
        hook.remove()
    assert calls == []


def test_restoring_keeps_the_very_parameters_and_what_learns(model: NatureLM) -> None:
    before = {name: (one, one.requires_grad) for name, one in model.named_parameters()}
    with model.fold(0.3, originals_on="cpu") as state:
        changed = [n for n, one in model.named_parameters() if one is not before[n][0]]
        assert len(changed) == 8
        assert all(name.endswith("_proj.base_layer.weight") for name in changed)
        assert state.kept_bytes == sum(before[name][0].numel() * 4 for name in changed)
    after = dict(model.named_parameters())
    assert all(after[n] is one and one.requires_grad == b for n, (one, b) in before.items())
    assert model.folded is None


@pytest.mark.parametrize("asked", [1.0, 0.41, [0.4, 1.0]])
def test_another_alpha_is_refused_while_folded(asked: Any, model: NatureLM, wav: Tensor) -> None:
    prompts, before = [model.processor.render("What is it?")] * 2, state_copy(model)
    with pytest.raises(UsageError, match=r"folded \(at alpha 0.4\).*unfold"), model.fold(0.4):
        model.generate(prompts, [[wav], [wav]], alpha=asked)
    assert same_state(model, before), "an error within the block unfolds"


def test_the_language_model_itself_refuses_another_alpha(model: NatureLM, wav: Tensor) -> None:
    with model.fold(0.4):
        last_logits(model, wav, 0.4)
        with active_alpha(torch.tensor([0.4])):
            last_logits(model, wav)
        for wrong in (1.0, torch.tensor([1.0]), torch.tensor([0.4, 0.5])):
            with active_alpha(wrong), pytest.raises(UsageError, match="folded"):
                last_logits(model, wav)


def test_the_loss_of_a_folded_model(model: NatureLM, wav: Tensor) -> None:
    prompt = model.processor.render("What is it?")
    batch = {"prompts": [prompt], "audios": [[wav]], "answers": ["A bird"]}
    with torch.no_grad():
        wanted = model.loss(batch, alpha=0.4).loss
        with model.fold(0.4):
            assert torch.allclose(model.loss(batch).loss, wanted, atol=1e-5)
            with pytest.raises(UsageError, match="folded"):
                model.loss(batch, alpha=1.0)


def test_what_a_folded_model_refuses(
    model: NatureLM, tmp_path: Path, nano_folder: Path, wav: Tensor
) -> None:
    with model.fold(0.4):
        for wish in (
            lambda: model.fold(0.5),
            lambda: model.save_pretrained(tmp_path / "m"),
            lambda: model.attach_adapter(nano_folder / "checkpoint"),
            lambda: model.adapter_scales(tmp_path),
        ):
            with pytest.raises(UsageError, match=r"unfold"):
                wish()
    assert not (tmp_path / "m").exists()


def test_an_error_in_the_middle_leaves_the_model_as_it_was(
    model: NatureLM, wav: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, wanted = state_copy(model), last_logits(model, wav)
    merged, done = MergePlan.merged, []

    def fails(self: MergePlan, target: str, *rest: Any) -> Tensor:
        if len(done) == 3:
            raise RuntimeError("on purpose")
        done.append(target)
        return merged(self, target, *rest)

    monkeypatch.setattr(MergePlan, "merged", fails)
    with pytest.raises(RuntimeError, match="on purpose"):
        model.fold(0.5)
    assert model.folded is None
    assert same_state(model, before)
    assert torch.equal(last_logits(model, wav), wanted)


def test_a_model_that_moves_while_folded(nano_folder: Path, exact: NatureLM, wav: Tensor) -> None:
    model = NatureLM.from_pretrained(nano_folder / "checkpoint")
    model.fold(0.4)
    model.double()
    model.unfold()
    assert torch.equal(last_logits(model, wav.double()), last_logits(exact, wav.double()))


@settings(max_examples=12)
@given(alphas=st.lists(st.floats(-2, 3), min_size=1, max_size=3))
def test_any_series_of_folds_leaves_nothing_behind(alphas: list[float], model: NatureLM) -> None:
    before = state_copy(model)
    for alpha in alphas:
        model.fold(alpha)
        model.unfold()
    model.unfold()  # once too often is no matter
    assert same_state(model, before)


def test_a_block_that_ends_late_leaves_a_new_fold_alone(model: NatureLM) -> None:
    before = state_copy(model)
    with model.fold(0.4):
        model.unfold()
        model.fold(0.5)
    assert model.folded is not None
    assert model.folded.alpha == 0.5
    model.unfold()
    assert same_state(model, before)


def test_a_recipe_folded_and_at_runtime(
    model: NatureLM, exact: NatureLM, wav: Tensor, rules: Path
) -> None:
    before, plain, fingerprint = state_copy(model), last_logits(model, wav), model.fingerprint
    with model.use_recipe(rules):
        runtime = last_logits(model, wav, 0.9)
    with exact.use_recipe(rules):
        ids = answer_ids(exact, wav.double(), 0.9)
    with model.fold(0.9, rules), exact.fold(0.9, rules):
        assert model.fingerprint != fingerprint
        assert (last_logits(model, wav) - runtime).abs().max() <= 1e-4
        assert answer_ids(exact, wav.double()) == ids
    assert (runtime - plain).abs().max() > 1e-2
    assert model.fingerprint == fingerprint
    assert same_state(model, before)
