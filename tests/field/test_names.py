"""What names say: times in all their forms, and numbers that only look like a time."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.field.clock import FIRST_YEAR, read_name

LAST = datetime(date.today().year + 1, 12, 31, 23, 59, 59)
MOMENT = datetime(2024, 5, 10, 5, 30)


def at(hours: float) -> datetime:
    return MOMENT.replace(tzinfo=timezone(timedelta(hours=hours)))


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("20240510_053000.WAV", MOMENT),
        ("20240510_053000T.WAV", MOMENT),  # an AudioMoth that waited for a sound
        ("SITE_20240510_053000.wav", MOMENT),
        ("Site 3-20240510-053000.flac", MOMENT),
        ("S4A01234_20240510_053000.wav", MOMENT),
        ("SM2_0+1_20240510$053000.wav", MOMENT),
        ("20240510T053000.wav", MOMENT),
        ("20240510T053000.123.wav", MOMENT),
        ("20240510053000.wav", MOMENT),
        ("2024-05-10_05-30-00.wav", MOMENT),
        ("2024-05-10 05.30.00.m4a", MOMENT),
        ("2024-05-10T05:30:00.wav", MOMENT),
        ("2024-05-10_05.30.wav", MOMENT),
        ("2024_05_10_05_30_00.wav", MOMENT),
        ("2024-05-10-birdnet-05:30:00.wav", MOMENT),
        ("Wren-85-2024-05-10-birdnet-RTSP_1-05:30:00.mp3", MOMENT),
        ("20240510_PLOT4_20240510_053000.wav", MOMENT),
        ("20240510_053000_20240510_053000.wav", MOMENT),
        ("5132.240510053000.wav", MOMENT),  # a SoundTrap
        ("20240510_053000-0000.wav", MOMENT),  # an offset that says it is none
        ("20240510_053000-0123.wav", MOMENT),  # a counter
        ("20240510_053000Z.wav", at(0)),
        ("20240510T053000Z_REC.wav", at(0)),
        ("SITE_20240510_053000_UTC.wav", at(0)),
        ("20240510T053000+1000_REC.flac", at(10)),
        ("20240510T053000.123456+1000.flac", at(10)),
        ("20240510_053000+10.wav", at(10)),
        ("20240510_053000-0400.wav", at(-4)),
        ("20240510_053000-03:30.wav", at(-3.5)),
        ("20240510_053000(UTC+1).wav", at(1)),
        ("20240510_053000_UTC-3:30.wav", at(-3.5)),
        ("20240510_0530Z.wav", at(0)),
        ("S20240510T053000.9+1000_E20240510T063000+1000_-12.34567+78.98102.wav", at(10)),
        ("663DB0D8.WAV", at(0)),
        ("0.93_SITE_20240510_052900_60.0s_63.0s.wav", MOMENT),  # a clip of a longer recording
    ],
)
def test_times(name: str, time: datetime) -> None:
    found = read_name(f"20991231_235959/{name}")
    assert found.time == time
    assert (found.time.tzinfo is None) == (time.tzinfo is None)
    assert found.date == time.date()
    assert found.note == ""


@pytest.mark.parametrize(
    "name",
    [
        *("20240230_053000.wav", "20241301_000000.wav", "18991231_000000.wav"),
        *("20991231_000000.wav", "120240510_053000.wav", "20240510053000123.wav"),
        *("ML123456789.wav", "ML20160625.mp3", "XC 20160625.mp3", "XC123456 - Wren.mp3"),
        *("DEADBEEF.wav", "60123456.wav", "663daff8.wav", "663DAFF8_1.wav", "00000000.wav"),
        *("202405100530.wav", "10052024_053000.wav", "240510_053000.wav", "201605.wav"),
        *("550e8400-e29b-41d4-a716-446655440000.wav", "soundscape_120s.flac", ".wav", "20240510 "),
    ],
)
def test_what_is_no_time(name: str) -> None:
    found = read_name(name.removesuffix("20240510 "))
    assert (found.time, found.date) == (None, None)


@pytest.mark.parametrize(
    "name",
    [
        *("YELLLAZB20160625SM303143.mp3", "20160625.wav", "rec-2016-06-25.wav"),
        *("AUD-20160625-WA0003.opus", "20160625_0530.wav", "20160625_303143.wav"),
        *("2016-06-25-01-02.wav", "20160625_250000.wav"),
    ],
)
def test_dates_without_a_time(name: str) -> None:
    found = read_name(name)
    assert (found.time, found.date) == (None, date(2016, 6, 25))


def test_several_times_and_clocks_that_were_not_set_are_named() -> None:
    several = read_name("20240510_053000_20240511_053000.wav")
    assert several.time is None
    assert several.note == "The name has 2 times, and which is its start is not known"
    unset = read_name("19700101_000012.WAV")
    assert unset.time is None
    assert unset.note == "The name says 1970-01-01 00:00:12: the clock was not set"


@pytest.mark.parametrize(
    ("name", "recorder"),
    [
        *(("S4A01234_20240510_053000.wav", "S4A01234"), ("SMM01234_x.wav", "SMM01234")),
        *(("SMA12345_20240510_053000.wav", "SMA12345"), ("BARLT1234_20240510.wav", "BARLT1234")),
        *(("YELLLAZB20160625SM303143.mp3", "SM303143"), ("YELLAMRO20160506SM3.mp3", "")),
        *(("24E144055E080032_20240510_053000.WAV", "24E144055E080032"), ("SM4_2024.wav", "")),
        *(("PLASMA12345.wav", ""), ("1234567890123456.wav", ""), ("SM41234567890.wav", "")),
    ],
)
def test_recorders(name: str, recorder: str) -> None:
    assert read_name(name).recorder == recorder


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("20240510T053000+1000_-12.34567+78.98102.wav", (-12.34567, 78.98102)),
        ("20240510T053000+1000_[-27.3888 152.8808].flac", (-27.3888, 152.8808)),
        ("20240510T053000+1000_+92.34567+78.98102.wav", None),
        ("20240510T053000+1000_+00.00000+00.00000.wav", None),
        ("20240510_053000.wav", None),
    ],
)
def test_positions(name: str, position: tuple[float, float] | None) -> None:
    assert read_name(name).position == position


MOMENTS = st.datetimes(datetime(FIRST_YEAR, 1, 1), LAST).map(lambda t: t.replace(microsecond=0))


@given(
    MOMENTS,
    st.sampled_from(["%Y%m%d_%H%M%S", "%Y-%m-%dT%H-%M-%S", "%Y%m%dT%H%M%S", "%Y-%m-%d %H.%M.%S"]),
    st.sampled_from(["", "SITE_", "S4A01234_", "plot 7 ", "a-1-"]),
    st.sampled_from(["", "Z", "+1000", "-0330", "_UTC+5:45"]),
)
def test_every_time_comes_back(time: datetime, form: str, prefix: str, zone: str) -> None:
    found = read_name(f"{prefix}{time.strftime(form)}{zone}.wav").time
    hours = {"": None, "Z": 0.0, "+1000": 10.0, "-0330": -3.5, "_UTC+5:45": 5.75}[zone]
    expected = time if hours is None else time.replace(tzinfo=timezone(timedelta(hours=hours)))
    assert found == expected


@given(st.datetimes(datetime(2015, 1, 1), LAST))
def test_hexadecimal_names_are_utc(time: datetime) -> None:
    time = time.replace(microsecond=0, tzinfo=timezone.utc)
    digits = f"{int(time.timestamp()):08X}"
    assert read_name(f"{digits}.WAV").time == (None if digits.isdecimal() else time)


@given(st.text(st.sampled_from("0123456789_-T:+Z.SEABCDEFsh() $MLXC"), max_size=40))
def test_no_name_is_an_error(name: str) -> None:
    found = read_name(f"{name}.wav")
    if found.date is not None:
        assert FIRST_YEAR <= found.date.year <= LAST.year
