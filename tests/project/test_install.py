"""The Makefile sets up once and refuses what cannot work; sdist and wheel hold what they should."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    command = ["make", "--no-print-directory", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the set-up reads, without a virtual environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def installed(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What pip was told to install, where `echo pip:` stands for it."""
    return re.findall(
        r"^pip: (?:--no-build-isolation --editable )?(.*)$", done.stdout, re.MULTILINE
    )


@needs_make
def test_set_up_happens_once_and_again_after_a_change(checkout: Path) -> None:
    """`echo` stands for pip: the stamps are what is tested."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    fake = ["PIP=true", "INSTALL=echo pip:"]
    first = make(checkout, "tools", *fake)
    assert first.returncode == 0, first.stderr
    assert installed(first) == ["hatchling editables", ".[dev]"]
    assert installed(make(checkout, "tools", *fake)) == []
    assert installed(make(checkout, "install", *fake)) == [], "the tools come with the package"

    with (checkout / "constraints.txt").open("a", encoding="utf-8") as file:
        file.write("# another version\n")
    assert installed(make(checkout, "install", *fake)) == ["hatchling editables", "."]
    assert installed(make(checkout, "install", *fake)) == []
    assert installed(make(checkout, "tools", *fake)) == [".[dev]"]
    assert installed(make(checkout, "install", *fake)) == []


@needs_make
def test_an_old_python_is_refused_by_name(checkout: Path) -> None:
    old = checkout / "python3.9"
    old.write_text('#!/bin/sh\ncase "$2" in *print*) echo 3.9 ;; *) exit 1 ;; esac\n')
    old.chmod(0o755)
    done = make(checkout, "install", f"PYTHON={old}")
    assert done.returncode != 0
    assert "needs Python 3.10 or newer" in done.stderr
    assert not (checkout / ".venv").exists()


@needs_make
def test_a_missing_python_is_refused_by_name(checkout: Path) -> None:
    done = make(checkout, "install", "PYTHON=python3.99")
    assert done.returncode != 0
    assert "python3.99 does not run" in done.stderr


@needs_make
def test_help_names_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", text, flags=re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)
    assert set(phony.split()) == targets
    shown = make(ROOT, "help").stdout
    assert {line.split()[1] for line in shown.splitlines()} == targets


@needs_make
def test_continuous_integration_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[-1] == "exec make test"
    steps = make(ROOT, "--dry-run", "test").stdout
    for check in ("ruff check", "ruff format --check", "mypy", "pytest"):
        assert check in steps


@needs_make
@pytest.mark.parametrize("fails", ["", "ruff", "mypy", "pytest"])
def test_whatever_fails_is_shown_and_fails_the_run(fails: str, checkout: Path) -> None:
    """mypy runs beside the tests: what it says comes after theirs."""
    python = checkout / "python"
    python.write_text(f'#!/bin/sh\necho "$2 ran"\n[ "$2" != "{fails}" ]\n')
    python.chmod(0o755)
    done = make(checkout, "test", f"BIN={checkout}", f"PYTHON={sys.executable}", "TOOLS=")
    assert (done.returncode != 0) == bool(fails)
    ran = [line for line in done.stdout.splitlines() if line.endswith(" ran")]
    assert ran == (
        ["ruff ran"] if fails == "ruff" else 2 * ["ruff ran"] + ["pytest ran", "mypy ran"]
    )


@needs_make
@pytest.mark.parametrize("target", ["experiment", "mini", "tiny", "small"])
def test_targets_that_need_data_say_so(target: str, checkout: Path) -> None:
    done = make(checkout, target, "CORE=", "TOOLS=")
    assert done.returncode == 2
    assert "make: name" in done.stderr
    assert f"make {target} DATA=" in done.stderr


DATA_SUFFIXES = {
    ".json",
    ".safetensors",
    ".jinja",
    ".typed",
    ".yml",
    ".md",
    ".csv",
    ".txt",
    ".html",
    ".css",
    ".js",
    ".svg",
}


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed, with nothing of this process's Python settings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with an sdist of the checkout and the wheel made from it, without a network."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts folder of an empty environment that holds our wheel.

    The dependencies (gigabytes) are borrowed: a path file names the folder they lie in. Path files
    in that folder are not followed, so an editable install of the checkout stays out of reach.
    """
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    (wheel,) = built.glob("*.whl")
    scripts = home / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / ("python.exe" if os.name == "nt" else "python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=home)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home)
    Path(site.stdout.strip(), "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


def package_files(names: list[str]) -> set[str]:
    return {name for name in names if name.startswith("NatureLM/")}


def test_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    outside = [n for n in names if not n.startswith(("NatureLM/", "naturelm_audio-"))]
    assert not outside
    here = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "NatureLM").rglob("*")
        if path.suffix in {".py", *DATA_SUFFIXES} and "__pycache__" not in path.parts
    }
    assert here <= package_files(names)
    junk = [n for n in package_files(names) if Path(n).suffix not in {".py", *DATA_SUFFIXES}]
    assert not junk


