"""Reports on recordings say what the rows say, counted by hand, with and without a clock.

Their page is opened in a browser, too: narrow and wide, light and dark, with sound.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import field_answers as made
import numpy as np
import pytest
import soundfile
from answer_files import Page, Undrawn
from commands import call
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.reports import clips as clip_module
from NatureLM.reports import page as page_module
from NatureLM.reports.activity import (
    MOST_COLUMNS,
    BarChart,
    Calendar,
    DayHourChart,
    _blocks,
    draw_activity,
    level,
)
from NatureLM.reports.clips import BINS, contrast, levels_of, picture, picture_of
from NatureLM.reports.field import FieldReport, make_field_report, open_answers
from NatureLM.reports.figures import LIGHT, svg
from NatureLM.reports.page import field_page, write_field_report
from NatureLM.reports.tally import tally
from NatureLM.results.detections import ResultFile

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as BrowserPage

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")
HOSTILE = '=cmd|"</script><script>alert(1)</script><img src=x onerror=alert(2)>'


def report_of(path: Path, **more: Any) -> FieldReport:
    return make_field_report(open_answers(path), **{"clips": 0, **more})


def table(report: FieldReport, key: str) -> list[dict[str, Any]]:
    (found,) = [one for one in report.tables() if one.key == key]
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight nights at two sites."""
    folder = tmp_path_factory.mktemp("month")
    source = made.sound(tmp_path_factory.mktemp("sound"))
    return made.write(folder, made.month(folder, source))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without drawings, which take seconds, where only their words are looked at."""
    monkeypatch.setattr(page_module, "_write_figures", lambda *_, **__: (Undrawn(), []))


def test_numbers_are_those_of_the_rows(month: Path) -> None:
    report = report_of(month)
    owl, nightjar = table(report, "heard")
    # 8 nights × 2 windows at the pond, 6 × 1 at the ridge, of 2 × 3 × (8 + 6) windows.
    assert (owl["name"], owl["windows"], owl["recordings"], owl["sites"]) == (
        "Tawny Owl",
        22,
        14,
        2,
    )
    assert owl["share of windows"] == pytest.approx(22 / 84)
    assert (owl["highest confidence"], owl["days"]) == (0.85, 8)
    assert (nightjar["name"], nightjar["windows"]) == ("European Nightjar", 1)
    by_site = {(one["name"], one["site"]): one for one in table(report, "by-site")}
    assert by_site["Tawny Owl", "Ridge"]["windows"] == 6
    assert by_site["Tawny Owl", "Ridge"]["windows heard"] == 36
    assert by_site["European Nightjar", "Ridge"]["share of windows"] == 0
    cells = table(report, "by-hour-and-day")
    assert len(cells) == 15
    assert {one["hour"] for one in cells if one["name"] == "Tawny Owl"} == {23}
    effort = table(report, "effort")
    assert len(effort) == 42
    assert sum(one["windows heard"] for one in effort) == 84
    assert report.facts["Recordings"] == "42"
    assert report.facts["Heard"] == "14 min 0 s in 84 windows of 10 s"
    assert report.facts["From"] == "1 May 2024, 21:00"
    assert report.facts["To"] == "9 May 2024, 01:00"
    assert report.facts["α"] == "0.9"
    assert "22 of 84 windows (26 %), in 14 of 42 recordings, at 2 of 2 sites, on 8 days" in (
        report.names[0].headline
    )


def test_nothing_recorded_is_not_nothing_heard(month: Path) -> None:
    owl = report_of(month).names[0]
    days, night = owl.charts
    assert isinstance(days, DayHourChart)
    assert isinstance(night, BarChart)
    assert owl.sites is not None
    (all_sites,) = days.panels
    assert (days.calendar.unit, days.calendar.count) == ("day", 9)
    assert all_sites.rates[23][:4] == (0.75, 0.75, 0.75, 1.0)
    assert all_sites.rates[21][0] == 0
    assert all_sites.rates[12][0] is None
    assert [panel.name for panel in owl.sites.panels] == ["Pond", "Ridge"]
    assert owl.sites.panels[1].rates[23][:4] == (0.5, 0.5, 0.5, None)
    assert (night.start, night.rates[0], night.rates[1]) == (0.0, 0.0, None)
    assert night.rates[4] == pytest.approx(22 / 28)
    figure = draw_activity(owl.sites)
    shades = {patch.get_gid() for axes in figure.axes for patch in axes.patches}
    assert {"shade-0-Ridge", "shade-3-Ridge", "shade-5-Pond"} <= shades


def test_gaps_errors_silence_and_rests_are_told(tmp_path: Path) -> None:
    source = made.sound(tmp_path, seconds=24)
    rows = made.month(tmp_path, source)
    rows.append(made.error(str(tmp_path / "Pond" / "broken.wav")))
    silent = made.recording(tmp_path, "Pond/silent.wav", source)
    rows += [made.window(silent, at, "", {}, note="silent") for at in (0.0, 10.0)]
    report = report_of(made.write(tmp_path, rows))
    why = {(one["recording"], one["why"]): one for one in table(report, "not-heard")}
    assert ("Pond/broken.wav", "the file is empty") in why
    assert why["Pond/silent.wav", "silence: all samples are 0"]["windows"] == 2
    rests = [one["seconds"] for key, one in why.items() if "passed over" in key[1]]
    assert rests == [4.0] * 43
    assert report.unheard[0] == (
        "2 min 52 s of 43 recordings: behind the last window: too short, or passed over by the hop"
    )
    assert "1 recording: an error" in report.unheard
    (unknown,) = table(report, "clocks")
    assert unknown["recording"] == "Pond/silent.wav"
    assert any("times of 1 recordings are not known" in one for one in report.remarks)
    gaps = table(report, "gaps")
    assert [(one["site"], one["from"], one["to"], one["hours missing"]) for one in gaps] == [
        ("Ridge", "2024-05-04 21:00", "2024-05-05 21:00", 3)
    ]


def test_without_a_clock_times_are_those_within_recordings(tmp_path: Path) -> None:
    path = made.recording(tmp_path, "a.wav", made.sound(tmp_path))
    rows = [made.window(path, 0.0, "None", {}), made.window(path, 10.0, "Wren", {})]
    report = report_of(made.write(tmp_path, rows))
    (chart,) = report.names[0].charts
    assert isinstance(chart, BarChart)
    assert (chart.rates, chart.x_title) == (
        (0.0, 1.0), "seconds from the beginning of a recording",
    )  # fmt: skip
    assert report.effort is None
    assert report.facts["From"] == "not known"
    assert table(report, "recordings")[0]["recording"] == "a.wav"
    assert "days" not in table(report, "heard")[0]
    assert any("counted from the beginning" in one for one in report.remarks)


def test_nothing_heard_is_said(tmp_path: Path) -> None:
    path = str(tmp_path / "gone.wav")
    report = report_of(made.write(tmp_path, [made.window(path, 0.0, "None", {})]))
    assert not report.names
    assert "Nothing was heard that the questions name." in report.remarks
    write_field_report(report, tmp_path / "out")
    assert "Nothing." in "".join(Page(tmp_path / "out").words)


@pytest.mark.usefixtures("undrawn")
def test_what_is_less_sure_is_left_out(month: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = ("report", month, "--output-path", out, "--clips", 0, "--min-confidence")
    assert "42 recordings, 1 name heard" in call(*report, "0.7")
    words = "".join(Page(out).words)
    assert "12 answers are less sure than was asked for and left out" in words
    assert "Least confidence0.7" in words
    thresholds = tmp_path / "thresholds.csv"
    thresholds.write_text("species,threshold\nTawny Owl,0.8\n")
    call(*report, thresholds)
    assert "5 of 84 windows" in "".join(Page(out).words)
    assert "for each species, from thresholds.csv" in "".join(Page(out).words)


def test_answers_of_a_questionnaire(tmp_path: Path) -> None:
    path = made.recording(tmp_path, "a.wav", made.sound(tmp_path))
    kinds = {"bird": "yes_no", "species": "choice", "n": "count", "pitch": "number", "note": "text"}
    columns: dict[str, Any] = {name: {"type": kind} for name, kind in kinds.items()}
    columns["pitch"]["unit"] = "kHz"
    values: list[dict[str, Any]] = [
        {"bird": True, "species": "Wren", "n": 2, "pitch": 4.13, "note": "loud"},
        {"bird": False, "n": 0, "pitch": 0.2},
        {"bird": True, "species": None, "n": None, "pitch": None},
    ]
    rows = [
        made.survey(path, 10.0 * n, one, said={"pitch": "high"} if n == 2 else None)
        for n, one in enumerate(values)
    ]
    answers = made.write(tmp_path, rows, columns=columns)
    report = report_of(answers)
    assert [one["name"] for one in table(report, "heard")] == ["Wren"]
    about = {one.name: (one.about, one.bars) for one in report.columns}
    assert about["bird"] == ("3 answers", (("yes", 2, 2 / 3), ("no", 1, 1 / 3)))
    assert about["n"][0] == "2 answers; from 0 to 2, mean 1; 1 × none"
    assert about["pitch"][0] == (
        "2 answers; from 0.2 to 4.13 kHz, mean 2.17 kHz; 1 that could not be read as a number"
    )
    assert about["pitch"][1][0] == ("0 to 0.5", 1, 0.5)
    assert about["note"][1] == (("loud", 1, 1.0),)
    assert {one["kind"] for one in table(report, "columns")} == {
        "yes_no",
        "count",
        "number",
        "text",
    }
    birds = make_field_report(open_answers(answers, ["bird"]), clips=0)
    assert table(birds, "heard")[0]["windows"] == 2
    said = call("report", answers, "--column", "specis", "--output-path", tmp_path, ends=2)
    assert "did you mean 'species'" in said


def test_events_of_a_survey_show_the_names_that_the_survey_shows(tmp_path: Path) -> None:
    row = made.window("a.wav", 0.0, "bird", {}, query="bird")
    kinds = {"bird": {"type": "yes_no"}, "species": {"type": "choice"}}
    found = made.write(
        tmp_path,
        [row, replace(row, query="species", text="Wren")],
        columns=kinds,
        events={"columns": ["bird", "species"]},
    )
    assert open_answers(found).columns == ("species",)


def test_recordings_that_are_gone_were_heard(tmp_path: Path) -> None:
    zones = {"local_time": "2024-05-10T05:30:00", "utc_time": "2024-05-10T03:30:00Z"}
    alone = {"local_time": "2024-05-10T05:30:00"}
    rows = [made.window(f"/gone/{n}.wav", 0.0, "Owl", one) for n, one in enumerate((zones, alone))]
    report = report_of(made.write(tmp_path, rows))
    assert report.facts["Recordings"] == "2"
    assert report.unheard == ()
    said = " ".join(report.remarks)
    assert "2 recordings are not where they were" in said
    assert "Hours of 1 of 2 recordings are those of the recorders' clocks" in said
    assert {one["problem"] for one in table(report, "recordings")} == {"is not there any more"}


def test_events_are_counted_by_hours_of_recordings(tmp_path: Path) -> None:
    source = made.sound(tmp_path, rate=8000, seconds=90)
    rows = []
    for day in (1, 2, 3):
        path = made.recording(tmp_path, f"{day}.wav", source)
        context = made.moment("", datetime(2024, 5, day, 21, 59, 30))
        rows.append(
            made.window(path, 0.0, "Wren", context, confidence=0.9, windows=3, mean_confidence=0.8)
        )
    silent = made.recording(tmp_path, "4.wav", source)
    context = {"date": "2024-05-04"}
    rows.append(made.window(silent, 0.0, "", context, note="silent", windows=9))
    report = report_of(made.write(tmp_path, rows))
    (quiet,) = table(report, "not-heard")
    assert (quiet["recording"], quiet["windows"]) == ("4.wav", 9)
    assert table(report, "clocks")[0]["why"] == "no time is known, but the day: 2024-05-04"
    (wren,) = table(report, "heard")
    assert (wren["events"], wren["events an hour of recordings"]) == (3, pytest.approx(30))
    assert sum(one["hours recorded"] for one in table(report, "effort")) == pytest.approx(
        3 * 90 / 3600
    )
    assert report.facts["Heard"] == "6 min 0 s of recordings, answers joined to events"
    assert "3 events (30 an hour)" in report.names[0].headline


def test_names_of_strangers_are_text(tmp_path: Path) -> None:
    path = made.recording(tmp_path, "=1+1 <b>.wav", made.sound(tmp_path))
    context = made.moment(HOSTILE, datetime(2024, 5, 1, 21))
    rows = [made.window(path, 10.0 * n, HOSTILE, context, confidence=0.5) for n in (0, 1)]
    answers = made.write(tmp_path, rows, columns={HOSTILE: {"type": "text"}})
    out = tmp_path / "report"
    call("report", answers, "--title", HOSTILE, "--output-path", out)
    page = Page(out)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert tags.count("audio") == tags.count("img") == 2
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert all(str(attrs.get("src", "data:")).startswith("data:") for _, attrs in page.tags)
    (policy,) = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert "default-src 'none'" in str(policy)
    assert "img-src data:; media-src data:" in str(policy)
    assert any(HOSTILE in word for word in page.words)
    text = (out / "index.html").read_text()
    assert str(tmp_path) not in text
    identities = re.findall(r'\bid="([^"]+)"', text)
    assert len(identities) == len(set(identities))
    assert all(re.fullmatch(r"[\w.-]+", one.name) for one in out.rglob("*.*"))
    with open(out / "tables" / "heard.csv", newline="") as file:
        assert next(csv.DictReader(file))["name"] == f"'{HOSTILE}"
    with open(out / "tables" / "recordings.csv", newline="") as file:
        assert next(csv.DictReader(file))["recording"] == "'=1+1 <b>.wav"


def test_bats_are_slowed_down_as_the_model_heard_them(tmp_path: Path) -> None:
    path = made.recording(tmp_path, "bat.wav", made.sound(tmp_path, 200_000, 45_000, seconds=1.0))
    row = made.window(path, 0.0, "Bat", {}, confidence=0.5)
    answers = made.write(tmp_path, [row], time_expansion=10.0)
    ((clip,),) = [one.clips for one in report_of(answers, clips=1).names]
    # The loudest 5 s of the 10 s that a second lasts: its middle.
    assert (clip.slowed, clip.seconds, clip.highest_hz) == (10.0, 0.5, 80_000)
    assert 0.05 <= clip.start <= 0.45
    page = field_page(report_of(answers, clips=1), Undrawn())
    assert "10 times slower than it was" in "".join(Page(page).words)


def test_clips_are_the_surest_of_several_recordings_in_bounded_room(
    month: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owl, nightjar = report_of(month, clips=3).names
    assert [(one.confidence, one.recording) for one in owl.clips] == [
        (0.85, "Pond/20240508_230000.wav"),
        (0.8, "Pond/20240507_230000.wav"),
        (0.8, "Ridge/20240507_230000.wav"),
    ]
    assert len(nightjar.clips) == 1
    assert all(len(one.sound) < 60_000 for one in owl.clips)
    monkeypatch.setattr(clip_module, "MOST_BYTES", 1)
    short = report_of(month, clips=3)
    assert [len(one.clips) for one in short.names] == [1, 0]
    assert "3 clips have no room in this page." in short.remarks


def test_recordings_that_are_gone_leave_clips_without_sound(tmp_path: Path) -> None:
    row = made.window(str(tmp_path / "gone.wav"), 0.0, "Wren", {}, confidence=0.5)
    report = report_of(made.write(tmp_path, [row]), clips=1)
    (clip,) = report.names[0].clips
    assert not clip.sound
    assert "no sound" in "".join(Page(field_page(report, Undrawn())).words)


def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    peaks = []
    for per_recording in (100, 800):
        rows = [
            made.window(
                str(tmp_path / f"{n}.wav"), 10.0 * w, f"Bird {w % 30}", {}, confidence=w / 800
            )
            for n in range(4)
            for w in range(per_recording)
        ]
        answers = ResultFile(made.write(tmp_path, rows))
        assert answers.recordings
        del rows
        tracemalloc.start()
        tally(answers)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_files_that_do_not_belong_together_are_refused(month: Path, tmp_path: Path) -> None:
    def refused(*words: object) -> str:
        return call("report", *words, "--output-path", tmp_path / "out", ends=2)

    assert "takes one file" in refused(month, month)
    assert "--protocol is for answers that are scored" in refused(month, "--protocol", "strict")
    assert "--seed is for answers that are scored" in refused(month, "--seed", 3)
    scored = tmp_path / "scored.jsonl"
    scored.write_text(json.dumps({"prediction": "a", "label": "a"}) + "\n")
    assert "--column is for answers about recordings" in refused(scored, "--column", "x")
    folder = tmp_path / "two"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_bytes(month.read_bytes())
    assert "several files" in refused(folder)
    neither = tmp_path / "neither.jsonl"
    neither.write_text('{"foo": 1}\n')
    assert "neither.jsonl" in call("report", neither, "--output-path", tmp_path, ends=1)


days = st.integers(min_value=730_000, max_value=745_000)


@given(st.sets(days, min_size=1, max_size=5))
def test_every_day_has_a_column(known: set[int]) -> None:
    calendar = Calendar.of(known)
    assert calendar is not None
    places = [calendar.column(day) for day in sorted(known)]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0, calendar.count - 1)
    assert calendar.count <= MOST_COLUMNS
    assert len(calendar.ticks()) <= 6


shades = st.lists(st.lists(st.integers(-1, 2), min_size=4, max_size=4), min_size=3, max_size=3)


@given(shades)
def test_blocks_cover_what_was_recorded_once(grid: list[list[int]]) -> None:
    covered = {
        (row, place): shade
        for shade, blocks in _blocks(grid).items()
        for column, hour, columns, hours in blocks
        for row in range(hour, hour + hours)
        for place in range(column, column + columns)
    }
    area = sum(w * h for blocks in _blocks(grid).values() for _, _, w, h in blocks)
    wanted = {(r, c): s for r, row in enumerate(grid) for c, s in enumerate(row) if s >= 0}
    assert covered == wanted
    assert area == len(wanted)


def test_levels_are_shades_of_the_highest_rate() -> None:
    rates = (None, 0.0, 0.01, 0.1, 0.11, 0.5)
    assert [level(one, (0.1, 0.2, 0.3, 0.4, 0.5)) for one in rates] == [-1, 0, 1, 1, 2, 5]


def test_figures_have_only_colours_of_the_pages(month: Path) -> None:
    report = report_of(month)
    owl = report.names[0]
    for chart in (report.effort, owl.sites, *owl.charts):
        assert chart is not None
        colors = set(re.findall(r"#[0-9a-f]{6}\b", svg(draw_activity(chart))))
        assert colors <= set(LIGHT.values())


def test_sounds_are_mp3_that_can_be_read(month: Path, tmp_path: Path) -> None:
    clip = report_of(month, clips=1).names[0].clips[0]
    media, _, data = clip.sound.partition(";base64,")
    assert media == "data:audio/mpeg"
    (tmp_path / "clip.mp3").write_bytes(base64.b64decode(data))
    samples, rate = soundfile.read(tmp_path / "clip.mp3")
    assert rate == 16_000
    assert len(samples) / rate == pytest.approx(5, abs=0.2)
    assert abs(samples).max() == pytest.approx(0.7, abs=0.1)


# Spectrograms as pictures: where a tone is drawn, how loud, and what blocks put together show


def test_a_tone_is_drawn_at_its_frequency_and_level() -> None:
    wave = 0.5 * np.sin(2 * np.pi * 2000 * np.arange(32_000) / 16_000).astype(np.float32)
    levels = levels_of(wave, 16_000, 50)
    assert levels.shape == (BINS, 100)
    row = round(2000 / 8000 * BINS)
    assert set(levels[:, 50].argmax(keepdims=True)) <= {row - 1, row}
    assert levels[:, 50].max() == pytest.approx(255 - 2 * 6.02, abs=2)


@given(st.integers(1, 9), st.integers(1, 9))
def test_stretches_side_by_side_are_the_whole(first: int, second: int) -> None:
    """Away from where they meet: blocks do not see what comes after them."""
    count = 16_000 * (first + second) // 10
    noise = np.random.default_rng(7).uniform(-1, 1, count).astype(np.float32)
    cut = 1600 * first
    parts = [levels_of(noise[:cut], 16_000, 20), levels_of(noise[cut:], 16_000, 20)]
    together = np.concatenate(parts, axis=1)
    whole = levels_of(noise, 16_000, 20)
    assert together.shape == whole.shape
    apart = np.abs(together.astype(int) - whole.astype(int)).max(axis=0)
    assert not apart[np.abs(np.arange(len(apart)) + 0.5 - 2 * first) > 1].any()


def test_pictures_have_low_frequencies_below_and_get_lighter_with_level() -> None:
    levels = np.zeros((BINS, 4), dtype=np.uint8)
    levels[0] = 200
    image = Image.open(io.BytesIO(picture(levels, *contrast([levels]))))
    indices = np.asarray(image)
    assert indices.shape == (BINS, 4)
    assert (indices[-1] == 255).all()
    assert not indices[:-1].any()
    colors = np.array(image.getpalette()).reshape(256, 3)
    light = colors @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > -0.6).all()


def test_a_clip_is_drawn_in_one_go_and_the_same_every_time() -> None:
    wave = 0.1 * np.sin(2 * np.pi * 3000 * np.arange(48_000) / 16_000).astype(np.float32)
    image = Image.open(io.BytesIO(picture_of(wave, 16_000)))
    assert image.size == (300, BINS)
    brightest = np.asarray(image).max(axis=1).argmax()
    assert abs(brightest - (BINS - 3000 / 8000 * BINS)) < 2
    assert picture_of(wave, 16_000) == picture_of(wave.copy(), 16_000)
    assert Image.open(io.BytesIO(picture_of(wave[:0], 16_000))).size == (1, BINS)


# The page in a browser

LONG = "a_very_long_name_of_a_species_that_no_line_of_a_telephone_has_room_for_" * 2


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
def page(chromium: Browser, page_file: Path, wrong: list[str]) -> Iterator[BrowserPage]:
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
    opened.goto(page_file.as_uri())
    yield opened
    context.close()


@pytest.mark.browser
def test_it_fits_it_sounds_and_has_no_barriers(page: BrowserPage, wrong: list[str]) -> None:
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
