"""Tables as people save them: encodings, quotes, names of columns, times, labels, file names."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from NatureLM.audio import find_recordings
from NatureLM.config.schema import TableConfig, TableSource
from NatureLM.data.sample import Sample, SampleSet, load_examples, open_samples
from NatureLM.data.table import DataError, csv_rows, decoded, delimiter_of, label_text
from NatureLM.species import read_species_list

SMALL = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def opened(path: Path, **more: Any) -> SampleSet:
    return open_samples(TableSource.model_validate({"path": str(path), **more}))


def read(folder: Path, text: str | bytes, name: str = "t.csv", **more: Any) -> SampleSet:
    """What is read of a table with this text."""
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return opened(path, **more)


def times(samples: SampleSet) -> list[tuple[float, float | None]]:
    return [(one.clip.start, one.clip.end) for one in samples.samples]


def labels(samples: SampleSet) -> list[str]:
    return [one.label for one in samples.samples]


# Bytes

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
CELLS = st.text(
    st.one_of(st.sampled_from("ab \",;\t'\n"), st.characters(codec="utf-8", min_codepoint=32)),
    max_size=6,
)


@SMALL
@given(
    rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5),
    encoding=st.sampled_from(ENCODINGS),
    delimiter=st.sampled_from(",;\t"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_what_is_written_is_read(
    rows: list[tuple[str, str]], encoding: str, delimiter: str, quoting: Any, end: str
) -> None:
    rows = [("a" + one.strip(), other.strip()) for one, other in rows]
    stream = io.StringIO(newline="")
    if end == "\r":  # the writer would not quote a cell with the other end of a line
        quoting = csv.QUOTE_ALL
    writer = csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([("Name of it", "More of it"), *rows])
    data = stream.getvalue().encode(encoding)
    text, note = decoded(data, "t.csv")
    assert note == ""
    assert delimiter_of(text) == delimiter
    header, found = csv_rows(text, "t.csv", delimiter)
    assert header == ["Name of it", "More of it"]
    assert [tuple(cells) for _, cells in found] == rows


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.txt", "t.jsonl", "t.json"])
def test_encodings_of_every_kind_of_table(tmp_path: Path, encoding: str, name: str) -> None:
    rows = [{"file": "a.wav", "label": "Kröte"}, {"file": "b.wav", "label": "Gänsesäger"}]
    if name == "t.json":
        text = json.dumps(rows, ensure_ascii=False)
    elif name == "t.jsonl":
        text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    else:
        mark = "," if name == "t.csv" else "\t"
        lines = [mark.join(line) for line in (rows[0], *(row.values() for row in rows))]
        text = "\r\n".join(lines)
    found = read(tmp_path, text.encode(encoding), name)
    assert labels(found) == ["Kröte", "Gänsesäger"]
    assert found.notes == ()


def test_windows_letters_are_read_with_a_note(tmp_path: Path) -> None:
    found = read(tmp_path, "file;label\na.wav;Kröte\nb.wav;Daubenton\u2019s bat\n".encode("cp1252"))
    assert labels(found) == ["Kröte", "Daubenton\u2019s bat"]
    (note,) = found.notes
    assert "t.csv: is no UTF-8 and read as Windows-1252 (Kröte, Daubenton\u2019s)" in note
    examples = load_examples(TableConfig(path=str(tmp_path / "t.csv"), columns={"answer": "label"}))
    assert [one.answer for one in examples] == ["Kröte", "Daubenton\u2019s bat"]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("t.csv", "file,label\na.wav,Kröte\n".encode() + b"b.wav,Gr\xe4\n", "line 3: is no UTF-8"),
        ("t.csv", b"file,label\na.wav,x\x81\n", "line 2: is no text in UTF-8.*CSV UTF-8"),
        ("t.csv", b"PK\x03\x04\0\0\0\0\0\0", "save it as CSV UTF-8|is no text"),
        ("t.csv", b"file,label\na.wav,x\0\n", "line 2: is no text"),
        ("t.csv", b"\xff\xfef\0i", "is no UTF-16|has fewer fields|no row"),
        ("t.jsonl", b'{"file": "a", "label": "Gr\xe4"}\n', "line 1: is no UTF-8; save it as UTF-8"),
        ("t.jsonl", b'{"file": "a", "label": "x", "label": "y"}\n', "'label' is there twice"),
        ("t.json", b'[{"file": "a", "file": "b", "label": "y"}]', "'file' is there twice"),
        ("t.csv", b"file,label,label\na,b,c\n", "column 'label' is there twice"),
        ("t.xlsx", b"PK\x03\x04", "tables end in .*CSV UTF-8"),
        ("t.csv", b'file,label\na.wav,"Dog\nb.wav,Cat\n', "line 2: a quote is not closed"),
        ("t.csv", b'file,label\na.wav,"Dog"x\n', "line 2: there is text behind a closing quote"),
        ("t.csv", b'file,label\na.wav,"Dog\nb.wav,"Cat"\n', "line 2: there is text behind"),
        ("t.csv", b'file,label\na.wav,x\nb,"Dog\nc,Cat"\n', "line 3: label goes on in the next"),
        ("t.csv", b'file,label\na.wav,Dog"\n', "line 2: label ends in a quote that none begins"),
        ("t.csv", b"file,label\na.wav\n", "line 2: has fewer fields"),
        ("t.csv", b"file,label\na.wav,Dog,Cat\n", "line 2: has more fields"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(
    tmp_path: Path, name: str, data: bytes, says: str
) -> None:
    with pytest.raises(DataError, match=says) as error:
        read(tmp_path, data, name)
    assert name in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nfile;label\na.wav;Dog\n",
        "\nfile,label\n\na.wav, Dog \n,\n",
        'file,label\na.wav, "Dog"\n',
        ",file,label\n0,a.wav,Dog\n",
        "file,label,\na.wav,Dog,\n",
        "file,label\ra.wav,Dog\r",
        "file,label\na.wav,Dog,,\n",
    ],
)
def test_what_programs_add_is_passed_over(tmp_path: Path, text: str) -> None:
    found = read(tmp_path, text)
    assert [(one.id, one.label) for one in found.samples] == [("a.wav", "Dog")]
    assert found.notes == ()


# Times


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        (header, "12,16")
        for header in (
            "start,end", "start_time,end_time", "Start,END", "Start (s),End (s)", "begin,stop",
            "Begin Time (s),End Time (s)", "start_s,end_s", "onset,offset", "Onset (s),Offset (s)",
            "start_time_s,end_time_s", "StartTime,EndTime", "start [sec],end [sec]",
            "file offset (s),end",
        )
    ]
    + [
        ("start,duration", "12,4"), ("offset,duration", "12,4"), ("start (s),Duration (s)", "12,4"),
        ("start,end,duration", "12,16,4"), ("start,begin,end", "12,12.0,16"),
        ("start,end", "0:00:12,0:00:16.0"), ("start,end,start_ms", "12,16,12000"),
    ],
)  # fmt: skip
def test_times_are_known_by_many_names(tmp_path: Path, header: str, cells: str) -> None:
    found = read(tmp_path, f"file,{header},label\na.wav,{cells},Dog\n")
    assert times(found) == [(12.0, 16.0)]
    (tmp_path / "t.csv").write_text(f"file,{header},answer\na.wav,{cells},Dog\n")
    (row,) = load_examples(TableConfig(path=str(tmp_path / "t.csv")))
    assert (row.clips[0].start, row.clips[0].end) == (12.0, 16.0)


@pytest.mark.parametrize(
    ("header", "cells", "says"),
    [
        ("start,duration,end", "12,4,20", "start 12 and duration 4 do not give the end 20"),
        ("start,begin", "12,13", "start and begin differ"),
        ("start_sample", "12000", "'start_sample' gives no seconds"),
        ("Start (ms),end", "12000,16", r"'Start \(ms\)' gives no seconds"),
        ("start,end_ms", "1,16000", "'end_ms' gives no seconds"),
        ("frame_offset,num_frames", "1,2", "'frame_offset' gives no seconds"),
        ("start_time", "2024-05-01 05:00", r"start \(start_time\) must be a number .*h:mm:ss"),
        ("start", "1:30", "start must be a number"),
        ("start", "1_000", "start must be a number"),
        ("start,end", '"1,5","3,5"', "start must be a number"),
    ],
)
def test_times_that_could_mean_something_else_are_refused(
    tmp_path: Path, header: str, cells: str, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        read(tmp_path, f"file,label,{header}\na.wav,Dog,{cells}\n")


def test_a_mapped_column_decides(tmp_path: Path) -> None:
    text = "file,label,start,end,duration,t\na.wav,Dog,1,9,3,2\n"
    assert times(read(tmp_path, text, columns={"end": "end"})) == [(1.0, 9.0)]
    assert times(read(tmp_path, text, columns={"start": "t", "end": "end"})) == [(2.0, 9.0)]
    with pytest.raises(DataError, match=r"columns\.start is 'begin'; there are file, label"):
        read(tmp_path, text, columns={"start": "begin"})
    with pytest.raises(DataError, match="'t_ms' gives no seconds"):
        read(tmp_path, "file,label,t_ms\na,b,1\n", columns={"start": "t_ms"})


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        ("offset_s,duration_s", "'offset_s', 'duration_s'"),
        ("duration", "'duration'"),
        ("clip_start,species", "'clip_start', 'species'"),
        ("Time", "'Time'"),
        ("from,to", "'from', 'to'"),
    ],
)
def test_times_and_labels_that_are_not_read_are_named(
    tmp_path: Path, header: str, shown: str
) -> None:
    cells = ",".join("1" for _ in header.split(","))
    found = read(tmp_path, f"file,label,sample_rate,{header}\na.wav,Dog,8000,{cells}\n")
    assert times(found) == [(0.0, None)]
    (note,) = found.notes
    assert f"not read {'are' if ',' in shown else 'is'} {shown}; " in note
    assert f"={header.split(',')[0]}" in note


@SMALL
@given(milliseconds=st.integers(0, 360_000_000), form=st.integers(0, 3), tab=st.booleans())
def test_times_in_every_spelling(tmp_path: Path, milliseconds: int, form: int, tab: bool) -> None:
    seconds, rest = divmod(milliseconds, 1000)
    clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}.{rest:03}"
    plain = f"{seconds}.{rest:03}"
    text = [plain, plain.replace(".", ","), clock, clock.replace(".", ",")][form]
    mark = "\t" if tab else ";"
    found = read(tmp_path, f"file{mark}label{mark}start\na.wav{mark}Dog{mark}{text}\n")
    assert found.samples[0].clip.start == pytest.approx(milliseconds / 1000, abs=1e-6)


def test_ends_behind_the_recording_are_counted(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(16000, 0.1), 8000)
    text = (
        "file,label,start,end\na.wav,Dog,0,2.5\na.wav,Cat,1,3.5\na.wav,Cow,1,5000\nb.wav,Ox,0,9\n"
    )
    (note,) = read(tmp_path, text).notes
    assert note.endswith("t.csv: 2 rows end more than a second after the recording; "
                         "what is there is heard")  # fmt: skip


RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tBegin File\t"


def test_selection_tables(tmp_path: Path) -> None:
    rows = [
        'File Offset (s)\tSpecies\tNotes',
        '1\tWaveform 1\t1\t100.0\t102.5\ta.wav\t40.0\tDog\ta "dark one',
        '1\tSpectrogram 1\t1\t100.0\t102.5\ta.wav\t40.0\tDog\ta "dark one',
        '2\tSpectrogram 1\t1\t130.0\t131.0\tb.wav\t3.0\tCow\t',
    ]  # fmt: skip
    found = read(tmp_path, RAVEN + "\n".join(rows), "t.selections.txt")
    assert times(found) == [(40.0, 42.5), (3.0, 4.0)]
    assert labels(found) == ["Dog", "Cow"]
    assert found.notes == ()
    one = RAVEN + "Species\n1\tSpectrogram 1\t1\t1.5\t2.5\ta.wav\tDog\n"
    assert times(read(tmp_path, one, "one.txt")) == [(1.5, 2.5)]
    with pytest.raises(DataError, match=r"row 3: .*counts over all of its files"):
        read(tmp_path, one + "2\tSpectrogram 1\t1\t9.5\t10.5\tb.wav\tDog\n", "two.txt")


# Labels


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (" Dog ", "Dog"),
        (unicodedata.normalize("NFD", "Kröte"), "Kröte"),
        (3, "3"),
        (["Dog", "Cat"], "Dog, Cat"),
        ("['Dog', 'Cat']", "Dog, Cat"),
        ('["Dog"]', "Dog"),
        ("[sic] Dog", "[sic] Dog"),
        ("NA", "NA"),
        ("nan", "nan"),
        ("null", "null"),
        ("3.0", "3.0"),
    ],
)
def test_labels_by_rule(value: Any, label: str) -> None:
    assert label_text(value, "here") == label


@pytest.mark.parametrize(
    "value",
    [True, 3.0, float("nan"), {"a": 1}, [], ["Dog", None], [True], [["a"]], b"Dog",
     ["Thrush, Hermit", "Dog"], "[3.0]"],
)  # fmt: skip
def test_what_is_no_label_is_refused_with_row_and_column(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DataError, match=r"^here is "):
        label_text(value, "here")
    if isinstance(value, bytes):
        return
    rows = [{"file": "a.wav", "label": "x"}, {"file": "b.wav", "label": value}]
    with pytest.raises(DataError, match="row 2: label is "):
        read(tmp_path, "\n".join(map(json.dumps, rows)), "t.jsonl")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"path": "a", "answer": True}, "row 1: answer is True"),
        ({"path": "a", "answer": "x", "labels": ["A", 1.5]}, "row 1: labels is 1.5"),
        ({"files": ["a", "b"], "answer": "x", "start": 1}, "there are several files"),
    ],
)
def test_rows_to_train_on_are_read_as_strictly(
    tmp_path: Path, row: dict[str, Any], says: str
) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=says):
        load_examples(TableConfig(path=str(tmp_path / "t.jsonl")))


def test_two_columns_that_name_different_recordings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    table = "path,file,label\nb.wav,a.wav,Dog\n"
    assert _file(read(tmp_path, table).samples[0]) == tmp_path / "a.wav"  # the one that is there
    (tmp_path / "b.wav").write_bytes(b"x")
    with pytest.raises(DataError, match=r"not the same one \(b\.wav, a\.wav\)"):
        read(tmp_path, table)
    assert read(tmp_path, table, columns={"path": "file"}).samples[0].id == "a.wav"


def test_a_blank_label_is_not_taken_from_another_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 3: no label"):
        read(tmp_path, "file,common_name,species\na,Dog,Canis\nb,,Felis\n")


@pytest.mark.parametrize("kind", ["saved", "parquet", "sequence"])
def test_class_labels_are_their_names(tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    label: Any = datasets.ClassLabel(names=["Cat", "Dog"])
    values: list[Any] = [1, 0]
    if kind == "sequence":
        label, values = datasets.Sequence(label), [[1, 0], [0]]
    features = datasets.Features({"path": datasets.Value("string"), "label": label})
    made = datasets.Dataset.from_dict({"path": ["a", "b"], "label": values}, features=features)
    place = tmp_path / ("d" if kind == "saved" else "d.parquet")
    made.save_to_disk(place) if kind == "saved" else made.to_parquet(place)
    wanted = ["Dog, Cat", "Cat"] if kind == "sequence" else ["Dog", "Cat"]
    assert labels(opened(place)) == wanted
    examples = load_examples(TableConfig(path=str(place)))
    assert [one.answer for one in examples] == wanted
    if kind != "sequence":
        assert labels(opened(place, where={"label": "Cat"})) == ["Cat"]


@pytest.mark.parametrize(
    ("names", "taken", "note"),
    [
        (["train", "test"], ["test"], "of its 2 files the 1 of the split test is read"),
        (["data/train-0", "data/validation-0", "data/test-0", "data/test-1"],
         ["data/test-0", "data/test-1"], "of its 4 files the 2 of the split test are read"),
        (["train/0", "test/0"], ["test/0"], "of its 2 files"),
        (["a", "b"], ["a", "b"], ""),
        (["train-0", "train-1"], ["train-0", "train-1"], ""),
        (["contest", "latest"], ["contest", "latest"], ""),
    ],
)  # fmt: skip
def test_of_parquet_files_with_splits_in_their_names_test_is_read(
    tmp_path: Path, names: list[str], taken: list[str], note: str
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        table = pyarrow.table({"path": [name], "label": ["x"]})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    found = opened(tmp_path)
    assert [one.id for one in found.samples] == taken
    assert (note in found.notes[0]) if note else found.notes == ()


def test_splits_without_test_are_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for name in ("train", "valid"):
        parquet.write_table(pyarrow.table({"path": ["a"]}), tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match="splits train, validation and none of test"):
        opened(tmp_path)


# Names of files

FORMS = st.sampled_from(["NFC", "NFD"])


@SMALL
@given(
    names=st.lists(st.text("äöéàñk", min_size=1, max_size=3), min_size=1, max_size=3),
    on_disk=st.lists(FORMS, min_size=3, max_size=3),
    in_table=FORMS,
    windows=st.booleans(),
)
def test_files_are_found_in_both_normal_forms(
    tmp_path_factory: pytest.TempPathFactory,
    names: list[str],
    on_disk: list[str],
    in_table: Any,
    windows: bool,
) -> None:
    tmp_path = tmp_path_factory.mktemp("names")
    parts = [unicodedata.normalize(form, name) for form, name in zip(on_disk, names, strict=False)]
    file = tmp_path.joinpath(*parts).with_suffix(".wav")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    typed = unicodedata.normalize(in_table, "/".join(names)) + ".wav"
    table = f"file,label\n{typed.replace('/', chr(92)) if windows else typed},Dog\n"
    (sample,) = read(tmp_path, table).samples
    assert _file(sample).samefile(file)
    (found,) = find_recordings([tmp_path / typed])
    assert found.samefile(file)


def _file(sample: Sample) -> Path:
    return Path(sample.clip.source.name)


def test_tables_and_lists_are_found_in_both_normal_forms(tmp_path: Path) -> None:
    folder = tmp_path / unicodedata.normalize("NFD", "Gerät")
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.full(8000, 0.1), 8000)
    for name, text in (("metadata.csv", "file,label\na.wav,Dog\n"), ("é.txt", "Dog\n")):
        (folder / unicodedata.normalize("NFD", name)).write_text(text)
    typed = tmp_path / unicodedata.normalize("NFC", "Gerät")
    for table in (typed, typed / "metadata.csv"):
        (sample,) = opened(table).samples
        assert _file(sample).samefile(folder / "a.wav")
    assert read_species_list(str(typed / "é.txt")).names == ("Dog",)


def test_of_several_tables_in_a_folder_that_of_test_is_read(tmp_path: Path) -> None:
    """Not its folders, as if they were classes."""
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "a.wav", np.full(8000, 0.1), 8000)
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text(f"file,label\naudio/a.wav,{name}\n")
    found = opened(tmp_path)
    assert labels(found) == ["test"]
    assert "of its tables test.csv is read" in found.notes[0]
    with pytest.raises(DataError, match=r"holds test\.csv, train\.csv; name the table"):
        load_examples(TableConfig(path=str(tmp_path)))
    (tmp_path / "test.csv").rename(tmp_path / "more.csv")
    with pytest.raises(DataError, match=r"holds the tables more\.csv, train\.csv: name one"):
        opened(tmp_path)


def test_columns_of_clusters_are_known_in_any_spelling(tmp_path: Path) -> None:
    found = read(tmp_path, "file,label,Recording ID,Family\na,Dog,7,Canidae\nb,Cat,7,Felidae\n")
    assert [one.cluster for one in found.samples] == ["7", "7"]


def test_labels_and_where_are_compared_in_one_normal_form(tmp_path: Path) -> None:
    text = unicodedata.normalize("NFD", "file,label,Größe\na.wav,Kröte ,größer\n")
    found = read(tmp_path, text, where={"Größe": "größer"})
    assert labels(found) == ["Kröte"]
