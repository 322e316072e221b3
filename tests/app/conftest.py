"""Sounds of all kinds, files that are none, and pages whose requests are watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from web_app import (
    ASSETS,
    CONFIG,
    FakePipeline,
    MakeJobs,
    RunningApp,
    at_uploads_of,
    go_to,
    running,
)

from NatureLM.app.jobs import Jobs
from NatureLM.app.settings import Limits
from NatureLM.inference.pipeline import Pipeline

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_LOCAL = ("data:", "blob:", "about:")


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of the synthesised recordings."""
    return ASSETS


@pytest.fixture
def limits() -> Limits:
    return Limits()


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Recordings that are unusual, and files that are none."""
    folder = tmp_path_factory.mktemp("sounds")

    def tone(name: str, seconds: float, rate: int = 16_000, hertz: float = 1000.0) -> Path:
        wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
        soundfile.write(folder / name, wave, rate)
        return folder / name

    made = {
        "tone": tone("tone.wav", 3.0),
        "short": tone("short.wav", 0.1),
        "tiny": tone("tiny.wav", 0.01),
        "bat": tone("bat.wav", 0.5, rate=500_000, hertz=45_000),
        "long": tone("long.wav", 25.0),
    }
    both = np.stack([np.sin(np.arange(32_000) / 9), np.sin(np.arange(32_000) / 5)], axis=1)
    made["stereo"] = folder / "stereo.flac"
    soundfile.write(made["stereo"], 0.3 * both, 16_000)
    made["silent"] = folder / "silent.wav"
    soundfile.write(made["silent"], np.zeros(32_000), 16_000)
    made["hour"] = folder / "hour.flac"
    soundfile.write(made["hour"], np.zeros(3600 * 8_000, dtype=np.int16), 8_000)
    made["empty"] = folder / "empty.wav"
    made["empty"].write_bytes(b"")
    made["text"] = folder / "notes.txt"
    made["text"].write_text("Heard a cuckoo at five.\n")
    made["corrupt"] = folder / "corrupt.flac"
    whole = (ASSETS / "synthetic_cow.flac").read_bytes()
    made["corrupt"].write_bytes(whole[:200] + bytes(len(whole) - 200))
    return made


@pytest.fixture(scope="module")
def pipeline(nano: Any) -> Pipeline:
    return Pipeline(nano, config=CONFIG)


@pytest.fixture
def make_jobs(tmp_path: Path, pipeline: Pipeline) -> Iterator[MakeJobs]:
    made: list[Jobs] = []

    def make(asked: Callable[[], Any] = lambda: pipeline, model: str = "nano", **some: int) -> Jobs:
        made.append(Jobs(tmp_path / "runs", asked, model=model, limits=Limits(**some)))
        return made[-1]

    yield make
    for jobs in made:
        jobs.close()


@pytest.fixture
def jobs(make_jobs: MakeJobs) -> Jobs:
    return make_jobs()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """The app whose answers say what was asked, of the module's own."""
    with running(tmp_path_factory.mktemp("app"), FakePipeline()) as app:
        yield app


@pytest.fixture(scope="session")
def fake_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """The app whose answers say what was asked."""
    with running(tmp_path_factory.mktemp("fake"), FakePipeline()) as app:
        yield app


@pytest.fixture(scope="session")
def real_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """The app with the embedded model."""
    from NatureLM.models.registry import EMBEDDED

    with running(tmp_path_factory.mktemp("real"), Pipeline(EMBEDDED)) as app:
        yield app


Opener = Callable[..., "Page"]


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Opener]:
    """Opens an app in a context of its own; `tab` names the tab to begin with, `link` a job's page.

    At the end no page may have written an error or asked another host for anything.
    """
    contexts: list[Any] = []
    wrong: list[str] = []

    def watch(page: Page, address: str) -> None:
        def requested(request: Any) -> None:
            if not request.url.startswith((address, *_LOCAL)):
                wrong.append(f"asked for {request.url}")

        def written(message: Any) -> None:
            if message.type == "error":
                wrong.append(f"console: {message.text} {message.location['url']}")

        page.on("request", requested)
        page.on("console", written)
        page.on("pageerror", lambda error: wrong.append(f"page: {error}"))

    def opened(app: RunningApp, tab: str | None = "Ask", link: str = "", **options: Any) -> Page:
        at_uploads_of(app)
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        watch(page, app.address)
        page.goto(app.address + link)
        if tab is not None:
            page.wait_for_selector("#ask-question textarea")
            go_to(page, tab)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def page(open_page: Opener, fake_app: RunningApp) -> Page:
    """The tab Ask of the app whose answers say what was asked."""
    return open_page(fake_app)
