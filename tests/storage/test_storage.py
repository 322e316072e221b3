"""Addresses, and reading recordings by ranges from a bucket on this machine.

What visitors of the services send never reaches a store: addresses are made in few places.
"""

from __future__ import annotations

import ast
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT
from s3_store import Store
from source_code import tree_of

from NatureLM import storage
from NatureLM.audio import AudioError, find_recordings
from NatureLM.audio.container import Tags, tags_in
from NatureLM.audio.decode import probe
from NatureLM.audio.files import CHANGED, SAME, Identity, compared, find_anywhere, identity
from NatureLM.audio.windows import iter_windows
from NatureLM.cli.runs import Listed
from NatureLM.errors import UsageError
from NatureLM.results import uploads
from NatureLM.storage import RemotePath, StorageError, as_path

RATE = 16_000


def noise(seconds: float, channels: int = 1) -> np.ndarray:
    drawn = np.random.default_rng(7).normal(0, 0.1, (round(seconds * RATE), channels))
    return drawn.astype(np.float32)


def recording(path: Path, seconds: float = 12, **how: str) -> Path:
    soundfile.write(path, noise(seconds), RATE, **how)
    return path


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    """A list names files of who made it: reading these never came to an end."""
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", Path("/dev/zero")):
        assert identity(path, has_digest=True) == Identity()
        with pytest.raises(OSError, match="not a regular file"):
            storage.open_file(path)
        assert tags_in(path) == Tags()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("s3://frogs/2024/a b.wav", "s3://frogs/2024/a b.wav"),
        ("S3://frogs", "s3://frogs"),
        ("gcs://frogs/a.wav", "gs://frogs/a.wav"),
        ("abfs://box@account.dfs.core.windows.net/a.wav",) * 2,
        ("https://example.org/a.wav?download=1", "https://example.org/a.wav?download=1"),
        ("http://[::1]:8080/a.wav", "http://[::1]:8080/a.wav"),
    ],
)
def test_an_address_is_one(text: str, url: str) -> None:
    assert as_path(text) == RemotePath(url)


def test_other_strings_are_paths_of_this_machine() -> None:
    assert as_path("a/b.wav") == Path("a/b.wav")
    assert as_path("C:/b.wav") == Path("C:/b.wav")
    assert as_path("file:///a%20b/c.wav") == Path("/a b/c.wav")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("htps://frogs/a.wav", "did you mean https://"),
        ("ftp://host/a.wav", "addresses of the kind ftp://"),
        ("s3://", "names no bucket"),
        ("s3:///a.wav", "names no bucket"),
        ("file://host/a.wav", "file:///full/path"),
    ],
)
def test_what_is_no_address_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        as_path(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIA123:hush@frogs/a.wav",
        "https://ann:hush@example.org/a.wav",
        "https://ann@example.org/a.wav",
        "https://example.org/a.wav?X-Amz-Signature=hush&x=1",
        "https://box.blob.core.windows.net/a.wav?sv=2024&sig=hush",
        "https://example.org/a.wav?access_token=hush",
        "s3://frogs/a.wav?AWSAccessKeyId=hush",
        "az://box:hush@account/a.wav",
        "s3://AKIA123:hu/hush@frogs/a.wav",
        "https://ann:hush/hush@example.org/a.wav",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="holds credentials") as caught:
        as_path(text)
    assert "hush" not in str(caught.value)
    assert "AKIA" not in str(caught.value)


def test_an_address_has_the_names_of_a_path() -> None:
    path = RemotePath("s3://frogs/2024/x.tar.wav")
    assert (path.name, path.stem, path.suffix) == ("x.tar.wav", "x.tar", ".wav")
    assert path.parent == RemotePath("s3://frogs/2024")
    assert path.parent.parent.parent == RemotePath("s3://frogs")
    assert path.with_name("y.csv") == RemotePath("s3://frogs/2024/y.csv")
    assert path.parent / "../../../a.wav" == RemotePath("s3://frogs/a.wav")
    assert RemotePath("https://h/d/list.csv?v=2").suffix == ".csv"
    assert RemotePath("https://h/d/list.csv?v=2").parent / "a?#.wav" == RemotePath(
        "https://h/d/a%3F%23.wav"
    )
    assert pickle.loads(pickle.dumps(path)) == path


