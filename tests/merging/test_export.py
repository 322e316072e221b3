"""Merged models as plain checkpoints: answers, layouts, memory, card, and what is never lost."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from merging.helpers import answer_ids, last_logits, peft_folder
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from NatureLM.cli import main
from NatureLM.errors import UsageError
from NatureLM.merging.lora import lora_layers
from NatureLM.merging.recipe import Recipe, RecipeAdapter, load_recipe
from NatureLM.models import NatureLM
from NatureLM.models.checkpoint.export import export_merged
from NatureLM.models.checkpoint.tensors import index_folder
from NatureLM.models.registry import CheckpointError
from tests.builders import edit_json

# PEFT asks transformers by a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

RECIPE = """
alpha: [0.1, 0.8]
rules: [{modules: [o], alpha: 1.3}]
adapters: [{weight: 0.6}, {path: frogs, weight: 0.5}]
"""


@pytest.fixture
def wav(nano_waveforms: dict[str, Tensor]) -> Tensor:
    return nano_waveforms["chirps"]


@pytest.fixture
def source(nano_folder: Path) -> Path:
    return nano_folder / "checkpoint"


@pytest.fixture
def recipe(nano_folder: Path, tmp_path: Path) -> Path:
    """A recipe with another adapter beside the model's own."""
    peft_folder(nano_folder / "llama", tmp_path / "frogs", target_modules=["q_proj", "up_proj"])
    (tmp_path / "recipe.yml").write_text(RECIPE)
    return tmp_path / "recipe.yml"


def merge(output: Path, *arguments: object, code: int = 0) -> str:
    """What `naturelm merge` says."""
    command = ["merge", "--output-path", output, *arguments]
    done = CliRunner().invoke(main.naturelm_app, list(map(str, command)))
    assert done.exit_code == code, done.output
    return done.output


def test_the_merged_folder_gives_the_folded_answers(
    source: Path, tmp_path: Path, wav: Tensor
) -> None:
    out = tmp_path / "parents" / "are" / "made"
    merge(out, "--model", source, "--alpha", 0.4)
    merged = NatureLM.from_pretrained(out)
    assert not lora_layers(merged.language_model)
    assert not any("lora" in name for name in index_folder(out))
    assert merged.config.lora is False
    config = (out / "config.json").read_text()
    assert str(source.parent) not in config  # no place on this machine
    assert merged.config.llama_path is None
    model = NatureLM.from_pretrained(source)
    runtime = last_logits(model, wav, 0.4)
    with model.fold(0.4):
        assert torch.equal(last_logits(merged, wav), last_logits(model, wav))
        assert answer_ids(merged, wav) == answer_ids(model, wav)
    assert (last_logits(merged, wav) - runtime).abs().max() <= 1e-4
    with pytest.raises(UsageError, match="it was merged"):
        answer_ids(merged, wav, 0.4)


@pytest.mark.parametrize(
    ("layout", "tied"),
    [("own", True), ("sharded", False), ("full", False), ("partial", False), ("partial", True)],
)
def test_every_layout_is_merged(
    layout: str, tied: bool, build_model: Any, write_reference: Any, tmp_path: Path, wav: Tensor
) -> None:
    model = build_model(use_rslora=True, llama={"tie_word_embeddings": tied})
    if layout in ("full", "partial"):
        source = write_reference(model, tmp_path / "reference", partial=layout == "partial")
        edit_json(source / "config.json", use_rslora=True)
    else:
        source = tmp_path / layout
        model.save_pretrained(source, max_shard_size="40KB" if layout == "sharded" else "5GB")
    loaded = NatureLM.from_pretrained(source)
    export_merged(source, tmp_path / "out", Recipe(alpha=0.7), max_shard_size="130KB")
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 150_000 for file in files)
    merged = NatureLM.from_pretrained(tmp_path / "out")
    with loaded.fold(0.7):
        assert torch.equal(last_logits(merged, wav), last_logits(loaded, wav))
        assert answer_ids(merged, wav) == answer_ids(loaded, wav)


