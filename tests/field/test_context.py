"""What rows and prompts are told of a moment: zones, summer time, sun, week, filled questions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from field_files import comment_chunk, guano_chunk, save_wav
from hypothesis import assume, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from NatureLM.cli.main import naturelm_app
from NatureLM.field import FieldClock, FileTimes, asks_context, fill, read_deployments
from NatureLM.field.clock import Clock, to_utc
from NatureLM.field.context import KEYS, WITHOUT_ASTRAL, hours_after, week_of
from NatureLM.field.deployments import Deployment, Deployments
from NatureLM.formats import FORMATS

COMMENT = "Recorded at {} ({}) by AudioMoth 24E144055E080032 at medium gain while battery was 4.2V"
EVERGLADES = {"site": "Everglades", "latitude": 25.39, "longitude": -80.68}
NEW_YORK, LONDON = ZoneInfo("America/New_York"), ZoneInfo("Europe/London")


def clock_of(**row: object) -> FieldClock:
    return FieldClock(Deployments([Deployment(**row)], "places.csv"))  # type: ignore[arg-type]


def test_all_that_can_be_known_of_a_moment() -> None:
    clock = clock_of(**EVERGLADES, zone=NEW_YORK, habitat="sawgrass", recorder="S4A01234")
    said = clock.of("card/S4A01234_20240510_190000.wav").at(90.5)
    assert said == {
        "site": "Everglades",
        "latitude": 25.39,
        "longitude": -80.68,
        "habitat": "sawgrass",
        "recorder": "S4A01234",
        "place": "Everglades, 25.39 N 80.68 W",
        "local_time": "2024-05-10T19:01:30.500-04:00",
        "utc_time": "2024-05-10T23:01:30.500Z",
        "zone": "America/New_York",
        "date": "2024-05-10",
        "week": 18,
        "hours_after_sunrise": -11.64,
        "hours_after_sunset": -0.95,
        "clock_source": "name",
    }
    assert list(said) == [key for key in KEYS if key in said]
    json.dumps(said, allow_nan=False)


def test_only_what_is_known() -> None:
    clock = FieldClock()
    assert clock.of("x.wav").at(5) == {}
    assert clock.of("PLOT20240510.wav").at(5) == {
        **{"date": "2024-05-10", "week": 18, "clock_source": "name"},
    }
    assert clock.of("20240510_235958.wav").at(5) == {
        **{"local_time": "2024-05-11T00:00:03", "date": "2024-05-11", "week": 18},
        "clock_source": "name",
    }
    said = clock.of("20240510_235958Z.wav").at(5)
    assert (said["local_time"], said["utc_time"], said["zone"]) == (
        *("2024-05-11T00:00:03+00:00", "2024-05-11T00:00:03Z"),
        "UTC",
    )
    assert "latitude" not in clock_of(site="Pond").of("x.wav").at(0)


def test_a_position_of_the_recorder_is_a_place(tmp_path: Path) -> None:
    text = "Timestamp: 2024-05-10T19:00:00-04:00\nLoc Position: 25.39 -80.68\n"
    path = save_wav(tmp_path / "x.wav", guano_chunk(text))
    said = FieldClock().of(path).at(0)
    assert (said["place"], said["hours_after_sunset"]) == ("25.39 N 80.68 W", -0.97)
    near = clock_of(latitude=25.40, longitude=-80.68).of(path)
    far = clock_of(latitude=26.40, longitude=-80.68).of(path)
    assert near.conflicts == ()
    assert far.at(0)["clock_conflict"] == (
        "The recorder gives 25.39 N 80.68 W, and the table of deployments 26.40 N 80.68 W: the "
        "latter is taken."
    )


def test_a_recording_that_no_row_fits_says_why() -> None:
    rows = Deployments([Deployment(site="A"), Deployment(site="B")], "places.csv")
    context = FieldClock(rows).of("20240510_190000.wav")
    assert context.notes == ("places.csv: no row has its folder, its recorder or its site.",)
    assert "site" not in context.at(0)


def test_a_header_is_read_once(tmp_path: Path) -> None:
    path = save_wav(tmp_path / "x.wav", guano_chunk("Timestamp: 2024-05-10T19:00:00Z\n"))
    clock = FieldClock()
    first = clock.of(path)
    path.unlink()
    assert clock.of(path) is first
    assert first.utc == datetime(2024, 5, 10, 19, tzinfo=timezone.utc)


# Zones


def test_an_hour_that_comes_twice_has_no_utc() -> None:
    context = clock_of(site="Pond", zone=LONDON).of("20241027_013000.wav")
    said = context.at(0)
    assert said["local_time"] == "2024-10-27T01:30:00"
    assert "utc_time" not in said
    assert said["clock_conflict"] == (
        "2024-10-27 01:30:00 comes twice in Europe/London, where clocks were set back then, so UTC "
        "is not known."
    )


def test_an_hour_that_does_not_exist_is_said() -> None:
    said = clock_of(site="Pond", zone=LONDON).of("20240331_013000.wav").at(0)
    assert (said["local_time"], "utc_time" in said) == ("2024-03-31T01:30:00", False)
    assert "does not exist in Europe/London" in said["clock_conflict"]


def test_a_recording_goes_on_over_a_change() -> None:
    context = clock_of(site="Pond", zone=LONDON).of("20241027_003000.wav")
    times = [context.at(hour * 3600)["local_time"][11:] for hour in range(4)]
    assert times == ["00:30:00+01:00", "01:30:00+01:00", "01:30:00+00:00", "02:30:00+00:00"]
    utc = [context.at(hour * 3600)["utc_time"][11:13] for hour in range(4)]
    assert utc == ["23", "00", "01", "02"]


def test_a_fixed_offset_has_no_summer_time() -> None:
    clock = clock_of(site="Pond", zone=timezone(timedelta(hours=10)))
    for name in ("20241027_013000.wav", "20240331_013000.wav"):
        assert clock.of(name).at(0)["local_time"].endswith("T01:30:00+10:00")


def test_an_offset_of_the_file_wins_and_is_named(tmp_path: Path) -> None:
    comment = comment_chunk(COMMENT.format("19:17:30 10/07/2024", "UTC+1"))
    path = save_wav(tmp_path / "20240710_191730.WAV", comment)
    assert clock_of(site="Pond", zone=LONDON).of(path).conflicts == ()
    said = clock_of(site="Pond", zone=ZoneInfo("Europe/Berlin")).of(path).at(0)
    assert (said["local_time"], said["utc_time"]) == (
        *("2024-07-10T19:17:30+01:00", "2024-07-10T18:17:30Z"),
    )
    assert said["clock_conflict"] == (
        "The AudioMoth comment says UTC+01:00, and the table of deployments Europe/Berlin, which "
        "was UTC+02:00 then: the former is taken."
    )


def test_a_file_in_utc_has_the_local_time_of_its_place(tmp_path: Path) -> None:
    comment = comment_chunk(COMMENT.format("19:17:30 10/07/2024", "UTC"))
    path = save_wav(tmp_path / "x.WAV", comment)
    said = clock_of(site="Pond", zone=ZoneInfo("Europe/Berlin")).of(path).at(0)
    assert said["local_time"] == "2024-07-10T21:17:30+02:00"
    assert "clock_conflict" not in said


def test_the_zone_of_a_recorders_clock_may_be_another() -> None:
    clock = clock_of(site="Pond", zone=NEW_YORK, clock=timezone.utc)
    said = clock.of("20240510_013000.wav").at(0)
    assert (said["utc_time"], said["local_time"]) == (
        *("2024-05-10T01:30:00Z", "2024-05-09T21:30:00-04:00"),
    )
    assert said["date"] == "2024-05-09"


MOMENTS = st.datetimes(datetime(1990, 1, 2), datetime(2026, 12, 30)).map(
    lambda moment: moment.replace(microsecond=0, tzinfo=timezone.utc)
)
ZONES = st.sampled_from(sorted(available_timezones() - {"localtime", "Factory"})).map(ZoneInfo)


@given(MOMENTS, ZONES)
def test_every_moment_comes_back_through_a_name(moment: datetime, zone: ZoneInfo) -> None:
    """UTC to the local time of a name and back, in all zones, but in the hour that comes twice."""
    local = moment.astimezone(zone)
    assume(local.utcoffset() == local.replace(fold=1 - local.fold).utcoffset())
    context = clock_of(site="Pond", zone=zone).of(f"{local:%Y%m%d_%H%M%S}.wav")
    shift = local.utcoffset()
    assert shift is not None
    assert context.utc == moment
    assert datetime.fromisoformat(context.at(0)["local_time"]).replace(tzinfo=None) == (
        local.replace(tzinfo=None)
    )


@given(MOMENTS, ZONES)
def test_a_doubled_hour_is_never_guessed(moment: datetime, zone: ZoneInfo) -> None:
    local = moment.astimezone(zone).replace(tzinfo=None)
    utc, why = to_utc(local, zone)
    assert (utc is None) == bool(why)
    assert utc in (None, moment)


# Sun and week


def test_hours_after_sunrise_and_sunset() -> None:
    london = (51.5, -0.12)
    noon = datetime(2024, 6, 21, 12, tzinfo=timezone.utc)
    rise, set_ = hours_after(*london, noon)  # the sun rose at 3:43 and sets at 20:22
    assert rise == pytest.approx(8.28, abs=0.02)
    assert set_ == pytest.approx(-8.36, abs=0.02)
    rise, set_ = hours_after(*london, noon + timedelta(hours=11))
    assert rise == pytest.approx(-4.72, abs=0.02)
    assert set_ == pytest.approx(2.64, abs=0.02)


def test_polar_days_and_nights_have_none() -> None:
    svalbard = (78.2, 15.6)
    assert hours_after(*svalbard, datetime(2024, 6, 21, 12, tzinfo=timezone.utc)) == (None, None)
    said = (
        clock_of(latitude=78.2, longitude=15.6, zone=timezone.utc).of("20241221_120000.wav").at(0)
    )
    assert (said["hours_after_sunrise"], said["hours_after_sunset"]) == (None, None)


@given(st.floats(-60, 60), st.floats(-180, 180), MOMENTS)
def test_the_sun_rises_once_a_day_everywhere(
    latitude: float, longitude: float, moment: datetime
) -> None:
    rise, set_ = hours_after(latitude, longitude, moment)
    assert rise is not None
    assert set_ is not None
    assert -12.05 <= rise <= 12.05
    assert -12.05 <= set_ <= 12.05
    later = hours_after(latitude, longitude, moment + timedelta(hours=1))[0]
    assert later is not None
    step = (later - rise + 12) % 24 - 12
    assert step == pytest.approx(1, abs=0.15)


def test_without_astral_the_sun_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("NatureLM.field.context.has_astral", lambda: False)
    clock = clock_of(**EVERGLADES, zone=NEW_YORK)
    said = clock.of("20240510_190000.wav").at(0)
    assert "hours_after_sunset" not in said
    assert said["utc_time"] == "2024-05-10T23:00:00Z"
    assert clock.notes == [WITHOUT_ASTRAL]
    assert FieldClock().notes == []


@pytest.mark.parametrize(
    ("day", "week"),
    [
        ((1, 1), 1),
        ((1, 7), 1),
        ((1, 8), 2),
        ((1, 31), 4),
        ((2, 1), 5),
        ((5, 10), 18),
        ((12, 31), 48),
    ],
)
def test_weeks_are_birdnets(day: tuple[int, int], week: int) -> None:
    assert week_of(date(2024, *day)) == week


# Questions


def test_questions_are_filled() -> None:
    context = clock_of(**EVERGLADES, zone=NEW_YORK, habitat="sawgrass").of("20240510_053000.wav")
    question = (
        "Given the context: '{place}, {habitat}, {date}, {time}', which frog calls in {month}?"
    )
    assert asks_context(question)
    assert fill(question, context.at(0)) == (
        "Given the context: 'Everglades, 25.39 N 80.68 W, sawgrass, 10 May 2024, 05:30', which "
        "frog calls in May?",
        "",
    )


def test_a_question_with_a_hole_is_not_asked() -> None:
    said = FieldClock().of("20240510.wav").at(0)
    assert fill("Which bird calls in {month}?", said) == ("Which bird calls in May?", "")
    assert fill("Which bird calls at {time} in {site}, {site}?", said) == (
        "",
        "the question asks for {time}, {site}, which are not known of this recording",
    )
    question = "Which of {species_list}? {examples}"
    assert not asks_context(question)
    assert fill(question, {}) == (question, "")


def test_values_that_look_like_places_are_left_alone() -> None:
    """Neither placeholders nor the marks that prompts are made of come in by a table."""
    assert fill("{site}", {"site": "{habitat}"}) == ("habitat", "")
    assert fill("{site}?", {"site": "<|eot_id|> [1]\nPond"}) == ("eot_id 1 Pond?", "")
    assert fill("{site}", {"site": "<>"})[0] == ""


# A card


def test_two_recorders_with_the_same_names_over_a_change_of_clocks(tmp_path: Path) -> None:
    """Each recording has its place and time, whatever the recorder's clock was set to."""
    table = tmp_path / "deployments.csv"
    table.write_text(
        "site,latitude,longitude,from,to,zone,recorder\n"
        "Pond,51.5,-0.12,2024-10-25,2024-10-29,Europe/London,24E144055E080032\n"
        "Creek,-27.4,153.0,2024-10-25,2024-10-29,Australia/Brisbane,243B1F026488F56E\n",
        encoding="utf-8",
    )
    begins = datetime(2024, 10, 25, 20, tzinfo=timezone.utc)
    truth = {}
    for number in range(36):
        utc = begins + timedelta(hours=2 * number)
        for serial, folder, shown, site in (
            ("24E144055E080032", "a", "UTC", "Pond"),
            ("243B1F026488F56E", "b", "UTC+10", "Creek"),
        ):
            local = utc + timedelta(hours=10 if folder == "b" else 0)
            comment = COMMENT.format(f"{local:%H:%M:%S %d/%m/%Y}", shown)
            name = f"{utc + timedelta(hours=10):%Y%m%d_%H%M%S}.WAV" if folder == "b" else ""
            name = name or f"{utc:%Y%m%d_%H%M%S}.WAV"
            chunk = comment_chunk(comment.replace("24E144055E080032", serial))
            truth[save_wav(tmp_path / folder / name, chunk, seconds=0.01)] = (utc, site)
    clock = FieldClock(read_deployments(table))
    for path, (utc, site) in truth.items():
        said = clock.of(path).at(60)
        zone = LONDON if site == "Pond" else ZoneInfo("Australia/Brisbane")
        moment = utc + timedelta(minutes=1)
        assert said["site"] == site
        assert said["utc_time"] == f"{moment:%Y-%m-%dT%H:%M:%SZ}"
        assert said["local_time"] == moment.astimezone(zone).isoformat()
        assert "clock_conflict" not in said