def test_a_list_from_elsewhere_names_no_files_of_this_machine() -> None:
    folder = RemotePath("https://example.org/lists")
    assert storage.join(folder, "s1/a.wav") == RemotePath("https://example.org/lists/s1/a.wav")
    assert storage.join(folder, "s3://frogs/a.wav") == RemotePath("s3://frogs/a.wav")
    for name in ("/etc/hostname", "file:///etc/hostname", "\\\\host\\a.wav"):
        with pytest.raises(UsageError, match="may not name files of this machine"):
            storage.join(folder, name)
    assert storage.join(Path("lists"), "/a.wav") == Path("/a.wav")


def test_without_its_library_an_address_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UsageError, match="gs:// needs gcsfs, which is not installed: pip install"):
        storage.find(RemotePath("gs://frogs/a.wav"))


def test_strings_are_never_addresses(store: Store, tmp_path: Path) -> None:
    url = str(store.put(recording(tmp_path / "a.wav"), "a.wav"))
    store.faults.reset()
    with pytest.raises(AudioError, match="no such file"):
        probe(url)
    with pytest.raises(UsageError, match="no such file or folder"):
        find_recordings([url])
    assert not store.faults.requests


KINDS = {
    "a.wav": {},
    "b.wav": {"subtype": "FLOAT"},
    "c.flac": {},
    "d.ogg": {},
    "e.mp3": {},
    "f.aiff": {},
    "g.w64": {},
}


