"""All commands: help without heavy imports, groups of options, notes; commands about files."""

from __future__ import annotations

import errno
import gc
import inspect
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from commands import beans, naturelm, rows, write_wav
from typer.testing import CliRunner, Result

from NatureLM import __version__
from NatureLM.audio.windows import iter_windows
from NatureLM.cli import options as of
from NatureLM.cli.main import BEANS_COMMANDS, NATURELM_COMMANDS, Command, beans_app, naturelm_app
from NatureLM.cli.options import argument, expanded, option
from NatureLM.cli.terminal import notes_shown
from NatureLM.data.components import component, components
from NatureLM.errors import UsageError
from NatureLM.models import NatureLM
from NatureLM.progress import ProgressBar, say
from NatureLM.results.rows import to_line
from NatureLM.search.build import Embedder
from tests.results.test_rows import WINDOW

ROOT = Path(__file__).resolve().parents[2]

# Shows helps and versions, and prints after each which heavy modules have been imported by then.
PROBE = """
import contextlib, io, json, sys
from NatureLM.cli import main
heavy = ["torch", "transformers", "peft", "soundfile", "datasets", "matplotlib", "numpy"]
for entry, *args in json.loads(sys.argv[1]):
    sys.argv, code = [entry, *args], None
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            getattr(main, entry)()
        except SystemExit as end:
            code = end.code
    found = [name for name in heavy if name in sys.modules]
    print(json.dumps([code, bool(shown.getvalue().strip()), found]))
"""


def test_help_imports_nothing_heavy() -> None:
    asked = [["naturelm", "-h"]]
    for entry, verbs in (("naturelm", NATURELM_COMMANDS), ("beans", BEANS_COMMANDS)):
        asked += [[entry, "--help"], [entry, "--version"]]
        asked += [[entry, name, "--help"] for name in verbs]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(asked)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for words, line in zip(asked, done.stdout.splitlines(), strict=True):
        assert json.loads(line) == [0, True, []], words


def test_every_verb_is_listed_and_there() -> None:
    listed = " ".join(naturelm("--help").stdout.replace("│", " ").split())
    for name, verb in NATURELM_COMMANDS.items():
        assert name in listed
        assert verb.summary.split(".")[0] in listed
    for verb in (*NATURELM_COMMANDS.values(), *BEANS_COMMANDS.values()):
        assert callable(verb.function())


@pytest.mark.parametrize(
    ("app", "name"), [(naturelm_app, "naturelm"), (beans_app, "beans")], ids=["naturelm", "beans"]
)
def test_version(app: Any, name: str) -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"{name} {__version__}\n")


def test_a_verb_that_is_not_there() -> None:
    result = naturelm("infre")
    assert result.exit_code == 2
    assert "infer" in result.stderr


DOORS = [
    ["-m", "NatureLM.infer"],
    ["-c", "from NatureLM.cli.main import infer_main; infer_main()"],
]


@pytest.mark.parametrize("door", DOORS, ids=["python -m", "infer_main"])
def test_every_door_leads_to_infer(door: list[str]) -> None:
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