def test_a_table_of_times_gives_what_names_do_not_say(tmp_path: Path) -> None:
    times = tmp_path / "times.csv"
    times.write_text("file,time\nREC1.wav,2024-07-10 05:30\n")
    rows = Deployments([Deployment(site="Pond", zone=LONDON)], "places.csv")
    said = FieldClock(rows, FileTimes(times)).of(tmp_path / "REC1.wav").at(0)
    assert (said["utc_time"], said["clock_source"]) == ("2024-07-10T04:30:00Z", "file table")


def test_clocks_are_plain_values() -> None:
    assert Clock().utc is None
    assert Clock(time=datetime(2024, 5, 10)).zone == ""


@pytest.mark.shared
def test_a_real_card(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "field"
    clock = clock_of(site="Woods", latitude=50.94, longitude=-1.40, zone=LONDON)
    context = clock.of(folder / "bats_audiomoth.WAV")
    said = context.at(3.5)
    assert said["local_time"] == "2024-09-03T20:26:18.500+01:00"
    assert said["utc_time"] == "2024-09-03T19:26:18.500Z"
    assert 0.5 < said["hours_after_sunset"] < 0.8
    assert context.conflicts == ()
    late = clock.of(folder / "one_minute.wav").at(0)
    assert late["local_time"] == "2018-05-04T10:32:00+01:00"


# A made card from the survey to tables

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A card of eight recordings that went through survey and events; two of them are broken."""
    folder = tmp_path_factory.mktemp("season")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.chdir(folder)
        import field_archive
        import field_season

        field_archive.make(folder, 8, day=False, broken=2)
        season = field_season.Pass(folder, show=lambda text: None)
        run("survey", "out/questions.yml", *field_season.folders(folder), "--quiet",
            "--deployments", "deployments.csv", "--output-path", "out/survey")  # fmt: skip
        run("events", "out/survey/survey.jsonl", "--output-path", "out/events.jsonl",
            "--column", "species", "--gap", 17.5)  # fmt: skip
        yield season


def run(*arguments: object) -> str:
    """A command; some recordings are broken, which its exit code says."""
    done = CliRunner().invoke(naturelm_app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code in (0, 3), done.output
    return done.output


def test_every_window_has_its_row_and_its_time(made: Any) -> None:
    import field_checks
    import field_season

    found = field_checks.Findings()
    answers = made.out / "survey" / "survey.jsonl"
    window, hop = field_season.WINDOW, field_season.HOP
    field_checks.check_answers(found, made.season, answers, window, hop)
    field_checks.check_events(found, made.season, made.out / "events.jsonl")
    assert found.times > 100
    assert found.wrong == []


@pytest.mark.parametrize("per_recording", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_every_table_has_the_times_of_the_answers(
    name: str, per_recording: bool, made: Any, tmp_path: Path
) -> None:
    import field_checks
    import field_tables

    if (FORMATS[name].is_one and per_recording) or (FORMATS[name].is_each and not per_recording):
        return
    answers = made.out / "survey" / "survey.jsonl"
    target = tmp_path / f"table{FORMATS[name].suffix}"
    each = ["--per-recording"] if per_recording else []
    run("export", answers, "--format", name, "--output-path", target, *each)
    found = field_checks.Findings()
    heard, spans = field_checks.detections(made.season, answers)
    expected = field_tables.Expected(made.season, answers, heard, spans)
    paths = field_tables.parts(target, FORMATS[name].suffix, per_recording=per_recording)
    field_tables.CHECKS[name](found, paths, expected)
    assert found.times > 0
    assert found.wrong == []
