"""Adapters in PEFT's format, in and out, and several of them in one model."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from merging.helpers import answer_ids, last_logits, peft_folder, same_state, state_copy
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from NatureLM.errors import UsageError
from NatureLM.merging.lora import lora_layers
from NatureLM.merging.recipe import Recipe, RecipeAdapter
from NatureLM.models import NatureLM
from NatureLM.models.checkpoint.peft_io import open_adapter
from NatureLM.models.registry import CheckpointError
from tests.builders import edit_json

# PEFT asks transformers by a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

IDS = torch.arange(20, 44)[None]


@pytest.fixture(scope="module")
def model(nano_folder: Path) -> NatureLM:
    return NatureLM.from_pretrained(nano_folder / "checkpoint")


@pytest.fixture(scope="module")
def wav(nano_waveforms: dict[str, Tensor]) -> Tensor:
    return nano_waveforms["howl"]


def base_logits(folder: Path, adapter: Path | None = None) -> Tensor:
    """Logits of PEFT itself on the base model."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        out: Tensor = model.eval()(IDS).logits
    return out


def our_logits(model: NatureLM, rows: int) -> Tensor:
    """Ours on the same ids, without the row of [PAD]."""
    with torch.no_grad():
        out: Tensor = model.language_model(IDS).logits[..., :rows]
    return out


def test_peft_reads_what_we_write(model: NatureLM, nano_folder: Path, tmp_path: Path) -> None:
    model.save_adapter(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    theirs = base_logits(nano_folder / "llama", tmp_path)
    ours = our_logits(model, theirs.shape[-1])
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, base_logits(nano_folder / "llama"), atol=1e-2)


def test_a_scale_of_its_own_is_written_as_it_is(nano_folder: Path, tmp_path: Path) -> None:
    model = NatureLM.from_pretrained(nano_folder / "checkpoint")
    for number, layer in enumerate(lora_layers(model.language_model).values()):
        layer.scaling["default"] = 0.3 + 0.1 * number
    model.save_adapter(tmp_path)
    theirs = base_logits(nano_folder / "llama", tmp_path)
    assert torch.allclose(our_logits(model, theirs.shape[-1]), theirs, atol=1e-6)
    again = NatureLM.from_pretrained(nano_folder / "checkpoint", adapter=tmp_path)
    scales = [one.scaling.stored("default") for one in lora_layers(again.language_model).values()]
    assert scales == pytest.approx([0.3 + 0.1 * number for number in range(8)])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"r": 3, "lora_alpha": 7, "rank_pattern": {"layers.1.self_attn.q_proj": 5}},
        {"alpha_pattern": {"v_proj": 3, "^model.layers.0.self_attn.q_proj": 9}},
        {"target_modules": ["gate_proj", "o_proj", "down_proj"]},
        {"target_modules": r".*\.1\.self_attn\.(q|k)_proj"},
        {"layers_to_transform": [1]},
    ],
    ids=str,
)
def test_an_adapter_of_peft_in_place_of_ours(
    settings: dict[str, Any], nano_folder: Path, tmp_path: Path, wav: Tensor
) -> None:
    folder = peft_folder(nano_folder / "llama", tmp_path / "adapter", **settings)
    theirs = base_logits(nano_folder / "llama", folder)
    model = NatureLM.from_pretrained(nano_folder / "checkpoint", adapter=folder)
    assert torch.allclose(our_logits(model, theirs.shape[-1]), theirs, atol=1e-6)
    model.save_pretrained(tmp_path / "whole")
    again = NatureLM.from_pretrained(tmp_path / "whole")
    assert torch.equal(last_logits(again, wav), last_logits(model, wav))
    assert torch.equal(last_logits(again, wav, 0.3), last_logits(model, wav, 0.3))
    model.save_adapter(tmp_path / "back")
    assert torch.allclose(base_logits(nano_folder / "llama", tmp_path / "back"), theirs, atol=1e-6)


def test_the_adapter_counts_in_the_fingerprint(nano_folder: Path, tmp_path: Path) -> None:
    folders = [peft_folder(nano_folder / "llama", tmp_path / str(n), seed=n) for n in (1, 2)]
    source = nano_folder / "checkpoint"
    loaded = [NatureLM.from_pretrained(source, adapter=folder) for folder in (None, *folders)]
    assert len({model.fingerprint for model in loaded}) == 3


