"""What no file of the repository may hold, and what every Python file must be."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# In pieces, so that this file does not hold what it forbids.
FORBIDDEN = {
    "a path of one machine": [
        r"/(?:root|work|farm)/",
        r"/home/\w+/",
        r"/opt/(?:wheels|pypi)",
        r"\b[A-Z]:\\Users",
    ],
    "a host of a package registry": [
        r"pypi\." + r"(?:org|io)",
        r"pythonhosted\." + "org",
        r"download\." + r"pytorch\.org",
    ],
    "an unfinished mark": [rf"\b{a}{b}\b" for a, b in (("TO", "DO"), ("FIX", "ME"), ("XX", "X"))],
}


def tracked_files() -> list[Path]:
    """All files that git holds or would take, and that are still there."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def text_of(path: Path) -> str:
    """The file's text, or nothing for weights, sounds and pictures."""
    data = path.read_bytes()
    return "" if b"\0" in data else data.decode("utf-8")


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    pattern = re.compile("|".join(FORBIDDEN[what]))
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in tracked_files()
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found, f"{what} in\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a path of one machine", "open('/" + "home/ann/calls.wav')"),
        ("a host of a package registry", "https://" + "pypi." + "org/simple"),
        ("an unfinished mark", "# " + "TO" + "DO: later"),
    ],
)
def test_the_patterns_find_what_they_are_for(what: str, line: str) -> None:
    assert re.search("|".join(FORBIDDEN[what]), line)


def test_lock_files_stay_out() -> None:
    assert not [path for path in tracked_files() if path.name == "uv.lock"]


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "NatureLM").rglob("*.py"))
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent
