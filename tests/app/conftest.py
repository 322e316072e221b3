"""Sounds of all kinds, files that are none, and pages whose requests are watched."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from web_app import (
    ASSETS,
    BUBBLES,
    CONFIG,
    FakePipeline,
    MakeJobs,
    RunningApp,
    at_uploads_of,
    go_to,
    messages,
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
_WIDE = {"width": 1280, "height": 900}
_READY = "#ask-question textarea"
_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """What a test that failed did to a page is not left to the next."""
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


def _watched(page: Page, address: str) -> list[str]:
    """What a page does wrong, as it comes: errors it writes, hosts it asks that are not its own."""
    wrong: list[str] = []

    def requested(request: Any) -> None:
        if not request.url.startswith((address, *_LOCAL)):
            wrong.append(f"asked for {request.url}")

    def written(message: Any) -> None:
        if message.type == "error":
            wrong.append(f"console: {message.text} {message.location['url']}")

    page.on("request", requested)
    page.on("console", written)
    page.on("pageerror", lambda error: wrong.append(f"page: {error}"))
    return wrong


def _opened(
    chromium: Browser, app: RunningApp, link: str = "", **options: Any
) -> tuple[Page, list[str]]:
    """An app in a browser's context of its own, and what goes wrong there."""
    context = chromium.new_context(**{"viewport": _WIDE, **options})
    context.set_default_timeout(60_000)
    page = context.new_page()
    wrong = _watched(page, app.address)
    page.goto(app.address + link)
    return page, wrong


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[Opener]:
    """Opens an app in a context of its own; `tab` names the tab to begin with, `link` a job's page.

    At the end no page may have written an error or asked another host for anything.
    """
    opened: list[tuple[Page, list[str]]] = []

    def open_anew(app: RunningApp, tab: str | None = "Ask", link: str = "", **options: Any) -> Page:
        at_uploads_of(app)
        opened.append(_opened(chromium, app, link, **options))
        page = opened[-1][0]
        if tab is not None:
            page.wait_for_selector(_READY)
            go_to(page, tab)
        return page

    yield open_anew
    for page, _ in opened:
        page.context.close()
    assert [one for _, wrong in opened for one in wrong] == []


@pytest.fixture(scope="module")
def left_open(chromium: Browser) -> Iterator[dict[str, tuple[Page, list[str]]]]:
    """Pages by address that tests of the module have done with, and what went wrong there."""
    pages: dict[str, tuple[Page, list[str]]] = {}
    yield pages
    for page, _ in pages.values():
        page.context.close()


@pytest.fixture
def use_page(
    chromium: Browser,
    left_open: dict[str, tuple[Page, list[str]]],
    request: pytest.FixtureRequest,
) -> Iterator[Opener]:
    """As `open_page`, with the page of an app that earlier tests have used, as visitors do.

    For tests that expect nothing of the page but an empty conversation: to load it takes ten
    seconds of a processor. It is left without words and choices that would change another test.
    """
    used: dict[str, tuple[Page, list[str]]] = {}

    def use(app: RunningApp, tab: str = "Ask", viewport: Any = None) -> Page:
        at_uploads_of(app)
        if app.address in left_open:
            used[app.address] = left_open.pop(app.address)
        else:
            used[app.address] = _opened(chromium, app)
            used[app.address][0].wait_for_selector(_READY)
        page, wrong = used[app.address]
        wrong.clear()
        go_to(page, tab)  # before another width hides some tabs
        page.set_viewport_size(viewport or _WIDE)
        if tab == "Ask" and messages(page):
            page.locator("#ask-chat").get_by_label("Clear").click()
            page.wait_for_function(f"document.querySelectorAll({BUBBLES!r}).length === 0")
        return page

    yield use
    for address, (page, wrong) in used.items():
        if request.node.stash.get(_FAILED, False) or wrong:
            page.context.close()
        else:
            left_open[address] = page, wrong
    assert [one for _, wrong in used.values() for one in wrong] == []


@pytest.fixture
def page(use_page: Opener, fake_app: RunningApp) -> Page:
    """The tab Ask of the app whose answers say what was asked, with an empty conversation."""
    return use_page(fake_app)
