"""The result store goes on where it stopped and refuses to mix what does not belong together."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from NatureLM.audio.files import identity
from NatureLM.results.rows import (
    ErrorRow,
    OutputError,
    Prediction,
    RunSettings,
    WindowRow,
    read_rows,
)
from NatureLM.results.store import WindowStore

VALUES = {
    "model": "naturelm-tiny",
    "weights": "abc",
    "merging_alpha": 1.0,
    "queries": ["What?"],
    "generate": {"num_beams": 2, "max_new_tokens": 300},
}
SETTINGS = RunSettings(VALUES)


def changed(**values: object) -> RunSettings:
    return RunSettings({**VALUES, **values})


def recording(folder: Path, name: str = "a.wav", content: bytes = b"sound") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def answer(store: WindowStore, path: Path, start: float = 0.0, text: str = "Wolf") -> bool:
    return store.add(Prediction(str(path), start, start + 10, "What?", text, 1.0))


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    return recording(tmp_path)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def filled(output: Path, audio: Path) -> Path:
    """A file with three answers."""
    with WindowStore(output) as store:
        store.begin(SETTINGS, [audio])
        for i in range(3):
            answer(store, audio, 10.0 * i)
    return output


def test_rows_are_on_disk_as_soon_as_they_are_added(tmp_path: Path) -> None:
    audio, output = recording(tmp_path), tmp_path / "deep" / "er" / "out.jsonl"
    with WindowStore(output) as store:
        store.begin(SETTINGS, [audio])
        assert answer(store, audio)
        (row,) = read_rows(output)
        assert row == WindowRow(
            audio_path=str(audio),
            start=0.0,
            end=10.0,
            query="What?",
            text="Wolf",
            merging_alpha=1.0,
            model="naturelm-tiny",
            run=SETTINGS.run,
            audio_bytes=5,
            audio_modified=row.audio_modified,
            audio_digest=identity(audio, has_digest=True).digest,
        )
        assert row.audio_modified is not None
        assert row.audio_modified.endswith("Z")
        # The same again is no second row.
        assert not answer(store, audio)
        assert len(list(read_rows(output))) == 1


def test_the_settings_stand_beside_the_rows(tmp_path: Path, filled: Path) -> None:
    record = json.loads((tmp_path / "out.jsonl.run.json").read_text())
    assert record == {
        "schema_version": 1,
        "run": SETTINGS.run,
        "settings": VALUES,
        "folder": os.getcwd(),
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.wav",
        "out.jsonl",
        "out.jsonl.run.json",
    ]


def test_equal_settings_go_on(audio: Path, filled: Path) -> None:
    before = filled.read_bytes()
    with WindowStore(filled) as store:
        store.check({"model": "naturelm-tiny", "merging_alpha": 1})
        resumed = store.begin(changed(merging_alpha=1.0), [audio])
        assert (resumed.answers, resumed.retried, resumed.cut_off) == (3, 0, False)
        assert store.is_done(audio, 10.0, "What?")
        assert store.is_done(os.path.relpath(audio), 10.0, "What?")
        assert not store.is_done(audio, 10.0, "Who?")
        assert not store.is_done(audio, 30.0, "What?")
        answer(store, audio, 30.0)
    assert filled.read_bytes().startswith(before)
    assert len(list(read_rows(filled))) == 4


@pytest.mark.parametrize("has_record", [True, False])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"merging_alpha": 0.4}, ["merging_alpha: 1.0 there, 0.4 now"]),
        ({"model": "other"}, ['model: "naturelm-tiny" there, "other" now']),
        ({"queries": ["Who?"]}, ['queries: ["What?"] there, ["Who?"] now']),
        ({"weights": "xyz"}, ['weights: "abc" there, "xyz" now']),
        (
            {"generate": {"num_beams": 1, "max_new_tokens": 300}},
            ["generate.num_beams: 2 there, 1 now"],
        ),
        ({"added": 3}, ["added: not set there, 3 now"]),
    ],
)
def test_other_settings_are_refused_with_the_reason(
    tmp_path: Path,
    audio: Path,
    filled: Path,
    values: dict[str, object],
    words: list[str],
    has_record: bool,
) -> None:
    record = tmp_path / "out.jsonl.run.json"
    if not has_record:
        record.unlink()
    before = filled.read_bytes()
    with WindowStore(filled) as store, pytest.raises(OutputError) as caught:
        store.begin(changed(**values), [audio])
    message = str(caught.value)
    if has_record or not {"weights", "generate", "added"} & set(values):
        for word in words:
            assert word in message
    if not has_record:
        assert "out.jsonl.run.json is missing" in message
    assert "--overwrite" in message
    assert caught.value.exit_code == 2
    assert filled.read_bytes() == before
    assert record.exists() == has_record


def test_what_is_known_early_is_refused_early(tmp_path: Path, filled: Path) -> None:
    known = {key: value for key, value in VALUES.items() if key != "weights"}
    for has_record in (True, False):
        with WindowStore(filled) as store:
            store.check(known)
            with pytest.raises(OutputError, match=r"merging_alpha: 1\.0 there, 0\.4 now"):
                store.check({**known, "merging_alpha": 0.4})
        if has_record:
            (tmp_path / "out.jsonl.run.json").unlink()


def test_a_damaged_record_counts_as_lost_and_is_made_anew(
    tmp_path: Path, audio: Path, filled: Path
) -> None:
    record = tmp_path / "out.jsonl.run.json"
    whole = record.read_text()
    for text in ("", "{", "[]", '{"run": "x", "settings": {"model": "m"}}', "null"):
        record.write_text(text)
        with WindowStore(filled) as store:
            assert store.begin(SETTINGS, [audio]).answers == 3
        assert record.read_text() == whole


def test_overwrite_starts_anew_but_only_with_begin(audio: Path, filled: Path) -> None:
    before = filled.read_bytes()
    other = changed(merging_alpha=0.4)
    with WindowStore(filled, overwrite=True) as store:
        store.check(other.values)
    assert filled.read_bytes() == before  # the model could not be loaded, say
    with WindowStore(filled, overwrite=True) as store:
        assert store.begin(other, [audio]).answers == 0
        answer(store, audio, text="Fox")
    (row,) = read_rows(filled)
    assert isinstance(row, WindowRow)
    assert (row.text, row.run) == ("Fox", other.run)


@pytest.mark.parametrize("cut", [1, 30, -2])
def test_a_torn_last_line_is_cut_off(audio: Path, filled: Path, cut: int) -> None:
    lines = filled.read_bytes().splitlines(keepends=True)
    filled.write_bytes(b"".join(lines[:2]) + lines[2][:cut])
    with WindowStore(filled) as store:
        resumed = store.begin(SETTINGS, [audio])
        assert (resumed.answers, resumed.cut_off) == (2, True)
        assert answer(store, audio, 20.0)
    assert filled.read_bytes().splitlines(keepends=True) == lines


def test_a_file_with_nothing_but_a_torn_line(audio: Path, output: Path) -> None:
    output.write_bytes(b'{"audio_path": "a.wa')
    with WindowStore(output) as store:
        assert store.begin(SETTINGS, [audio]).cut_off
        answer(store, audio)
    assert len(list(read_rows(output))) == 1


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "content", [b"RIFF\x00\x00WAVE\n", b"my notes", b"my notes\n", b'{"id": 1}\n', b"[1]\n", b"\n"]
)
def test_a_file_that_is_no_result_file_is_left_alone(
    tmp_path: Path, content: bytes, overwrite: bool
) -> None:
    output = tmp_path / "thesis.txt"
    output.write_bytes(content)
    with pytest.raises(OutputError, match="is no result file"):
        WindowStore(output, overwrite=overwrite)
    assert output.read_bytes() == content


def test_results_of_the_reference_may_be_overwritten_but_not_gone_on_with(
    audio: Path, output: Path
) -> None:
    output.write_text('{"audio_path": "a.wav", "output": "#0.00s - 10.00s#: Wolf"}\n')
    with pytest.raises(OutputError, match=r"line 1: this is no row.*--overwrite"):
        WindowStore(output)
    with WindowStore(output, overwrite=True) as store:
        store.begin(SETTINGS, [audio])


def test_a_bad_line_in_the_middle_is_named(filled: Path) -> None:
    lines = filled.read_bytes().splitlines(keepends=True)
    filled.write_bytes(lines[0] + b"oops\n" + lines[2])
    with pytest.raises(OutputError, match=r"out\.jsonl, line 2: this is not JSON"):
        WindowStore(filled)
    other = lines[1].replace(SETTINGS.run.encode(), b"0" * 16)
    filled.write_bytes(lines[0] + other)
    with pytest.raises(OutputError, match="line 2: the rows are of runs with different settings"):
        WindowStore(filled)


def test_a_recording_that_changed_is_refused(tmp_path: Path, audio: Path, filled: Path) -> None:
    other = recording(tmp_path, "b.wav")
    for change in (
        lambda: audio.write_bytes(b"longer sound"),
        lambda: audio.write_bytes(b"other"),
    ):
        change()
        before = filled.read_bytes()
        with WindowStore(filled) as store, pytest.raises(OutputError, match="changed") as caught:
            store.begin(SETTINGS, [audio, other])
        assert str(audio) in str(caught.value)
        assert str(other) not in str(caught.value)
        assert filled.read_bytes() == before
    with WindowStore(filled) as store:  # it is not asked this time
        store.begin(SETTINGS, [other])


def _resumed(output: Path, *paths: str | Path) -> list[bool]:
    """Whether there is an answer about each of the recordings when the run goes on."""
    with WindowStore(output) as store:
        store.begin(SETTINGS, paths)
        return [store.is_done(path, 0.0, "What?") for path in paths]


def _site(folder: Path) -> Path:
    """A folder `clips` with two recordings of one size and time, and one of another name."""
    clips = folder / "clips"
    for name in ("one/0600.wav", "two/0600.wav", "one/0700.wav"):
        (clips / name).parent.mkdir(parents=True, exist_ok=True)
        recording(clips, name, name[:3].encode() * 70_000)
        os.utime(clips / name, (1e9, 1e9))
    return clips


@pytest.fixture
def moving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with answers about relative paths in out.jsonl."""
    monkeypatch.chdir(tmp_path)
    _site(tmp_path)
    with WindowStore("out.jsonl") as store:
        store.begin(SETTINGS)
        for name in ("clips/one/0600.wav", "clips/two/0600.wav", "clips/one/0700.wav"):
            answer(store, Path(name))
    return tmp_path


