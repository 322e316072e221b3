"""When recordings began: names, headers of all firmwares, GUANO, tables, sources that disagree."""

from __future__ import annotations

import dataclasses
import struct
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import metamoth.parsing
import numpy as np
import pytest
import soundfile
from field_files import chunk, comment_chunk, guano_chunk, save_wav, wamd_chunk
from guano import GuanoFile
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.audio.container import read_tags
from NatureLM.errors import UsageError
from NatureLM.field.clock import FIRST_YEAR, Clock, read_clock, read_name, tags_of, tags_text
from NatureLM.field.deployments import FileTimes

MOMENT = datetime(2024, 5, 10, 19, 17, 30)
COMMENT = (
    "Recorded at 19:17:30 10/05/2024 (UTC+1) by AudioMoth 24E144055E080032 at medium gain while "
    "battery was 4.2V and temperature was 19.3C."
)
GUANO = (
    "GUANO|Version: 1.0\nMake: Titley Scientific\nModel: Chorus\nSerial: CH-7\n"
    "Timestamp: {}\nLoc Position: 51.50000 -0.12000\nTemperature Int: 12.5\n"
)


def zone(hours: float) -> timezone:
    return timezone(timedelta(hours=hours))


@pytest.mark.parametrize(
    "chunks",
    [
        [comment_chunk("mine"), comment_chunk(COMMENT, "AudioMoth 24E144055E080032")],
        [guano_chunk(GUANO.format("2024-05-10T19:17:30+01:00") + "Note: x\n")],
        [
            wamd_chunk(
                model="SM4", serial="S4A1", timestamp="2024-05-10 19:17:30", gps="WGS84,1.5,N"
            )
        ],
        [],
    ],
)
def test_a_clock_is_told_by_what_a_list_keeps_of_the_header(
    chunks: list[bytes], tmp_path: Path
) -> None:
    path = save_wav(tmp_path / "20240510_191730.wav", *chunks)
    read = read_clock(path)
    kept = tags_text(read.tags)
    path.unlink()
    told = read_clock(path, tags=tags_of(kept))
    assert dataclasses.replace(told, tags=read.tags) == read
    assert (kept == "{}") == (not chunks)


@pytest.mark.parametrize("text", ["", "x", "[]", '{"guano": 1}', '{"guano": {"Serial": 1}}'])
def test_what_keeps_no_header(text: str) -> None:
    assert tags_of(text) is None


def moth(path: Path, comment: str = COMMENT) -> Clock:
    return read_clock(save_wav(path, comment_chunk(comment, "AudioMoth 24E144055E080032")))


FIRMWARES = {
    # Comments as each firmware writes them; hours from UTC, battery, temperature.
    "1.0": ("by AudioMoth {} at gain setting 2 while battery state was 4.35V", None, 4.35, None),
    "1.0.1": (
        *("(UTC) by AudioMoth {} at gain setting 2 while battery state was 4.3V", 0, 4.3, None),
    ),
    "1.2": (
        *("(UTC-3) by AudioMoth {} at gain setting 3 while battery state was > 5.0V.", -3, None),
        None,
    ),
    "1.2.2": (
        "(UTC-3:30) by AudioMoth {} at gain setting 3 while battery state was less than 3.6V.",
        *(-3.5, None, None),
    ),
    "half an hour": (
        "(UTC-0:30) by AudioMoth {} at gain setting 3 while battery state was 4.1V.",
        *(-0.5, 4.1, None),
    ),
    "1.4": (
        "(UTC+5:45) by AudioMoth {} at medium-high gain setting while battery state was 4.2V and "
        "temperature was -3.4C. Amplitude threshold was 512.",
        *(5.75, 4.2, -3.4),
    ),
    "1.6": (
        "(UTC+10) by AudioMoth {} using external microphone at low gain while battery was greater "
        "than 4.9V and temperature was 21.0C. Recording stopped due to switch position change.",
        *(10, None, 21.0),
    ),
    "deployment": (
        "(UTC) during deployment 0123456789ABCDEF at medium gain while battery was 4.2V and "
        "temperature was 19.3C. Frequency trigger (8.0kHz and window length of 16 samples).",
        *(0, 4.2, 19.3),
    ),
}


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_comments_of_every_firmware(firmware: str, tmp_path: Path) -> None:
    text, hours, battery, temperature = FIRMWARES[firmware]
    serial = "24E144055E080032"
    comment = f"Recorded at 19:17:30 10/05/2024 {text.format(serial)}"
    clock = moth(tmp_path / "a.WAV", comment)
    assert clock.time == (MOMENT if hours is None else MOMENT.replace(tzinfo=zone(hours)))
    assert (clock.source, clock.recorder, clock.model) == ("AudioMoth comment", serial, "AudioMoth")
    assert (clock.battery, clock.temperature) == (battery, temperature)


