"""The benchmarks run, with small models, and both ways give the same answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> str:
    """What a benchmark prints, on one thread."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("engine") / "engine.json"
    names = ("folder", "windows-3", "sweep", "labels", "few-shot", "encoder")
    only = [word for name in names for word in ("--only", name)]
    run("benchmarks/engine.py", "--small", *only, "--json", str(path))
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


def test_the_table_has_a_line_for_each_row(report: Any, tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    path.write_text(json.dumps(report), encoding="utf-8")
    lines = run("benchmarks/engine.py", "--markdown", str(path)).splitlines()
    assert len(lines) == 2 + len(report["rows"])


def test_ideas_switched_off_change_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "ablation.json"
    run("benchmarks/ablation.py", "--small", "--json", str(path))
    groups = json.loads(path.read_text(encoding="utf-8"))["groups"]
    assert all(one["equal"] == one["of"] > 0 for group in groups.values() for one in group)


def test_the_check_of_a_card_runs_without_one(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    run("benchmarks/gpu_check.py", "--smoke", "--output-path", str(path))
    parts = json.loads(path.read_text(encoding="utf-8"))["parts"]
    assert len(parts) == 9
    assert all(part["ok"] for part in parts.values())


def test_the_page_holds_the_committed_figures() -> None:
    code = "import pages; text = pages.PAGE.read_text(); assert pages.filled(text) == text"
    run("-c", f"import sys; sys.path.insert(0, 'benchmarks'); {code}")
