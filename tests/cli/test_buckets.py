"""Commands that read from a bucket and write into one, with networks that fail and kill -9."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from commands import FakePipeline, naturelm, rows, start, write_wav
from s3_store import Store

from NatureLM import storage
from NatureLM.results.rows import OutputError
from NatureLM.results.uploads import (
    UploadedStore,
    _Uploads,
    exists,
    local_runs,
    upload,
    working_path,
    write_bytes,
)
from NatureLM.storage import RemotePath

ASK = ("--query", "What is it?")


@pytest.fixture
def store(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The bucket with a folder of its own for each test, and a working folder that is empty."""
    monkeypatch.setenv("NATURELM_WORK", str(tmp_path / "work"))
    monkeypatch.setattr(store, "bucket", f"{store.bucket.split('/')[0]}/{uuid.uuid4().hex}")
    return store


@pytest.fixture
def card(store: Store, folder: Path) -> RemotePath:
    """A folder of the bucket with the recordings of the current folder."""
    for one in (folder / "calls").iterdir():
        store.put(one, f"card/{one.name}")
    store.faults.reset()
    return store / "card"


def there(path: RemotePath) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_bytes(path).splitlines()]


def parts(output: RemotePath) -> list[str]:
    return [one.name for one in storage.find(output.with_name(f"{output.name}.parts") / "")]


