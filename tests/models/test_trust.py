"""Folders of strangers: no code of theirs is asked about, fetched or run, whatever the door."""

from __future__ import annotations

import ast
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from NatureLM.config.schema import Config
from NatureLM.errors import ConfigError
from NatureLM.models import NatureLM, NatureLMProcessor
from NatureLM.models.registry import CheckpointError, refuse_foreign_parts
from NatureLM.training.build import make_objective
from tests.builders import edit_json as edit
from tests.commands import naturelm, write_wav

ROOT = Path(__file__).resolve().parents[2]
CODE = "open({marker!r}, 'w').close()\nclass Evil: pass\n"
NEVER_RUN = (
    "its auto_map names Python code of its own, which is never run; take one of a kind that "
    "transformers itself has"
)
AUTO_MAP = {
    "AutoConfig": "evil.Evil",
    "AutoModelForCausalLM": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
}


@pytest.fixture(scope="module")
def strangers(
    tmp_path_factory: pytest.TempPathFactory, nano_folder: Path, build_model: Any
) -> Path:
    """Folders that bring code: models, base language models, data; the code makes `marker`."""
    folder = tmp_path_factory.mktemp("strangers")
    build_model().save_pretrained(folder / "own")
    shutil.copytree(folder / "own", folder / "own-text")
    for name in ("base", "base-text", "base-known"):
        shutil.copytree(nano_folder / "llama", folder / name)
    for name in ("published", "published-known"):
        shutil.copytree(nano_folder / "checkpoint", folder / name)
    edit(folder / "published" / "config.json", llama_path="../base")
    edit(folder / "published-known" / "config.json", llama_path="../base-known")
    tokenizer = "tokenizer_config.json"
    edit(folder / "own" / tokenizer, tokenizer_class="EvilTokenizer", auto_map=AUTO_MAP)
    edit(folder / "base-known" / tokenizer, auto_map=AUTO_MAP)
    edit(folder / "base" / "config.json", model_type="evil", auto_map=AUTO_MAP)
    edit(folder / "base-text" / "config.json", model_type="layoutlm", auto_map=AUTO_MAP)
    edit(folder / "base-known" / "config.json", auto_map=AUTO_MAP)
    text = json.loads((folder / "own" / "config.json").read_text())["text_config"]
    text |= {"model_type": "layoutlm", "auto_map": AUTO_MAP}
    edit(folder / "own-text" / "config.json", text_config=text)
    rows = [{"path": f"{name}.wav", "label": name, "answer": name} for name in ("Dog", "Cat")]
    (folder / "scripted").mkdir()
    frame = pytest.importorskip("pandas").DataFrame(
        [{**row, "path": str(folder / row["path"])} for row in rows]
    )
    frame.to_parquet(folder / "scripted" / "a.parquet")
    code = CODE.format(marker=str(folder / "marker"))
    for place in [one for one in folder.iterdir() if one.is_dir()]:
        (place / "custom_generate").mkdir()
        for name in ("evil.py", f"{place.name}.py", "custom_generate/generate.py"):
            (place / name).write_text(code)
    for row in rows:
        write_wav(folder / row["path"], 2)
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "calls.jsonl").write_text("".join(lines))
    (folder / "text.jsonl").write_text('{"prompt": "What is it?", "answer": "Dog"}\n' * 2)
    (folder / "e.yml").write_text("extended: {queries: [What is it]}\n")
    (folder / "survey.yml").write_text("columns: {dog: {question: Is it a dog, type: yes_no}}\n")
    (folder / "train.yml").write_text(
        "model: {llama_path: base, beats_cfg: {encoder_layers: 1}}\n"
        "run: {output_dir: run, max_steps: 1, device: cpu}\n"
        "datasets: {train_ann_path: calls.jsonl}\n"
    )
    return folder


DOORS = {
    "infer": "infer Dog.wav -q ? --model {model} --output-path {model}.jsonl --options "
    "generate.max_new_tokens=2",
    "experiment": "infer --cfg-path e.yml --data-path calls.jsonl --model {model} --output-path e",
    "beans": "beans run --data-path calls.jsonl --model {model} --output-path b --options "
    "extended.queries=[x]",
    "embed": "embed Dog.wav --model {model} --output-path x.npz",
    "tune-alpha": "tune-alpha --data calls.jsonl -q ? --model {model} --output-path t",
    "calibrate": "calibrate calls.jsonl --model {model} --output-path c.json",
    "merge": "merge --alpha 1 --model {model} --output-path merged",
    "merge as adapter": "merge --alpha 1 --as-adapter --model {model} --output-path adapter",
    "survey": "survey survey.yml Dog.wav --model {model} --output-path s.jsonl",
    "export": "export exported --to vllm --model {model}",
    "quantize": "quantize {model} --to int8 --output-path quantised",
    "train from it": "train -c train.yml --options model.ckpt={model}",
    "train on it": "train -c train.yml --options model.llama_path={model}",
    "train its text": "train -c train.yml --options model.llama_path={model} --options "
    "run.task=text --options datasets.train_ann_path=text.jsonl",
    "page": "PAGE {model}",
    "conversation": "CONVERSATION {model}",
    "recipe": "RECIPE {model}",
    "data": "infer --cfg-path e.yml --data-path {model} --output-path d",
}
BASES = ("train on it", "train its text")
WAYS = [
    *((door, "own") for door in DOORS if door not in (*BASES, "data")),
    *((door, "own-text") for door in ("infer", "embed", "merge", "train from it", "page")),
    *((door, "published") for door in ("infer", "merge", "train from it", "conversation")),
    *((door, base) for door in BASES for base in ("base", "base-text")),
    ("infer", "published-known"),
    ("data", "scripted"),
]