def test_sdist_holds_no_junk(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        names = [name.split("/", 1)[1] for name in sdist.getnames() if "/" in name]
    tops = {name.split("/", 1)[0] for name in names}
    expected = {"NatureLM", "configs", "docs", "LICENSE", "README.md", "CHANGELOG.md"}
    assert tops <= expected | {"constraints.txt", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert {"NatureLM", "LICENSE", "README.md", "pyproject.toml"} <= tops
    junk = ("__pycache__", ".pyc", ".jsonl", ".cache", ".DS_Store", "/runs/")
    assert not [name for name in names if any(part in name for part in junk)]


def test_both_commands_answer(environment: Path, tmp_path: Path) -> None:
    import NatureLM

    version = run(environment / "naturelm", "--version", cwd=tmp_path).stdout
    assert NatureLM.__version__ in version
    assert "infer" in run(environment / "naturelm", "--help", cwd=tmp_path).stdout
    assert "Usage" in run(environment / "beans", "--help", cwd=tmp_path).stdout


def test_the_package_is_the_installed_one(environment: Path, tmp_path: Path) -> None:
    code = "import NatureLM; print(NatureLM.__file__)"
    where = run(environment / "python", "-c", code, cwd=tmp_path).stdout.strip()
    assert Path(where).is_relative_to(environment.parent)


def test_the_embedded_model_answers_from_the_wheel(environment: Path, tmp_path: Path) -> None:
    recording = ROOT / "assets" / "synthetic_american_toad.flac"
    question = "What makes the sound in the audio?"
    run(environment / "naturelm", "infer", recording, "--query", question, cwd=tmp_path)
    (row,) = (tmp_path / "inference_output.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(row)["text"]


def test_the_surveys_come_with_the_wheel(environment: Path, tmp_path: Path) -> None:
    code = (
        "from NatureLM.survey import questionnaire as q\n"
        "print(q.preset_folder(), *q.preset_names(), len(q.read_questionnaire('bats').columns))"
    )
    folder, *names, columns = run(environment / "python", "-c", code, cwd=tmp_path).stdout.split()
    assert Path(folder).is_relative_to(environment.parent)
    assert {f"{name}.yml" for name in names} == {
        path.name for path in (ROOT / "configs" / "surveys").glob("*.yml")
    }
    assert columns == "4"


FAULTS = {
    # Library: the last version with a known fault that matters here, and what the fault is called.
    "torch": ("2.9.1", "CVE-2026-24747"),
    "transformers": ("5.9.0", "CVE-2026-9856"),
    "gradio": ("6.15.0", "CVE-2026-28414"),
    "datasets": ("5.0.0", "PYSEC-2026-3716"),
    "pyarrow": ("23.0.0", "CVE-2026-25087"),
    "pillow": ("12.1.1", "CVE-2026-40192"),
    "av": ("17.0.0", ""),
    "python-multipart": ("0.0.26", "CVE-2026-42561"),
}
INTERNALS = ("torch", "transformers", "gradio", "huggingface_hub")
"""Libraries of which more is used than they promise to keep."""


def _requirements() -> dict[str, Any]:
    from packaging.requirements import Requirement

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = re.findall(r'"([A-Za-z0-9_-]+(?:\[[\w,-]+\])?[<>=][^"]+)"', text)
    return {one.name.lower(): one.specifier for one in map(Requirement, lines)}


@pytest.mark.parametrize("name", FAULTS)
def test_libraries_with_known_faults_are_kept_away(name: str) -> None:
    version, fault = FAULTS[name]
    assert version not in _requirements()[name], fault
    page = (ROOT / "docs" / "how-to" / "security.md").read_text(encoding="utf-8")
    assert f"| {name} |" in page
    assert fault in page


@pytest.mark.parametrize("name", INTERNALS)
def test_libraries_whose_internals_are_used_have_an_upper_bound(name: str) -> None:
    assert "999" not in _requirements()[name]


def test_the_exact_versions_are_within_the_bounds() -> None:
    bounds = _requirements()
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition(";")[0].strip().partition("==")
        if name.replace("-", "_") in bounds or name in bounds:
            assert version in bounds.get(name, bounds.get(name.replace("-", "_"))), line


def test_the_image_is_built_of_what_the_wheel_needs_and_nothing_else() -> None:
    """The folder that an image is built in may hold environments, runs and keys."""
    text = (ROOT / "deploy" / "Containerfile").read_text(encoding="utf-8")
    copied = {
        name
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
        for name in sources.split()
    }
    assert copied == {"pyproject.toml", "README.md", "LICENSE", "NatureLM", "constraints.txt"}
    assert "USER naturelm" in text


def test_the_unit_of_systemd_takes_a_stop_for_a_success() -> None:
    """The service ends with 143 after SIGTERM, which else would be a failed unit."""
    unit = (ROOT / "deploy" / "naturelm.service").read_text(encoding="utf-8")
    assert {"SuccessExitStatus=143", "DynamicUser=yes"} <= set(unit.splitlines())