@pytest.mark.parametrize("firmware", ["1.0.1", "1.4", "1.6"])
def test_metamoth_reads_the_same(firmware: str, tmp_path: Path) -> None:
    """It is wrong for negative zones with minutes, and refuses what newer firmwares add."""
    serial = "24E144055E080032"
    comment = f"Recorded at 19:17:30 10/05/2024 {FIRMWARES[firmware][0].format(serial)}"
    theirs = metamoth.parsing.parse_comment(comment)
    ours = moth(tmp_path / "a.WAV", comment)
    assert theirs["datetime"].replace(tzinfo=theirs["timezone"]) == ours.time
    assert theirs.get("temperature_c") == ours.temperature


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2024-05-10T19:17:30", MOMENT),
        ("2024-05-10 19:17:30", MOMENT),
        ("2024-05-10T19:17:30Z", MOMENT.replace(tzinfo=timezone.utc)),
        ("2024-05-10T19:17:30.250-03:30", MOMENT.replace(tzinfo=zone(-3.5))),
        ("2024-05-10T19:17:30+1000", MOMENT.replace(tzinfo=zone(10))),
    ],
)
def test_guano(text: str, time: datetime, tmp_path: Path) -> None:
    path = save_wav(tmp_path / "a.wav", behind=guano_chunk(GUANO.format(text)))
    clock = read_clock(path)
    assert (clock.time, clock.source) == (time, "GUANO")
    assert (clock.make, clock.model, clock.recorder) == ("Titley Scientific", "Chorus", "CH-7")
    assert (clock.position, clock.temperature) == ((51.5, -0.12), 12.5)
    theirs = GuanoFile(str(path))
    assert theirs["Timestamp"].replace(microsecond=0) == time
    assert theirs["Loc Position"] == clock.position


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2024-05-10", "2024-13-10T19:17:30", "1970-01-01T00:00:00", "9" * 99]
)
def test_guano_without_a_time(text: str, tmp_path: Path) -> None:
    clock = read_clock(save_wav(tmp_path / "a.wav", guano_chunk(GUANO.format(text))))
    assert (clock.time, clock.model) == (None, "Chorus")


@pytest.mark.parametrize(
    ("gps", "position"),
    [
        ("WGS84,25.39000,N,80.68000,W,3", (25.39, -80.68)),
        ("WGS84, -25.39, 80.68", (-25.39, 80.68)),
        ("WGS84,95.0,N,80.68,W", None),
        ("none", None),
    ],
)
def test_song_meters(gps: str, position: tuple[float, float] | None, tmp_path: Path) -> None:
    """Their names have no zone, and the chunk wamd has."""
    fields = {"model": "SM4", "serial": "S4A01234", "timestamp": "2024-05-10 19:17:30-05:00"}
    path = save_wav(
        tmp_path / "20240510_191730.wav", wamd_chunk(program="\1" * 99, **fields, gps=gps)
    )
    clock = read_clock(path)
    assert clock.time == MOMENT.replace(tzinfo=zone(-5))
    assert (clock.source, clock.zone_source, clock.conflicts) == ("name", "WAMD", ())
    assert (clock.make, clock.model, clock.recorder) == ("Wildlife Acoustics", "SM4", "S4A01234")
    assert clock.position == position
    alone = read_clock(save_wav(tmp_path / "x.wav", wamd_chunk(timestamp="2024-05-10 19:17:30")))
    assert (alone.time, alone.source) == (MOMENT, "WAMD")


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3"])
def test_comments_outlive_a_conversion(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    with soundfile.SoundFile(path, "w", 16_000, 1) as file:
        file.comment = COMMENT
        file.write(np.zeros(1600, np.float32))
    assert read_clock(path).time == MOMENT.replace(tzinfo=zone(1))


def test_a_comment_within_other_text_is_found(tmp_path: Path) -> None:
    comment = f'opso_metadata{{"artist": "AudioMoth", "comment": "{COMMENT}", "subtype": "PCM_16"'
    assert moth(tmp_path / "a.WAV", comment).time == MOMENT.replace(tzinfo=zone(1))


def test_chunks_behind_four_gigabytes_of_sound_are_found(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    size = 5 << 30
    form = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 8000, 16_000, 2, 16))
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 0, size, 0, 0))
    with path.open("wb") as file:
        file.write(b"RF64\xff\xff\xff\xffWAVE" + ds64 + form + b"data\xff\xff\xff\xff")
        file.seek(size, 1)  # a hole, which takes no space
        file.write(guano_chunk(GUANO.format("2024-05-10T19:17:30")))
    assert read_clock(path).time == MOMENT