PROGRAM = """
import json, sys, traceback
from pathlib import Path
from NatureLM.cli import main

def door(words):
    name, model = words[0], words[-1]
    if name == "PAGE":
        from NatureLM.app.context import AppContext
        from NatureLM.app.settings import AppSettings
        context = AppContext(AppSettings(model=model))
        context.pipeline(60)
    elif name == "CONVERSATION":
        from NatureLM.inference.pipeline import Pipeline
        Pipeline(model).conversation("Dog.wav").ask("?")
    elif name == "RECIPE":
        from recipes.tiny.evaluate import main as evaluate
        evaluate(["--model", model, "--data-path", "."])
    else:
        command = main.beans if name == "beans" else main.naturelm
        sys.argv = ["naturelm", *(words[1:] if name == "beans" else words)]
        command()

for way in json.loads(sys.argv[1]):
    print("DOOR", file=sys.stderr, flush=True)
    try:
        door(way)
        print("no refusal", file=sys.stderr)
    except SystemExit as end:
        print("exit", end.code, file=sys.stderr)
    except Exception as error:
        from NatureLM.errors import NatureLMError
        known = isinstance(error, NatureLMError)
        print("Error:" if known else "TRACEBACK", error, file=sys.stderr)
    sys.stderr.flush()
"""


def ask(folder: Path, *, terminal: bool) -> list[str]:
    """What each way says, with somebody who answers `y` to whatever is asked."""
    ways = json.dumps([DOORS[door].format(model=model).split() for door, model in WAYS])
    program = [sys.executable, "-c", PROGRAM, ways]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    environment["PYTHONPATH"] = str(ROOT)
    if not terminal:
        done = subprocess.run(
            program, input="y\n" * 99, cwd=folder, env=environment, text=True, capture_output=True
        )
        return done.stderr.split("DOOR\n")[1:]
    ours, theirs = pty.openpty()
    with (folder / "said").open("w+") as said:
        with subprocess.Popen(
            program, stdin=theirs, stdout=theirs, stderr=said, cwd=folder, env=environment
        ) as process:
            os.close(theirs)
            os.write(ours, b"y\n" * 99)
            _drain(ours)
            process.wait()
        os.close(ours)
        said.seek(0)
        return said.read().split("DOOR\n")[1:]


def _drain(descriptor: int) -> None:
    """Read what a terminal shows, until nobody writes any more."""
    try:
        while os.read(descriptor, 65536):
            pass
    except OSError:
        return


@pytest.mark.parametrize(
    "terminal",
    [pytest.param(False, id="echo y |", marks=pytest.mark.slow), pytest.param(True, id="terminal")],
)
def test_no_door_asks_about_or_runs_code_of_a_stranger(strangers: Path, terminal: bool) -> None:
    said = dict(zip(WAYS, ask(strangers, terminal=terminal), strict=True))
    assert not (strangers / "marker").exists()
    for (door, model), text in said.items():
        assert "Do you wish to run" not in text, (door, model)
        if model in ("scripted", "published-known"):  # what needs no code of theirs works
            assert text.strip().endswith("exit 0"), (door, model, text)
        else:
            assert text.count(NEVER_RUN) == 1, (door, model, text)
            (refusal,) = [line for line in text.splitlines() if NEVER_RUN in line]
            assert refusal.endswith(NEVER_RUN), (door, model, text)
            assert "Error: " in text, (door, model, text)


