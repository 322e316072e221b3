"""No file holds what it must not, and the declared dependencies are those that the code imports."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from source_code import statements, tree_of

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
        if pattern.search(text := text_of(path))
        for number, line in enumerate(text.splitlines(), start=1)
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
        if not ast.get_docstring(tree_of(path))
    ]
    assert not silent


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE = ROOT / "NatureLM"
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]

# The module's name where it is not the distribution's.
DISTRIBUTIONS = {"yaml": "pyyaml", "sklearn": "scikit-learn", "PIL": "pillow"}

# Programs that load a plug-in of ours: they bring their own torch, and we are put beside them.
HOSTS = {"vllm"}


def declared(*extras: str) -> set[str]:
    """Canonical names of the core's dependencies, or of those of the given extras."""
    table = PROJECT["project"]
    lists = [table["optional-dependencies"][extra] for extra in extras] or [table["dependencies"]]
    return {canonicalize_name(Requirement(line).name) for lines in lists for line in lines}


def imports_of(path: Path, *, lazy: bool = True) -> Iterator[str]:
    """Distribution of every third-party import.

    `lazy=False` leaves out what is not imported with the module: function bodies and what only
    type checkers read.
    """

    def is_lazy(node: ast.AST) -> bool:
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        return for_types or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))

    def walk(node: ast.AST) -> Iterator[str]:
        for child in statements(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.level == 0 and child.module:
                yield child.module
            elif lazy or not is_lazy(child):
                yield from walk(child)

    for module in walk(tree_of(path)):
        top = module.partition(".")[0]
        if top not in sys.stdlib_module_names and top != "NatureLM":
            yield canonicalize_name(DISTRIBUTIONS.get(top, top))


@functools.cache
def imported(**options: bool) -> dict[str, list[str]]:
    """Which files of the package import each distribution."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in imports_of(path, **options):
            found.setdefault(name, []).append(str(path.relative_to(ROOT)))
    return found


def test_everything_imported_is_declared() -> None:
    extras = PROJECT["project"]["optional-dependencies"].keys() - {"dev", "test"}
    known = declared() | declared(*extras) | HOSTS
    assert {name: files for name, files in imported().items() if name not in known} == {}


def test_the_core_needs_no_more_than_it_uses() -> None:
    assert declared() - imported().keys() == set()


def test_optional_libraries_are_imported_only_where_they_are_used() -> None:
    """Modules of the web app need gradio, those of the service fastapi, and what comes with them;
    they are imported by the function that starts it."""
    of_app, of_service = ("NatureLM/app/",), ("NatureLM/serve/",)
    homes = {
        "gradio": of_app,
        "gradio-client": of_app,
        "anyio": of_app,
        "starlette": (*of_app, *of_service),
        "fastapi": of_service,
        "vllm": ("NatureLM/vllm/model.py",),
    }
    found = {
        name: [file for file in files if not file.startswith(homes.get(name, ()))]
        for name, files in imported(lazy=False).items()
        if name not in declared()
    }
    found = {name: files for name, files in found.items() if files}
    assert not found, "import these inside the functions that need them"


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_every_declared_dependency_once(python: str) -> None:
    environment = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.9",
    }
    pins: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            assert [s.operator for s in pin.specifier] == ["=="], line
            if pin.marker is None or pin.marker.evaluate(environment):
                pins.setdefault(canonicalize_name(pin.name), []).append(str(pin.specifier))
    names = declared() | declared(*PROJECT["project"]["optional-dependencies"]) - {"naturelm-audio"}
    for line in PROJECT["build-system"]["requires"]:
        names.add(canonicalize_name(Requirement(line).name))
    if sys.platform != "linux":
        names.discard("triton")
    assert {name: pins.get(name) for name in names if len(pins.get(name, ())) != 1} == {}
    assert pins["torch"] == ["==2.13.0"]


def test_pythons_agree_in_the_workflow_and_the_classifiers() -> None:
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert "run: make test" in workflow
    for python in PYTHONS:
        assert f'"{python}"' in workflow
        assert f"Programming Language :: Python :: {python}" in PROJECT["project"]["classifiers"]
    assert PROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"
