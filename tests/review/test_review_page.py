"""The review page in Chromium: keys, undo, several reviewers and tabs, and a save that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from review_folders import make_clips
from web_app import free_port, started

from NatureLM.review.folder import read_verdicts
from NatureLM.review.server import Clips, ReviewSettings, make_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser
pytest.importorskip("uvicorn")

Opener = Callable[..., "Page"]


@pytest.fixture
def clips(tmp_path: Path) -> Iterator[Clips]:
    make_clips(tmp_path / "clips")
    opened = Clips(tmp_path / "clips")
    yield opened
    opened.close()


@pytest.fixture
def address(clips: Clips) -> Iterator[str]:
    """Where the page of the folder is served."""
    settings = ReviewSettings(clips.folder, port=free_port())
    server = make_server(settings, clips)
    with started(server):
        yield settings.address("127.0.0.1")
        server.force_exit = True


@pytest.fixture
def open_page(chromium: Browser, address: str) -> Iterator[Opener]:
    """Opens the page as a reviewer; no page may write an error that was not looked for."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def opened(reviewer: str = "Ann", context: Any = None, **options: Any) -> Page:
        if context is None:
            context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
            context.set_default_timeout(10_000)
            contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "console",
            lambda message: (
                wrong.append(message.text)
                if message.type == "error" and "Failed to load" not in message.text
                else None
            ),
        )
        page.goto(f"{address}?reviewer={reviewer}" if reviewer else address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def shows(page: Page, place: str) -> None:
    """Wait until a clip is there to be heard and seen, such as `Clip 2 of 4`."""
    page.wait_for_function(
        "place => document.getElementById('place').textContent === place", arg=place
    )
    page.wait_for_selector("#figure:not(.waits)")


def said(clips: Clips, reviewer: str = "Ann") -> list[str]:
    """The verdicts of a reviewer, clip by clip."""
    found = {
        one.clip: one.verdict for one in read_verdicts(clips.folder) if one.reviewer == reviewer
    }
    return [found.get(one.clip, "") for one in clips.segments]


def wait_until_saved(page: Page) -> None:
    page.wait_for_function(
        "() => !Object.keys(localStorage).some((key) => /review-[0-9a-f]{16}-/.test(key))"
    )


def test_all_clips_by_keyboard_undone_resumed_and_compared(open_page: Opener, clips: Clips) -> None:
    page = open_page()
    shows(page, "Clip 1 of 4")
    assert page.inner_text("#label") == "Common Cuckoo Cuculus canorus"
    assert page.inner_text("#facts").split("\n")[:4] == [
        "Confidence",
        "0.90",
        "Recording",
        "dawn.wav",
    ]
    page.wait_for_function("() => !document.getElementById('sound').paused")  # by itself
    page.keyboard.press(" ")
    assert page.evaluate("document.getElementById('sound').paused")
    page.keyboard.press("y")
    shows(page, "Clip 2 of 4")
    page.keyboard.press("ArrowLeft")
    shows(page, "Clip 1 of 4")  # what was just said can be looked at
    assert page.get_attribute("[data-verdict=yes]", "aria-pressed") == "true"
    page.keyboard.press("ArrowRight")
    shows(page, "Clip 2 of 4")
    page.keyboard.press("3")
    shows(page, "Clip 3 of 4")
    page.keyboard.press("Control+z")
    shows(page, "Clip 2 of 4")
    wait_until_saved(page)
    assert said(clips) == ["yes", "", "", ""]
    page.keyboard.press("n")
    shows(page, "Clip 3 of 4")
    wait_until_saved(page)
    page.reload()
    shows(page, "Clip 3 of 4")  # it goes on where it was left
    page.keyboard.press("z")  # what was said before the page was loaded is taken back, too
    shows(page, "Clip 2 of 4")
    page.click("[data-verdict=unsure]")
    shows(page, "Clip 3 of 4")

    other = open_page("Ben")
    shows(other, "Clip 1 of 4")
    assert "Ann" not in other.inner_text("body")
    for place in range(1, 5):
        shows(other, f"Clip {place} of 4")
        other.keyboard.press("n")
    other.wait_for_selector("#done:not([hidden])")

    page.keyboard.press("u")
    shows(page, "Clip 4 of 4")
    page.keyboard.press("n")
    page.get_by_text("Ben said the same about 1 of 4 clips.").wait_for()
    assert page.inner_text("#done-title") == "All 4 clips are reviewed"
    assert f"naturelm calibrate {clips.folder}" in page.inner_text("#done-text")
    assert said(clips) == ["yes", "unsure", "unsure", "no"]
    assert said(clips, "Ben") == ["no"] * 4


def test_a_save_that_fails_is_shown_kept_and_tried_again(open_page: Opener, clips: Clips) -> None:
    page = open_page()
    shows(page, "Clip 1 of 4")
    page.route("**/api/verdicts", lambda route: route.abort())
    page.keyboard.press("y")
    shows(page, "Clip 2 of 4")
    page.wait_for_selector("#unsaved:not([hidden])")
    assert "1 verdict is not saved yet, but kept in this browser" in page.inner_text("#unsaved")
    page.keyboard.press("n")
    shows(page, "Clip 3 of 4")
    page.on("dialog", lambda dialog: dialog.accept())
    page.unroute("**/api/verdicts")
    page.reload()  # what was not saved was kept
    shows(page, "Clip 3 of 4")
    wait_until_saved(page)
    assert page.is_hidden("#unsaved")
    assert said(clips) == ["yes", "no", "", ""]


def test_two_tabs_know_of_each_other(open_page: Opener, clips: Clips) -> None:
    first = open_page()
    shows(first, "Clip 1 of 4")
    second = open_page(context=first.context)
    shows(second, "Clip 1 of 4")
    second.keyboard.press("y")
    shows(second, "Clip 2 of 4")
    first.get_by_text("1 of 4 reviewed, 3 to go").wait_for()
    assert first.get_attribute("[data-verdict=yes]", "aria-pressed") == "true"
    first.keyboard.press("ArrowRight")
    shows(first, "Clip 2 of 4")
    wait_until_saved(second)
    assert said(clips) == ["yes", "", "", ""]


def test_species_blind_review_speed_and_a_clip_that_is_gone(
    open_page: Opener, clips: Clips
) -> None:
    (clips.folder / clips.segments[3].clip).unlink()
    page = open_page()
    shows(page, "Clip 1 of 4")
    page.select_option("#species", "Eurasian Wren")
    shows(page, "Clip 1 of 2")
    page.check("#blind")
    assert "hidden" in page.inner_text("#facts")
    assert "0.8" not in page.inner_text("#clip")
    page.uncheck("#blind")
    page.select_option("#slowed", "10")
    page.wait_for_function("() => document.getElementById('sound').duration > 11")
    page.locator("#label").focus()
    page.keyboard.press("y")
    page.get_by_text("this clip is not in the folder any more").wait_for()
    page.keyboard.press("u")
    page.get_by_text("All clips of Eurasian Wren are reviewed").wait_for()
    page.click("#all")
    shows(page, "Clip 1 of 4")


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("dark", 390),
        ("light", 1280),
        pytest.param("light", 390, marks=pytest.mark.slow),
        pytest.param("dark", 1280, marks=pytest.mark.slow),
    ],
)
def test_no_barrier_and_nothing_sideways(open_page: Opener, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    options = {"color_scheme": scheme, "viewport": {"width": width, "height": 844}}
    page = open_page("", **options)
    page.wait_for_selector("#ask-name:not([hidden])")
    found = [*axe.run(page).response["violations"]]
    page.fill("#reviewer", "Ann")
    page.keyboard.press("Enter")
    shows(page, "Clip 1 of 4")
    for fold in page.query_selector_all("summary"):
        fold.click()
    page.keyboard.press("Tab")
    found += axe.run(page).response["violations"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator("#label").focus()
    for verdict in "yynu":
        page.keyboard.press(verdict)
        page.wait_for_timeout(50)
    page.wait_for_selector("#done:not([hidden])")
    found += axe.run(page).response["violations"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in found] == []