@pytest.mark.parametrize("words", ["merge --alpha 1", "quantize", "export"])
def test_what_is_made_of_a_strangers_folder_names_no_code_of_theirs(
    words: str, build_model: Any, tmp_path: Path
) -> None:
    """An exported folder is loaded with `trust_remote_code=True`, for our own code in it."""
    source, made = tmp_path / "stranger", tmp_path / "made"
    build_model().save_pretrained(source)
    theirs = {"auto_map": AUTO_MAP, "custom_pipelines": {"p": {"impl": "evil.Evil"}}}
    edit(source / "tokenizer_config.json", **theirs)
    text = json.loads((source / "config.json").read_text())["text_config"]
    edit(source / "config.json", text_config={**text, **theirs}, **theirs)
    command = {
        "merge --alpha 1": ["merge", "--alpha", "1", "--model", source, "--output-path", made],
        "quantize": ["quantize", source, "--to", "int8", "--output-path", made],
        "export": ["export", made, "--to", "vllm", "--model", source],
    }[words]
    done = naturelm(*map(str, command))
    assert done.exit_code == 0, done.stderr
    for path in made.glob("*.json"):
        assert "evil" not in path.read_text(), path.name


KEYS: dict[str, Any] = {
    "attn_implementation": "kernels-community/flash-attn2",
    "_attn_implementation": "stranger/kernel@main:attention",
    "_attn_implementation_internal": "paged|stranger/kernel",
    "experts_implementation": {"": "sonicmoe"},
    "quantization_config": {"quant_method": "fp8"},
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("where", ["model", "text_config", "base", "base of a text run"])
def test_kernels_and_libraries_that_a_file_names_are_refused(
    key: str, where: str, build_model: Any, write_reference: Any, tmp_path: Path
) -> None:
    """CVE-2026-4372: an attention that is a Hub id was fetched and run."""
    model = build_model()
    checkpoint = write_reference(model, tmp_path)
    file = checkpoint.parent / "llama" / "config.json"
    if where in ("model", "text_config"):
        checkpoint = tmp_path / "own"
        model.save_pretrained(checkpoint)
        file = checkpoint / "config.json"
    name, values = key, {key: KEYS[key]}
    if where == "text_config":
        text = json.loads(file.read_text())["text_config"]
        name, values = f"text_config.{key}", {"text_config": {**text, **values}}
    edit(file, **values)
    is_text = where == "base of a text run"
    with pytest.raises(CheckpointError) as refused:
        text_model(file.parent) if is_text else NatureLM.from_pretrained(checkpoint)
    said = str(refused.value).replace("/checkpoint/../", "/")
    assert said.startswith(f"{file}: {name} is {KEYS[key]!r}, and it must be "), said
    assert said.endswith(
        "absent: kernels and libraries that a file names are neither fetched nor run"
    )
    assert "\n" not in said


def text_model(base: Path) -> Any:
    """What a run of the task `text` starts from."""
    run = {"task": "text", "output_dir": "x"}
    return make_objective(
        Config.model_validate({"model": {"llama_path": str(base)}, "run": run}), []
    )


@pytest.mark.parametrize("value", ["eager", "sdpa", None])
def test_an_attention_that_is_here_is_taken(value: str | None) -> None:
    values = {"attn_implementation": value, "text_config": {"a": [1]}}
    refuse_foreign_parts(values, Path("config.json"))


def test_a_text_run_takes_a_whole_model_in_safetensors_only(
    nano_folder: Path, tmp_path: Path
) -> None:
    """An adapter beside it would be loaded, from pickles, too; weights, from anywhere."""
    base = tmp_path / "base"
    shutil.copytree(nano_folder / "llama", base)
    text_model(base)
    (base / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds an adapter \(adapter_config\.json\)"):
        text_model(base)
    (base / "adapter_config.json").unlink()
    (base / "model.safetensors").rename(base / "other.safetensors")
    (base / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle file"):
        text_model(base)


LOADERS = {"from_pretrained", "from_config", "load_custom_generate"}


OWN_PROCESSOR = "model_class.processor_class"


def test_the_processor_of_a_model_is_our_own() -> None:
    assert NatureLM.processor_class is NatureLMProcessor
    assert NatureLMProcessor.from_config.__func__.__module__ == "NatureLM.models.modeling"


def test_every_call_that_could_load_code_forbids_it() -> None:
    found = 0
    for path in [*ROOT.glob("NatureLM/**/*.py"), *ROOT.glob("recipes/**/*.py")]:
        text = path.read_text(encoding="utf-8")
        if not any(name in text for name in LOADERS):
            continue  # parsing all files takes seconds
        for call in ast.walk(ast.parse(text)):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            if call.func.attr not in LOADERS:
                continue
            whose = ast.unparse(call.func.value)
            if whose.startswith(("NatureLM", "cls")) or whose == OWN_PROCESSOR:
                continue
            found += 1
            given = {one.arg: ast.unparse(one.value) for one in call.keywords}
            assert given.get("trust_remote_code") == "False", f"{path}:{call.lineno}"
    assert found >= 3
    names = "pipeline|AutoProcessor|AutoFeatureExtractor|trust_remote_code=True|PeftModel.from"
    for path in ROOT.glob("NatureLM/**/*.py"):
        text = path.read_text(encoding="utf-8")
        assert "apply_chat_template" not in text, "templates of others are not run"
        assert not re.search(rf"transformers import .*({names})", text), path
