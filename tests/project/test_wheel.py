"""The sdist and the wheel hold what they should, and the wheel works away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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
