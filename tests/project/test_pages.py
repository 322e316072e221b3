"""What README and documentation say is true: commands are there and run, links lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from itertools import zip_longest
from pathlib import Path

import pytest
from markdown_pages import (
    DOORS,
    OUTPUTS,
    ROOT,
    Block,
    assignments,
    blocks,
    command_lines,
    commands,
    page_name,
    pages,
    program_call,
    words_of,
)
from typer.testing import CliRunner

from NatureLM.cli import main
from NatureLM.cli.main import single_command
from NatureLM.results.rows import SCHEMA_VERSION, ErrorRow, SurveyRow, WindowRow

UPDATE = os.environ.get("NATURELM_UPDATE_PAGES") == "1"
ANSWER = re.compile(r"^( +\d+\.\d\ds - \d+\.\d\ds +).*")  # a window and what was answered
PROGRESS = re.compile(r"^\[\d+/\d+\] .*\n", re.MULTILINE)  # where a terminal has a bar
SPEED = re.compile(r" in (\d+ h )?(\d+ min )?\d[\d.]* s\b|[\d.]+ (x real time|answers/s)")
ALONE = ("make", "head", "ls", "printf")  # commands that change nothing in the shell they are in
SHORTER = {"run.max_steps=24": "run.max_steps=4", "run.eval_every=12": "run.eval_every=2"}
"""What a page does until it is done well, and a test only does."""
BLOCKS = [block for page in pages() for block in blocks(page)]
PAGES_THAT_RUN = [page for page in pages() if any(block.runs for block in blocks(page))]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: like a fresh clone's root, where blocks may write what they like."""
    for name in ("assets", "configs", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    scripts = sysconfig.get_path("scripts")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", scripts + os.pathsep + os.environ["PATH"])
    # `make` takes the programs that are here and installs nothing.
    monkeypatch.setenv("MAKEFLAGS", f"s -- BIN={scripts} CORE=")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    # Seconds that are measured are those of a busy machine, however long they are measured for.
    monkeypatch.setattr("NatureLM.models.speed._SECONDS", 0.0)
    # Figures of one name are drawn as those of another are, at half a second each.
    monkeypatch.setattr("NatureLM.reports.field.MOST_DRAWN", 2)
    yield tmp_path
    # A page shows how to set the level; other tests read what is logged.
    logging.getLogger("NatureLM").setLevel(logging.NOTSET)


@pytest.mark.parametrize("page", PAGES_THAT_RUN, ids=page_name)
def test_blocks_run_as_a_reader_would_run_them(page: Path, workplace: Path) -> None:
    """In order, in one folder; `NATURELM_UPDATE_PAGES=1` writes new outputs into the page."""
    printed = ""
    listed = list(blocks(page))
    for block, following in zip_longest(listed, listed[1:]):
        if block.kind in OUTPUTS:
            if UPDATE and without_speeds(printed) != without_speeds(block.text):
                rewrite(block, printed)
            else:
                assert_same_but_for_ties(printed, block.text, str(block))
        elif block.runs:
            text = run(block, with_messages=following is not None and following.kind == "screen")
            printed = PROGRESS.sub("", text.replace(f"{workplace}{os.sep}", "")).rstrip()


def assert_same_but_for_ties(printed: str, shown: str, name: str) -> None:
    """All lines equal, but that one answer in six may be another.

    Processors round differently, and where a model of six million parameters hesitates between two
    names that decides. Files, times and all other text have no such excuse.
    """
    advice = f"{name}: prints something else, see `make docs`"
    got, wanted = (without_speeds(text).splitlines() for text in (printed, shown))
    assert [ANSWER.sub(r"\1", line) for line in got] == [
        ANSWER.sub(r"\1", line) for line in wanted
    ], advice
    answers = [pair for pair in zip(got, wanted, strict=True) if ANSWER.match(pair[0])]
    other = [pair for pair in answers if pair[0] != pair[1]]
    assert len(other) <= len(answers) / 6, f"{advice}\n{other}"


def without_speeds(text: str) -> str:
    """The text without how long something took, which is another each time."""
    return SPEED.sub("", text)


def run(block: Block, with_messages: bool = False) -> str:
    """Standard output of a block, which must succeed; with messages on stderr, too, if asked.

    Python and calls of our own programs run in this process, because every new one takes seconds
    to import torch. A block with a command that may say something to those after it, as `export`
    does, is run by one shell.
    """
    if block.language == "python":
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})
        return printed.getvalue()
    lines = [shortened(line) for line in command_lines(block)]
    if not all(stands_alone(words_of(line)) for line in lines):
        lines = [block.text]
    return "".join(run_line(line, block, with_messages) for line in lines)