# Several sources


def test_the_name_is_trusted_and_the_comment_gives_its_zone(tmp_path: Path) -> None:
    clock = moth(tmp_path / "20240510_191730.WAV")
    assert clock.time == MOMENT.replace(tzinfo=zone(1))
    assert (clock.source, clock.zone_source, clock.zone) == (
        *("name", "AudioMoth comment"),
        "UTC+01:00",
    )
    assert clock.utc == datetime(2024, 5, 10, 18, 17, 30, tzinfo=timezone.utc)
    assert clock.conflicts == ()


def test_two_seconds_are_no_conflict(tmp_path: Path) -> None:
    assert moth(tmp_path / "20240510_191732.WAV").conflicts == ()
    (sentence,) = moth(tmp_path / "20240510_191733.WAV").conflicts
    assert "3 s apart: the name is taken" in sentence


def test_a_name_in_utc_is_told_by_the_comment_and_said(tmp_path: Path) -> None:
    clock = moth(tmp_path / "20240510_181730.WAV")
    assert clock.time == MOMENT.replace(tzinfo=zone(1))
    assert clock.source == "name"
    assert clock.conflicts == (
        "The name says 2024-05-10 18:17:30 and the AudioMoth comment says 2024-05-10 19:17:30 "
        "(UTC+01:00): the same moment where the name counts in UTC, as it is taken.",
    )


def test_a_name_that_differs_by_an_hour_has_no_utc(tmp_path: Path) -> None:
    clock = moth(tmp_path / "20240510_201730.WAV")
    assert (clock.time, clock.utc, clock.zone) == (datetime(2024, 5, 10, 20, 17, 30), None, "")
    assert clock.conflicts == (
        "The name says 2024-05-10 20:17:30 and the AudioMoth comment says 2024-05-10 19:17:30 "
        "(UTC+01:00), 1 h apart (as zones or summer time are): the name is taken.",
    )


def test_a_hexadecimal_name_and_its_comment_agree(tmp_path: Path) -> None:
    begun = MOMENT.replace(tzinfo=zone(1))
    clock = moth(tmp_path / f"{int(begun.timestamp()):08X}.WAV")
    assert (clock.time, clock.zone, clock.conflicts) == (begun, "UTC+01:00", ())


def test_a_date_in_the_name_is_compared(tmp_path: Path) -> None:
    assert moth(tmp_path / "PLOT20240510.WAV").conflicts == ()
    clock = moth(tmp_path / "PLOT20240511.WAV")
    assert clock.time == MOMENT.replace(tzinfo=zone(1))
    assert clock.conflicts == (
        "The name says 2024-05-11, and the AudioMoth comment says 2024-05-10 19:17:30 (UTC+01:00).",
    )


def test_all_sources_are_compared(tmp_path: Path) -> None:
    table = tmp_path / "times.csv"
    table.write_text("file,time\n20240510_191730.WAV,2024-05-12 19:17:30\n")
    guano = guano_chunk(GUANO.format("2024-05-10T19:17:30+01:00"))
    path = save_wav(tmp_path / "20240510_191730.WAV", comment_chunk(COMMENT), behind=guano)
    clock = read_clock(path, FileTimes(table))
    (sentence,) = clock.conflicts
    assert sentence.endswith("48 h apart: the name is taken.")
    assert "file table says 2024-05-12" in sentence


def test_nothing_is_known_of_other_files(tmp_path: Path) -> None:
    assert read_clock(tmp_path / "absent.wav") == Clock()
    assert read_clock(save_wav(tmp_path / "a.wav")) == Clock()
    (tmp_path / "empty.wav").touch()
    assert read_clock(tmp_path / "empty.wav") == Clock()
    assert read_clock(tmp_path) == Clock()


# Broken headers


def test_chunks_that_promise_more_than_there_is(tmp_path: Path) -> None:
    cut = chunk(b"LIST", b"INFO" + chunk(b"ICMT", COMMENT.encode(), 0xFFFF_FFFF), 0xFFFF_FFF0)
    assert read_clock(save_wav(tmp_path / "a.wav", behind=cut)).time is not None
    nested = chunk(b"LIST", chunk(b"LIST", b"INFO" * 1000) * 50)
    many = b"".join(chunk(b"LIST", b"INFOICMT\0\0\0\0") for _ in range(20_000))
    assert read_clock(save_wav(tmp_path / "b.wav", nested, many)).time is None
    huge = guano_chunk("x" * 10_000_000 + "\nTimestamp: 2024-05-10T19:17:30")
    assert read_clock(save_wav(tmp_path / "c.wav", huge)).time is None