@pytest.mark.parametrize("name", KINDS)
def test_windows_of_a_bucket_are_those_of_the_disk(store: Store, tmp_path: Path, name: str) -> None:
    here = recording(tmp_path / name, 12, **KINDS[name])
    there = store.put(here, f"kinds/{name}")
    store.faults.reset()
    ours, theirs = list(iter_windows(here)), list(iter_windows(there))
    assert [(w.start, w.end, w.note) for w in ours] == [(w.start, w.end, w.note) for w in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert np.array_equal(one.samples, other.samples)
    a, b = probe(here), probe(there)
    assert (a.frames, a.sample_rate, a.channels) == (b.frames, b.sample_rate, b.channels)
    gets = store.faults.of(name, "GET")
    assert all(range_ for _, _, range_ in gets)
    assert len(store.faults.of(name, "HEAD")) <= 3  # one, and one after each reading to the end
    assert len(gets) <= 6


def outcome(path: Path | RemotePath) -> tuple[list[float], str, str]:
    """The ends of the windows that came, and what was wrong then."""
    ends = []
    try:
        for window in iter_windows(path, warn=lambda note: None):
            ends.append(window.end)
    except AudioError as error:
        return ends, error.kind, error.reason
    return ends, "", ""


@pytest.mark.parametrize("broken", ["cut", "longer", "garbage", "empty"])
@pytest.mark.parametrize(
    "suffix",
    [".wav", ".flac", *(pytest.param(one, marks=pytest.mark.slow) for one in (".ogg", ".mp3"))],
)
def test_damage_is_seen_in_a_bucket_as_on_a_disk(
    store: Store, tmp_path: Path, broken: str, suffix: str
) -> None:
    data = recording(tmp_path / f"x{suffix}", 4).read_bytes()
    data = {
        "cut": data[: len(data) * 2 // 3],
        "longer": data + b"\x11" * 5000,
        "garbage": b"no sound at all " * 1000,
        "empty": b"",
    }[broken]
    here = tmp_path / f"{broken}{suffix}"
    here.write_bytes(data)
    there = store.put(here, here.name)

    assert outcome(there) == outcome(here)


def test_a_header_takes_two_requests_however_long_the_recording(
    store: Store, tmp_path: Path
) -> None:
    there = store.put(recording(tmp_path / "long.wav", 120), "long.wav")
    store.faults.reset()
    assert probe(there).duration == 120
    assert [one[0] for one in store.faults.requests] == ["HEAD", "GET"]
    store.faults.reset()
    for window in iter_windows(there):
        assert window.end <= 120
    gets = store.faults.of("long.wav", "GET")
    sizes = [one[2].removeprefix("bytes=").split("-") for one in gets]
    lengths = [int(stop) - int(start) + 1 for start, stop in sizes]
    assert len(lengths) <= 10
    assert max(lengths) <= storage.MOST_AT_ONCE


_HEARD = """
import sys
from NatureLM.audio.windows import iter_windows
from NatureLM.storage import as_path
print(sum(1 for _ in iter_windows(as_path(sys.argv[1]))))
print(next(one.split()[1] for one in open("/proc/self/status") if one.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted otherwise")
def test_memory_does_not_grow_with_a_recording(store: Store, tmp_path: Path) -> None:
    most = []
    minute = noise(60)
    for minutes in (45, 120):
        with soundfile.SoundFile(tmp_path / "a.wav", "w", RATE, 1) as file:
            for _ in range(minutes):
                file.write(minute)
        uploads.upload(tmp_path / "a.wav", store / f"{minutes}.wav")
        command = [sys.executable, "-c", _HEARD, str(store / f"{minutes}.wav")]
        environment = {**os.environ, **store.environment, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        windows, memory = map(int, done.stdout.split())
        assert windows == 6 * minutes
        most.append(memory / 1024)
    assert most[1] - most[0] < 16  # MiB


def test_folders_patterns_and_files(store: Store, tmp_path: Path) -> None:
    data = recording(tmp_path / "a.wav", 1).read_bytes()
    for name in ("s1/b.wav", "s1/a.WAV", "s1/.x/a.wav", "s1/._a.wav", "s2/c.flac", "s2/note.txt"):
        store.put(data, f"card/{name}")
    names = ["card/s1/a.WAV", "card/s1/b.wav", "card/s2/c.flac"]
    assert find_anywhere([store / "card"]) == [store / name for name in names]
    assert find_anywhere([store / "card/"]) == [store / name for name in names]
    assert find_anywhere([store / "card/*/*.wav"]) == [store / "card/s1/b.wav"]
    assert find_anywhere([store / "card/s2/c.flac", store / "card/s2"]) == [store / names[2]]
    with pytest.raises(UsageError, match="no such file or folder; check the spelling"):
        find_anywhere([store / "none"])
    with pytest.raises(UsageError, match="there is no audio there"):
        find_anywhere([store / "card/s2/*.txt"])


def test_a_list_on_a_web_server_that_gives_no_parts(tmp_path: Path) -> None:
    here = recording(tmp_path / "a.wav", 3)
    (tmp_path / "list.txt").write_text("a.wav\n")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        address = as_path(f"http://127.0.0.1:{web.server_port}/list.txt")
        (there,) = Listed.read([address], None, None).recordings
        assert outcome(there) == outcome(here)
        with pytest.raises(UsageError, match="folders of web servers cannot be listed"):
            find_anywhere([as_path(f"http://127.0.0.1:{web.server_port}/none/")])
        web.shutdown()


def test_what_fails_for_a_while_is_asked_for_again(store: Store, tmp_path: Path) -> None:
    there = store.put(recording(tmp_path / "a.wav", 30), "again.wav")
    store.faults.reset()
    troubles = iter(["503", "", "cut", "503", ""])
    store.faults.wrong = lambda method, path: next(troubles, "")
    assert sum(1 for _ in iter_windows(there)) == 3


def test_a_recording_that_does_not_come_is_one_error(store: Store, tmp_path: Path) -> None:
    there = store.put(recording(tmp_path / "a.wav", 80), "gone.wav")
    store.faults.reset()
    begun: list[str] = []

    def wrong(method: str, path: str) -> str:
        begun.append(path)
        return "503" if len(begun) > 4 else ""

    store.faults.wrong = wrong
    ends, kind, reason = outcome(there)
    assert ends
    assert all(end % 10 == 0 for end in ends)  # no piece of a window
    assert kind == "RemoteError"
    assert reason.startswith("decoding stops at ")
    assert "cannot be reached after 4 tries" in reason


def test_a_slow_server_is_given_up(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = store.put(recording(tmp_path / "a.wav", 12), "slow.wav")
    store.faults.reset()
    monkeypatch.setenv("NATURELM_REMOTE_SECONDS", "1")
    store.faults.wrong, store.faults.delay = lambda method, path: "slow", 3
    with pytest.raises(AudioError, match="cannot be reached") as caught:
        list(iter_windows(there))
    assert caught.value.kind == "RemoteError"


def test_a_recording_that_is_replaced_while_it_is_read_is_an_error(
    store: Store, tmp_path: Path
) -> None:
    there = store.put(recording(tmp_path / "a.wav", 80), "replaced.wav")
    other = tmp_path / "b.wav"
    soundfile.write(other, noise(80)[::-1], RATE)
    windows = iter_windows(there)
    next(windows)
    before = identity(there, has_digest=True)
    known = storage._stats[there.url]
    store.put(other, "replaced.wav")  # by somebody else
    storage._stats[there.url] = known
    with pytest.raises(AudioError, match="was replaced while it was read") as caught:
        list(windows)
    assert caught.value.kind == "RemoteError"
    assert identity(there, has_digest=True) == before  # of what was heard
    storage._stats.clear()
    assert compared(there, before) == CHANGED


def test_a_store_that_does_not_answer_has_changed_no_recording(
    store: Store, tmp_path: Path
) -> None:
    there = store.put(recording(tmp_path / "a.wav", 1), "same.wav")
    before = identity(there, has_digest=True)
    storage._stats[there.url] = (-1e9, storage.stat(there))  # long ago
    store.faults.wrong = lambda method, path: "503"
    assert identity(there, has_digest=True) == before
    with pytest.raises(StorageError, match="cannot be reached"):
        compared(there, before)
    store.faults.reset()
    assert compared(there, before) == SAME
    uploads.remove(there)
    assert compared(there, before) == CHANGED


def test_a_bucket_that_is_not_there_is_named(store: Store) -> None:
    calls: list[Callable[[RemotePath], None]] = [
        lambda path: uploads.write_bytes(path, b"x"),
        lambda path: uploads.write_bytes(path, b"x", is_new=True),
        uploads.check_writable,
    ]
    for call in calls:
        with pytest.raises(StorageError, match="there is no bucket s3://none-of-that-name"):
            call(RemotePath("s3://none-of-that-name/out/x.jsonl"))


def test_what_is_not_there_or_not_allowed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AudioError, match="there is no such file"):
        probe(store / "none.wav")
    monkeypatch.setenv("NATURELM_REMOTE_SECONDS", "soon")
    with pytest.raises(UsageError, match="NATURELM_REMOTE_SECONDS is 'soon'"):
        storage.stat(store / "none.wav")


def test_files_are_written_whole(store: Store, tmp_path: Path) -> None:
    target = store / "written/a.txt"
    uploads.write_bytes(target, b"one", is_new=True)
    with pytest.raises(FileExistsError):
        uploads.write_bytes(target, b"two", is_new=True)
    assert storage.read_bytes(target) == b"one"
    (tmp_path / "b").write_bytes(b"three")
    uploads.upload(tmp_path / "b", target)
    assert storage.read_bytes(target) == b"three"
    uploads.remove(target)
    uploads.remove(target)
    assert not uploads.exists(target)
    with pytest.raises(UsageError, match="nothing can be written to a web server"):
        uploads.write_bytes(RemotePath("https://example.org/a"), b"")
    uploads.write_bytes(target, b"three")
    with pytest.raises(StorageError, match="at most 2 bytes"):
        storage.read_bytes(target, 2)


# What visitors of the services send never reaches a store

PACKAGE = ROOT / "NatureLM"
SERVICES = ("serve", "app", "web", "review")
MAKERS = {"as_path", "join", "RemotePath"}
PLACES = {
    "storage.py",
    "cli/options.py",  # what the owner of the process typed
    "cli/survey.py",  # of that the first, which is a recording where a classifier answers
    "results/manifest.py",  # and the lists that were named so
    "results/shards.py",
    "audio/files.py",  # what was found below such an address
}
NOT_FOR_SERVICES = {"storage", "results.manifest", "results.shards", "results.uploads"}


def makers_in(tree: ast.AST) -> Iterator[str]:
    """Calls that make an address of a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
            if name in MAKERS and (
                isinstance(node.func, ast.Name) or "storage" in ast.dump(node.func)
            ):
                yield name
        if isinstance(node, ast.keyword | ast.Assign) and getattr(node.value, "id", "") in MAKERS:
            yield getattr(node.value, "id", "")


def imports_in(tree: ast.AST) -> set[str]:
    return {
        str(node.module).removeprefix("NatureLM.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    } | {
        f"{node.module}.{alias.name}".removeprefix("NatureLM.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_addresses_are_made_in_few_places() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(makers_in(tree_of(path)))
    }
    assert found - PLACES == set()
    assert "cli/options.py" in found


@pytest.mark.parametrize("service", SERVICES)
def test_services_know_nothing_of_stores(service: str) -> None:
    found = {
        path.name: wrong
        for path in (PACKAGE / service).rglob("*.py")
        if (wrong := imports_in(tree_of(path)) & NOT_FOR_SERVICES)
    }
    assert not found


def test_what_is_forbidden_would_be_seen() -> None:
    assert list(makers_in(ast.parse("path = as_path(request.url)")))
    assert list(makers_in(ast.parse("path = storage.as_path(request.url)")))
    assert list(makers_in(ast.parse("info.parser = as_path")))
    assert not list(makers_in(ast.parse("text = ', '.join(names)")))
    assert imports_in(ast.parse("from NatureLM import storage")) & NOT_FOR_SERVICES
    assert imports_in(ast.parse("from NatureLM.storage import as_path")) & NOT_FOR_SERVICES
