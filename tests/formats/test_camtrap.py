"""Camtrap DP: packages that frictionless finds valid, with the times of the recordings."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from result_files import error, result_file, window

from NatureLM.data.table import DataError
from NatureLM.errors import UsageError
from NatureLM.formats import camtrap, read, recognised, write
from NatureLM.results.rows import WindowRow

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "formats" / "camtrap-dp"


def field(seconds: float = 0.0, **changes: Any) -> dict[str, Any]:
    """The context of a window of a recording that began at 05:30 in UTC+10."""
    minute, second = divmod(seconds, 60)
    clock = f"{30 + int(minute):02d}:{second:06.3f}"
    return {
        **{"site": "Creek", "latitude": -12.5, "longitude": 143.25, "recorder": "SM4-1"},
        **{"local_time": f"2024-05-10T05:{clock}+10:00", "utc_time": f"2024-05-09T19:{clock}Z"},
        **changes,
    }


def heard(path: str, start: float, end: float, text: str, **changes: Any) -> WindowRow:
    context = changes.pop("context", field(start))
    return window(path, start, end, text=text, context=context, **changes)


ROWS = (
    heard("/card/1/a.wav", 0.0, 5.25, "Bush-hen | =young"),
    heard("/card/1/a.wav", 5.25, 12.5, "Rallina tricolor", confidence=0.75),
    heard("/card/1/b.wav", 0.0, 10.0, "None", context=field(site="Hill", recorder="")),
    heard("/card/2/~b..c.mp4", 0.0, 10.0, "", note="silent", context=field(recorder="SM4-2")),
    error("/card/2/x.wav"),
)


def tables(folder: Path) -> dict[str, list[dict[str, str]]]:
    found = {}
    for name in camtrap.TABLES:
        with open(folder / f"{name}.csv", encoding="utf-8", newline="") as file:
            found[name] = list(csv.DictReader(file))
    return found


@pytest.mark.parametrize("name", ["p", "p.zip"])
def test_frictionless_finds_it_valid(name: str, tmp_path: Path) -> None:
    """Types, enumerations, what must be there, keys and references between the tables."""
    import frictionless

    written = write("camtrap-dp", result_file(tmp_path, *ROWS), tmp_path / name)
    assert (written.lines, dict(written.left_out), written.unread) == (
        4,
        {"None": 1, "silent": 1},
        1,
    )
    place = tmp_path / name if name == "p.zip" else tmp_path / name / "datapackage.json"
    report = frictionless.validate(str(place))
    assert report.valid, report.flatten(["type", "note", "rowNumber", "fieldName"])
    assert {one.name: one.stats["rows"] for one in report.tasks} == {
        **{"deployments": 3, "media": 3, "observations": 4}
    }
    package = frictionless.Package(str(place))
    first = package.get_resource("observations").read_rows()[0]
    assert first["eventStart"].isoformat() == "2024-05-10T05:30:00+10:00"


def test_frictionless_would_see_what_is_wrong(tmp_path: Path) -> None:
    import frictionless

    write("camtrap-dp", result_file(tmp_path, *ROWS), tmp_path / "p")
    for table, wrong, right in (
        ("observations", ",maybe,", ",blank,"),
        ("media", ",Creek_SM4-3,", ",Creek_SM4-2,"),
    ):
        path = tmp_path / "p" / f"{table}.csv"
        path.write_text(path.read_text(encoding="utf-8").replace(right, wrong), encoding="utf-8")
    report = frictionless.validate(str(tmp_path / "p" / "datapackage.json"))
    kinds = {kind for (kind,) in report.flatten(["type"])}
    assert {"constraint-error", "foreign-key"} <= kinds


def test_what_the_tables_say(tmp_path: Path) -> None:
    write("camtrap-dp", result_file(tmp_path, *ROWS), tmp_path / "p")
    found = tables(tmp_path / "p")
    assert [tuple(rows[0]) for rows in found.values()] == [
        camtrap.columns_of(table) for table in camtrap.TABLES
    ]
    deployments = {one["deploymentID"]: one for one in found["deployments"]}
    assert list(deployments) == ["Creek_SM4-1", "Creek_SM4-2", "Hill"]
    assert deployments["Hill"]["deploymentStart"] == "2024-05-10T05:30:00+10:00"
    assert deployments["Creek_SM4-1"]["deploymentEnd"] == "2024-05-10T05:30:13+10:00"
    assert deployments["Creek_SM4-1"]["latitude"] == "-12.5"
    media = {one["filePath"]: one for one in found["media"]}
    assert {path: one["fileMediatype"] for path, one in media.items()} == {
        **{"1/a.wav": "audio/wav", "1/b.wav": "audio/wav", "2/~b%2E%2Ec.mp4": "video/mp4"}
    }
    hen, rail, *blank = found["observations"]
    assert (hen["observationType"], rail["observationType"]) == ("unclassified", "animal")
    assert rail["scientificName"] == "Rallina tricolor"
    assert (rail["eventStart"], rail["eventEnd"]) == (
        *("2024-05-10T05:30:05+10:00", "2024-05-10T05:30:13+10:00"),
    )
    assert "mediaStart:5.25 | mediaEnd:12.5" in rail["observationTags"]
    assert "label:Bush-hen / =young" in hen["observationTags"]
    assert [one["observationType"] for one in blank] == ["blank", "blank"]
    assert {one["observationLevel"] for one in blank} == {"media"}
    package = json.loads((tmp_path / "p" / "datapackage.json").read_text(encoding="utf-8"))
    assert package["taxonomic"] == [{"scientificName": "Rallina tricolor"}]
    assert package["temporal"] == {"start": "2024-05-10", "end": "2024-05-10"}


def test_a_package_made_by_hand() -> None:
    assert recognised(FIXTURE) == "camtrap-dp"
    rail, hen, person = read(FIXTURE)
    assert (rail.audio_path, rail.start, rail.end) == ("creek/20240510_053000.WAV", 5.0, 8.0)
    assert (rail.label, rail.confidence, rail.note) == ("Rallina tricolor", 0.75, "near the water")
    assert (rail.low_hz, rail.high_hz) == (500.0, 4000.0)
    assert rail.context == {
        "site": "creek",
        "local_time": "2024-05-10T05:30:05+10:00",
        "utc_time": "2024-05-09T19:30:05Z",
    }
    assert (hen.label, hen.start, hen.end, hen.scientific_name) == ("Bush-hen", 12.25, 15.5, "")
    assert (person.label, person.start, person.end) == ("human", 0.0, 60.0)


@pytest.mark.parametrize(
    ("context", "words"),
    [
        (None, "such as b.wav, which has no clock time with a zone"),
        ({"site": "x", "local_time": "2024-05-10T05:30:00"}, "no clock time with a zone"),
        (
            {"site": "x", "utc_time": "2024-05-09T19:30:00Z"},
            "2 of 2 lack them, such as b.wav, which has no latitude and longitude",
        ),
    ],
)
def test_times_and_places_are_needed(
    context: dict[str, Any] | None, words: str, tmp_path: Path
) -> None:
    rows = [window(name, context=context) for name in ("b.wav", "c.wav")]
    with pytest.raises(UsageError) as caught:
        write("camtrap-dp", result_file(tmp_path, *rows, error("d.wav")), tmp_path / "p")
    assert words in str(caught.value)
    assert "--deployments TABLE" in str(caught.value)
    assert not (tmp_path / "p").exists()


def test_recordings_without_time_or_place_are_left_out_and_told(tmp_path: Path) -> None:
    rows = [heard("/a.wav", 0, 10, "Owl"), window("b.wav"), window("c.wav")]
    written = write("camtrap-dp", result_file(tmp_path, *rows), tmp_path / "p")
    assert [one.label for one in read(tmp_path / "p")] == ["Owl"]
    assert "2 of 3 lack them, such as b.wav" in written.says[0]


def test_it_is_one_for_all_recordings(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="all recordings together"):
        write("camtrap-dp", result_file(tmp_path, *ROWS), tmp_path / "p", per_recording=True)


@pytest.mark.parametrize(
    ("table", "change", "words"),
    [
        ("observations", ("o1,creek,m1", "o1,creek,m9"), "line 2: no media have the mediaID 'm9'"),
        ("media", ("05:30:00+10:00", "05:30"), "line 2: timestamp is '2024-05-10T05:30'"),
        ("media", ("T05:30:00+10:00", "T06:30:00+10:00"), "line 2: the event is not within"),
        ("media", ("filePath", "file"), "has no column filePath"),
        ("observations", ("0.75", "often"), "classificationProbability is 'often'"),
        ("observations", ("0.75", "nan"), "classificationProbability is 'nan'"),
        ("media", ("2024-05-10T05:30:00+10:00", "0001-01-01T00:00+14:00"), "timestamp is '0001-"),
    ],
)
def test_packages_that_are_none(
    table: str, change: tuple[str, str], words: str, tmp_path: Path
) -> None:
    for name in camtrap.TABLES:
        text = (FIXTURE / f"{name}.csv").read_text(encoding="utf-8")
        text = text.replace(*change, 1) if name == table else text
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        list(read(tmp_path, "camtrap-dp"))
    assert words in str(caught.value)


def test_tags_that_say_what_cannot_be_are_not_believed(tmp_path: Path) -> None:
    for name in camtrap.TABLES:
        text = (FIXTURE / f"{name}.csv").read_text(encoding="utf-8")
        tags = "mediaStart:nan | mediaEnd:inf | windows:" + "9" * 5000
        text = text.replace("mediaStart:12.25 | mediaEnd:15.5", tags)
        assert tags in text or name != "observations"
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
    _, hen, _ = read(tmp_path)
    assert (hen.start, hen.end, hen.windows) == (12, 16, None)


def zipped(path: Path, compression: int = zipfile.ZIP_DEFLATED, padding: int = 0) -> bytearray:
    """The package as a .zip, with so many blanks at the end of its media."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name in camtrap.TABLES:
            text = (FIXTURE / f"{name}.csv").read_bytes()
            file.writestr(f"{name}.csv", text + b" " * padding * (name == "media"))
    return bytearray(path.read_bytes())


