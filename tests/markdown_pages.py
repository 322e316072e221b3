"""The pages that people read: their fenced blocks, and the comments that steer the tests of them.

A comment on its own line before a block says what becomes of the block:

- `<!-- not run: why -->`: it needs what a test may not have (the network, the gated model,
  minutes), so only its spelling is checked;
- `<!-- output -->`: it is what the run block above it prints, to the letter;
- `<!-- screen -->`: the same with the messages that a terminal shows besides, such as errors of
  single recordings, but for speeds.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("naturelm", "beans")
OUTPUTS = ("output", "screen")
DOORS = {"infer.py": ["naturelm", "infer"], "beans_zero_inference.py": ["beans"]}
ASSIGNMENT = re.compile(r"^[A-Z_]+=")
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*) *$")
COMMENT = re.compile(r"^<!-- *(?P<kind>not run|output|screen)(?:: *(?P<reason>.*?))? *-->$")


@dataclass(frozen=True)
class Block:
    """One fenced block: where it starts, what it holds and what the comment before it says."""

    page: Path
    line: int
    language: str
    text: str
    kind: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self) -> bool:
        """Whether a reader would run it and a test can."""
        return self.language in ("bash", "python") and self.kind != "not run"


def pages() -> list[Path]:
    """Every page that people read, the README first."""
    tops = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return [*tops, *sorted((ROOT / "docs").rglob("*.md"))]


def page_name(page: Path) -> str:
    """The page in the report of a test."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page in order; `line` counts from 1 and is the block's first line."""
    lines = page.read_text(encoding="utf-8").splitlines()
    steer: dict[str, str] = {}
    opened: tuple[int, str, str] | None = None
    for number, line in enumerate(lines, start=1):
        fence = FENCE.match(line)
        if opened is not None:
            start, language, indent = opened
            if fence and not fence["language"]:
                body = (part.removeprefix(indent) for part in lines[start : number - 1])
                yield Block(page, start + 1, language, "\n".join(body), **steer)
                opened, steer = None, {}
        elif fence:
            opened = (number, fence["language"], fence["indent"])
        elif comment := COMMENT.match(line.strip()):
            steer = {"kind": comment["kind"], "reason": comment["reason"] or ""}
        elif line.strip():
            steer = {}
    assert opened is None, f"{page.name}: the block at line {opened and opened[0]} is not closed"


def command_lines(block: Block) -> list[str]:
    """Every command of a bash block on one line, comments left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def commands(block: Block) -> list[list[str]]:
    """The words of every command of a bash block, comments and `uv run` left out."""
    return [words_of(line) for line in command_lines(block)]


def words_of(line: str) -> list[str]:
    """The words of one command."""
    words = shlex.split(line, comments=True)
    return words[2:] if words[:2] == ["uv", "run"] else words


def assignments(words: list[str]) -> dict[str, str]:
    """The variables of the environment that a command begins with."""
    named = takewhile(ASSIGNMENT.match, words)
    return {name: value for name, _, value in (word.partition("=") for word in named)}


def program_call(words: list[str]) -> list[str] | None:
    """A command as a call of one of our programs, without `assignments`; None for others."""
    words = words[len(assignments(words)) :]
    if words[:1] == ["python"] and words[1] in DOORS:
        return [*DOORS[words[1]], *words[2:]]
    return words if words and words[0] in PROGRAMS else None
