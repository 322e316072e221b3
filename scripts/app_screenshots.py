"""Draw the web app into docs/images/app-*.png: every tab, light, dark and on a telephone; and the
review page into docs/images/review-*.png.

    python scripts/app_screenshots.py

needs Chromium and the extras `app` and `test`. Pictures have few colours, so that they stay small.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "assets"
IMAGES = ROOT / "docs" / "images"
NAME = "What is the common name for the focal species in the audio?"
LOOKS = {"light": (1280, "light"), "dark": (1280, "dark"), "phone": (390, "light")}
MOST_HEIGHT = 1700
MOST_BYTES = 200_000


def main() -> None:
    """Start the app with the embedded model and draw every tab in every look."""
    from playwright.sync_api import sync_playwright

    sys.path.insert(0, str(ROOT / "tests"))
    from web_app import go_to, running

    from NatureLM.inference.pipeline import Pipeline
    from NatureLM.models.registry import EMBEDDED

    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with (
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), Pipeline(EMBEDDED)) as app,
        sync_playwright() as tool,
    ):
        fill_runs(app.context.runs_dir)
        browser = tool.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for look, (width, scheme) in LOOKS.items():
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.set_default_timeout(120_000)
            page.goto(app.address)
            page.wait_for_selector("#ask-question textarea")
            for tab, (label, prepare) in TABS.items():
                go_to(page, label)
                prepare(page)
                page.mouse.move(0, 0)
                page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
                page.wait_for_timeout(500)
                save(page, IMAGES / f"app-{tab}-{look}.png")
                if tab == "review":
                    draw_review(page, look)
            page.close()


def ask(page: Any) -> None:
    """A clip of three windows, two questions and the comparison of α."""
    from web_app import ask as put_question
    from web_app import put

    put(page, "ask", ASSETS / "synthetic_heath_at_dusk.ogg")
    page.locator("#ask-clips [data-action=choose]").nth(1).click()
    page.wait_for_timeout(500)
    put_question(page, NAME)
    put_question(page, "Is it a bird, a frog or a mammal?")
    page.fill("#ask-question textarea", NAME)
    page.get_by_text("Compare α").click()
    page.click("#ask-compare-send")
    page.wait_for_selector("#ask-compared li")


def identify(page: Any) -> None:
    """The same clip against the names that the embedded model knows."""
    from web_app import put

    put(page, "identify", ASSETS / "synthetic_heath_at_dusk.ogg")
    page.click("#identify-send")
    page.wait_for_selector("#identify-found .per-window")


def teach(page: Any) -> None:
    """Two examples and a new clip."""
    from web_app import put

    for number, (label, name) in enumerate(
        (("Barn Owl", "barn_owl"), ("Common Cuckoo", "common_cuckoo")), start=1
    ):
        page.fill("#teach-label :is(input, textarea)", label)
        put(page, "examples", ASSETS / f"synthetic_{name}.flac")
        page.wait_for_function(
            "count => document.querySelectorAll('#examples-clips figure').length === count",
            arg=number,
        )
    put(page, "new", ASSETS / "synthetic_cuckoo_over_rain.ogg")
    page.click("#teach-send")
    page.wait_for_selector("#teach-found .prompt")


def job(tab: str, *names: str) -> Callable[[Any], None]:
    """Starts a job in a tab and waits for its end."""

    def prepare(page: Any) -> None:
        page.set_input_files(f"#{tab}-drop input[type=file]", [ASSETS / name for name in names])
        page.wait_for_selector(f"#{tab}-drop .file-preview")
        page.click(f"#{tab}-start")
        page.wait_for_selector(f"#{tab}-status [data-state=done]")
        page.wait_for_timeout(1500)

    return prepare


def long(page: Any) -> None:
    """A finished job, one of its windows chosen."""
    job("long", "synthetic_heath_at_dusk.ogg")(page)
    page.locator("#long-timeline .tl-window").nth(1).click()
    page.wait_for_selector("#long-timeline audio")
    page.wait_for_timeout(500)


def review(page: Any) -> None:
    """The clips of the job of the tab Folder."""
    from web_app import go_to

    go_to(page, "Folder")
    page.click("#folder-make-clips")
    page.wait_for_selector("#folder-clips-made a")
    go_to(page, "Review")
    page.wait_for_selector("#review-list a")


def draw_review(page: Any, look: str) -> None:
    """The page that the tab Review leads to, at its first clip."""
    with page.context.expect_page() as opened:
        page.click("#review-list a")
    clip = opened.value
    clip.fill("#reviewer", "Ann")
    clip.keyboard.press("Enter")
    clip.wait_for_selector("#figure:not(.waits)")
    clip.wait_for_timeout(500)
    save(clip, IMAGES / f"review-{look}.png")
    clip.close()


def experiments(page: Any) -> None:
    """The first run, if there is one."""
    page.click("#experiments-run input")
    page.wait_for_timeout(500)
    runs = page.get_by_role("option")
    if runs.count():
        runs.first.click()
        page.wait_for_selector("#experiments-charts figure svg")
        page.wait_for_timeout(1000)


def nothing(page: Any) -> None:
    """The tab as it opens."""
    page.wait_for_timeout(500)


def fill_runs(folder: Path) -> None:
    """Put a small experiment there, if one was made before (`runs/`)."""
    for run in sorted((ROOT / "runs").glob("*")) if (ROOT / "runs").is_dir() else []:
        if run.name != "jobs" and any(run.rglob("answers.jsonl")):
            shutil.copytree(run, folder / run.name, dirs_exist_ok=True)


TABS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "ask": ("Ask", ask),
    "identify": ("Identify", identify),
    "teach": ("Teach by example", teach),
    "long": ("Long recording", long),
    "folder": (
        "Folder",
        job("folder", "synthetic_barn_owl.flac", "synthetic_cow.flac", "synthetic_rain.flac"),
    ),
    "review": ("Review", review),
    "experiments": ("Experiments", experiments),
    "about": ("About", nothing),
}


def save(page: Any, path: Path) -> None:
    """Write the page as a picture of 128 colours, in a size that a repository can hold."""
    from PIL import Image

    drawn = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    drawn = drawn.crop((0, 0, drawn.width, min(drawn.height, MOST_HEIGHT)))
    drawn.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}: {drawn.width} × {drawn.height}, {size} bytes")
    if size > MOST_BYTES:
        raise SystemExit(f"{path.name} has {size} bytes, and may have {MOST_BYTES}")


if __name__ == "__main__":
    main()