def spoilt(path: Path, how: str) -> None:
    data = zipped(path, zipfile.ZIP_LZMA if how == "lzma" else zipfile.ZIP_DEFLATED)
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # headers, and the directory
        for entry in re.finditer(re.escape(mark), bytes(data)):
            if how == "password":
                data[entry.start() + flags] |= 1
            elif how == "method":
                data[entry.start() + flags + 2] = 97
    if how == "lzma":
        at = data.index(b"media.csv") + 20
        data[at : at + 20] = bytes(20)
    path.write_bytes(b"PK" if how == "cut" else data)


@pytest.mark.parametrize("how", ["cut", "password", "method", "lzma"])
def test_a_zip_that_is_none(how: str, tmp_path: Path) -> None:
    spoilt(tmp_path / "p.zip", how)
    with pytest.raises(DataError, match=r"p\.zip: cannot be read as a \.zip"):
        list(read(tmp_path / "p.zip"))


def test_a_zip_that_swells_is_refused(tmp_path: Path) -> None:
    """A file of 60 kB took 330 MB of memory."""
    data = zipped(tmp_path / "p.zip", padding=60 * 10**6)
    assert len(data) < 10**5
    with pytest.raises(DataError, match=r"media\.csv has more than 100 times the bytes"):
        list(read(tmp_path / "p.zip"))
    zipped(tmp_path / "p.zip", padding=10**6)
    assert len(list(read(tmp_path / "p.zip"))) == 3