def _without_digests(output: Path) -> None:
    """As an earlier version wrote it."""
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    for row in rows:
        del row["audio_digest"]
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = Path(f"{output}.run.json")
    values = json.loads(record.read_text())
    del values["folder"]
    record.write_text(json.dumps(values))


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("way", ["absolute", "sub", "symlink", "hard link", "up and down"])
def test_a_recording_is_the_same_however_it_is_named(
    way: str, is_old: bool, moving: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = moving / "out.jsonl"
    if is_old:
        _without_digests(output)
    before, base = output.read_bytes(), moving
    if way in ("sub", "up and down"):
        (moving / "sub").mkdir()
        monkeypatch.chdir(moving / "sub")
        base = Path("..") if way == "sub" else Path("../sub/..")
    if way == "symlink":
        (moving / "link").symlink_to(moving, target_is_directory=True)
        base = Path("link")
    if way == "hard link":
        base = moving / "other"
        for path in sorted((moving / "clips").rglob("*.wav")):
            target = base / path.relative_to(moving)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    names = ["clips/one/0600.wav", "clips/two/0600.wav", "clips/one/0700.wav"]
    assert _resumed(output, *(base / name for name in names)) == [True] * 3
    recording(moving, "clips/one/0800.wav")
    with WindowStore(output) as store:
        store.begin(SETTINGS, [base / name for name in names])
        assert not answer(store, base / names[0])
        if way != "hard link":
            assert answer(store, base / "clips/one/0800.wav")
    assert output.read_bytes().startswith(before)
    monkeypatch.chdir(moving)
    if way != "hard link":
        assert _resumed(output, "clips/one/0800.wav", *names) == [True] * 4


@pytest.mark.parametrize("is_old", [False, True])
def test_an_archive_that_was_moved_is_known_by_name_and_content(
    is_old: bool, moving: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if is_old:
        _without_digests(moving / "out.jsonl")
    (moving / "clips").rename(moving / "archive")
    recording(moving, "archive/one/0800.wav")
    names = ["one/0600.wav", "two/0600.wav", "one/0700.wav", "one/0800.wav"]
    paths = [moving / "archive" / name for name in names]
    assert _resumed(moving / "out.jsonl", *paths) == [True, True, True, False]
    assert "found by name and content: 3" in caplog.text
    with WindowStore(moving / "out.jsonl") as store:
        store.begin(SETTINGS, paths)
        assert not any(answer(store, path) for path in paths[:3])


def test_answers_that_moved_with_their_recordings_find_them(
    moving: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where others have come to the old place."""
    (moving / "y").mkdir()
    for name in ("clips", "out.jsonl", "out.jsonl.run.json"):
        (moving / name).rename(moving / "y" / name)
    monkeypatch.chdir(moving / "y")
    names = ["clips/one/0600.wav", "clips/two/0600.wav"]
    assert _resumed(Path("out.jsonl"), *names, moving / "y/clips/one/0700.wav") == [True] * 3
    for path in _site(moving).rglob("*.wav"):
        path.write_bytes(b"another" * 30_000)
    assert _resumed(Path("out.jsonl"), *names, moving / "y/clips/one/0700.wav") == [True] * 3
    assert _resumed(Path("out.jsonl"), *names) == [True] * 2


def test_the_same_name_in_another_folder_is_another_recording(
    moving: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of one size and time, as recorders with one schedule make them."""
    other = _site(moving / "card2")
    for path in other.rglob("*.wav"):
        path.write_bytes(path.read_bytes()[::-1])
        os.utime(path, (1e9, 1e9))
    monkeypatch.chdir(moving / "card2")
    output = moving / "out.jsonl"
    assert _resumed(output, "clips/one/0600.wav", "clips/one/0700.wav") == [False, False]
    assert "no longer there" not in caplog.text
    shutil.rmtree(moving / "clips")  # the card is taken out
    assert _resumed(output, "clips/one/0600.wav", "clips/one/0700.wav") == [False, False]
    assert "no longer there: 3, such as" in caplog.text
    assert "new ones: 2" in caplog.text
    other.rename(moving / "clips")  # the next one comes to its place
    monkeypatch.chdir(moving)
    with WindowStore(output) as store, pytest.raises(OutputError, match="changed since"):
        store.begin(SETTINGS, ["clips/one/0600.wav"])


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize(
    ("shift", "edit", "goes_on"),
    [
        (3600, None, "both"),  # the clocks change
        (-7200, None, "both"),
        (1.37, None, "both"),  # FAT
        (1234, None, "new"),  # cp without -p, touch
        (0, None, "both"),
        (1234, 70_000, "none"),
        (0, 105_000, "new no"),  # in one of the pieces that are looked at
    ],
)
def test_content_decides_where_times_differ(
    shift: float,
    edit: int | None,
    goes_on: str,
    is_old: bool,
    moving: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if is_old:
        _without_digests(moving / "out.jsonl")
    path = Path("clips/one/0600.wav")
    data = bytearray(path.read_bytes())
    if edit is not None:
        data[edit] ^= 1
    path.write_bytes(data)
    os.utime(path, (1e9 + shift, 1e9 + shift))
    if goes_on == "both" or (goes_on == "new no" and is_old) or (goes_on == "new" and not is_old):
        assert _resumed(moving / "out.jsonl", path) == [True]
        assert ("another time of change" in caplog.text) == (shift != 0)
    else:
        before = (moving / "out.jsonl").read_bytes()
        with WindowStore("out.jsonl") as store, pytest.raises(OutputError) as caught:
            store.begin(SETTINGS, [path])
        assert str(path) in str(caught.value)
        assert ("touch -d 2001-09-09T01:46:40" in str(caught.value)) == is_old
        assert (moving / "out.jsonl").read_bytes() == before


def test_errors_are_tried_again_and_stand_once(tmp_path: Path) -> None:
    good, bad, other = (recording(tmp_path, name) for name in ("a.wav", "b.wav", "c.wav"))
    output = tmp_path / "out.jsonl"
    with WindowStore(output) as store:
        store.begin(SETTINGS, [good, bad, other])
        answer(store, good)
        answer(store, bad)
        store.add_error(bad, ValueError("b.wav: is cut off"), 1.0)
        store.add_error(other, ValueError("c.wav: is empty"), 1.0)
        answer(store, good, 10.0)
    for _ in range(2):  # resumed as often as one likes
        with WindowStore(output) as store:
            resumed = store.begin(SETTINGS, [good, bad])
            assert (resumed.answers, resumed.retried, resumed.repaired) == (3, 1, ())
            assert store.is_done(bad, 0.0, "What?")
            store.add_error(bad, ValueError("b.wav: is cut off"), 1.0)
    errors = [row for row in read_rows(output) if isinstance(row, ErrorRow)]
    assert [(Path(row.audio_path).name, row.error_type) for row in errors] == [
        ("c.wav", "ValueError"),  # was not asked again
        ("b.wav", "ValueError"),
    ]
    with WindowStore(output) as store:
        store.begin(SETTINGS, [good, bad, other])
        answer(store, bad, 10.0)
    rows = list(read_rows(output))
    assert len(rows) == 4
    assert not any(isinstance(row, ErrorRow) for row in rows)


def test_a_mended_recording_is_asked_anew(tmp_path: Path) -> None:
    good, bad = recording(tmp_path, "a.wav"), recording(tmp_path, "b.wav")
    output = tmp_path / "out.jsonl"
    with WindowStore(output) as store:
        store.begin(SETTINGS, [good, bad])
        answer(store, good)
        answer(store, bad)
        store.add_error(bad, ValueError("b.wav: is cut off"), 1.0)
    bad.write_bytes(b"the whole sound")
    with WindowStore(output) as store:
        resumed = store.begin(SETTINGS, [good, bad])
        assert (resumed.answers, resumed.retried, resumed.repaired) == (1, 1, (str(bad),))
        assert not store.is_done(bad, 0.0, "What?")
        assert answer(store, bad, text="Fox")
    assert [(Path(row.audio_path).name, row.audio_bytes) for row in read_rows(output)] == [
        ("a.wav", 5),
        ("b.wav", 15),
    ]


def test_the_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    audio, real = recording(tmp_path), tmp_path / "real.jsonl"
    link = tmp_path / "link.jsonl"
    link.symlink_to(real)
    with WindowStore(link) as store:
        store.begin(SETTINGS, [audio])
        answer(store, audio)
        store.add_error(audio, ValueError("cut off"), 1.0)
    real.chmod(0o640)
    with WindowStore(link) as store:
        store.begin(SETTINGS, [audio])
        with pytest.raises(OutputError, match="another run"):  # the lock went with the file
            WindowStore(link)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    file = recording(tmp_path)
    for path, word in (
        (tmp_path, "is a folder"),
        (file / "out.jsonl", "cannot be written"),
        (file / "deep" / "out.jsonl", "cannot be written"),
        (Path("/dev/null"), "no ordinary file"),
    ):
        with pytest.raises(OutputError, match=word) as caught:
            WindowStore(path)
        assert str(path) in str(caught.value)
        assert caught.value.exit_code == 2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_folders_without_permission(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        WindowStore(closed / "out.jsonl")


def test_nothing_is_left_of_a_run_that_did_nothing(
    tmp_path: Path, audio: Path, output: Path
) -> None:
    with WindowStore(output):
        assert output.exists()
    assert not output.exists()
    with WindowStore(output) as store:
        store.begin(SETTINGS, [audio])
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    output.touch()
    with WindowStore(output):
        pass
    assert output.exists()  # it was there before


def test_the_second_writer_is_told(audio: Path, output: Path) -> None:
    with WindowStore(output) as store:
        store.begin(SETTINGS, [audio])
        for overwrite in (False, True):
            with pytest.raises(OutputError, match="another run is writing this file"):
                WindowStore(output, overwrite=overwrite)
        answer(store, audio)
    assert len(list(read_rows(output))) == 1
    with WindowStore(output) as store:
        assert store.begin(SETTINGS, [audio]).answers == 1


# Writes `total` answers of many lengths as fast as it can.
WRITER = """
import sys
from NatureLM.results.rows import Prediction
from NatureLM.results.rows import RunSettings
from NatureLM.results.store import WindowStore
output, audio, total, longest = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with WindowStore(output) as store:
    store.begin(RunSettings({"model": "m", "merging_alpha": 1.0, "queries": ["q"]}), [audio])
    print("ready", flush=True)
    for i in range(total):
        if not store.is_done(audio, float(i), "q"):
            text = "xy" * (i * 7919 % longest)
            store.add(Prediction(audio, float(i), i + 1.0, "q", text, 1.0))
"""


def writer(output: Path, audio: Path, total: int, longest: int = 50) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(output), str(audio), str(total), str(longest)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("most_kills", [4, pytest.param(12, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("longest", "step"), [(50, 250_000), (4000, 2_000_000)])
def test_kill_9_leaves_whole_lines_and_the_rest_is_done_later(
    tmp_path: Path, longest: int, step: int, most_kills: int
) -> None:
    """Kills a writer that does nothing but write, so that most kills fall into a write.

    Rows of thousands of characters may be torn; they are whole again when the run goes on.
    """
    audio, output, total = recording(tmp_path), tmp_path / "out.jsonl", 6000
    rng = random.Random(0)
    kills = 0
    while kills < most_kills:
        size = output.stat().st_size if output.exists() else 0
        process = writer(output, audio, total, longest)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        until = size + rng.randrange(1, step)
        while process.poll() is None and output.stat().st_size < until:
            time.sleep(0.0002)
        process.kill()
        process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
        *lines, end = output.read_bytes().split(b"\n")
        assert end == b"" or longest > 1000
        rows = [json.loads(line) for line in lines]
        assert [row["start"] for row in rows] == [float(i) for i in range(len(rows))]
    assert kills >= 3, "the writer was too fast to be killed"
    process = writer(output, audio, total, longest)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    rows = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert [(row["start"], len(row["text"])) for row in rows] == [
        (float(i), 2 * (i * 7919 % longest)) for i in range(total)
    ]


def test_the_lock_ends_with_the_process_even_when_killed(audio: Path, output: Path) -> None:
    process = writer(output, audio, 10**9)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(OutputError, match="another run"):
        WindowStore(output)
    process.kill()
    process.communicate()
    WindowStore(output).close()


# A limit on the size of files stands for a full disk.
FULL_DISK = """
import resource, signal, sys
from NatureLM.results.rows import Prediction
from NatureLM.results.rows import RunSettings
from NatureLM.results.store import WindowStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with WindowStore(sys.argv[1]) as store:
    store.begin(RunSettings({"model": "m", "merging_alpha": 1.0, "queries": ["q"]}), [])
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    for i in range(100):
        store.add(Prediction("a.wav", float(i), i + 1.0, "q", "text", 1.0))
"""


def test_a_full_disk_leaves_whole_lines_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    output = tmp_path / "out.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(output)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "NatureLMError" in done.stderr  # it is no UsageError: the command was right
    assert "the same command goes on from there" in done.stderr
    data = output.read_bytes()
    assert 500 < len(data) <= 1000
    assert data.endswith(b"\n")
    assert len(list(read_rows(output))) == len(data.splitlines())


def test_equal_settings_have_equal_fingerprints() -> None:
    assert RunSettings({"a": 1, "b": (1, 2)}).run == RunSettings({"b": [1, 2], "a": 1}).run
    assert RunSettings({"a": 1.0}).run != RunSettings({"a": 0.4}).run
    assert SETTINGS.run == RunSettings(json.loads(json.dumps(VALUES))).run
    with pytest.raises(ValueError, match="JSON"):
        RunSettings({"a": float("nan")})