def test_shards_read_as_ordinary_safetensors(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    export_merged(source, tmp_path / "out", Recipe(alpha=0.0), max_shard_size="200KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    read: dict[str, Tensor] = {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        tensors = load_file(file)
        assert {name for name, at in index["weight_map"].items() if at == file.name} == set(tensors)
        read.update(tensors)
    before = load_file(source / "model.safetensors")
    plain = "llama_model.model.layers.1.self_attn.q_proj.weight"
    wrapped = "llama_model.base_model.model.model.layers.1.self_attn.q_proj.base_layer.weight"
    assert torch.equal(read[plain], before[wrapped])
    assert torch.equal(read["ln_audio.weight"], before["ln_audio.weight"])
    assert index["metadata"]["total_size"] == sum(
        t.numel() * t.element_size() for t in read.values()
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_precision(dtype: str, source: Path, tmp_path: Path) -> None:
    merge(tmp_path / "o", "--model", source, "--alpha", 0.5, "--dtype", dtype)
    model = NatureLM.from_pretrained(source)
    model.fold(0.5)
    wanted = model.language_model.model.layers[0].self_attn.v_proj.base_layer.weight
    got = load_file(tmp_path / "o" / "model.safetensors")
    stored = got["llama_model.model.layers.0.self_attn.v_proj.weight"]
    assert torch.equal(stored, wanted.to(getattr(torch, dtype)))
    assert got["audio_Qformer.bert.embeddings.position_ids"].dtype == torch.int64


@pytest.mark.parametrize("method", ["", "method: ties\ndensity: 0.6", "method: dare\ndensity: 0.5"])
def test_recipes_with_several_adapters(
    method: str, source: Path, recipe: Path, tmp_path: Path, wav: Tensor
) -> None:
    recipe.write_text(f"{RECIPE}\n{method}\n")
    out = tmp_path / "merged"
    merge(out, "--model", source, "--recipe", recipe)
    model = NatureLM.from_pretrained(source)
    plain = last_logits(model, wav)
    with model.fold(1.0, recipe):
        folded = last_logits(model, wav)
    assert torch.equal(last_logits(NatureLM.from_pretrained(out), wav), folded)
    assert not torch.allclose(folded, plain, atol=1e-2)
    assert str(tmp_path) not in (out / "README.md").read_text()
    if not method:
        with model.use_recipe(recipe):
            assert (last_logits(model, wav) - folded).abs().max() <= 1e-4


def test_another_adapter_in_place_of_its_own(
    source: Path, recipe: Path, tmp_path: Path, wav: Tensor
) -> None:
    adapter = tmp_path / "frogs"
    merge(tmp_path / "o", "--model", source, "--alpha", 0.9, "--adapter", adapter)
    model = NatureLM.from_pretrained(source, adapter=adapter)
    with model.fold(0.9):
        assert torch.equal(
            last_logits(NatureLM.from_pretrained(tmp_path / "o"), wav), last_logits(model, wav)
        )


def test_a_merged_model_takes_other_adapters(
    build_model: Any, write_reference: Any, tmp_path: Path, wav: Tensor
) -> None:
    plain = build_model(lora=False)
    plain.save_pretrained(tmp_path / "plain")
    write_reference(plain, tmp_path / "reference")
    peft_folder(tmp_path / "reference" / "llama", tmp_path / "frogs")
    (tmp_path / "r.yml").write_text("alpha: 0.5\nadapters: [{path: frogs}]\n")
    export_merged(tmp_path / "plain", tmp_path / "out", load_recipe(tmp_path / "r.yml"))
    model = NatureLM.from_pretrained(tmp_path / "plain", adapter=tmp_path / "frogs")
    merged = last_logits(NatureLM.from_pretrained(tmp_path / "out"), wav)
    assert (merged - last_logits(model, wav, 0.5)).abs().max() <= 1e-4
    with plain.fold(0.5, Recipe(adapters=[RecipeAdapter(path=str(tmp_path / "frogs"))])):
        assert torch.equal(last_logits(plain, wav), merged)
        with pytest.raises(UsageError, match="folded"):
            answer_ids(plain, wav, 1.0)


def test_a_recipe_as_one_adapter(source: Path, recipe: Path, tmp_path: Path, wav: Tensor) -> None:
    out = tmp_path / "combined"
    command = (out, "--model", source, "--recipe", recipe, "--as-adapter")
    merge(*command)
    model = NatureLM.from_pretrained(source)
    with model.use_recipe(recipe):
        runtime = last_logits(model, wav)
    combined = NatureLM.from_pretrained(source, adapter=out)
    assert (last_logits(combined, wav) - runtime).abs().max() <= 1e-4
    assert "not empty" in merge(*command, code=2)
    recipe.write_text("method: ties\ndensity: 0.5\n")
    assert "fits no adapter" in merge(*command, code=2)


def test_the_card_holds_recipe_and_hashes(source: Path, recipe: Path, tmp_path: Path) -> None:
    export_merged(source, tmp_path / "out", load_recipe(recipe))
    card = (tmp_path / "out" / "README.md").read_text()
    block = re.search(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert block is not None
    (tmp_path / "again.yml").write_text(block[1])
    assert load_recipe(tmp_path / "again.yml") == load_recipe(recipe)
    files = [source / "config.json", source / "model.safetensors"]
    files += (tmp_path / "frogs").glob("adapter_*")
    assert len(files) == 4
    for file in files:
        assert f"`{hashlib.sha256(file.read_bytes()).hexdigest()}`" in card
    assert "| 1 | 0.8 | 1.3 | 0.8 | 0.8 | 0.8 |" in card  # k, o, q, up, v of the last layer


def test_the_card_names_the_files_of_the_base_which_must_be_there(
    build_model: Any, write_reference: Any, tmp_path: Path
) -> None:
    source = write_reference(build_model(), tmp_path / "reference", partial=True)
    export_merged(source, tmp_path / "out", Recipe(alpha=0.5))
    card = (tmp_path / "out" / "README.md").read_text()
    base = tmp_path / "reference" / "llama" / "model.safetensors"
    assert f"| base | `model.safetensors` | {base.stat().st_size} |" in card
    base.unlink()
    with pytest.raises(CheckpointError):
        export_merged(source, tmp_path / "other", Recipe(alpha=0.5))
    assert not (tmp_path / "other").exists()


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_in_use_is_only_replaced_on_request(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(out, "--model", source, "--alpha", 0)
    (out / "model-00001-of-00002.safetensors").write_text("of before")
    before = (out / "model.safetensors").read_bytes()
    assert "--overwrite" in merge(out, "--model", source, "--alpha", 1, code=2)
    assert (out / "model.safetensors").read_bytes() == before
    merge(out, "--model", source, "--alpha", 1, "--overwrite")
    assert (out / "model.safetensors").read_bytes() != before
    assert "model-00001-of-00002.safetensors" not in _names(out)
    assert _names(tmp_path) == {"out"}


def test_overwriting_touches_nothing_but_models(source: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    said = merge(tmp_path / "thesis", "--model", source, "--alpha", 1, "--overwrite", code=2)
    assert "holds something else" in said
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"


def test_the_sources_are_never_overwritten(
    build_model: Any, write_reference: Any, tmp_path: Path
) -> None:
    source = write_reference(build_model(), tmp_path / "reference")
    for output in (source, source.parent, source.parent / "llama"):
        with pytest.raises(UsageError, match="name another folder"):
            export_merged(source, output, Recipe(alpha=0.5), overwrite=True)
    assert (source / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("broken", "error", "raised", "says"),
    [
        ("NatureLM.merging.plan.MergePlan.merged", KeyboardInterrupt(), KeyboardInterrupt, None),
        (
            "NatureLM.models.checkpoint.export.write_tensors",
            OSError(28, "No space left on device"),
            CheckpointError,
            r"could not be written: .*No space left",
        ),
    ],
)
def test_a_run_that_breaks_off_leaves_nothing(
    broken: str,
    error: BaseException,
    raised: type[BaseException],
    says: str | None,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(broken, Mock(side_effect=error))
    with pytest.raises(raised, match=says):
        export_merged(source, tmp_path / "out", Recipe(alpha=0.5))
    assert _names(tmp_path) == set()


def test_a_full_disk_is_told_before(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UsageError, match=r"takes 1\.\d MB, and .* has only 1 bytes free"):
        export_merged(source, tmp_path / "out", Recipe(alpha=0.5))


def test_a_merged_model_has_nothing_to_merge(build_model: Any, tmp_path: Path) -> None:
    build_model(lora=False).save_pretrained(tmp_path / "m")
    with pytest.raises(UsageError, match="nothing to merge"):
        export_merged(tmp_path / "m", tmp_path / "out", Recipe(alpha=0.5))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--alpha or --recipe"),
        (("--alpha", "0.4", "--recipe", "r.yml"), "--alpha or --recipe"),
        (("--alpha", "nan"), "finite"),
        (("--alpha", "0.4", "--dtype", "int8"), "one of auto, float32"),
        (("--alpha", "0.4", "--max-shard-size", "huge"), "such as 500MB"),
        (("--recipe", "nowhere.yml"), "no such"),
    ],
)
def test_wrong_requests(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    assert says in merge(tmp_path / "out", *arguments, code=2)


def test_extrapolation_is_allowed_with_a_note(source: Path, tmp_path: Path) -> None:
    said = merge(tmp_path / "o", "--model", source, "--alpha", "-0.5")
    assert said.count("Note: alpha -0.5 lies outside 0 to 1") == 1


_MEASURE = """
import re, sys
import torch
from NatureLM.merging.recipe import Recipe
from NatureLM.models.checkpoint.export import export_merged
status = lambda: open("/proc/self/status").read()
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", status())[1]) * 1024
source, out = sys.argv[1:]
export_merged("SMALL", out + "-small", Recipe(alpha=0.5))  # what the first use of torch takes
before = peak()
export_merged(source, out, Recipe(alpha=0.5), max_shard_size="20MB")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_holds_a_few_tensors(build_model: Any, nano_folder: Path, tmp_path: Path) -> None:
    """50 MB of weights, the largest tensor 4 MB: the peak stays under 25 MB."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 8}
    build_model(lora_rank=8, llama=sizes).save_pretrained(tmp_path / "source")
    weights = sum(file.stat().st_size for file in (tmp_path / "source").glob("*.safetensors"))
    assert weights > 50e6
    code = _MEASURE.replace("SMALL", str(nano_folder / "checkpoint"))
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "source", tmp_path / "out"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 25e6, done.stdout