@pytest.mark.parametrize("lora", [True, False])
def test_an_adapter_on_every_layout(
    lora: bool, build_model: Any, write_reference: Any, tmp_path: Path
) -> None:
    """On a model with an adapter of its own, whose place it takes, and on one without."""
    model = build_model(lora=lora)
    model.save_pretrained(tmp_path / "own")
    folders = [tmp_path / "own", write_reference(model, tmp_path / "full")]
    folders.append(write_reference(model, tmp_path / "partial", partial=True))
    adapter = peft_folder(tmp_path / "full" / "llama", tmp_path / "adapter")
    theirs = base_logits(tmp_path / "full" / "llama", adapter)[..., :600]
    for folder in folders:
        loaded = NatureLM.from_pretrained(folder, adapter=adapter)
        assert torch.allclose(our_logits(loaded, 600), theirs, atol=1e-6), folder


def _rename(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.removeprefix("base_model.model.model."),
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.replace("base_model.model.", "base_model.model.language_model."),
        lambda name: "llama_model." + name.replace(".weight", ".birds.weight"),
    ],
)
def test_any_prefix(change: Any, nano_folder: Path, tmp_path: Path) -> None:
    folder = peft_folder(nano_folder / "llama", tmp_path)
    theirs = base_logits(nano_folder / "llama", folder)
    _rename(folder, change)
    model = NatureLM.from_pretrained(nano_folder / "checkpoint", adapter=folder)
    assert torch.allclose(our_logits(model, theirs.shape[-1]), theirs, atol=1e-6)


def _settings(folder: Path, **changes: Any) -> None:
    edit_json(folder / "adapter_config.json", **changes)


def _replace_first(folder: Path, tensor: Tensor | None) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    assert ".lora_A" in name
    del tensors[name]
    save_file(tensors if tensor is None else {**tensors, name: tensor}, path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: _settings(f, peft_type="IA3"), "peft_type is 'IA3'"),
        (lambda f: _settings(f, use_dora=True), "DoRA"),
        (lambda f: _settings(f, bias="all"), "bias 'all'"),
        (lambda f: _settings(f, lora_alpha=float("nan")), "lora_alpha is nan"),
        (lambda f: _settings(f, r=4.5), "r is 4.5, and it must be a whole number"),
        (lambda f: _settings(f, alpha_pattern={"q_proj": "8"}), "alpha_pattern.q_proj is '8'"),
        (lambda f: _settings(f, rank_pattern=[4]), "rank_pattern is .*must be an object"),
        (lambda f: _settings(f, use_rslora="no"), "use_rslora is 'no'"),
        (lambda f: _settings(f, init_lora_weights=1), "init_lora_weights = 1"),
        (lambda f: _settings(f, init_lora_weights="loftq"), "init_lora_weights = .loftq"),
        (lambda f: _settings(f, init_lora_weights="pissa_niter_4"), "pissa_niter_4.* PEFT writes"),
        (lambda f: _settings(f, lora_dropout="no"), "lora_dropout is 'no'"),
        (lambda f: _settings(f, gate_scale=0.5), "gate_scale = 0.5 .*not known here"),
        (lambda f: _settings(f, target_modules=["q_proj"]), r"PEFT leaves .*v_proj out"),
        (
            lambda f: _settings(f, target_modules=r".*\.q_proj"),
            r"PEFT leaves .*v_proj out",
        ),
        (lambda f: _settings(f, exclude_modules=["v_proj"]), r"PEFT leaves .*v_proj out"),
        (lambda f: _settings(f, layers_to_transform=[0]), r"PEFT leaves .*layers.1\S* out"),
        (lambda f: _settings(f, modules_to_save=["lm_head"]), "whole modules"),
        (lambda f: _settings(f, r=0), "r is 0"),
        (lambda f: _settings(f, r=5), r"lora_A is \(4, 64\) \(needed \(5, 64\)\)"),
        (lambda f: _replace_first(f, None), "only one of lora_A and lora_B"),
        (lambda f: _replace_first(f, torch.zeros(4, 7)), r"needed \(4, 64\)"),
        (lambda f: _rename(f, lambda n: n.replace("q_proj", "query")), "no linear layer"),
        (lambda f: _rename(f, lambda n: n.replace("lora_A", "lora_C")), "no plain LoRA"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "adapter_config.json").unlink(), "it is not an adapter"),
        (
            lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
            "is a pickle file",
        ),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "holds no adapter_model"),
    ],
)
def test_adapters_that_cannot_be_used(
    damage: Any, says: str, nano_folder: Path, tmp_path: Path
) -> None:
    folder = peft_folder(nano_folder / "llama", tmp_path)
    damage(folder)
    with pytest.raises(CheckpointError, match=says):
        NatureLM.from_pretrained(nano_folder / "checkpoint", adapter=folder)