def shortened(line: str) -> str:
    """The command with fewer updates of a training."""
    for shown, here in SHORTER.items():
        line = line.replace(shown, here)
    return line


def test_what_is_shortened_stands_on_a_page() -> None:
    text = "\n".join(block.text for block in BLOCKS)
    assert not [shown for shown in SHORTER if shown not in text]


def stands_alone(words: list[str]) -> bool:
    """Whether a command can be run by itself, without the shell of its block."""
    return program_call(words) is not None or is_script(words) or words[0] in ALONE


def is_script(words: list[str]) -> bool:
    """Whether it runs one of the scripts that come with the checkout."""
    return words[:1] == ["python"] and words[1].startswith("scripts/")


def run_line(line: str, block: Block, with_messages: bool) -> str:
    """What a command prints; a block of several, where they need one shell."""
    words = [] if "\n" in line else words_of(line)
    calls = [(one, program_call(one)) for one in expanded(words)]
    if calls and all(call for _, call in calls):
        return "".join(
            call_here(call, block, with_messages, assignments(one)) for one, call in calls if call
        )
    if is_script(words):
        here = partial(runpy.run_path, words[1], run_name="__main__")
        return done_here(here, words[1:], block, with_messages)
    return shell(line, block, with_messages)


def expanded(words: list[str]) -> list[list[str]]:
    """The command, or in the place of a call of `make` what that would run."""
    if words[:1] != ["make"]:
        return [words]
    shown = subprocess.run([*words, "--dry-run"], check=True, capture_output=True, text=True)
    lines = shown.stdout.replace("\\\n", " ").splitlines()
    return [[Path(program).name, *more] for program, *more in map(shlex.split, lines)]


def shell(text: str, block: Block, with_messages: bool) -> str:
    """Run commands by bash, stopping at the first that fails."""
    command = ["bash", "-euo", "pipefail", "-c", text]
    messages = subprocess.STDOUT if with_messages else subprocess.PIPE
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=messages, text=True)
    assert done.returncode == 0, f"{block}\n{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def call_here(
    call: list[str], block: Block, with_messages: bool, environment: dict[str, str]
) -> str:
    """Call one of our programs in this process."""
    program = {"naturelm": main.naturelm, "beans": main.beans}[call[0]]
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        return done_here(program, call, block, with_messages)


def done_here(
    program: Callable[[], object], argv: list[str], block: Block, with_messages: bool
) -> str:
    """What a program prints that is called in this process with these words."""
    code: str | int | None = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(sys, "argv", argv)
        out = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if with_messages:
            stack.enter_context(contextlib.redirect_stderr(out))
        try:
            program()
        except SystemExit as end:
            code = end.code
    # A screen shows what went wrong, which a page may be about.
    assert with_messages or not code, f"{block}: {argv} ended with {code}"
    return out.getvalue()


def rewrite(block: Block, printed: str) -> None:
    """Put into the page what was printed now."""
    text = block.page.read_text(encoding="utf-8")
    old = f"```{block.language}\n{block.text}\n```"
    assert text.count(old) == 1, f"{block} is there twice"
    new = f"```{block.language}\n{printed}\n```"
    block.page.write_text(text.replace(old, new), encoding="utf-8")


