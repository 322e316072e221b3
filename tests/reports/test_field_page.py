"""The page of a report on recordings in a browser: narrow and wide, light and dark, with sound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import field_answers as made
import pytest

from NatureLM.reports.field import make_field_report, open_answers
from NatureLM.reports.field_page import write_field_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.browser
LONG = "a_very_long_name_of_a_species_that_no_line_of_a_telephone_has_room_for_" * 2


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything in it: two sites, clips, columns, errors, gaps, long names."""
    folder = tmp_path_factory.mktemp("page")
    source = made.sound(folder)
    rows: list[Any] = []
    for row in made.month(folder, source, name=LONG, days=4):
        answers = {"species": row.text, "n": 2, "bird": row.text != "None"}  # type: ignore[union-attr]
        rows.append(
            made.survey(
                row.audio_path, row.start, answers, context=row.context,  # type: ignore[union-attr]
                confidences={"species": 0.5},
            )
        )  # fmt: skip
    rows.append(made.error(str(folder / f"{LONG[:90]}.wav")))
    kinds = {"species": {"type": "choice"}, "n": {"type": "count"}, "bird": {"type": "yes_no"}}
    answers = open_answers(made.write(folder, rows, columns=kinds))
    write_field_report(make_field_report(answers, clips=1), folder / "report")
    return folder / "report" / "index.html"


@pytest.fixture
def wrong() -> list[str]:
    """What the page wrote to its console or asked others for."""
    return []


@pytest.fixture
def page(chromium: Browser, report: Path, wrong: list[str]) -> Iterator[Page]:
    """The page on a telephone."""
    size: Any = {"width": 390, "height": 844}
    context = chromium.new_context(viewport=size)
    opened = context.new_page()
    opened.on("console", lambda one: wrong.append(one.text))
    opened.on("pageerror", lambda one: wrong.append(str(one)))
    opened.on(
        "request",
        lambda one: None if one.url.startswith(("data:", "file:")) else wrong.append(one.url),
    )
    opened.goto(report.as_uri())
    yield opened
    context.close()


def test_it_fits_it_sounds_and_has_no_barriers(page: Page, wrong: list[str]) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        cut = page.evaluate(
            "[...document.querySelectorAll('body *')]"
            ".filter((one) => !one.closest('.table,.picture'))"
            ".filter((one) => one.getBoundingClientRect().right > innerWidth + 1)"
            ".map((one) => one.outerHTML)"
        )
        assert not cut
    page.wait_for_function(
        "[...document.querySelectorAll('audio')].every((one) => one.duration > 4.5)"
    )
    assert page.locator("audio").count() == 2
    assert page.evaluate("[...document.images].every((one) => one.naturalWidth > 300)")
    sizes = page.evaluate(
        "[...document.querySelectorAll('.picture svg')].map((one) => one.clientWidth)"
    )
    assert min(sizes) > 300
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = axe.run(page).response["violations"]
        assert not [(one["id"], [node["target"] for node in one["nodes"]]) for one in found]
    page.locator("#table-heard thead button").first.dblclick()
    assert page.locator("#table-heard tbody td").first.inner_text() == "European Nightjar"
    page.emulate_media(media="print")
    assert not page.locator("audio").first.is_visible()
    paper = page.evaluate("getComputedStyle(document.querySelector('header')).backgroundColor")
    assert paper == "rgb(254, 253, 251)"
    assert not wrong
