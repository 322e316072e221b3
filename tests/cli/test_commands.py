"""All commands: help without heavy imports, groups of options, notes, the short commands."""

from __future__ import annotations

import gc
import inspect
import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import beans, naturelm
from typer.testing import CliRunner

import NatureLM
from NatureLM.cli import options as heavy
from NatureLM.cli.errors import notes_shown
from NatureLM.cli.main import BEANS_COMMANDS, NATURELM_COMMANDS, Command, beans_app, naturelm_app
from NatureLM.cli.options import argument, expanded, option
from NatureLM.data.components import component, components
from NatureLM.errors import UsageError
from NatureLM.progress import ProgressBar, say

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
    result = naturelm("--help")
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
    result = naturelm("infre")
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
    for name in ("--audio-path", "--query", "--window-length-seconds", "--merging-alpha"):
        assert name in done.stdout
    wrong = subprocess.run(
        [sys.executable, *door, "--query", "q"], capture_output=True, text=True, cwd=ROOT
    )
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("Error: nothing to listen to")


def test_models() -> None:
    result = naturelm("models")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "Apache-2.0" in lines["naturelm-tiny"]
    assert "GB" in lines["naturelm-audio"]
    assert "on this machine" in lines["name"]


def test_convert_explains_what_a_pickle_is(tmp_path: Path) -> None:
    old = tmp_path / "old.pth"
    old.write_bytes(b"\x80\x02")
    result = naturelm("convert", str(old), str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "--allow-pickle" in result.stderr
    assert not (tmp_path / "out").exists()
    result = naturelm("convert", str(tmp_path / "no.pth"), "out")
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
    result = naturelm("convert", str(old), str(out), "--allow-pickle", "--config", "c.yml")
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
    result = beans("info")
    assert result.exit_code == 0
    for name in components():
        assert any(line.startswith(f"{name} ") for line in result.stdout.splitlines())
    result = beans("info", "humbugdb")
    assert result.exit_code == 0
    assert "others" in result.stdout
    assert "accuracy" in result.stdout
    assert "F1" in beans("info", "dcase").stdout
    result = beans("info", "humbug")
    assert result.exit_code == 2
    assert "did you mean humbugdb?" in result.stderr


# Groups of options


@dataclass(frozen=True)
class Sizes:
    width: int = option(3, "How wide.", min=1)
    names: list[str] | None = option(None, "Several.")


@dataclass(frozen=True)
class MoreSizes(Sizes):
    height: int = option(1, "How high.")


def grouped() -> typer.Typer:
    made = typer.Typer()

    @made.command()
    @expanded
    def show(
        *,
        path: str = argument(..., "What."),
        sizes: MoreSizes,
        last: bool = option(False, "A flag."),
    ) -> None:
        """Show what was given."""
        typer.echo(f"{path} {sizes} {last}")

    return made


def test_the_verb_gets_the_group() -> None:
    given = ["x", "--width", "4", "--names", "a", "--names", "b", "--last"]
    done = CliRunner().invoke(grouped(), given)
    assert done.output == "x MoreSizes(width=4, names=['a', 'b'], height=1) True\n"
    assert CliRunner().invoke(grouped(), ["x"]).output == f"x {MoreSizes()} False\n"
    assert CliRunner().invoke(grouped(), ["x", "--no-last"]).exit_code == 2
    assert CliRunner().invoke(grouped(), ["x", "--width", "0"]).exit_code == 2


def test_options_stand_where_the_group_stood() -> None:
    names = list(inspect.signature(grouped().registered_commands[0].callback or grouped).parameters)
    assert names == ["path", "height", "width", "names", "last"]


# Notes and the progress bar


logger = logging.getLogger("NatureLM.some.module")


def command() -> None:
    """Logs all that may be logged."""
    logger.info("of no interest")
    logger.warning("%s: has changed", "a{}.wav")
    typer.echo("done")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the command as a program does."""
    monkeypatch.setattr("NatureLM.cli.models.models", command)
    return lambda **options: Command("models:models", "A command.", **options).function()()


def test_a_command_shows_notes(
    run: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run()
    assert capsys.readouterr() == ("done\n", "Note: a{}.wav: has changed\n")
    run(notes="{}")
    assert capsys.readouterr().err == "a{}.wav: has changed\n"
    assert caplog.messages == [], "each note is shown once"


def test_without_a_command_notes_go_to_the_handlers_that_there_are(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with notes_shown("Note: {}"):
        pass
    logger.warning("heard")
    assert caplog.messages == ["heard"]
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    """A stream that is said to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_notes_stand_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm")
    with ProgressBar("{task.completed} of {task.total}", "eta", total=3) as bar:
        with notes_shown("Note: {}"):
            logger.warning("a note that is longer than the line of the terminal [1] \x1b[31mred")
        bar.update(2)
        bar.advance()
    text = shown.getvalue()
    assert "Note: a note that is longer than the line of the terminal [1] " in text
    assert text.index("Note: ") < text.rindex("3 of 3")
    say("no bar any more")
    assert shown.getvalue().endswith("no bar any more\n")


def test_elsewhere_a_bar_shows_nothing_or_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    for stays in (False, True):
        with ProgressBar("{task.completed} of {task.total}", total=3, stays=stays) as bar:
            assert bar.is_shown is stays
            bar.update(3, total=4)
        assert capsys.readouterr().err == ("3 of 4\n" if stays else "")


# Imports of the model's code do not look for garbage


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to the garbage collector, in order."""
    found: list[str] = []
    for name in ("disable", "freeze", "enable"):
        monkeypatch.setattr(gc, name, lambda name=name: found.append(name))
    monkeypatch.setattr(gc, "isenabled", lambda: True)
    monkeypatch.setattr(heavy, "import_module", lambda name: found.append(name))
    return found


def test_garbage_is_not_sought_while_importing_nor_in_what_came(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "NatureLM.models.modeling", raising=False)
    heavy.import_model()
    assert calls == ["disable", "NatureLM.models.modeling", "freeze", "enable"]


def test_what_is_imported_is_left_alone(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "NatureLM.models.modeling", sys)
    heavy.import_model()
    assert calls == []


def test_a_failed_import_leaves_the_collector_on(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise ImportError(name)

    monkeypatch.delitem(sys.modules, "NatureLM.models.modeling", raising=False)
    monkeypatch.setattr(heavy, "import_module", fail)
    with pytest.raises(ImportError):
        heavy.import_model()
    assert calls[-1] == "enable"
