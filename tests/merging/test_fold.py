"""Folded weights: the answers of the runtime α, and the way back bit for bit."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merging.helpers import answer_ids, last_logits, same_state, state_copy
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.merging.lora import active_alpha
from NatureLM.merging.plan import MergePlan
from NatureLM.models import NatureLM

# PEFT asks transformers by a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

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


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0, 1.7, -0.5])
def test_folded_answers_are_those_of_the_runtime_alpha(
    alpha: float, model: NatureLM, exact: NatureLM, wav: Tensor
) -> None:
    before = state_copy(model)
    logits = last_logits(model, wav, alpha)
    exact_ids = answer_ids(exact, wav.double(), alpha)
    with model.fold(alpha), exact.fold(alpha):
        assert (last_logits(model, wav) - logits).abs().max() <= 1e-4
        assert answer_ids(exact, wav.double(), alpha) == exact_ids
        assert answer_ids(exact, wav.double()) == exact_ids  # the folded α is the default
    assert same_state(model, before)
    assert torch.equal(last_logits(model, wav, alpha), logits)


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
        touched = sum(before[name][0].numel() * 4 for name in changed)
        assert state.kept_bytes == touched
    after = dict(model.named_parameters())
    assert all(
        after[n] is one and one.requires_grad == learns for n, (one, learns) in before.items()
    )
    assert model.folded is None


def test_alpha_zero_folds_nothing(model: NatureLM) -> None:
    with model.fold(0.0) as state:
        assert state.kept_bytes == 0


@pytest.mark.parametrize("asked", [1.0, 0.41, [0.4, 1.0]])
def test_another_alpha_is_refused_while_folded(asked: Any, model: NatureLM, wav: Tensor) -> None:
    prompts = [model.processor.render("What is it?")] * 2
    with model.fold(0.4), pytest.raises(UsageError, match=r"folded \(at alpha 0.4\).*unfold"):
        model.generate(prompts, [[wav], [wav]], alpha=asked)


def test_the_language_model_itself_refuses_another_alpha(model: NatureLM, wav: Tensor) -> None:
    with model.fold(0.4):
        last_logits(model, wav, 0.4)
        with active_alpha(torch.tensor([0.4])):
            last_logits(model, wav)
        for wrong in (1.0, torch.tensor([1.0]), torch.tensor([0.4, 0.5])):
            with active_alpha(wrong), pytest.raises(UsageError, match="folded"):
                last_logits(model, wav)


def test_the_loss_of_a_folded_model(model: NatureLM, wav: Tensor) -> None:
    batch = {
        "prompts": [model.processor.render("What is it?")],
        "audios": [[wav]],
        "answers": ["A bird"],
    }
    with torch.no_grad():
        wanted = model.loss(batch, alpha=0.4).loss
        with model.fold(0.4):
            assert torch.allclose(model.loss(batch).loss, wanted, atol=1e-5)
            with pytest.raises(UsageError, match="folded"):
                model.loss(batch, alpha=1.0)


def test_what_a_folded_model_refuses(model: NatureLM, tmp_path: Path, nano_folder: Path) -> None:
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


def test_switching_the_adapter_on_by_hand_is_refused(model: NatureLM, wav: Tensor) -> None:
    with model.fold(0.4):
        model.llama_model.base_model.enable_adapter_layers()
        with pytest.raises(UsageError, match="count it twice"):
            last_logits(model, wav)


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


def test_errors_within_the_block_unfold(model: NatureLM, wav: Tensor) -> None:
    before = state_copy(model)
    with pytest.raises(RuntimeError, match="on purpose"), model.fold(0.4):
        raise RuntimeError("on purpose")
    assert same_state(model, before)


def test_a_model_that_moves_while_folded(nano_folder: Path, wav: Tensor) -> None:
    model = NatureLM.from_pretrained(nano_folder / "checkpoint")
    wanted = last_logits(
        NatureLM.from_pretrained(nano_folder / "checkpoint").double(), wav.double()
    )
    model.fold(0.4)
    model.double()
    model.unfold()
    assert torch.equal(last_logits(model, wav.double()), wanted)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(alphas=st.lists(st.floats(-2, 3), min_size=1, max_size=3))
def test_any_series_of_folds_leaves_nothing_behind(alphas: list[float], model: NatureLM) -> None:
    before = state_copy(model)
    for alpha in alphas:
        model.fold(alpha)
        model.unfold()
    model.unfold()  # once too often is no matter
    assert same_state(model, before)


def test_a_recipe_folded_and_at_runtime(
    model: NatureLM, exact: NatureLM, wav: Tensor, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.yml"
    recipe.write_text(RULES)
    before = state_copy(model)
    plain = last_logits(model, wav)
    with model.use_recipe(recipe):
        runtime = last_logits(model, wav, 0.9)
    with exact.use_recipe(recipe):
        ids = answer_ids(exact, wav.double(), 0.9)
    fingerprint = model.fingerprint
    with model.fold(0.9, recipe), exact.fold(0.9, recipe):
        assert model.fingerprint != fingerprint
        assert (last_logits(model, wav) - runtime).abs().max() <= 1e-4
        assert answer_ids(exact, wav.double()) == ids
    assert (runtime - plain).abs().max() > 1e-2
    assert model.fingerprint == fingerprint
    assert same_state(model, before)


def test_recipes_of_threads_do_not_meet(model: NatureLM, wav: Tensor, tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("rules: [{layers: 0, alpha: 0.0}]\n")
    (tmp_path / "b.yml").write_text("rules: [{layers: 1, alpha: 2.0}]\n")
    plain = last_logits(model, wav)
    expected = {}
    for name in ("a.yml", "b.yml"):
        with model.use_recipe(tmp_path / name):
            expected[name] = last_logits(model, wav)
    assert not torch.equal(expected["a.yml"], expected["b.yml"])
    wrong: list[str] = []

    def ask(name: str) -> None:
        for _ in range(5):
            with model.use_recipe(tmp_path / name):
                if not torch.equal(last_logits(model, wav), expected[name]):
                    wrong.append(name)
            if not torch.equal(last_logits(model, wav), plain):
                wrong.append("plain")

    threads = [threading.Thread(target=ask, args=(name,)) for name in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_alpha_of_rows_multiplies_a_recipe(model: NatureLM, wav: Tensor, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yml"
    recipe.write_text(RULES)
    prompt = model.processor.render("Caption the audio")
    with model.use_recipe(recipe):
        together = model.generate([prompt] * 3, [[wav]] * 3, alpha=[0.0, 0.5, 1.0])
        alone = [model.generate([prompt], [[wav]], alpha=a)[0] for a in (0.0, 0.5, 1.0)]
    assert together == alone


def test_a_block_that_ends_late_leaves_a_new_fold_alone(model: NatureLM, wav: Tensor) -> None:
    before = state_copy(model)
    with model.fold(0.4):
        model.unfold()
        model.fold(0.5)
    assert model.folded is not None
    assert model.folded.alpha == 0.5
    model.unfold()
    assert same_state(model, before)


def test_a_merged_model_has_nothing_to_fold(build_model: Any) -> None:
    with pytest.raises(UsageError, match="no LoRA adapter"):
        build_model(lora=False).fold(0.5)


def test_quantised_weights_are_refused(build_model: Any) -> None:
    model = build_model()
    linear = model.language_model.model.layers[1].self_attn.o_proj.base_layer
    original = linear.weight
    linear.weight = torch.nn.Parameter(original.to(torch.int8), requires_grad=False)
    with pytest.raises(UsageError, match="quantised"):
        model.fold(0.5)
    assert model.folded is None