@given(data=st.data())
def test_no_header_is_an_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.wav"
    wamd = wamd_chunk(serial="S4A01234", timestamp="2024-05-10 19:17:30", gps="WGS84,1.5,N,2.5,W")
    save_wav(path, comment_chunk(COMMENT, size=200), wamd, behind=guano_chunk(GUANO.format("2024")))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 5))
        content[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    clock = read_clock(path)
    assert clock.time is None or clock.time.year >= 1990


@given(st.text(max_size=300))
def test_no_text_is_an_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.wav"
    lines = "".join(f"{key}: {text}\n" for key in ("Timestamp", "Loc Position", "Serial", "TE"))
    save_wav(path, comment_chunk(f"Recorded at {text}", text), guano_chunk(lines))
    read_clock(path)


# A table of times


def test_names_that_no_file_can_have_fit_none(tmp_path: Path) -> None:
    times = times_of(tmp_path, f"file,time\n{'x' * 5000}.wav,2024-05-10 05:30\n", "a.wav")
    assert times.of(tmp_path / "a.wav") == (None, "")


def times_of(folder: Path, text: str, *recordings: str) -> FileTimes:
    table = folder / "times.csv"
    table.write_text(text, encoding="utf-8")
    return FileTimes(table, [folder / name for name in recordings])


def test_a_table_of_times(tmp_path: Path) -> None:
    times = times_of(
        tmp_path,
        "File Name;Start;Zone\na.wav;2024-05-10 19:17:30;Europe/London\n"
        "x\\b.wav;2024-05-10T19:17:30Z;\nc.wav;2024-05-10 5:07;+10:00\n"
        "d.wav;2024-10-27 01:30:00;Europe/London\n",
    )
    read = {name: read_clock(tmp_path / name, times) for name in ("a.wav", "x/b.wav", "y/b.wav")}
    assert read["a.wav"].time == MOMENT.replace(tzinfo=zone(1))
    assert (read["a.wav"].source, read["a.wav"].zone_source) == ("file table", "file table")
    assert read["x/b.wav"].time == MOMENT.replace(tzinfo=timezone.utc)
    assert read["y/b.wav"].time is None
    early = datetime(2024, 5, 10, 5, 7, tzinfo=zone(10))
    assert read_clock(tmp_path / "c.wav", times).time == early
    doubtful = read_clock(tmp_path / "d.wav", times)
    assert doubtful.time == datetime(2024, 10, 27, 1, 30)
    assert "comes twice in Europe/London" in doubtful.conflicts[0]


def test_date_and_time_may_be_two_columns(tmp_path: Path) -> None:
    times = times_of(tmp_path, "IN FILE,DATE,TIME\na.wav,2024-05-10,19:17:30\n")
    assert read_clock(tmp_path / "a.wav", times).time == MOMENT


def test_a_name_that_fits_two_recordings_is_used_for_none(tmp_path: Path) -> None:
    text = "file,time\na.wav,2024-05-10 19:17:30\nx/b.wav,2024-05-10 19:17:30\n"
    times = times_of(tmp_path, text, "x/a.wav", "y/a.wav", "x/b.wav", "y/b.wav")
    clock = read_clock(tmp_path / "x/a.wav", times)
    assert clock.time is None
    assert "line 2: the file fits 2 recordings" in clock.conflicts[0]
    assert read_clock(tmp_path / "x/b.wav", times).time == MOMENT
    assert times.notes == []
    times = times_of(tmp_path, text, "x/b.wav")
    assert times.notes[0].endswith("no recording is called as in 1 of its rows, such as line 2")


def test_a_file_beside_the_table_is_that_one(tmp_path: Path) -> None:
    for name in ("a.wav", "é.wav", "x/a.wav"):
        save_wav(tmp_path / name)
    times = times_of(
        tmp_path, "file,time\na.wav,2024-05-10 19:17:30\ne\u0301.wav,2024-05-10 19:17:30\n"
    )
    assert read_clock(tmp_path / "a.wav", times).time == MOMENT
    assert read_clock(tmp_path / "é.wav", times).time == MOMENT
    assert read_clock(tmp_path / "x/a.wav", times).time is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,time\na.wav,10/05/2024 05:30\n", "line 2: time is '10/05/2024 05:30'; write 2024-"),
        (
            "file,time\na.wav,2024-05-10\n",
            "line 2: time is '2024-05-10'; write 2024-05-10 05:30:00",
        ),
        (
            "file,date,time\na.wav,2024-05-10,noon\n",
            "line 2: time is 'noon'; write 05:30:00",
        ),
        ("file,time\na.wav,\n", "line 2: there is no time; a table of times has the columns file,"),
        ("name,time\na.wav,2024-05-10 05:30\n", "line 2: there is no file"),
        ("file,time\na.wav,2024-05-10 05:30\na.wav,2024-05-10 05:30\n", "line 3: file is there in"),
        ("file,time,zone\na.wav,2024-05-10 05:30,BST\n", "line 2: zone is 'BST'; write a zone as"),
        ("file,time,zone\na.wav,2024-05-10 05:30,+19\n", "no place is +19 hours from UTC"),
        ("file,time\n", "this table has no rows"),
    ],
)
def test_cells_that_cannot_be_meant(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        times_of(tmp_path, text)
    assert message in str(raised.value)
    assert "times.csv" in str(raised.value)


# Real recordings


@pytest.mark.shared
def test_real_recordings(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "field"
    clocks = {path.name: read_clock(path) for path in sorted(folder.iterdir())}
    bats = clocks["bats_audiomoth.WAV"]
    assert bats.time == datetime(2024, 9, 3, 20, 26, 15, tzinfo=zone(1))
    assert (bats.recorder, bats.battery, bats.temperature) == ("24E144055E080032", 4.2, 19.3)
    assert read_tags(folder / "bats_audiomoth.WAV").guano["Model"] == "AudioMoth"
    known = {name: str(clock.time) for name, clock in clocks.items() if clock.time}
    assert known == {
        "audiomoth_header.WAV": "2024-05-28 10:00:00+00:00",
        "bat_MYOMYS_20170701_213954.wav": "2017-07-01 21:39:54",
        "bats_audiomoth.WAV": "2024-09-03 20:26:15+01:00",
        "bats_audiomoth_triggered_empty.WAV": "2024-09-03 19:31:30+01:00",
        "one_minute.wav": "2018-05-04 09:32:00+00:00",
    }
    dates = {
        name: str(clock.date) for name, clock in clocks.items() if clock.date and not clock.time
    }
    assert dates == {
        "Lazuli_Bunting_yell-YELLLAZB20160625SM303143.mp3": "2016-06-25",
        "yell-YELLAMRO20160506SM3.mp3": "2016-05-06",
        "yell-YELLWolfvCar20160111T22ms2.mp3": "2016-01-11",
    }
    assert not [clock.conflicts for clock in clocks.values() if clock.conflicts]


# Names of files

LAST = datetime(date.today().year + 1, 12, 31, 23, 59, 59)
DAWN = datetime(2024, 5, 10, 5, 30)


def at(hours: float) -> datetime:
    return DAWN.replace(tzinfo=timezone(timedelta(hours=hours)))


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("20240510_053000.WAV", DAWN),
        ("20240510_053000T.WAV", DAWN),  # an AudioMoth that waited for a sound
        ("SITE_20240510_053000.wav", DAWN),
        ("Site 3-20240510-053000.flac", DAWN),
        ("S4A01234_20240510_053000.wav", DAWN),
        ("SM2_0+1_20240510$053000.wav", DAWN),
        ("20240510T053000.wav", DAWN),
        ("20240510T053000.123.wav", DAWN),
        ("20240510053000.wav", DAWN),
        ("2024-05-10_05-30-00.wav", DAWN),
        ("2024-05-10 05.30.00.m4a", DAWN),
        ("2024-05-10T05:30:00.wav", DAWN),
        ("2024-05-10_05.30.wav", DAWN),
        ("2024_05_10_05_30_00.wav", DAWN),
        ("2024-05-10-birdnet-05:30:00.wav", DAWN),
        ("Wren-85-2024-05-10-birdnet-RTSP_1-05:30:00.mp3", DAWN),
        ("20240510_PLOT4_20240510_053000.wav", DAWN),
        ("20240510_053000_20240510_053000.wav", DAWN),
        ("5132.240510053000.wav", DAWN),  # a SoundTrap
        ("20240510_053000-0000.wav", DAWN),  # an offset that says it is none
        ("20240510_053000-0123.wav", DAWN),  # a counter
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
        ("0.93_SITE_20240510_052900_60.0s_63.0s.wav", DAWN),  # a clip of a longer recording
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