CHANGED = {
    "r": -1,
    "use_rslora": "no",
    "lora_alpha": "8",
    "rank_pattern": {"q_proj": 0},
    "alpha_pattern": {"q_proj": -1},
    "target_modules": ["k_proj"],
    "exclude_modules": ["q_proj"],
    "layers_to_transform": [7],
    "peft_type": "LOHA",
    "lora_dropout": 0.5,
}
HARMLESS = """task_type auto_mapping peft_version base_model_name_or_path revision inference_mode
    lora_dropout layers_pattern megatron_core eva_config runtime_config qalora_group_size"""


@pytest.mark.parametrize("setting", [one.name for one in fields(LoraConfig)])
def test_every_setting_of_peft_is_harmless_or_refused(
    setting: str, nano_folder: Path, tmp_path: Path
) -> None:
    """Also those that a coming version of PEFT adds."""
    folder = peft_folder(nano_folder / "llama", tmp_path)
    _settings(folder, **{setting: CHANGED.get(setting, {"some": 1})})
    linears = {
        f"model.layers.{layer}.self_attn.{name}": (64 if name == "q_proj" else 32, 64)
        for layer in (0, 1)
        for name in ("q_proj", "v_proj")
    }
    if setting in HARMLESS.split():
        assert open_adapter(folder, linears).layers.keys() == linears.keys()
    else:
        with pytest.raises(CheckpointError, match=setting):
            open_adapter(folder, linears)


def _nudged(base: Any, begun: Any, folder: Path, **how: Any) -> Path:
    """An adapter of PEFT that was begun in some way and trained a little; `how` it is saved."""
    torch.manual_seed(0)
    values = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
    model = get_peft_model(base, LoraConfig(init_lora_weights=begun, **values))
    model.peft_config["default"].init_lora_weights = True  # to save what has begun, as PEFT asks
    model.save_pretrained(folder / "before", save_embedding_layers=False)
    model.peft_config["default"].init_lora_weights = begun
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder / "trained", save_embedding_layers=False, **how)
    return folder / "trained"


