"""Tables of deployments: their columns and cells, and which row a recording is of."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.errors import UsageError
from NatureLM.field.clock import Clock, parse_zone, zone_text
from NatureLM.field.deployments import ALIASES, Deployments, read_deployments

MAY, JULY = datetime(2024, 5, 10, 5, 30), datetime(2024, 7, 10, 5, 30)
SERIAL, OTHER = "24E144055E080032", "243B1F026488F56E"


def table(folder: Path, text: str, name: str = "deployments.csv") -> Deployments:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_deployments(path)


def site(
    deployments: Deployments, path: str, time: datetime | None = MAY, recorder: str = ""
) -> str:
    row, note = deployments.find(path, Clock(time=time, recorder=recorder))
    assert (row is None) == bool(note)
    return row.site if row is not None else note.partition(": ")[2]


def test_all_columns(tmp_path: Path) -> None:
    (row,) = table(
        tmp_path,
        "site,latitude,longitude,from,to,zone,clock,recorder,folder,habitat,observer\n"
        "Pond,51.5,-0.12,2024-05-01,2024-05-31,Europe/London,UTC,S4A01234,card1,reedbed,Ann\n",
    )
    assert (row.site, row.latitude, row.longitude) == ("Pond", 51.5, -0.12)
    assert row.start == datetime(2024, 5, 1)
    assert row.end == datetime(2024, 5, 31, 23, 59, 59, 999_999)
    assert (row.zone, row.clock) == (ZoneInfo("Europe/London"), timezone.utc)
    assert (row.recorder, row.folder, row.habitat) == ("S4A01234", "card1", "reedbed")
    assert (row.values, row.line) == ({"observer": "Ann"}, 2)


def test_columns_of_camtrap_dp(tmp_path: Path) -> None:
    (row,) = table(
        tmp_path,
        "deploymentID,locationID,locationName,latitude,longitude,deploymentStart,deploymentEnd,"
        "deviceID,deviceModel,habitat\n"
        "d1,l1,Pond,-51.5,0.12,2024-05-01T12:00:00Z,2024-05-31T12:00:00+0200,7,AudioMoth,\n",
    )
    assert (row.site, row.recorder, row.habitat) == ("Pond", "7", "")
    assert row.start == datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
    assert row.end == datetime(2024, 5, 31, 10, tzinfo=timezone.utc)
    assert row.values == {"deploymentID": "d1", "locationID": "l1", "deviceModel": "AudioMoth"}


def test_a_table_of_excel_with_decimal_commas(tmp_path: Path) -> None:
    text = "Station;Lat;Lon;Start Date;TimeZone\r\nPond;51,5;-0,12;2024/5/1;utc+1\r\n"
    (row,) = table(tmp_path, "\ufeff" + text)
    assert (row.latitude, row.longitude, zone_text(row.zone)) == (51.5, -0.12, "UTC+01:00")
    assert row.start == datetime(2024, 5, 1)


ZONES = {
    **{
        "Z": "UTC",
        "utc": "UTC",
        "UTC+1": "UTC+01:00",
        "GMT-3:30": "UTC-03:30",
        "+10:00": "UTC+10:00",
    },
    **{"-0330": "UTC-03:30", "+5": "UTC+05:00", "UTC −1": "UTC-01:00"},
    **{"Europe/London": "Europe/London", "america/new_york": "America/New_York"},
}


@pytest.mark.parametrize("text", ZONES)
def test_zones(text: str) -> None:
    assert zone_text(parse_zone(text)) == ZONES[text]


@pytest.mark.parametrize(
    ("column", "value", "allowed"),
    [
        ("latitude", "91", "write degrees from -90 to 90, such as -25.39"),
        ("latitude", "51° 30' N", "write degrees from -90 to 90"),
        ("longitude", "200", "write degrees from -180 to 180"),
        ("from", "01/05/2024", "write 2024-05-10 05:30, 2024-05-10T05:30:00+02:00 or 2024-05-10"),
        ("to", "2024-02-30", "write 2024-05-10 05:30"),
        ("from", "2024-05-01 25:00", "write 2024-05-10 05:30"),
        ("zone", "Europe/Londn", "did you mean Europe/London?"),
        ("zone", "../../etc/passwd", "write a zone as Europe/London, UTC+1, +10:00 or Z"),
        ("zone", "UTC+25", "no place is +25 hours from UTC"),
        ("clock", "local", "write a zone as"),
    ],
)
def test_a_bad_cell_is_refused_by_name(
    column: str, value: str, allowed: str, tmp_path: Path
) -> None:
    row = {"site": "Pond", "latitude": "51", "longitude": "0", column: value}
    with pytest.raises(UsageError) as raised:
        table(tmp_path, f"{'	'.join(row)}\n{'	'.join(row.values())}\n", "places.tsv")
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'places.tsv'}, line 2: {column} is ")
    assert value in message
    assert allowed in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("site,lat\nPond,51\n", "line 2: lat is given, and no longitude; give both or none"),
        ("site,latitud,longitude\nPond,51,1\n", "and no latitude; rename the column 'latitud'"),
        ("habitat\nreeds\n", "line 2: names no place"),
        (
            "site,from,to\nPond,2024-05-02,2024-05-01\n",
            "line 2: to is '2024-05-01', before '2024-05",
        ),
        ("site\n", "this table has no rows"),
        (
            "site,recorder,from,to\nA,7,2024-05-01,2024-05-10\nB,8,,\nC,7,2024-05-10,\n",
            "lines 2 and 4 place the recorder 7 twice at a time; their times from .. to may not ",
        ),
        (
            "site,from\nPond,2024-05-01\npond,2024-06-01\n",
            "lines 2 and 3 place Pond twice at a time",
        ),
        (
            "site,zone,recorder,from,to\nA,Z,7,2024-05-01 00:00,2024-05-01 12:00\n"
            "B,+10,7,2024-05-01 21:00,2024-05-02 12:00\n",
            "lines 2 and 3 place the recorder 7 twice at a time",
        ),
    ],
)
def test_a_table_that_cannot_be_meant(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"deployments\.csv") as raised:
        table(tmp_path, text)
    assert message in str(raised.value)


def test_two_recorders_at_a_site_and_one_that_moves_are_no_overlap(tmp_path: Path) -> None:
    rows = table(
        tmp_path,
        "site,recorder,from,to\nA,7,2024-05-01 12:00,2024-06-01 12:00\n"
        "A,8,2024-05-01 12:00,2024-06-01 12:00\nB,7,2024-06-01 12:00,2024-07-01\n",
    )
    moment = datetime(2024, 6, 1, 12)
    assert site(rows, "x.wav", moment, "7") == "B"
    assert site(rows, "x.wav", moment - timedelta(seconds=1), "7") == "A"
    assert site(rows, "x.wav", moment, "8") == "A"


THREE = (
    "site,from,to,recorder,folder\n"
    f"Pond,2024-05-01,2024-06-30,{SERIAL},\n"
    f"Marsh,2024-07-01,2024-07-31,{SERIAL},\n"
    f"Wood,2024-05-01,2024-07-31,{OTHER},\n"
    "North Fen,2024-05-01,2024-07-31,,cards/fen\n"
    "Fen,2024-05-01,2024-07-31,,\n"
    "Heath,2024-05-01,2024-07-31,S4A01234,cards/heath\n"
    "Field,2024-05-01,2024-07-31,SWIFT07,\n"
)


@pytest.mark.parametrize(
    ("path", "time", "recorder", "expected"),
    [
        # Names are the same in each folder; header or folder tell the recorders apart.
        ("a/20240510_053000.WAV", MAY, SERIAL, "Pond"),
        ("b/20240510_053000.WAV", MAY, OTHER, "Wood"),
        ("cards/fen/20240510_053000.WAV", MAY, "", "North Fen"),
        ("cards/fen/20240510_053000.WAV", MAY, OTHER, "North Fen"),  # folders are trusted more
        ("elsewhere/20240510_053000.WAV", MAY, "S4A01234", "Heath"),
        ("cards/heath/20240510_053000.WAV", MAY, "", "Heath"),
        ("CARDS\\Fen\\day 1\\20240510_053000.WAV", MAY, "", "North Fen"),
        ("a/20240710_053000.WAV", JULY, SERIAL, "Marsh"),
        ("Fen/20240710_053000.WAV", JULY, SERIAL, "Marsh"),  # and so are recorders
        ("audio/fen/20240510_053000.WAV", MAY, "", "Fen"),
        ("FEN_20240510_053000.WAV", MAY, "", "Fen"),
        ("North-Fen_20240510_053000.WAV", MAY, "", "begin"),
        ("FENCE_20240510_053000.WAV", MAY, "", "no row has its folder, its recorder or its site."),
        (f"{SERIAL}_20240510_053000.WAV", MAY, "", "Pond"),
        ("SWIFT07_20240510_053000.wav", MAY, "", "Field"),
        ("swift07/20240510_053000.wav", MAY, "", "Field"),
        ("a/x.wav", None, OTHER, "Wood"),
        ("a/x.wav", None, SERIAL, "2 rows fit, Pond (line 2), Marsh (line 3), so its place is not"),
        ("marsh/x.wav", None, SERIAL, "Marsh"),
        ("a/x.wav", datetime(2025, 1, 1), OTHER, "it began outside of the time of Wood (line 4)."),
        ("Fen/Field_20240510_053000.wav", MAY, "", "2 rows fit, Field (line 8), Fen (line 6)"),
    ],
)
def test_which_deployment(
    path: str, time: datetime | None, recorder: str, expected: str, tmp_path: Path
) -> None:
    found = site(table(tmp_path, THREE), path, time, recorder)
    if expected == "begin":
        assert found == "no row has its folder, its recorder or its site."
    else:
        assert found.startswith(expected)


def test_a_single_row_is_the_place_of_all_that_it_can_be(tmp_path: Path) -> None:
    rows = table(tmp_path, f"site,from,to,recorder\nPond,2024-05-01,2024-05-31,{SERIAL}\n")
    assert site(rows, "x.wav") == "Pond"
    assert site(rows, "x.wav", None) == "Pond"
    assert site(rows, "x.wav", JULY).startswith("it began outside")
    assert site(rows, "x.wav", MAY, OTHER).startswith("no row has")
    rows = table(tmp_path, "site,folder\nPond,card1\n")
    assert site(rows, "card1/x.wav") == "Pond"
    assert site(rows, "card2/x.wav").startswith("no row has")


def test_the_time_of_a_recording_is_compared_in_the_zone(tmp_path: Path) -> None:
    rows = table(
        tmp_path, "site,from,to,zone\nPond,2024-05-10 05:30,2024-05-10 06:30,Europe/London\n"
    )
    begun = datetime(2024, 5, 10, 4, 30, tzinfo=timezone.utc)
    assert site(rows, "x.wav", begun) == "Pond"
    assert site(rows, "x.wav", begun + timedelta(hours=1)) == "Pond"
    assert site(rows, "x.wav", begun - timedelta(seconds=1)).startswith("it began outside")
    assert site(rows, "x.wav", MAY) == "Pond"
    row, _ = rows.find("x.wav", Clock(date=MAY.date()))
    assert row is not None
    assert rows.find("x.wav", Clock(date=JULY.date()))[0] is None


def test_times_of_a_row_are_local_whatever_the_recorders_clock_shows(tmp_path: Path) -> None:
    rows = table(
        tmp_path,
        "site,from,to,zone,clock\nPond,2024-05-10 20:00,2024-05-10 22:00,America/New_York,UTC\n",
    )
    shown = datetime(2024, 5, 11, 0, 0)  # which is 20:00 in New York
    assert site(rows, "x.wav", shown) == "Pond"
    assert site(rows, "x.wav", shown + timedelta(hours=2)) == "Pond"
    assert site(rows, "x.wav", shown - timedelta(seconds=1)).startswith("it began outside")
    assert site(rows, "x.wav", shown + timedelta(hours=3)).startswith("it began outside")
    assert rows.find("x.wav", Clock(date=MAY.date()))[0] is not None


def test_a_model_is_no_serial_number(tmp_path: Path) -> None:
    rows = table(tmp_path, "site,recorder\nPond,AudioMoth\nMarsh,AudioMoth\n")
    assert site(rows, "marsh/20240510_053000.WAV", MAY, SERIAL) == "Marsh"
    assert rows[0].values == {"model": "AudioMoth"}


def test_a_column_that_is_misspelled_is_named(tmp_path: Path) -> None:
    rows = table(tmp_path, "site,lattitude,longtitude,observer\nPond,51.5,-0.12,Ann\n")
    assert [note.partition(": ")[2] for note in rows.notes] == [
        "the column 'lattitude' is not read; did you mean latitude?",
        "the column 'longtitude' is not read; did you mean longitude?",
    ]


CELLS = st.one_of(
    st.text(
        st.characters(exclude_characters='\r\n"', exclude_categories=["Cs", "Cc"]), max_size=20
    ),
    st.text("0123456789-+:/.TZ UTC", max_size=24),
)


@given(st.dictionaries(st.sampled_from(sorted(ALIASES)), CELLS, min_size=1))
def test_no_cell_is_another_error(
    tmp_path_factory: pytest.TempPathFactory, cells: dict[str, str]
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    texts = [f'"{text}"' for text in cells.values()]
    rows = None
    with contextlib.suppress(UsageError):
        rows = table(folder, f"{','.join(cells)}\n{','.join(texts)}\n")
    for moment in (MAY, MAY.replace(tzinfo=timezone.utc)) if rows is not None else ():
        found, note = rows.find("a/Pond_20240510_053000.wav", Clock(time=moment))
        assert (found is None) == bool(note)


@given(st.text(max_size=30))
def test_no_zone_is_another_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert zone_text(parse_zone(text))


def test_a_machine_without_time_zones_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("NatureLM.field.clock._zone_names", dict)
    with pytest.raises(ValueError, match=r"pip install 'naturelm-audio\[field\]'"):
        parse_zone("Europe/Zurich")
    assert zone_text(parse_zone("UTC+1")) == "UTC+01:00"