def test_blocks_that_do_not_run_say_why() -> None:
    left_out = [block for block in BLOCKS if block.kind == "not run"]
    assert not [str(block) for block in left_out if len(block.reason) < 10]
    assert not [str(block) for block in left_out if block.language not in ("bash", "python")]


def test_python_blocks_parse() -> None:
    for block in BLOCKS:
        if block.language == "python":
            ast.parse(block.text, filename=str(block))


def prose(page: Path) -> str:
    """The page without its blocks."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The names under which a page's headings can be linked to."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages(), ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page))
    targets += re.findall(r'src="([^"]+)"', prose(page))
    broken = []
    for target in targets:
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not target.startswith("https://") and (
            not path.exists() or (anchor and anchor not in anchors(path))
        ):
            broken.append(target)
    assert not broken


def test_every_page_can_be_found_from_the_index() -> None:
    docs = ROOT / "docs"
    index = (docs / "README.md").read_text(encoding="utf-8")
    names = [page.relative_to(docs).as_posix() for page in sorted(docs.rglob("*.md"))]
    assert not [name for name in names if name != "README.md" and f"({name})" not in index]


def test_generated_parts_are_up_to_date() -> None:
    script = ROOT / "scripts" / "reference_pages.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_output_page_names_every_key() -> None:
    page = (ROOT / "docs" / "reference" / "output-format.md").read_text(encoding="utf-8")
    for row in (WindowRow, SurveyRow, ErrorRow):
        assert {field.name for field in fields(row)} <= set(re.findall(r"`(\w+)`", page))
    assert f"schema version {SCHEMA_VERSION}" in page


VERBS = {"naturelm": main.NATURELM_COMMANDS, "beans": main.BEANS_COMMANDS}


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["infer.py", "--help"], "--audio-path"),
        (["beans_zero_inference.py", "--help"], "info"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_doors_open(command: list[str], shown: str) -> None:
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


@pytest.mark.parametrize("door", DOORS)
def test_doors_are_three_lines(door: str) -> None:
    lines = (ROOT / door).read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines[1:] if line]) == 3


@pytest.mark.parametrize("page", pages(), ids=page_name)
def test_pages_show_commands_that_exist(page: Path) -> None:
    """Verbs, options and the kinds of their values, of blocks that do not run, too."""
    shown = [
        words for block in blocks(page) if block.language == "bash" for words in commands(block)
    ]
    for program, *rest in filter(None, map(program_call, shown)):
        if program == "beans" and rest and rest[0].startswith("-") and "--help" not in rest:
            rest = ["run", *rest]  # the default verb
        if not rest or rest[0].startswith("-"):
            assert set(rest) <= {"--help", "--version"}, rest
            continue
        verb, *arguments = rest
        assert verb in VERBS[program], f"{program} {verb}"
        if "--help" not in arguments:
            single_command(verb, VERBS[program][verb]).make_context(verb, arguments)


@pytest.mark.parametrize("app", [main.naturelm_app, main.beans_app])
def test_help_lists_all_verbs(app: object) -> None:
    printed = CliRunner().invoke(app, ["--help"]).output  # type: ignore[arg-type]
    verbs = main.NATURELM_COMMANDS if app is main.naturelm_app else main.BEANS_COMMANDS
    for verb in verbs:
        assert verb in printed


@pytest.mark.parametrize(
    ("page", "least"), [("explanation/what-can-go-wrong.md", 40), ("how-to/security.md", 44)]
)
def test_each_promise_names_a_test_that_there_is(page: str, least: int) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    table = text[text.index("| test |") :]
    lines = [
        line for line in table.splitlines() if line.startswith("| ") and "| test |" not in line
    ]
    assert len(lines) >= least
    for line in lines:
        named = re.findall(r"`(tests/[\w/]+\.py)::(?:\w+::)?(\w+)`", line)
        assert named, line
        for file, name in named:
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), line
