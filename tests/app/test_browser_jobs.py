"""The tabs Long recording, Folder and Experiments in a browser."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import pytest
import soundfile
from filelock import FileLock
from web_app import RunningApp, go_to

from NatureLM.formats import FORMATS
from NatureLM.inference.windows import AskOptions, WindowResult
from NatureLM.results.rows import WindowRow, to_line

pytestmark = pytest.mark.browser
Opener = Callable[..., Any]
Sounds = dict[str, Path]
QUERY = "What is the common name for the focal species in the audio?"


def begin(page: Any, tab: str, *files: Path) -> None:
    """Give a tab files and start its job."""
    page.set_input_files(f"#{tab}-drop input[type=file]", list(files))
    page.wait_for_selector(f"#{tab}-drop .file-preview")
    page.click(f"#{tab}-start")


def begin_job(page: Any, tab: str, *files: Path) -> None:
    """Begin a job and wait until it is shown in place of the one before it."""
    shown = "tab => document.querySelector(`#${tab}-status [data-job]`)?.dataset.job"
    before = page.evaluate(shown, tab)
    begin(page, tab, *files)
    page.wait_for_function(
        f"([tab, before]) => ![undefined, before ?? undefined].includes(({shown})(tab))",
        arg=[tab, before],
    )


def wait_until(page: Any, tab: str, state: str) -> None:
    page.wait_for_selector(f"#{tab}-status [data-state={state}]", timeout=60_000)


def download(page: Any, button: str) -> str:
    """What a button gives, as text."""
    with page.expect_download() as got:
        page.click(button)
    return Path(got.value.path()).read_text(encoding="utf-8-sig")


def infer(folder: Path, *files: Path, options: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The rows of `naturelm infer` about the same files."""
    output = folder / "infer.jsonl"
    asked = ("--query", QUERY, "--output-path", output, *options, "--device", "cpu")
    result = commands.naturelm("infer", *files, *asked)
    assert result.exit_code in (0, 3), result.output
    return commands.rows(output)


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what depends on where and when a file was copied, and on rounding."""
    apart = ("audio_path", "audio_modified", "error", "confidence")
    named = [{**row, "name": Path(row["audio_path"]).name} for row in rows]
    return [{key: value for key, value in row.items() if key not in apart} for row in named]


def windows_of(page: Any, tab: str) -> list[dict[str, str]]:
    """The windows of the timeline as the page has them."""
    found: list[dict[str, str]] = page.evaluate(
        "tab => [...document.querySelectorAll(`#${tab}-timeline .tl-window`)]"
        ".map(one => ({...one.dataset}))",
        tab,
    )
    return found


def test_long_recording_is_seen_heard_and_taken_away(
    real_app: RunningApp, use_page: Opener, assets: Path, tmp_path: Path
) -> None:
    heath = assets / "synthetic_heath_at_dusk.ogg"
    page = use_page(real_app, "Long recording")
    begin_job(page, "long", heath)
    wait_until(page, "long", "done")
    expected = infer(tmp_path, heath)

    shown = windows_of(page, "long")
    assert [(float(one["start"]), float(one["end"]), one["text"]) for one in shown] == [
        (row["start"], row["end"], row["text"]) for row in expected
    ]
    assert [float(one["confidence"]) for one in shown] == pytest.approx(
        [row["confidence"] for row in expected], abs=1e-4
    )
    page.wait_for_function("document.querySelector('#long-timeline .tl-image').naturalWidth > 300")

    page.locator("#long-timeline .tl-lane").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('#long-timeline audio')?.duration > 9.9")
    assert page.locator("#long-timeline [aria-selected=true]").get_attribute("data-index") == "1"
    assert expected[1]["text"] in page.locator("#long-timeline .tl-answer").inner_text()
    page.get_by_role("button", name="Zoom in", exact=True).click()
    picture = page.locator("#long-timeline .tl-picture")
    spans = float(picture.get_attribute("data-to")) - float(picture.get_attribute("data-from"))
    assert spans == pytest.approx(soundfile.info(heath).duration / 2, abs=0.01)

    jsonl = [json.loads(line) for line in download(page, "#long-jsonl").splitlines()]
    assert plain(jsonl) == plain(expected)
    table = list(csv.DictReader(io.StringIO(download(page, "#long-csv"), newline="")))
    assert [(float(row["start"]), row["text"]) for row in table] == [
        (row["start"], row["text"]) for row in expected
    ]
    raven = download(page, "#long-raven").splitlines()
    cells = [line.split("\t") for line in raven]
    assert [(float(row[3]), float(row[4]), row[-1]) for row in cells[1:]] == [
        (row["start"], row["end"], row["text"]) for row in expected if row["text"] != "None"
    ]
    assert {(row[7], row[9]) for row in cells[1:]} == {(heath.name, heath.name)}


def test_a_list_of_names_gives_confidences_to_colour_by(
    real_app: RunningApp, use_page: Opener, assets: Path, tmp_path: Path
) -> None:
    heath = assets / "synthetic_heath_at_dusk.ogg"
    names = "Barn Owl, European Nightjar, Dog"
    page = use_page(real_app, "Long recording")
    page.get_by_text("Choose from a list of names").click()
    page.fill("#long-names textarea", names)
    begin_job(page, "long", heath)
    wait_until(page, "long", "done")
    expected = infer(tmp_path, heath, options=("--species-list", names))
    shown = windows_of(page, "long")
    assert [one["text"] for one in shown] == [row["text"] for row in expected]
    assert [float(one["confidence"]) for one in shown] == pytest.approx(
        [row["confidence"] for row in expected], abs=1e-4
    )
    page.get_by_label("by confidence").check()
    page.wait_for_selector("#long-timeline .tl-legend >> text=80 to 100 %")
    for one in windows_of(page, "long"):
        step = min(4, int(float(one["confidence"]) * 5))
        assert one["style"] == f"step-{step}"
    page.fill("#long-names textarea", "")


def test_folder_names_what_cannot_be_read_and_goes_on(
    real_app: RunningApp,
    use_page: Opener,
    sounds: Sounds,
    assets: Path,
    tmp_path: Path,
) -> None:
    owl = assets / "synthetic_barn_owl.flac"
    files = [owl, *(sounds[name] for name in ("text", "empty", "corrupt", "tiny", "stereo"))]
    page = use_page(real_app, "Folder", viewport={"width": 390, "height": 844})
    begin_job(page, "folder", *files)
    wait_until(page, "folder", "done")
    lines = page.locator("#folder-files tbody tr")
    states = [one.get_attribute("data-state") for one in lines.all()]
    assert states == ["done", "error", "error", "error", "error", "done"]
    reasons = lines.nth(1).inner_text()
    assert reasons.startswith("notes.txt")
    assert "not an audio file" in reasons
    jsonl = [json.loads(line) for line in download(page, "#folder-jsonl").splitlines()]
    assert plain(jsonl) == plain(infer(tmp_path, *files))
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0
    page.fill("#folder-filter input, #folder-filter textarea", "owl")
    page.wait_for_selector("#folder-count >> text=1 of 2 answers")


def test_a_folder_is_asked_a_questionnaire_and_taken_away_in_any_format(
    real_app: RunningApp, use_page: Opener, assets: Path
) -> None:
    page = use_page(real_app, "Folder", viewport={"width": 390, "height": 844})
    page.locator("#folder-questionnaire input").click()
    page.get_by_role("option", name="Frog chorus").click()
    page.wait_for_selector("#folder-columns li")
    assert not page.locator("#folder-question").is_visible()
    files = [assets / f"synthetic_{name}.flac" for name in ("american_toad", "cat")]
    begin_job(page, "folder", *files)
    wait_until(page, "folder", "done")
    header = download(page, "#folder-csv").splitlines()[0]
    assert "_confidence" in header
    offered = []
    page.locator("#folder-format input").click()
    for option in page.get_by_role("option").all():
        offered.append((option.text_content() or "").partition(":")[0].strip(" ✓\n"))
    assert {*filter(None, offered), "csv", "raven", "jsonl"} == set(FORMATS)
    page.get_by_role("option", name="birdnet").click()
    page.wait_for_selector("#folder-other:not([disabled])")
    assert "Scientific name" in download(page, "#folder-other").splitlines()[0]
    page.locator("#folder-questionnaire input").click()
    page.get_by_role("option", name="questions of your own").click()
    page.wait_for_selector("#folder-question")
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0


class Slowly:
    """Answers one window at a time, each only when it is let."""

    def __init__(self, fake: Any) -> None:
        import threading

        self.steps = threading.Semaphore(0)
        self.model, self._fake = fake.model, fake

    def __call__(self, audios: list[Path], queries: list[list[str]], **options: Any) -> Any:
        for path, asked in zip(audios, queries, strict=True):
            for number in range(3):
                start = 10.0 * number
                for query in asked:
                    if options["skip"](_Key(str(path), start, query)):
                        continue
                    assert self.steps.acquire(timeout=600)
                    text = f"<b>{number}</b> {{{{evil}}}} ${{1+1}}"
                    yield WindowResult(
                        *(str(path), start, start + 10, query, text, 1.0, 0.5),
                        prompt=query,
                        window_index=number,
                    )


class _Key:
    def __init__(self, audio_path: str, start: float, query: str) -> None:
        self.audio_path, self.start, self.query = audio_path, start, query


@pytest.fixture
def slowly(fake_app: RunningApp, monkeypatch: pytest.MonkeyPatch) -> Slowly:
    """The app whose jobs wait for the test at every window."""
    from NatureLM.app import job

    answers = Slowly(fake_app.pipeline)
    monkeypatch.setattr(
        fake_app.pipeline,
        "unanswered",
        lambda recordings, asked, store, **_: answers(
            recordings,
            [list(asked.queries)] * len(recordings),
            skip=lambda key: store.is_done(key.audio_path, key.start, key.query),
        ),
        raising=False,
    )
    monkeypatch.setattr(job, "run_values", lambda *_: {"model": "fake"})
    return answers


def test_job_is_stopped_reloaded_gone_on_with_and_removed(
    fake_app: RunningApp, use_page: Opener, slowly: Slowly, sounds: Sounds
) -> None:
    page = use_page(fake_app, "Long recording")
    begin(page, "long", sounds["long"])
    slowly.steps.release()
    page.wait_for_selector("#long-status [data-state=working][data-answers='1']")
    page.wait_for_url("**/?job=*")
    job_id = page.url.partition("?job=")[2]
    folder = fake_app.context.jobs.folder / job_id  # others may have left jobs of theirs beside it
    assert folder.is_dir()

    page.reload()
    page.wait_for_selector("#long-status [data-state=working][data-answers='1']")
    assert len(windows_of(page, "long")) == 1
    page.click("#long-stop")
    page.wait_for_selector("text=Stops after the answer")
    slowly.steps.release()
    wait_until(page, "long", "stopped")
    assert page.locator("#long-status >> text=Stopped at 2 of 3 answers").count() == 1

    page.click("#long-go-on")
    slowly.steps.release()
    wait_until(page, "long", "done")
    shown = windows_of(page, "long")
    assert [one["text"] for one in shown] == [f"<b>{n}</b> {{{{evil}}}} ${{1+1}}" for n in range(3)]
    assert page.locator("#long-panel b").count() == 0

    page.goto(fake_app.address)
    page.wait_for_selector("#ask-question textarea")
    go_to(page, "Long recording")
    page.click("#long-earlier input")
    page.get_by_role("option", name="long.wav").click()
    wait_until(page, "long", "done")
    assert "?job=" in page.url

    page.click("#long-remove")
    page.click("#long-remove-sure")
    page.wait_for_selector("#long-problem >> text=The job is removed")
    assert "?job=" not in page.url
    assert not folder.exists()
    kept = page.evaluate("Object.keys(localStorage).filter(key => key.includes('history'))")
    assert kept == []


def test_a_link_to_a_job_that_is_gone_says_so(
    fake_app: RunningApp, open_page: Opener, sounds: Sounds
) -> None:
    jobs = fake_app.context.jobs
    job = jobs.create("folder", [(sounds["long"], "long.wav")], AskOptions((QUERY,)))
    jobs.remove(job.id)
    page = open_page(fake_app, None, link=f"?job={job.id}")
    page.wait_for_selector("#long-problem >> text=cannot be opened")


def test_bad_recordings_are_told_in_a_sentence(
    fake_app: RunningApp, use_page: Opener, sounds: Sounds
) -> None:
    page = use_page(fake_app, "Long recording")
    page.click("#long-start")
    page.wait_for_selector("#long-problem >> text=There is no recording yet")
    for name, words in (("text", "not an audio file"), ("empty", "empty")):
        begin(page, "long", sounds[name])
        page.wait_for_selector(f"#long-problem >> text={words}")
        page.locator("#long-drop").get_by_label("Clear").click()
    page.fill("#long-question textarea", "  ")
    begin(page, "long", sounds["tone"])
    page.wait_for_selector("#long-problem >> text=There is no question yet")
    page.locator("#long-drop").get_by_label("Clear").click()
    page.fill("#long-question textarea", QUERY)


def test_what_the_page_asks_about_other_folders_is_not_answered(fake_app: RunningApp) -> None:
    from NatureLM.app.timeline import JobSound

    for ask in JobSound(fake_app.context.jobs, lambda: 16_000).server_functions():
        for job in ("../../etc", "", None, "x" * 32, 7):
            found = ask({"job": job, "recording": "../job.json", "start": 0, "end": 1})
            assert list(found) == ["error"]
        for wanted in (None, [], "x", {}, {"job": {}}):
            assert list(ask(wanted)) == ["error"]


def test_experiment_is_opened_filtered_and_heard(
    fake_app: RunningApp, use_page: Opener, sounds: Sounds
) -> None:
    pytest.importorskip("rapidfuzz")
    pytest.importorskip("matplotlib")
    folder = fake_app.context.runs_dir / "mini"
    (folder / "run").mkdir(parents=True)
    (folder / "data").mkdir()
    labels = ("Barn Owl", "Mallard")
    rows = [
        {
            "prediction": labels[(number + (number >= 9 + 3 * alpha)) % 2] + "<b>",
            "label": labels[number % 2],
            "id": f"s{number}",
            "dataset_name": "ponds",
            "task": "classification",
            "query": 0,
            "lora_scale": alpha,
            "prompt": "?",
        }
        for alpha in (0.0, 1.0)
        for number in range(12)
    ]
    (folder / "run" / "answers.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "data" / "metadata.jsonl").write_text('{"id": "s0", "file_name": "s0.wav"}\n')
    (folder / "data" / "s0.wav").write_bytes(sounds["tone"].read_bytes())

    page = use_page(fake_app, "Experiments")
    page.click("#experiments-refresh")
    page.click("#experiments-run input")
    page.get_by_role("option", name="mini/run").click()
    page.wait_for_selector("#experiments-charts figure svg", timeout=60_000)
    curves = [
        json.loads(one.get_attribute("data-curves"))
        for one in page.locator("#experiments-charts figure").all()
        if "accuracy" in one.get_attribute("data-chart")
    ]
    assert [point["value"] for point in curves[0][0]["points"]] == [0.75, 1.0]
    answers = page.locator("#experiments-answers")
    answers.get_by_text("s0", exact=True).locator("visible=true").first.click()
    page.wait_for_selector("#experiments-audio audio", state="attached")
    page.get_by_label("Only wrong ones").check()
    answers.get_by_text("Mallard<b>", exact=True).first.wait_for()
    assert answers.locator("b").count() == 0
    answers.get_by_text("s0", exact=True).first.wait_for(state="detached")  # the filter is on
    answers.get_by_text("s10", exact=True).locator("visible=true").first.click()
    page.wait_for_selector("#experiments-heard >> text=There is no recording of s10")
    go_to(page, "Ask")


@pytest.mark.slow
def test_answers_are_announced_before_the_start(
    fake_app: RunningApp, open_page: Opener, sounds: Sounds
) -> None:
    page = open_page(fake_app, "Long recording")
    page.set_input_files("#long-drop input[type=file]", [sounds["long"]])
    page.wait_for_selector("#long-makes >> text=About 3 answers: 3 windows.")
    page.fill("#long-question textarea", "one\ntwo")
    page.wait_for_selector("text=About 6 answers: 3 windows, 2 questions about each.")
    page.get_by_text("Windows, channel, bats").click()
    page.fill("#long-expansion input", "100")
    page.fill("#long-hop input", "0.1")
    page.keyboard.press("Tab")
    # 2,500 s are heard: 24,901 windows fit whole.
    page.wait_for_selector("text=About 49,802 answers: 24,901 windows, 2 questions about each.")
    page.fill("#long-question textarea", "\n".join("abcdefghij"))
    page.wait_for_selector("#long-makes >> text=This makes 249,010 answers (24,901 windows × 10")
    page.click("#long-start")
    page.wait_for_selector("#long-problem >> text=and a job may have 200,000")


@pytest.mark.slow
def test_a_long_list_is_turned_page_by_page(
    fake_app: RunningApp, open_page: Opener, sounds: Sounds
) -> None:
    jobs = fake_app.context.jobs
    job = jobs.create("long", [(sounds["long"], "long.wav")], AskOptions((QUERY,)))
    path, birds = str(job.recording_paths[0]), ("owl", "crow", "wren", "jay", "kite")
    with job.answers_path.open("wb") as file:
        for n in range(2005):
            answer = (path, n / 100, n / 100 + 1, QUERY, f"{birds[n % 5]} {n}", 1.0)
            file.write(to_line(WindowRow(*answer, model="m", run="r")))
    page = open_page(fake_app, None, link=f"?job={job.id}")
    page.wait_for_selector(
        "#long-count >> text=2,005 of 2,005 answers. The table shows 1 to 1,000."
    )
    assert page.is_disabled("#long-earlier-rows")
    page.click("#long-later-rows")
    page.wait_for_selector("text=The table shows 1,001 to 2,000.")
    page.click("#long-later-rows")
    page.wait_for_selector("text=The table shows 2,001 to 2,005.")
    page.locator("#long-table >> text=kite 2004").first.wait_for()
    assert page.is_disabled("#long-later-rows")
    page.fill("#long-filter input, #long-filter textarea", "jay")  # over all, from the first on
    page.wait_for_selector("#long-count >> text=401 of 2,005 answers.")
    page.locator("#long-table >> text=jay 3").first.wait_for()
    assert not page.is_visible("#long-later-rows")
    assert len(windows_of(page, "long")) == 2005


def test_a_job_of_another_app_is_shown_and_offers_nothing(
    fake_app: RunningApp, open_page: Opener, sounds: Sounds
) -> None:
    jobs = fake_app.context.jobs
    job = jobs.create("long", [(sounds["long"], "long.wav")], AskOptions((QUERY,)))
    job.with_state("working").write()
    lock = FileLock(job.folder / "job.lock")
    with lock:
        page = open_page(fake_app, None, link=f"?job={job.id}")
        wait_until(page, "long", "working")
        page.wait_for_selector("text=Another app that uses the same folder of runs has it: 0 of 3")
        for button in ("stop", "go-on", "remove"):
            assert not page.is_visible(f"#long-{button}")
    wait_until(page, "long", "stopped")
    page.wait_for_selector("#long-go-on")
    with lock:
        page.click("#long-go-on")
        page.wait_for_selector("#long-problem >> text=it goes on there, and this page shows how")
    jobs.remove(job.id)
