"""Every command tries the places that it will write to before its long work, and says which."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from NatureLM.results.rows import to_line
from tests.commands import beans, naturelm, write_wav
from tests.results.test_rows import WINDOW

OUT = "--output-path"


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("the long work began")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with inputs of every command, and no long work in reach."""
    from NatureLM import formats
    from NatureLM.cli import options
    from NatureLM.data import dataset
    from NatureLM.evaluation import score

    monkeypatch.chdir(tmp_path)
    write_wav(tmp_path / "clip.wav", 1)
    Path("clips.csv").write_text("path,label\nclip.wav,Dog\n", encoding="utf-8")
    Path("a.jsonl").write_bytes(to_line(WINDOW))
    Path("m.pth").write_bytes(b"no pickle")
    Path("e.yml").write_text("extended: {queries: [What is this]}\n", encoding="utf-8")
    Path("t.yml").write_text("run: {output_dir: PLACE}\n", encoding="utf-8")
    for module, name in (
        (options, "import_model"),
        (dataset, "read_annotations"),
        (score, "score"),
        (score, "compare"),
        (formats, "write"),
    ):
        monkeypatch.setattr(module, name, refuse)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["infer", "clip.wav", "-q", "?", OUT, "PLACE"], "file"),
        (["infer", "--cfg-path", "e.yml", "--data-path", "clips.csv", OUT, "PLACE"], "folder"),
        (["infer", "--cfg-path", "e.yml", "--data-path", "clips.csv", OUT, "PLACE.jsonl"], "file"),
        (["embed", "clip.wav", OUT, "PLACE.npz"], "file"),
        (["export", "a.jsonl", OUT, "PLACE"], "file"),
        (["report", "a.jsonl", OUT, "PLACE"], "folder"),
        (["calibrate", "clips.csv", OUT, "PLACE"], "file"),
        (["calibrate", "clips.csv", OUT, "c.json", "--figure", "PLACE.svg"], "file"),
        (["tune-alpha", "--data", "clips.csv", OUT, "PLACE"], "folder"),
        (["merge", "--alpha", "1", OUT, "PLACE"], "folder"),
        (["convert", "m.pth", "PLACE", "--allow-pickle"], "folder"),
        (["train", "--cfg-path", "t.yml", "--options", "run.output_dir=PLACE"], "folder"),
        (["inference-app", "--runs-dir", "PLACE"], "folder"),
        (["schema", OUT, "PLACE"], "file"),
        (["beans", "score", "a.jsonl", OUT, "PLACE"], "folder"),
        (["beans", "compare", "a.jsonl", "a.jsonl", OUT, "PLACE"], "folder"),
        (["beans", "run", "--data-path", "clips.csv", OUT, "PLACE"], "folder"),
        (["beans", "fetch", OUT, "PLACE"], "folder"),
        (["beans", "make-mini", "clips.csv", OUT, "PLACE"], "folder"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else value,
)
@pytest.mark.parametrize("problem", ["nowhere", "below a file", "another kind"])
def test_a_place_that_will_not_do_is_refused_before_the_work(
    words: list[str], kind: str, problem: str, folder: Path
) -> None:
    place = {
        "nowhere": "/proc/nowhere/x",
        "below a file": "clips.csv/x",
        "another kind": "other",
    }[problem]
    suffix = next(word for word in words if "PLACE" in word).partition("PLACE")[2]
    other = Path(f"other{suffix}")
    other.mkdir() if kind == "file" else other.write_text("kept", encoding="utf-8")
    given = [word.replace("PLACE", place) for word in words]
    before = sorted(os.listdir())
    result = beans(*given[1:]) if given[0] == "beans" else naturelm(*given)
    assert result.exit_code in (1, 2), result.exception or result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert len(result.stderr.splitlines()) <= 2, result.stderr
    assert place.removesuffix("/x") in result.stderr
    assert sorted(os.listdir()) == before
    assert kind == "file" or other.read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize("words", [["export", "a.jsonl", OUT, "old.csv"]])
def test_what_is_there_stays_until_the_work_is_done(words: list[str], folder: Path) -> None:
    Path("old.csv").write_text("kept", encoding="utf-8")
    result = naturelm(*words)
    assert isinstance(result.exception, AssertionError), "the place will do"
    assert Path("old.csv").read_text(encoding="utf-8") == "kept"


def test_a_disk_that_becomes_full_is_one_sentence(tmp_path: Path) -> None:
    from NatureLM.errors import NatureLMError
    from NatureLM.training.outputs import RunLog, checkpoints, write_checkpoint

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_checkpoint(tmp_path, 1, {}, {"step": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json, "dumps", full)
        with pytest.raises(
            NatureLMError,
            match=r"step_00000002: cannot be written \(No space left on device\).*--resume goes on",
        ):
            write_checkpoint(tmp_path, 2, {}, {"step": 2})
        log = RunLog(tmp_path, step=0, total=1)
        with pytest.raises(NatureLMError, match=r"log\.jsonl: cannot be written \(No space"):
            log.evaluation(1, {})
    assert [one.step for one in checkpoints(tmp_path)] == [1]