@pytest.mark.parametrize("begun", [False, "gaussian", "orthogonal", "mica"])
def test_beginnings_that_leave_the_base_alone(
    begun: Any, nano_folder: Path, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(nano_folder / "llama")
    folder = _nudged(base, begun, tmp_path)
    theirs = base_logits(nano_folder / "llama", folder)
    model = NatureLM.from_pretrained(nano_folder / "checkpoint", adapter=folder)
    assert torch.allclose(our_logits(model, theirs.shape[-1]), theirs, atol=1e-6)


@pytest.mark.parametrize("begun", ["pissa", "olora"])
def test_beginnings_that_change_the_base_are_refused_and_can_be_converted(
    begun: str, nano_folder: Path, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(nano_folder / "llama")
    folder = _nudged(base, begun, tmp_path)
    theirs = base_logits(nano_folder / "llama", folder)
    with pytest.raises(CheckpointError, match=f"{begun}.*path_initial_model_for_weight_conversion"):
        NatureLM.from_pretrained(nano_folder / "checkpoint", adapter=folder)
    base = AutoModelForCausalLM.from_pretrained(nano_folder / "llama")
    how = {"path_initial_model_for_weight_conversion": str(tmp_path / "plain" / "before")}
    folder = _nudged(base, begun, tmp_path / "plain", **how)
    model = NatureLM.from_pretrained(nano_folder / "checkpoint", adapter=folder)
    assert torch.allclose(our_logits(model, theirs.shape[-1]), theirs, atol=1e-4)


def test_no_such_adapter(nano_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor"):
        NatureLM.from_pretrained(nano_folder / "checkpoint", adapter="nowhere")


@pytest.mark.parametrize("targets", [["q_proj"], ["up_proj", "v_proj"]])
def test_attached_adapters_come_and_go(
    targets: list[str], model: NatureLM, nano_folder: Path, tmp_path: Path, wav: Tensor
) -> None:
    other = peft_folder(nano_folder / "llama", tmp_path / "frogs", target_modules=targets)
    before, plain, half = state_copy(model), last_logits(model, wav), last_logits(model, wav, 0.5)
    learns = {name for name, one in model.named_parameters() if one.requires_grad}
    name = model.attach_adapter(other)
    assert name == "frogs"
    assert model.adapters == ["frogs"]
    assert torch.equal(last_logits(model, wav), plain)  # it acts only under a recipe
    with pytest.raises(UsageError, match="detach"):
        model.save_pretrained(tmp_path / "m")
    with pytest.raises(UsageError, match="taken"):
        model.attach_adapter(other, "frogs")
    model.detach_adapter("frogs")
    assert same_state(model, before)
    assert {name for name, one in model.named_parameters() if one.requires_grad} == learns
    assert torch.equal(last_logits(model, wav, 0.5), half)
    with pytest.raises(UsageError, match="attached: none"):
        model.detach_adapter("frogs")


def test_combined_at_runtime_equals_folded_and_the_sum(
    nano_folder: Path, tmp_path: Path, wav: Tensor
) -> None:
    """Σ weight · adapter by three ways: per call, folded, and by PEFT's own arithmetic."""
    model = NatureLM.from_pretrained(nano_folder / "checkpoint", dtype="float64")
    peft_folder(nano_folder / "llama", tmp_path / "other", target_modules=["q_proj", "up_proj"])
    recipe = tmp_path / "r.yml"
    recipe.write_text(
        "alpha: 0.8\n"
        "rules: [{layers: 0, modules: [v], alpha: 0.1}]\n"
        "adapters:\n  - weight: 0.7\n  - {path: other, weight: -0.4}\n"
    )
    plain = last_logits(model, wav.double())
    with model.use_recipe(recipe):
        runtime, ids = last_logits(model, wav.double()), answer_ids(model, wav.double(), 1.2)
        double = last_logits(model, wav.double(), 2.0)
    assert model.adapters == ["other"]
    assert torch.equal(last_logits(model, wav.double()), plain)
    with model.fold(1.0, recipe):  # from the attached adapter
        assert torch.allclose(last_logits(model, wav.double()), runtime, atol=1e-9)
    model.detach_adapter("other")
    with model.fold(1.2, recipe):  # from its files
        assert answer_ids(model, wav.double()) == ids
    with model.fold(2.0, recipe):
        assert torch.allclose(last_logits(model, wav.double()), double, atol=1e-9)
    assert not torch.allclose(runtime, plain, atol=1e-2)


def test_an_adapter_of_another_checkpoint(
    build_model: Any, tmp_path: Path, nano_waveforms: dict[str, Tensor]
) -> None:
    first, second = build_model(seed=0), build_model(seed=0, use_rslora=True)
    with torch.no_grad():
        for name, parameter in second.named_parameters():
            if ".lora_B" in name:
                parameter.mul_(-1.5)
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    loaded = NatureLM.from_pretrained(tmp_path / "first", adapter=tmp_path / "second")
    wav = nano_waveforms["chirps"]
    assert torch.equal(last_logits(loaded, wav), last_logits(second, wav))


def test_a_folder_is_one_adapter_however_it_is_spelt(
    nano_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = NatureLM.from_pretrained(nano_folder / "checkpoint")
    peft_folder(nano_folder / "llama", tmp_path / "frogs")
    monkeypatch.chdir(tmp_path)
    for path in ("frogs", "./frogs", str(tmp_path / "frogs")):
        model.adapter_scales(Recipe(adapters=[RecipeAdapter(path=path)]))
    assert model.adapters == ["frogs"]
