"""The tabs Identify, Teach by example and About, and what holds for the whole page."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from web_app import ASSETS, RunningApp, go_to, messages, put, running

from NatureLM.app.page import TABS

pytestmark = pytest.mark.browser
Opener = Callable[..., Any]
NIGHTJAR = ASSETS / "synthetic_european_nightjar.flac"


def ranking(section: Any) -> dict[str, float]:
    """Names and shares as the page holds them."""
    rows = section.locator("li").all()
    return {
        str(row.get_attribute("data-label")): float(row.get_attribute("data-share")) for row in rows
    }


def test_a_clip_is_named_from_a_list(real_app: RunningApp, open_page: Opener) -> None:
    page = open_page(real_app, "Identify")
    put(page, "identify", NIGHTJAR)
    page.fill("#identify-names textarea", "European Nightjar, Common Cuckoo, Barn Owll")
    page.click("#identify-send")
    page.wait_for_selector("#identify-found .ranking li")
    shown = ranking(page.locator("#identify-found .ranking"))
    (expected,) = real_app.pipeline.windows(
        [NIGHTJAR],
        "What is the common name for the focal species in the audio?",
        alpha=1.0,
        mode="score",
        labels=["European Nightjar", "Common Cuckoo", "Barn Owll"],
        top_k=4,
        warn=lambda _: None,
    )
    shares = {expected.text: expected.confidence, **dict(expected.alternatives)}
    assert shown == pytest.approx(shares, abs=2e-6)
    assert page.locator("#identify-found .best").inner_text() == expected.text
    assert "did you mean 'Barn Owl'?" in page.locator("#identify-problem").inner_text()


def test_a_long_clip_is_named_window_by_window(
    fake_app: RunningApp, open_page: Opener, sounds: dict[str, Path], tmp_path: Path
) -> None:
    names = tmp_path / "names.csv"
    names.write_text("common_name,scientific_name\nRook,Corvus frugilegus\nDog,Canis familiaris\n")
    page = open_page(fake_app, "Identify")
    page.click("#identify-send")
    page.get_by_text("There is no sound yet").last.wait_for()
    put(page, "identify", sounds["long"])
    assert page.locator("#identify-clips .windows").count() == 0
    page.set_input_files("#identify-list input[type=file]", names)
    page.wait_for_selector("#identify-list .file-preview")
    page.click("#identify-send")
    page.wait_for_selector("#identify-found .per-window li")
    sections = page.locator("#identify-found .ranking").all()
    assert [one.locator("h3").inner_text() for one in sections] == [
        "The whole clip",
        "0–10 s",
        "10–20 s",
    ]
    assert ranking(sections[1]) == pytest.approx({"Rook": 2 / 3, "Dog": 1 / 3}, abs=1e-5)
    assert ranking(sections[0]) == pytest.approx({"Rook": 0.5, "Dog": 0.5}, abs=1e-5)


def test_examples_teach(fake_app: RunningApp, open_page: Opener) -> None:
    page = open_page(fake_app, "Teach by example")
    for number, (label, name) in enumerate((("Owl", "barn_owl"), ("Dog", "dog")), start=1):
        page.fill("#teach-label :is(input, textarea)", label)
        (path,) = ASSETS.glob(f"synthetic_{name}.*")
        put(page, "examples", path)
        page.wait_for_function(
            "count => document.querySelectorAll('#examples-clips figure').length === count",
            arg=number,
        )
    put(page, "new", ASSETS / "synthetic_cow.flac")
    page.click("#teach-send")
    page.wait_for_selector("#teach-found .prompt")
    assert page.locator("#teach-found .best").inner_text().endswith("(3 clips: 5.2 s, 3.2 s, 5 s)")
    heard = page.locator("#teach-found .prompt .sound").all_inner_texts()
    assert heard == [f"♪ synthetic_{n}" for n in ("barn_owl.flac", "dog.WAV", "cow.flac")]
    assert "Label: Owl" in page.locator("#teach-found .prompt").inner_text()
    page.locator("#examples-clips .remove").first.click()
    page.wait_for_function("document.querySelectorAll('#examples-clips figure').length === 1")
    page.click("#teach-send")
    page.get_by_text("There are 1 examples, and 2 are the fewest").wait_for()


def violations(page: Any) -> list[str]:
    """What axe finds serious or critical, in words."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']} {[node['target'] for node in one['nodes']][:4]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_no_serious_barrier(
    scheme: str, fake_app: RunningApp, open_page: Opener, sounds: dict[str, Path]
) -> None:
    page = open_page(fake_app, color_scheme=scheme)
    put(page, "ask", sounds["long"])
    found = {}
    for tab, _ in TABS.values():
        go_to(page, tab)
        page.wait_for_timeout(300)
        found[tab] = violations(page)
    assert {tab: wrong for tab, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize("width", [390, pytest.param(800, marks=pytest.mark.slow)])
def test_narrow_pages_do_not_scroll_sideways(
    width: int, fake_app: RunningApp, open_page: Opener, sounds: dict[str, Path]
) -> None:
    page = open_page(fake_app, viewport={"width": width, "height": 800})
    put(page, "ask", sounds["long"])
    for tab, _ in TABS.values():
        go_to(page, tab)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab


def test_the_keyboard_is_enough(
    fake_app: RunningApp, open_page: Opener, sounds: dict[str, Path]
) -> None:
    page = open_page(fake_app)
    put(page, "ask", sounds["long"])
    page.locator("#ask-clips [data-action=choose]").first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.window") == "1"
    assert page.evaluate("document.activeElement.ariaPressed") == "true"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.focus("#ask-question textarea")
    page.keyboard.type("What?")
    page.keyboard.press("Enter")
    page.get_by_text("You asked: What? (1 clips: 10 s)").first.wait_for()


def test_a_page_says_that_the_model_loads_and_when_it_is_ready(
    open_page: Opener, tmp_path: Path, sounds: dict[str, Path], fake_app: RunningApp
) -> None:
    go = threading.Event()
    held: list[RunningApp] = []

    def load() -> None:
        go.wait(60)
        context = held[0].context
        context._pipeline, context.state = fake_app.pipeline, "ready"
        context._settled.set()

    with running(tmp_path, load=load) as app:
        held.append(app)
        page = open_page(app)
        assert "is loading" in page.locator("#status").inner_text()
        put(page, "ask", sounds["tone"])
        page.fill("#ask-question textarea", "Now?")
        page.click("#ask-send")
        page.get_by_text("The model is loading …").wait_for()
        assert messages(page) == 0
        go.set()
        page.get_by_text("is ready").wait_for()
        page.get_by_text("You asked: Now? (1 clips: 3 s)").first.wait_for()
        page.close()


@pytest.mark.slow
def test_about_says_what_the_model_is(fake_app: RunningApp, open_page: Opener) -> None:
    page = open_page(fake_app, "About")
    told = page.locator("#about").inner_text()
    for words in ("naturelm-tiny", "8 kHz", "Apache-2.0", "CC BY-NC-SA 4.0", "names of animals"):
        assert words in told