def without_names(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what names a recording: its path, when it was put there, its digest."""
    names = ("audio_path", "audio_modified", "audio_digest")
    found = [
        {**row, "error": row["error"].partition(": ")[2]} if "error" in row else row
        for row in found
    ]
    return [{key: one for key, one in row.items() if key not in names} for row in found]


def test_rows_are_those_of_the_disk(store: Store, nano_calls: Path, nano_folder: Path) -> None:
    for one in (nano_calls / "calls").iterdir():
        store.put(one, f"card/{one.name}")
    ask = (
        *("--model", nano_folder / "checkpoint", "--device", "cpu"),
        *("--window-length-seconds", "2", "--hop-length-seconds", "2"),
        *("--options", "generate.max_new_tokens=4"),
        *(*ASK, "--quiet", "--output-path"),
    )
    for words in (("calls", *ask, "here.jsonl"), (store / "card", *ask, "there.jsonl")):
        done = naturelm("infer", *words)
        assert done.exit_code == 3, done.output
    here, far = rows("here.jsonl"), rows("there.jsonl")
    assert without_names(far) == without_names(here)
    assert [row["audio_path"] for row in far] == [
        f"{store}/card/{Path(row['audio_path']).name}" for row in here
    ]
    assert all(row["audio_digest"].startswith("etag ") for row in far)
    storage._stats.clear()
    again = naturelm("infer", store / "card", *ask, "there.jsonl")
    assert "going on from there" in again.output
    assert sorted(map(str, rows("there.jsonl"))) == sorted(map(str, far))


def test_a_manifest_of_a_bucket_and_its_shards(
    store: Store, card: RemotePath, asker: FakePipeline
) -> None:
    made = naturelm("manifest", card, "--output-path", "all.csv")
    assert made.exit_code == 0, made.output
    assert "2 recordings, 28.0 s of sound" in made.output
    assert len(store.faults.of(".wav", "HEAD") + store.faults.of(".WAV", "HEAD")) == 2
    assert len(store.faults.of(".wav", "GET") + store.faults.of(".WAV", "GET")) == 2
    store.put(b"path\ncuckoo.wav\nwolf.WAV\n", "card/list.csv")
    outputs = []
    for number, words in enumerate([("--manifest", "all.csv"), ("--manifest", card / "list.csv")]):
        for shard in ("1/2", "2/2"):
            output = f"{number}/x.jsonl"
            naturelm("infer", *words, "--shard", shard, *ASK, "-q", "How many?", "-o", output)
            naturelm("infer", *words, "--shard", shard, *ASK, "--output-path", output)
        done = naturelm("merge-runs", str(number), *words, "--output-path", f"{number}.jsonl")
        assert done.exit_code == 0, done.output
        outputs.append(rows(f"{number}.jsonl"))
    assert len(outputs[0]) == 4
    assert outputs[0] == outputs[1]
    assert naturelm("infer", card / "list.csv", *ASK, "-o", "2.jsonl").exit_code in (0, 2)


def test_a_list_with_credentials_or_local_files_is_refused(
    store: Store, card: RemotePath, asker: FakePipeline
) -> None:
    store.put(b"/etc/hostname\n", "card/list.txt")
    done = naturelm("infer", "--manifest", card / "list.txt", *ASK)
    assert done.exit_code == 2
    assert "may not name files of this machine" in done.output
    Path("list.txt").write_text("https://ann:hush@example.org/a.wav\n")
    for words in (("--manifest", "list.txt"), ("--audio-path", "s3://key:hush@frogs/a.wav")):
        done = naturelm("infer", *words, *ASK)
        assert done.exit_code == 2
        assert "holds credentials" in done.output
        assert "hush" not in done.output
    assert not asker.loaded


def test_a_recording_that_does_not_come_is_one_row_and_tried_again(
    store: Store, card: RemotePath, asker: FakePipeline
) -> None:
    store.faults.wrong = lambda method, path: "503" if "wolf" in path and method == "GET" else ""
    done = naturelm("infer", card, *ASK, "--output-path", "x.jsonl")
    assert done.exit_code == 3, done.output
    errors = [row for row in rows("x.jsonl") if "error" in row]
    assert [row["error_type"] for row in errors] == ["RemoteError"]
    assert errors[0]["audio_path"] == f"{card}/wolf.WAV"
    assert len(rows("x.jsonl")) == 4
    store.faults.reset()
    assert naturelm("infer", card, *ASK, "--output-path", "x.jsonl").exit_code == 0
    assert len(rows("x.jsonl")) == 4
    assert not [row for row in rows("x.jsonl") if "error" in row]


# Answers that go to a bucket


def test_manifest_shards_and_merged_answers_in_a_bucket(
    store: Store, card: RemotePath, asker: FakePipeline
) -> None:
    listed = store / "lists/all.csv"
    local = naturelm("manifest", "calls", "--output-path", listed)
    assert local.exit_code == 2
    assert "may not name files of this machine" in local.output
    assert naturelm("manifest", card, "--output-path", listed).exit_code == 0
    again = naturelm("manifest", card, "--output-path", listed)
    assert "2 measured before" in again.output
    words = ("--manifest", listed, *ASK, "-q", "Who?", "--output-path", store / "out/x.jsonl")
    for shard in ("1/2", "2/2"):
        done = naturelm("infer", *words, "--shard", shard)
        assert done.exit_code == 0, done.output
    write_bytes(store / "out/zz/x.shard-1-of-2.jsonl", b"of an older run")
    joined = store / "joined/x.jsonl"
    merge = ("merge-runs", store / "out", "--manifest", listed, "--output-path")
    for output in (joined, joined, "here.jsonl"):
        done = naturelm(*merge, output)
        assert done.exit_code == 0, done.output
        assert f"{output}: 2 recordings, 8 rows" in done.output
    assert there(joined) == rows("here.jsonl")
    assert exists(joined.with_name("x.jsonl.run.json"))
    write_bytes(store / "other.jsonl", b"mine")
    done = naturelm(*merge, store / "other.jsonl")
    assert done.exit_code == 2, done.output
    assert storage.read_bytes(store / "other.jsonl") == b"mine"


def test_answers_and_tables_go_to_a_bucket(
    store: Store, card: RemotePath, asker: FakePipeline
) -> None:
    output = store / "out/x.jsonl"
    naturelm("infer", card, *ASK, "--output-path", "x.jsonl", "--format", "csv")
    done = naturelm("infer", card, *ASK, "--output-path", output, "--format", "csv")
    assert done.exit_code == 0, done.output
    assert there(output) == rows("x.jsonl")
    assert storage.read_bytes(output.with_name("x.csv")) == Path("x.csv").read_bytes()
    record = json.loads(storage.read_bytes(output.with_name("x.jsonl.run.json")))
    assert record == json.loads(Path("x.jsonl.run.json").read_text())
    assert parts(output) == []
    assert not working_path(output).parent.exists()
    before = len(asker.asked)
    store.faults.reset()
    again = naturelm("infer", card, *ASK, "--output-path", output)
    assert not [one for one in store.faults.requests if one[0] == "PUT"]
    assert f"{output}: has 4 answers of this run; going on from there" in again.output
    assert len(asker.asked) == before
    other = naturelm("infer", card, "--query", "Who?", "--output-path", output)
    assert other.exit_code == 2
    assert f"{output}: holds answers that were made with other settings" in other.output
    assert there(output) == rows("x.jsonl")


def test_ctrl_c_uploads_what_there_is_and_another_machine_goes_on(
    store: Store, card: RemotePath, asker: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = store / "x.jsonl"
    asker.stop_after = 2
    done = naturelm("infer", card, *ASK, "--output-path", output)
    assert done.exit_code == 130
    assert f"2 answers are in {output}" in done.output
    assert parts(output) == ["000001-000000.jsonl", "000001.run.json"]
    monkeypatch.setenv("NATURELM_WORK", "elsewhere")
    asker.stop_after = 3
    naturelm("infer", card, *ASK, "--output-path", output)
    assert parts(output) == ["000001-000000.jsonl", "000001-000001.jsonl", "000001.run.json"]
    asker.stop_after = None
    assert naturelm("infer", card, *ASK, "--output-path", output).exit_code == 0
    assert len(asker.asked) == len(set(asker.asked)) == 4
    naturelm("infer", card, *ASK, "--output-path", "x.jsonl")
    assert there(output) == rows("x.jsonl")
    assert parts(output) == []


def test_a_failed_recording_begins_a_new_generation(
    store: Store, card: RemotePath, asker: FakePipeline
) -> None:
    output = store / "x.jsonl"
    store.faults.wrong = lambda method, path: "503" if "cuckoo" in path else ""
    asker.stop_after = 1
    naturelm("infer", card, *ASK, "--output-path", output, "--overwrite")
    asker.stop_after = None
    assert naturelm("infer", card, *ASK, "--output-path", output).exit_code == 3
    assert len([row for row in there(output) if "error" in row]) == 1
    store.faults.reset()
    asker.stop_after = 3
    naturelm("infer", card, *ASK, "--output-path", output)
    assert parts(output) == ["000001-000000.jsonl", "000001.run.json"]
    assert len(there(output)) == 2  # until the end that of before
    asker.stop_after = None
    assert naturelm("infer", card, *ASK, "--output-path", output).exit_code == 0
    assert len(there(output)) == 4
    assert not [row for row in there(output) if "error" in row]


def test_what_cannot_be_uploaded_is_kept_and_uploaded_later(
    store: Store, card: RemotePath, asker: FakePipeline
) -> None:
    output = store / "x.jsonl"
    store.faults.wrong = lambda method, path: "503" if method == "PUT" else ""
    done = naturelm("infer", card, *ASK, "--output-path", output)
    assert done.exit_code == 1
    assert f"All answers are in {working_path(output)}" in done.output
    store.faults.reset()
    assert naturelm("infer", card, *ASK, "--output-path", output).exit_code == 0
    assert len(there(output)) == len(asker.asked) == 4


def test_two_machines_do_not_write_one_output(store: Store, tmp_path: Path) -> None:
    output = store / "x.jsonl"
    one, other = (_Uploads(output, tmp_path / name / "x.jsonl") for name in "ab")
    for uploads in (one, other):
        uploads.prepare(overwrite=False)
        uploads.path.write_bytes(f"{uploads.path.parent.name}\n".encode())
        uploads.start()
    one.stop()
    other.stop()
    one.check()
    with pytest.raises(OutputError, match="another run has begun to write this output"):
        other.check()
    assert storage.read_bytes(output.with_name("x.jsonl.parts") / "000001-000000.jsonl") == b"a\n"
    one.release()
    other.release()


def test_runs_of_several_folders_may_have_one_name(store: Store) -> None:
    for number in "12":
        store.put(number.encode(), f"{number}/x.shard-1-of-1.jsonl")
    with local_runs([store / "*/x.shard-*.jsonl"]) as copies:
        assert [one.read_text() for one in copies] == ["1", "2"]


def test_a_header_that_does_not_come_is_an_error_of_a_manifest(
    store: Store, card: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Any) -> Any:
        raise storage.StorageError(f"{path}: cannot be reached")

    with monkeypatch.context() as patched:
        patched.setattr("NatureLM.audio.container.open_file", fails)
        done = naturelm("manifest", card, "--output-path", "all.csv")
    assert done.exit_code == 3
    assert "2 errors" in done.output
    again = naturelm("manifest", card, "--output-path", "all.csv")
    assert again.exit_code == 0
    assert "measured before" not in again.output


@pytest.mark.parametrize("elsewhere", ["nothing", "another run"])
def test_rows_that_were_to_replace_others_and_were_not_uploaded_stay(
    store: Store, tmp_path: Path, elsewhere: str
) -> None:
    """A failed recording was asked anew, or all with --overwrite, and the store took nothing."""
    output = store / "x.jsonl"
    write_bytes(output, b"1\nerror\n")
    uploads = _Uploads(output, tmp_path / "w" / "x.jsonl")
    uploads.prepare(overwrite=False)
    uploads.path.write_bytes(b"1\n")
    uploads.start()
    store.faults.wrong = lambda method, path: "503" if method == "PUT" else ""
    with open(uploads.path, "ab") as file:
        file.write(b"2\n3\n")
    with pytest.raises(storage.StorageError, match="without --overwrite uploads them"):
        uploads.finish([])
    uploads.release()
    store.faults.reset()
    if elsewhere == "another run":
        write_bytes(output, b"1\n4\n")
    again = _Uploads(output, tmp_path / "w" / "x.jsonl")
    again.prepare(overwrite=False)
    expected = b"1\n4\n" if elsewhere == "another run" else b"1\n2\n3\n"
    assert again.path.read_bytes() == expected
    again.start()
    again.finish([])
    again.release()
    assert storage.read_bytes(output) == expected
    assert parts(output) == []


def test_a_segment_whose_answer_was_lost_is_not_another_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = store / "x.jsonl"
    uploads = _Uploads(output, tmp_path / "w" / "x.jsonl")
    uploads.prepare(overwrite=False)
    uploads.path.write_bytes(b"1\n")
    uploads.start()

    def answer_lost(source: Path, path: RemotePath, **more: bool) -> None:
        upload(source, path, **more)
        raise storage.StorageError("no answer in time")

    with monkeypatch.context() as patched:
        patched.setattr("NatureLM.results.uploads.upload", answer_lost)
        assert not uploads._try_to_send()
    with open(uploads.path, "ab") as file:
        file.write(b"2\n")
    uploads.finish([])
    uploads.release()
    assert storage.read_bytes(output) == b"1\n2\n"


def test_outputs_that_can_take_nothing_are_refused_before_the_work(
    store: Store, card: RemotePath, asker: FakePipeline
) -> None:
    for output, said in (
        ("s3://none-of-that-name/x.jsonl", "there is no bucket s3://none-of-that-name"),
        ("https://example.org/x.jsonl", "nothing can be written to a web server"),
    ):
        for words in (("infer", card, *ASK), ("merge-runs", store / "out")):
            done = naturelm(*words, "--output-path", output)
            assert done.exit_code in (1, 2)
            assert said in done.output
    assert not asker.asked


def test_a_manifest_that_could_not_be_uploaded_is_not_measured_again(
    store: Store, card: RemotePath
) -> None:
    listed = store / "lists/all.csv"
    store.faults.wrong = lambda method, path: "503" if method == "PUT" else ""
    assert naturelm("manifest", card, "--output-path", listed).exit_code == 1
    store.faults.reset()
    again = naturelm("manifest", card, "--output-path", listed)
    assert "2 measured before" in again.output
    assert storage.read_bytes(listed).startswith(b"\xef\xbb\xbfpath,")
    assert not working_path(listed).parent.exists()


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_an_end_that_was_killed_leaves_what_counts(store: Store, tmp_path: Path, kept: int) -> None:
    """Of two segments the first `kept` were removed when it was killed; the file is whole."""
    output = store / "x.jsonl"
    write_bytes(output, b"1\n2\n")
    for number in range(kept, 2):
        segment = store / f"x.jsonl.parts/000001-{number:06}.jsonl"
        write_bytes(segment, b"%d\n" % (number + 1))
    uploads = _Uploads(output, tmp_path / "w" / "x.jsonl")
    uploads.prepare(overwrite=False)
    assert uploads.path.read_bytes() == b"1\n2\n"
    with open(uploads.path, "ab") as file:
        file.write(b"3\n")
    uploads.start()
    uploads.finish([])
    uploads.release()
    assert storage.read_bytes(output) == b"1\n2\n3\n"
    assert parts(output) == []


@pytest.mark.parametrize("machine", [pytest.param("the same", marks=pytest.mark.slow), "another"])
def test_kill_9_loses_and_doubles_nothing(
    store: Store,
    tmp_path: Path,
    machine: str,
    asker: FakePipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_wav(tmp_path / "long.wav", 120)
    card, output = store.put(tmp_path / "long.wav", "card/long.wav").parent, store / "x.jsonl"
    words = ("infer", str(card), *ASK, "--output-path", str(output), "--quiet")
    monkeypatch.setenv("NATURELM_WORK", str(tmp_path / "one"))
    monkeypatch.setenv("NATURELM_UPLOAD_SECONDS", "0.1")
    process = start(tmp_path, *words, seconds=0.3, **dict.fromkeys(("stdout", "stderr")))
    try:
        end = time.monotonic() + 60
        while not any(one.endswith("0.jsonl") for one in parts(output)):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    assert parts(output)
    if machine == "another":
        monkeypatch.setenv("NATURELM_WORK", str(tmp_path / "two"))
    storage._stats.clear()
    done = naturelm(*words)
    assert done.exit_code == 0, done.output
    assert "going on from there" in done.stderr
    assert len(asker.asked) < 12
    found = [row["start"] for row in there(output)]
    assert found == [10.0 * number for number in range(12)]
    assert parts(output) == []


def test_a_store_without_an_end_is_resumed_by_its_segments(store: Store) -> None:
    with UploadedStore(store / "x.jsonl") as opened:
        assert opened.answers == 0
    assert parts(store / "x.jsonl") == []
    assert not exists(store / "x.jsonl")