def test_models_that_are_got(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from NatureLM.models import registry

    monkeypatch.setenv("NATURELM_CACHE", str(tmp_path))
    monkeypatch.setattr(registry, "fetch_base", lambda base: True)
    lines = {line.split()[0]: line for line in naturelm("models").stdout.splitlines() if line}
    assert " no " in lines["naturelm-small"], "its language model is not here"
    got = naturelm("models", "get", "naturelm-small")
    assert "SmolLM2-135M-Instruct is here now, with the right hash" in got.stdout
    assert "naturelm-tiny is in" in naturelm("models", "get", "naturelm-tiny").stdout
    for wrong, said in (
        (["get"], "name the model to get"),
        (["get", "naturelm-huge"], "no model 'naturelm-huge' can be got by name"),
        (["list", "naturelm-tiny"], "to get it: naturelm models get naturelm-tiny"),
        (["fetch"], "must be one of list, get"),
    ):
        result = naturelm("models", *wrong)
        assert result.exit_code == 2
        assert said in result.stderr


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
        "NatureLM.models.checkpoint.export.convert_checkpoint",
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
    tasks = [one.task for one in known.values()]
    counts = [tasks.count(task) for task in ("classification", "detection", "captioning")]
    assert (len(known), counts) == (22, [16, 5, 1])
    assert (known["esc50"].max_duration, known["dcase"].task) == (5, "detection")
    assert (known["captioning"].labels, known["zf-indiv"].labels) == ((), ("More", "One"))
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


def test_the_verb_gets_the_group_and_options_stand_where_it_stood() -> None:
    given = ["x", "--width", "4", "--names", "a", "--names", "b", "--last"]
    done = CliRunner().invoke(grouped(), given)
    assert done.output == "x MoreSizes(width=4, names=['a', 'b'], height=1) True\n"
    assert CliRunner().invoke(grouped(), ["x"]).output == f"x {MoreSizes()} False\n"
    assert CliRunner().invoke(grouped(), ["x", "--no-last"]).exit_code == 2
    assert CliRunner().invoke(grouped(), ["x", "--width", "0"]).exit_code == 2
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
    monkeypatch.setattr(of, "import_module", lambda name: found.append(name))
    return found


def test_garbage_is_not_sought_while_importing_nor_in_what_came(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "NatureLM.models.modeling", raising=False)
    of.import_model()
    assert calls == ["disable", "NatureLM.models.modeling", "freeze", "enable"]
    calls.clear()
    monkeypatch.setitem(sys.modules, "NatureLM.models.modeling", sys)
    of.import_model()
    assert calls == [], "what is imported is left alone"


def test_a_failed_import_leaves_the_collector_on(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise ImportError(name)

    monkeypatch.delitem(sys.modules, "NatureLM.models.modeling", raising=False)
    monkeypatch.setattr(of, "import_module", fail)
    with pytest.raises(ImportError):
        of.import_model()
    assert calls[-1] == "enable"


# Commands about files: `embed` and `search`, `cache`, `export`


def call(command: str, *args: str | Path) -> Result:
    return naturelm(command, *args, "--device", "cpu")


EVIL = os.fsdecode(b"owl\x1b[31m\nError: fine \xe2\x80\xaegpj\xff.wav")
NAMED = [  # commands that take recordings or folders, in this order in one folder
    ("infer", "calls", "-q", "?", "--output-path", "o.jsonl"),
    ("infer", f"calls/{EVIL}", "-q", "?", "--output-path", "one.jsonl"),
    ("infer", f"absent{EVIL}", "-q", "?"),
    ("infer", "calls", "-q", "?", "--cfg-path", f"{EVIL}.yml"),
    ("embed", "calls", "-o", "i.npz"),
    ("embed", f"absent{EVIL}", "-o", "j.npz"),
    ("search", f"calls/{EVIL}", "--index", "i.npz"),
    ("search", f"calls/{EVIL}", "--index", "i.npz", "--json"),
    ("search", f"calls/bad{EVIL}", "--index", "i.npz"),
    ("export", "o.jsonl", "--format", "csv", "--output-path", "o.csv"),
    ("export", "o.jsonl", "--format", "raven", "--output-path", "o.txt"),
    ("report", "o.jsonl", "--output-path", "page"),
    ("tune-alpha", "--data", "classes", "--output-path", "alpha"),
    ("tune-alpha", "--data", "t.jsonl", "-q", "?", "-o", "alpha", "--coarse", "1", "--fine", "1"),
    ("calibrate", "t.jsonl", "--output-path", "c.json"),
    ("beans", "make-mini", "t.jsonl", "--output-path", "mini"),
    ("beans", "run", "--data-path", f"absent{EVIL}"),
    ("beans", "score", "o.jsonl", "--output-path", "scores"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="names of bytes")
def test_no_name_plays_with_the_terminal(
    nano_calls: Path, nano_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = nano_calls / "calls" / "trill_16k.wav"
    for name in ("calls", "classes/a", "classes/b"):
        (nano_calls / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(recording, nano_calls / name / EVIL)
        (nano_calls / name / f"bad{EVIL}").write_text("no sound")
        (nano_calls / name / f"bad{EVIL}.m4p").write_text("no sound")
    lines = [
        {"path": f"calls/{one}{EVIL}", "label": label} for one, label in (("", "a"), ("bad", "b"))
    ]
    (nano_calls / "t.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    model = ("--model", nano_folder / "checkpoint", "--device", "cpu")
    few_tokens = ("--options", "generate.max_new_tokens=4")
    for words in NAMED:
        run = beans if words[0] == "beans" else naturelm
        given = words[1:] if words[0] == "beans" else words
        with_model = words[0] in ("infer", "embed", "search", "tune-alpha")
        monkeypatch.setattr(sys, "argv", ["naturelm", *words])
        short = words[0] in ("infer", "tune-alpha")
        result = run(*given, *(model if with_model else ()), *(few_tokens if short else ()))
        assert result.exit_code in (0, 1, 2, 3), (words, result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit), words
        for line in result.output.splitlines():
            assert line.isprintable(), (words, line)
            assert not line.startswith("Error: fine"), words
    assert {row["audio_path"] for row in rows("one.jsonl")} == {f"calls/{EVIL}"}, "the true path"


def test_an_index_is_made_and_searched(nano_calls: Path, nano_folder: Path, nano: NatureLM) -> None:
    model = nano_folder / "checkpoint"
    cut = ("--window-length-seconds", "4", "--hop-length-seconds", "2")
    result = call("embed", "calls", "--model", model, "-o", "calls.npz", *cut)
    assert result.exit_code == 3, result.stderr  # the empty recording
    assert "calls/empty.wav" in result.stderr
    assert "calls.npz: 8 windows, 8 of them new, 1 errors" in result.stderr
    with np.load("calls.npz") as arrays:
        files, vectors, starts = arrays["files"][arrays["file"]], arrays["vectors"], arrays["start"]
    windows = list(iter_windows("calls/trill_16k.wav", window_seconds=4, hop_seconds=2))
    of_trill = files == "calls/trill_16k.wav"
    assert starts[of_trill].tolist() == [window.start for window in windows]
    assert vectors[of_trill] == pytest.approx(Embedder(nano).vectors(windows), abs=1e-5)

    result = call("search", "calls/trill_16k.wav", "--index", "calls.npz", "--json",
                  "--start", "2", "--end", "6", "--top-k", "3")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["rank"] for row in found] == [1, 2, 3]
    best = {"rank": 1, "audio_path": "calls/trill_16k.wav", "start": 2.0, "end": 6.0}
    assert found[0] == {**best, "similarity": pytest.approx(1.0, abs=1e-5)}
    assert found[0]["similarity"] >= found[1]["similarity"] >= found[2]["similarity"]

    result = call("search", "calls/trill_16k.wav", "--index", "calls.npz", "--others-only")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["rank", "similarity", "file", "start", "end"]
    assert all("chirps_16k.wav" in line for line in lines[1:])
    assert len(lines) == 1 + sum(~of_trill)

    shutil.copytree(model, nano_calls / "other" / "checkpoint")
    shutil.copytree(nano_folder / "llama", nano_calls / "other" / "llama")
    _change_the_encoder(nano_calls / "other" / "checkpoint")
    for args in (["--model", "other/checkpoint"], ["--dtype", "bfloat16"]):
        result = call("search", "calls/trill_16k.wav", "--index", "calls.npz", *args)
        assert result.exit_code == 2
        assert "was made with another model" in result.stderr
        assert "Traceback" not in result.stderr


def _change_the_encoder(checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(checkpoint / "model.safetensors")
    name = next(name for name in tensors if name.startswith("beats.") and name.endswith("bias"))
    tensors[name] = tensors[name] + 0.01
    save_file(tensors, checkpoint / "model.safetensors")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["embed", "calls", "-o", "x.csv"], ".npz or .parquet"),
        (["embed", "nowhere"], "nowhere: there is no such file or folder"),
        (["embed", "calls", "--hop-length-seconds", "0"], "hop length is 0"),
        (["embed", "calls", "--channel", "left"], "left"),
        (["search", "calls/trill_16k.wav", "-i", "x.npz"], "there is no such index"),
        (["search", "calls/trill_16k.wav", "-i", "x.npz", "--top-k", "0"], "--top-k is 0"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    args: list[str], says: str, nano_calls: Path
) -> None:
    result = call(*args, "--model", "no-such-model")
    assert result.exit_code == 2
    assert says in result.stderr
    assert "no-such-model" not in result.stderr


# cache


def test_a_cache_needs_a_folder_and_a_known_action(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATURELM_CACHE", raising=False)
    result = naturelm("cache")
    assert (result.exit_code, "NATURELM_CACHE is not set" in result.stdout) == (0, True)
    result = naturelm("cache", "empty", "--cache-dir", "anywhere")
    assert (result.exit_code, "it must be info or clear" in result.stderr) == (2, True)


@pytest.mark.parametrize("is_option", [False, True])
def test_sound_is_encoded_once_for_several_commands(
    tmp_path: Path,
    nano_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoded: list[int],
    is_option: bool,
) -> None:
    cache_dir = ("--cache-dir", str(tmp_path / "cache")) if is_option else ()
    if is_option:
        monkeypatch.delenv("NATURELM_CACHE", raising=False)
    else:
        monkeypatch.setenv("NATURELM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def infer(alpha: str, name: str) -> str:
        result = naturelm(
            *("infer", "--model", str(nano_folder / "checkpoint"), "--device", "cpu"),
            *("--audio-path", str(nano_folder / "audio"), "-q", "What is it?"),
            *("--options", "generate.max_new_tokens=3", "--merging-alpha", alpha),
            *("--output-path", name, "--max-memory", "1GB", *cache_dir),
        )
        assert result.exit_code == 0, result.stderr
        return (tmp_path / name).read_text(encoding="utf-8")

    first = infer("1.0", "a.jsonl")
    windows = sum(encoded)
    assert windows > 0
    infer("0.5", "b.jsonl")
    assert infer("1.0", "c.jsonl") == first
    assert sum(encoded) == windows, "a window was encoded again"
    assert f"{windows} clips" in naturelm("cache", "info", *cache_dir).stdout
    assert f"Cleared {tmp_path / 'cache'}" in naturelm("cache", "clear", *cache_dir).stdout
    assert "0 clips, 0 bytes" in naturelm("cache", *cache_dir).stdout


# Every command tries the places that it will write to before its long work, and says which

OUT = "--output-path"


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("the long work began")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with inputs of every command, and no long work in reach."""
    from NatureLM import formats
    from NatureLM.data import sample
    from NatureLM.evaluation import score

    monkeypatch.chdir(tmp_path)
    write_wav(tmp_path / "clip.wav", 1)
    Path("clips.csv").write_text("path,label\nclip.wav,Dog\n", encoding="utf-8")
    Path("a.jsonl").write_bytes(to_line(WINDOW))
    Path("m.pth").write_bytes(b"no pickle")
    Path("e.yml").write_text("extended: {queries: [What is this]}\n", encoding="utf-8")
    Path("t.yml").write_text("run: {output_dir: PLACE}\n", encoding="utf-8")
    for module, name in (
        (of, "import_model"),
        (sample, "read_annotations"),
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
    words: list[str], kind: str, problem: str, places: Path
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
def test_what_is_there_stays_until_the_work_is_done(words: list[str], places: Path) -> None:
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
