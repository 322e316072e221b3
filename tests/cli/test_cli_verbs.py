"""The commands around `infer`: help without heavy imports, models, convert, beans."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import NatureLM
from NatureLM.cli.main import BEANS_COMMANDS, NATURELM_COMMANDS, beans_app, naturelm_app
from NatureLM.data.components import component, components
from NatureLM.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]

# Runs a command and prints which heavy modules it has imported.
PROBE = """
import json, sys
from NatureLM.cli.main import {entry}
sys.argv = ["{entry}", *{args!r}]
try:
    {entry}()
except SystemExit as end:
    code = end.code
heavy = ["torch", "transformers", "peft", "soundfile", "datasets", "matplotlib", "numpy"]
print(json.dumps([code, [name for name in heavy if name in sys.modules]]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("entry", "args"),
    [
        ("naturelm", ["--help"]),
        ("naturelm", ["-h"]),
        ("naturelm", ["--version"]),
        ("naturelm", ["infer", "--help"]),
        ("naturelm", ["embed", "--help"]),
        ("naturelm", ["search", "--help"]),
        ("naturelm", ["convert", "--help"]),
        ("naturelm", ["schema", "--help"]),
        ("naturelm", ["merge", "--help"]),
        ("naturelm", ["models", "--help"]),
        ("naturelm", ["train", "--help"]),
        ("naturelm", ["report", "--help"]),
        ("naturelm", ["tune-alpha", "--help"]),
        ("beans", ["--help"]),
        ("beans", ["--version"]),
        ("beans", ["run", "--help"]),
        ("beans", ["info"]),
    ],
)
def test_help_imports_nothing_heavy(entry: str, args: list[str]) -> None:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(entry=entry, args=args)], capture_output=True, text=True
    )
    print(f"{entry} {' '.join(args)}: {time.perf_counter() - started:.2f} s")
    assert done.stdout.strip(), done.stderr
    code, heavy = json.loads(done.stderr.splitlines()[-1])
    assert (code, heavy) == (0, [])


def test_every_verb_is_listed_and_there() -> None:
    result = CliRunner().invoke(naturelm_app, ["--help"])
    for name, verb in NATURELM_COMMANDS.items():
        assert name in result.stdout
        assert verb.summary.split(".")[0] in " ".join(result.stdout.split())
        assert callable(verb.function())
    assert set(NATURELM_COMMANDS) == {
        "infer",
        "embed",
        "search",
        "schema",
        "models",
        "train",
        "convert",
        "merge",
        "tune-alpha",
        "calibrate",
        "report",
        "export",
        "cache",
        "inference-app",
    }
    assert set(BEANS_COMMANDS) == {
        *("run", "info", "score", "compare", "report", "fetch", "make-mini")
    }
    for verb in BEANS_COMMANDS.values():
        assert callable(verb.function())


@pytest.mark.parametrize(
    ("app", "name"), [(naturelm_app, "naturelm"), (beans_app, "beans")], ids=["naturelm", "beans"]
)
def test_version(app: Any, name: str) -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"{name} {NatureLM.__version__}\n")


def test_a_verb_that_is_not_there() -> None:
    result = CliRunner().invoke(naturelm_app, ["infre"])
    assert result.exit_code == 2
    assert "infer" in result.stderr


DOORS = [
    ["-m", "NatureLM.infer"],
    ["-c", "from NatureLM.cli.main import infer_main; infer_main()"],
    ["-c", "from NatureLM.cli.main import naturelm; naturelm()", "infer"],
]


@pytest.mark.parametrize("door", DOORS, ids=["python -m", "infer_main", "naturelm infer"])
def test_every_door_leads_to_infer(door: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *door, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    for option in ("--audio-path", "--query", "--window-length-seconds", "--merging-alpha"):
        assert option in done.stdout
    wrong = subprocess.run(
        [sys.executable, *door, "--query", "q"], capture_output=True, text=True, cwd=ROOT
    )
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("Error: nothing to listen to")


def test_models() -> None:
    result = CliRunner().invoke(naturelm_app, ["models"])
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "Apache-2.0" in lines["naturelm-tiny"]
    assert "GB" in lines["naturelm-audio"]
    assert "on this machine" in lines["name"]


def test_convert_explains_what_a_pickle_is(tmp_path: Path) -> None:
    old = tmp_path / "old.pth"
    old.write_bytes(b"\x80\x02")
    result = CliRunner().invoke(naturelm_app, ["convert", str(old), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "--allow-pickle" in result.stderr
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(naturelm_app, ["convert", str(tmp_path / "no.pth"), "out"])
    assert result.exit_code == 2
    assert "there is no such checkpoint" in result.stderr


def test_convert_hands_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(
        "NatureLM.models.checkpoint.convert.convert_checkpoint",
        lambda *args, **options: calls.append((args, options)),
    )
    old, out = tmp_path / "old.pth", tmp_path / "out"
    old.touch()
    result = CliRunner().invoke(
        naturelm_app, ["convert", str(old), str(out), "--allow-pickle", "--config", "c.yml"]
    )
    assert result.exit_code == 0, result.stderr
    assert calls == [((old, out), {"allow_pickle": True, "config": Path("c.yml")})]
    assert f"naturelm infer --model {out}" in result.stdout


def test_the_components_of_beans_zero() -> None:
    known = components()
    assert len(known) == 22
    tasks = [one.task for one in known.values()]
    assert {task: tasks.count(task) for task in tasks} == {
        "classification": 16,
        "detection": 5,
        "captioning": 1,
    }
    assert known["esc50"].max_duration == 5
    assert known["dcase"].task == "detection"
    assert known["captioning"].labels == ()
    assert known["zf-indiv"].labels == ("More", "One")
    assert len(component("cbi").labels) == 264
    with pytest.raises(UsageError, match="did you mean gibbons"):
        component("gibbon")


def test_beans_info_shows_all_and_one() -> None:
    result = CliRunner().invoke(beans_app, ["info"])
    assert result.exit_code == 0
    for name in components():
        assert any(line.startswith(f"{name} ") for line in result.stdout.splitlines())
    result = CliRunner().invoke(beans_app, ["info", "humbugdb"])
    assert result.exit_code == 0
    assert "others" in result.stdout
    assert "accuracy" in result.stdout
    assert "F1" in CliRunner().invoke(beans_app, ["info", "dcase"]).stdout
    result = CliRunner().invoke(beans_app, ["info", "humbug"])
    assert result.exit_code == 2
    assert "did you mean humbugdb?" in result.stderr
