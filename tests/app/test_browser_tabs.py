"""The tabs that answer at once in a browser, and what holds for the whole page."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from web_app import ASSETS, RunningApp, ask, go_to, last_answer, messages, put, running, until

from NatureLM.app.page import TABS

pytestmark = pytest.mark.browser
Opener = Callable[..., Any]
Sounds = dict[str, Path]
NIGHTJAR = ASSETS / "synthetic_european_nightjar.flac"
NAME = "What is the common name for the focal species in the audio?"


def test_a_sample_is_seen_heard_and_answered(real_app: RunningApp, use_page: Opener) -> None:
    page = use_page(real_app)
    page.get_by_label("or pick a sample").click()
    page.get_by_role("option", name="Barn owl").click()
    figure = page.locator("#ask-clips figure.clip")
    figure.wait_for()
    assert float(figure.get_attribute("data-seconds")) == pytest.approx(5.2, abs=1e-3)
    image = figure.locator("img")
    page.wait_for_function("document.querySelector('.clip img').naturalWidth > 400")
    assert "0 to 8 kHz" in image.get_attribute("alt")
    page.wait_for_function("document.querySelector('.clip audio').duration > 5.1")

    said = ask(page, NAME)
    sample = real_app.context.assets_dir / "synthetic_barn_owl.flac"
    expected = "".join(real_app.pipeline.stream([sample], NAME, alpha=1.0))
    assert said == expected.strip()

    page.get_by_text("Compare α").click()
    page.click("#ask-compare-send")
    page.wait_for_selector("#ask-compared li")
    shown = page.locator("#ask-compared li .answer").all_inner_texts()
    alphas = [0.0, 0.25, 0.5, 0.75, 1.0]
    made = real_app.pipeline.compare_alphas([sample], NAME, alphas, num_beams=1)
    assert shown == [text.strip() for text in made]
    assert shown[-1] == said


def test_markup_is_shown_as_text(page: Any, sounds: Sounds, tmp_path: Path) -> None:
    """In questions, answers, names of files and comparisons."""
    odd = tmp_path / "<b>&amp; **b**.wav"
    odd.write_bytes(sounds["tone"].read_bytes())
    put(page, "ask", odd)
    assert page.locator("#ask-clips .name").inner_text().endswith("&amp; b.wav")
    question = "<script>hurt()</script> <b>bold</b> **strong** $x^2$ [link](javascript:hurt())"
    said = ask(page, question)
    assert said == f"You asked: {question} (1 clips: 3 s)"
    for selector in ("script", "b", "strong", "a", "img", "math"):
        assert page.locator(f"#ask-chat .message {selector}").count() == 0, selector
    page.get_by_text("Compare α").click()
    page.fill("#ask-question textarea", question)
    page.click("#ask-compare-send")
    page.wait_for_selector("#ask-compared li")
    assert page.locator("#ask-compared li .answer").count() == 5
    assert page.locator("#ask-compared :is(script, b, strong, a, img)").count() == 0
    page.fill("#ask-question textarea", "")


@pytest.mark.slow
def test_bad_files_get_a_sentence_and_the_page_lives_on(page: Any, sounds: Sounds) -> None:
    put(page, "ask", *(sounds[name] for name in ("empty", "text", "corrupt", "tiny")))
    told = page.locator("#ask-notice").inner_text()
    for name in ("empty.wav", "notes.txt", "corrupt.flac", "tiny.wav"):
        assert f"{name}: " in told
    assert "Traceback" not in told
    assert "/" not in told.replace("wav or flac", "").replace(" / ", ""), "no path of the server"
    put(page, "ask", sounds["tone"])
    assert page.locator("#ask-notice .notice").count() == 0
    assert ask(page, "Well?") == "You asked: Well? (1 clips: 3 s)"


def test_an_hour_is_offered_to_long_recording(page: Any, sounds: Sounds) -> None:
    put(page, "ask", sounds["hour"])
    told = page.locator("#ask-notice").inner_text()
    assert "hour.flac lasts 1 h" in told
    assert "5 min" in told
    page.click("#ask-to-long")
    tab = page.get_by_role("tab", name="Long recording")
    page.wait_for_function("e => e.ariaSelected === 'true'", arg=tab.element_handle())


@pytest.mark.slow
def test_a_question_without_sound_or_words_says_what_is_missing(
    open_page: Opener, fake_app: RunningApp, sounds: Sounds
) -> None:
    page = open_page(fake_app)
    page.click("#ask-send")
    problem = page.locator("#ask-problem .notice")
    assert "There is no sound yet" in problem.inner_text()
    put(page, "ask", sounds["tone"])
    page.click("#ask-send")
    page.get_by_text("The question is empty").wait_for()
    page.fill("#ask-question textarea", "Is [1] like [4]?")
    page.click("#ask-send")
    page.get_by_text("There is one clip, [1], and the question names [4].").wait_for()


def test_two_visitors_keep_their_own_until_they_leave(
    page: Any, fake_app: RunningApp, open_page: Opener, sounds: Sounds
) -> None:
    one, other = page, open_page(fake_app)
    put(one, "ask", sounds["tone"])
    put(other, "ask", sounds["short"])
    other.fill("#ask-alpha input[type=number]", "0.5")
    assert ask(one, "One?").endswith("(1 clips: 3 s)")
    assert ask(other, "Other?").endswith("(1 clips: 0.1 s)")
    assert [talk.alpha for talk in fake_app.pipeline.conversations[-2:]] == [1.0, 0.5]
    assert ask(one, "And now?") == "You asked: And now? (0 clips: )"
    assert "Other?" not in one.locator("#ask-chat").inner_text()
    assert other.locator("#ask-clips .name").inner_text() == "short.wav"

    visitors = fake_app.context.visitors
    stays, goes = (clip_folder(fake_app, visitor) for visitor in (one, other))
    assert goes.is_dir()
    visitors._grace = 0.1
    try:
        other.close()
        until(lambda: visitors.tidy() or not goes.exists())
    finally:
        visitors._grace = 60.0
    assert stays.is_dir()


def clip_folder(app: RunningApp, page: Any) -> Path:
    """Where the one clip of the tab Ask is kept."""
    (image,) = page.locator("#ask-clips .clip img").all()
    return Path(app.context.folder / image.get_attribute("src").split("file=", 1)[1]).parent


def test_an_answer_can_be_stopped(page: Any, fake_app: RunningApp, sounds: Sounds) -> None:
    put(page, "ask", sounds["tone"])
    fake_app.pipeline.gate.clear()
    try:
        page.fill("#ask-question textarea", "Why?")
        page.click("#ask-send")
        page.click("#ask-stop")
        page.wait_for_function("document.querySelector('#ask-stop').innerText == 'Stopping …'")
        assert page.is_disabled("#ask-stop")
        assert not page.is_visible("#ask-send"), "a click on it would be lost"
        assert (
            page.locator("#ask-chat [data-testid=bot]")
            .last.inner_text()
            .startswith("(Stopped before")
        )
    finally:
        fake_app.pipeline.gate.set()
    page.wait_for_selector("#ask-send")
    assert messages(page) == 2
    assert ask(page, "How?").startswith("You asked: How? (")
    # Whether the model had taken the clip in when it was stopped: it is given to it once.
    turns = fake_app.pipeline.conversations[-1].turns
    assert sum(len(turn.clips) for turn in turns) == 1


@pytest.mark.slow
def test_another_window_is_asked_about(page: Any, sounds: Sounds) -> None:
    put(page, "ask", sounds["long"])
    windows = page.locator(".windows button")
    assert windows.all_inner_texts() == ["0–10 s", "10–20 s", "20–25 s"]
    windows.nth(2).click()
    assert windows.nth(2).get_attribute("aria-pressed") == "true"
    box = page.locator(".spectrogram .here")
    assert box.evaluate("e => [e.style.left, e.style.width]") == ["80%", "20%"]
    page.wait_for_timeout(500)
    assert ask(page, "What?").endswith("(1 clips: 5 s)")


@pytest.mark.slow
def test_the_playhead_follows_the_sound(page: Any, sounds: Sounds) -> None:
    put(page, "ask", sounds["long"])
    page.wait_for_function("document.querySelector('.clip audio').duration > 24")
    box = page.locator(".spectrogram").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 20)
    page.wait_for_function(
        "Math.abs(parseFloat(document.querySelector('.playhead').style.left) - 50) < 1"
    )
    assert page.locator("audio").evaluate("e => e.currentTime") == pytest.approx(12.5, abs=0.1)
    page.locator("audio").evaluate("e => e.play()")
    page.wait_for_function("parseFloat(document.querySelector('.playhead').style.left) > 51")


@pytest.mark.slow
def test_chips_ask_at_once(page: Any, sounds: Sounds) -> None:
    put(page, "ask", sounds["tone"])
    page.locator("#ask-chips button").first.click()
    assert last_answer(page, 0).startswith(f"You asked: {NAME}")


def ranking(section: Any) -> dict[str, float]:
    """Names and shares as the page holds them."""
    rows = section.locator("li").all()
    return {
        str(row.get_attribute("data-label")): float(row.get_attribute("data-share")) for row in rows
    }


def test_a_clip_is_named_from_a_list(real_app: RunningApp, use_page: Opener) -> None:
    page = use_page(real_app, "Identify")
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
    fake_app: RunningApp, use_page: Opener, sounds: Sounds, tmp_path: Path
) -> None:
    names = tmp_path / "names.csv"
    names.write_text("common_name,scientific_name\nRook,Corvus frugilegus\nDog,Canis familiaris\n")
    page = use_page(fake_app, "Identify")
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


def test_examples_teach(fake_app: RunningApp, use_page: Opener) -> None:
    page = use_page(fake_app, "Teach by example")
    for number, (label, name) in enumerate((("Owl", "barn_owl"), ("Dog", "dog")), start=1):
        page.fill("#teach-label :is(input, textarea)", label)
        (path,) = ASSETS.glob(f"synthetic_{name}.*")
        put(page, "examples", path)
        page.wait_for_function(
            "count => document.querySelectorAll('#examples-clips figure').length === count",
            arg=number,
        )
        if number == 1:
            page.click("#teach-send")
            page.get_by_text("There are 1 examples, and 2 are the fewest").wait_for()
    put(page, "new", ASSETS / "synthetic_cow.flac")
    page.click("#teach-send")
    page.wait_for_selector("#teach-found .prompt")
    assert (
        page.locator("#teach-found .best")
        .first.inner_text()
        .endswith("(3 clips: 5.2 s, 3.2 s, 5 s)")
    )
    heard = page.locator("#teach-found .prompt .sound").all_inner_texts()
    assert heard == [f"♪ synthetic_{n}" for n in ("barn_owl.flac", "dog.WAV", "cow.flac")]
    assert "Label: Owl" in page.locator("#teach-found .prompt").inner_text()
    shares = page.locator("#teach-found .taught .ranking li").evaluate_all(
        "all => all.map(one => [one.dataset.label, Number(one.dataset.share)])"
    )
    assert sorted(label for label, _ in shares) == ["Dog", "None", "Owl"]
    assert sum(share for _, share in shares) == pytest.approx(1, abs=1e-3)
    nearest = page.locator("#teach-found .nearest li")
    assert sorted(nearest.locator(".tag").all_inner_texts()) == ["Dog", "Owl"]
    assert nearest.first.locator("audio").evaluate("one => fetch(one.src).then(got => got.ok)")
    page.set_input_files("#teach-drop input", [ASSETS / "synthetic_cow.flac"])
    page.get_by_text("synthetic_cow").last.wait_for()
    page.wait_for_timeout(300)
    page.click("#teach-start")
    page.click("#teach-begun a")
    page.wait_for_url("**/?job=*")
    page.locator("#folder-status").get_by_text("Done").wait_for()
    assert page.locator("#folder-table tbody tr").count() == 1


def violations(page: Any) -> list[str]:
    """What axe finds serious or critical, in words."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']} {[node['target'] for node in one['nodes']][:4]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("light", 390),
        pytest.param("light", 1280, marks=pytest.mark.slow),
        pytest.param("dark", 800, marks=pytest.mark.slow),
    ],
)
def test_no_serious_barrier_and_nothing_sideways(
    scheme: str,
    width: int,
    fake_app: RunningApp,
    open_page: Opener,
    sounds: Sounds,
) -> None:
    size = {"width": width, "height": 800}
    page = open_page(fake_app, color_scheme=scheme, viewport=size)
    put(page, "ask", sounds["long"])
    found = {}
    for tab, _ in TABS.values():
        go_to(page, tab)
        page.wait_for_timeout(300)
        found[tab] = violations(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
    assert {tab: wrong for tab, wrong in found.items() if wrong} == {}


def test_the_keyboard_is_enough(page: Any, sounds: Sounds) -> None:
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
    open_page: Opener, tmp_path: Path, sounds: Sounds, fake_app: RunningApp
) -> None:
    go = threading.Event()

    def load() -> Any:
        go.wait(600)
        return fake_app.pipeline

    with running(tmp_path, load=load) as app:
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
