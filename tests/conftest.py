"""What every test may use: the fixtures folder, shared recordings and Chromium where they are."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from torch import Tensor

    from NatureLM.models import NatureLM

pytest_plugins = ["builders", "labelled_sound", "s3_store"]

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# Machines are slow and busy at times: how long an example takes is nothing that a test is about.
settings.register_profile(
    "project",
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# Of `make test-slow`: what a few examples do not find may be found by many.
settings.register_profile("thorough", settings.get_profile("project"), max_examples=400)
settings.load_profile("project")


# A fifth of the time until the first test would go into looking for garbage where there is none.
gc.disable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """What was imported and collected stays; only what tests make is ever looked through."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Folder of test fixtures that the repository holds."""
    return ROOT / "tests" / "fixtures"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of real recordings and published predictions, absent on a fresh machine."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the shared folder is not on this machine")
    return SHARED


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own that it works in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser of this machine; none is downloaded."""
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
        )
        yield browser
        browser.close()


NANO = ROOT / "tests" / "fixtures" / "goldens" / "nano"


@pytest.fixture(scope="session")
def nano_folder() -> Path:
    """Folder with the small reference checkpoint, its base model, audio and expected numbers."""
    return NANO


@pytest.fixture(scope="session")
def nano() -> NatureLM:
    """The small reference checkpoint, float32. Tests must leave it as it is."""
    from NatureLM.models import NatureLM

    return NatureLM.from_pretrained(NANO / "checkpoint")


@pytest.fixture(scope="session")
def nano_waveforms() -> dict[str, Tensor]:
    """The three golden clips by name, (samples,) at 16 kHz."""
    from safetensors.torch import load_file

    stored = load_file(NANO / "audio" / "waveforms.safetensors")
    return {name.removesuffix(".wav"): wav for name, wav in stored.items()}
