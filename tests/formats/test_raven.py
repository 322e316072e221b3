"""Selection tables of Raven are right for both ways of opening them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.formats import raven, read, write
from NatureLM.results.detections import Detection, HeardRecording
from tests.result_files import error, result_file, window

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def heard(path: str = "a.wav", seconds: float = 10.0, rate: float = 16_000) -> HeardRecording:
    return HeardRecording(path, path, seconds, rate)


def detection(path: str = "a.wav", start: float = 0.0, end: float = 10.0, **more: Any) -> Detection:
    return Detection(audio_path=path, start=start, end=end, **{"label": "Wolf", **more})


def table_of(
    found: Iterable[Detection], recordings: list[HeardRecording], **options: Any
) -> list[dict[str, str]]:
    with TemporaryDirectory() as folder:
        target = Path(folder, "t.txt")
        count = raven.write_selections(found, target, recordings, **options)
        lines = target.read_bytes().decode().split("\n")
    assert lines.pop() == ""
    cells = [line.split("\t") for line in lines]
    assert len(cells) == count + 1
    return [dict(zip(cells[0], one, strict=True)) for one in cells[1:]]


def test_times_of_several_files_go_on_from_file_to_file() -> None:
    files = [heard("a.wav", 25.5, 44_100), heard("silent.wav", 4.5), heard("b.wav", 30.0, 8_000)]
    found = [detection("a.wav", 20, 25.5), detection("a.wav"), detection("b.wav", 10, 20)]
    rows = table_of(found, files)
    assert [row["Selection"] for row in rows] == ["1", "2", "3"]
    assert [(row["Begin Time (s)"], row["End Time (s)"]) for row in rows] == [
        ("0.000000", "10.000000"),
        ("20.000000", "25.500000"),
        ("40.000000", "50.000000"),
    ]
    assert [(row["Begin Path"], row["Begin File"], row["File Offset (s)"]) for row in rows] == [
        ("a.wav", "a.wav", "0.000000"),
        ("a.wav", "a.wav", "20.000000"),
        ("b.wav", "b.wav", "10.000000"),
    ]
    assert [row["High Freq (Hz)"] for row in rows] == ["8000.0", "8000.0", "4000.0"]
    assert {(row["View"], row["Channel"], row["Low Freq (Hz)"]) for row in rows} == {
        ("Spectrogram 1", "1", "0.0")
    }


@given(
    lengths=st.lists(st.integers(1, 4_000_000), min_size=1, max_size=30),
    rate=st.sampled_from([8_000, 22_050, 44_100, 96_000]),
)
def test_times_do_not_drift(lengths: list[int], rate: int) -> None:
    """The last of many files begins at the sum of the lengths, to the microsecond."""
    files = [heard(str(n), frames / rate, rate) for n, frames in enumerate(lengths)]
    (row,) = table_of([detection(files[-1].path, 0.25, 0.5)], files)
    begin = sum(lengths[:-1]) / rate + 0.25
    assert float(row["Begin Time (s)"]) == pytest.approx(begin, abs=1e-6)
    assert float(row["End Time (s)"]) - float(row["Begin Time (s)"]) == pytest.approx(
        0.25, abs=2e-6
    )


@given(text=TEXT, question=TEXT, name=TEXT)
def test_no_text_breaks_a_selection_table(text: str, question: str, name: str) -> None:
    found = [
        detection(name, label=text, question=question, note=text, common_name=text),
        detection(name, start=1),
    ]
    rows = table_of(found, [heard(name)])
    assert [row["Selection"] for row in rows] == ["1", "2"]
    assert rows[1]["Annotation"] == "Wolf"


def test_channel_band_and_names_are_those_that_are_known() -> None:
    files = [heard("=7.wav", rate=500_000)]
    (row,) = table_of([detection("=7.wav")], files, channel=2, heard_hz=80_000)
    assert (row["Channel"], row["High Freq (Hz)"]) == ("2", "80000.0")
    assert (row["Begin Path"], row["Begin File"]) == ("'=7.wav", "'=7.wav")
    (row,) = table_of([detection("=7.wav", channel=3, low_hz=500.0, high_hz=900.5)], files)
    assert (row["Channel"], row["Low Freq (Hz)"], row["High Freq (Hz)"]) == ("3", "500.0", "900.5")


def test_events_and_claims_have_columns_of_their_own() -> None:
    claim = {"label": "=Fox", "confidence": 0.5, "agrees": False}
    (row,) = table_of([detection(windows=3, mean_confidence=0.5, claim=claim)], [heard()])
    assert (row["Windows"], row["Mean Confidence"]) == ("3", "0.500000")
    assert (row["Claim"], row["Agrees"]) == ("'=Fox", "no")
    (row,) = table_of([detection()], [heard()])
    assert not row.keys() & {"Windows", "Claim", "Site", "Local Time"}


def test_only_detections_are_selections(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    soundfile.write(tmp_path / "b.wav", np.zeros(8000 * 3), 8000)
    a, b = str(tmp_path / "a.wav"), str(tmp_path / "b.wav")
    answers = result_file(
        tmp_path,
        window(a, text="None"),
        window(a, start=10, end=20, text="", note="silent"),
        window(a, start=20, end=30, text="Dog", note="silent"),
        error(b, "half of it"),
        window(str(tmp_path / "c.wav"), text="Owl"),
        error(str(tmp_path / "d.wav")),
    )
    target = tmp_path / "tables" / "r.selections.txt"
    written = write("raven", answers, target)
    with open(target, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [(row["Begin Time (s)"], row["Annotation"], row["Note"]) for row in rows] == [
        ("20.000000", "Dog", "silent"), ("33.000000", "Owl", ""),
    ]  # fmt: skip
    assert (written.lines, written.left_out) == (2, {"None": 1, "silent": 1})
    names = [Path(name).name for name in target.with_name("r.files.txt").read_text().splitlines()]
    assert names == ["a.wav", "b.wav", "c.wav"]
    first, second, third, fourth = caplog.messages
    (last,) = written.says
    assert first.endswith("Its length is taken to be 30 s, where the last answer ends.")
    assert second.endswith("b.wav: not all of it was read; its 3 s count, as its header says")
    assert third.endswith("Its length is taken to be 10 s, where the last answer ends.")
    assert "d.wav" in fourth
    assert "It is not counted" in fourth
    assert last.endswith(f"by the list {target.with_name('r.files.txt')}")


def test_a_single_recording_needs_no_list(tmp_path: Path) -> None:
    answers = result_file(tmp_path, window(str(tmp_path / "a.wav")))
    assert write("raven", answers, tmp_path / "r.txt").says == []
    assert not (tmp_path / "r.files.txt").exists()


def test_times_that_count_over_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a.wav", "b.wav")]
    rows = (window(paths[0], end=6.6), window(paths[1], end=5.0), window(paths[1], 0.1, 3.3))
    write("raven", result_file(tmp_path, *rows), tmp_path / "r.selections.txt")
    assert [(one.start, one.end) for one in read(tmp_path / "r.selections.txt")] == [
        (0.0, 6.6), (0.0, 5.0), (0.1, 3.3),
    ]  # fmt: skip
