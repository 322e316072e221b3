"""The benchmarks run, with small models, and both ways give the same answers."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
Run = Callable[..., str]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """`run(name, *arguments)` calls a benchmark in this process, on one thread: what it prints."""

    def call(name: str, *arguments: str | Path) -> str:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            importlib.import_module(name).main()
        return printed.getvalue()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        before = set(sys.modules)
        patch.setattr(
            importlib.import_module("work"), "TOKENS", 6
        )  # answers are compared, no times
        yield call
        for name in set(sys.modules) - before:  # their names are short ones, such as `model`
            if str(FOLDER) in str(getattr(sys.modules[name], "__file__", None)):
                del sys.modules[name]
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def report(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("engine") / "engine.json"
    names = ("folder", "windows-3", "sweep", "labels", "few-shot", "encoder")
    only = [word for name in names for word in ("--only", name)]
    run("engine", "--small", *only, "--json", path)
    return json.loads(path.read_text(encoding="utf-8"))


def test_both_ways_give_the_same_answers(report: Any) -> None:
    compared = {r["name"]: r["detail"] for r in report["rows"] if "compared" in r["detail"]}
    assert set(compared) == {"folder", "windows-3", "sweep", "labels", "few-shot"}
    for name, detail in compared.items():
        assert detail["compared"] > 0, name
        assert detail["equal"] == detail["compared"], name


def test_the_engine_encodes_every_clip_once_and_the_baseline_for_each_answer(report: Any) -> None:
    details = {row["name"]: row["detail"] for row in report["rows"]}
    for name in ("folder", "windows-3", "sweep", "labels", "few-shot"):
        assert details[name]["engine"]["encodings"] == details[name]["clips"], name
    assert details["windows-3"]["baseline"]["encodings"] == 3 * details["windows-3"]["clips"]
    assert details["sweep"]["baseline"]["encodings"] == 2 * 3 * details["sweep"]["clips"]


def test_the_baseline_decodes_as_transformers_does(report: Any) -> None:
    assert all(one["equal"] for one in report["decoding"])


def test_the_table_has_a_line_for_each_row(report: Any, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    path.write_text(json.dumps(report), encoding="utf-8")
    lines = run("engine", "--markdown", path).splitlines()
    assert len(lines) == 2 + len(report["rows"])


def test_ideas_switched_off_change_no_answer(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "ablation.json"
    run("ablation", "--small", "--json", path)
    groups = json.loads(path.read_text(encoding="utf-8"))["groups"]
    assert all(one["equal"] == one["of"] > 0 for group in groups.values() for one in group)


def test_the_published_sizes_in_small(run: Run, tmp_path: Path) -> None:
    run("eight_billion", "make", tmp_path / "model", "--small")
    module = importlib.import_module("eight_billion")
    module.quantize_checkpoint(tmp_path / "model", tmp_path / "int8", "int8")
    folders = {"bfloat16": tmp_path / "model", "int8": tmp_path / "int8"}
    runs = [
        json.loads(run("eight_billion", "run", folder, "--kind", kind, "--threads", "1"))
        for kind, folder in folders.items()
    ]
    lines = module.markdown({"runs": runs}).splitlines()
    assert [line.split()[1] for line in lines[2:4]] == ["bfloat16", "int8"]
    assert "| 1.0 |" in lines[2]


@pytest.mark.slow
def test_the_check_of_a_card_runs_without_one(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    run("gpu_check", "--smoke", "--output-path", path)
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
    assert len(parts) == 12
    assert all(part["ok"] for part in parts.values())


def test_the_pages_hold_the_committed_figures(run: Run) -> None:
    pages = importlib.import_module("pages")
    for page in pages.PAGES:
        text = page.read_text(encoding="utf-8")
        assert pages.filled(text) == text, page.name
