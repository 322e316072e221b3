"""What visitors leave on the disk: whose it is, when it goes, how much it may be, who sees it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from commands import naturelm
from web_app import (
    FakePipeline,
    RunningApp,
    as_file,
    begun,
    call,
    dropped,
    event,
    file,
    loaded,
    running,
    sent,
    until,
    upload,
)

from NatureLM.app import context as context_module
from NatureLM.app.clips import samples_of, without_paths
from NatureLM.app.context import AppContext, Visitors
from NatureLM.app.settings import AppSettings, Limits
from NatureLM.errors import NatureLMError, UsageError

LIMITS = Limits(disk_bytes=2_000_000, idle_seconds=3.0, free_bytes=1000)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """An app in which all goes fast and little fits."""
    with running(tmp_path_factory.mktemp("disk"), FakePipeline(), LIMITS) as app:
        event(app, "ask", ["What?", 1.0], "first")  # which takes its time
        app.context.visitors._grace = 1.5
        yield app


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "tone.wav"
    soundfile.write(path, 0.5 * np.sin(np.arange(16_000) / 5), 16_000)
    return path.read_bytes()


def connected(app: RunningApp) -> socket.socket:
    address = urlsplit(app.address)
    return socket.create_connection((address.hostname, address.port), 10)


def opened(app: RunningApp, session: str) -> socket.socket:
    """A page of the browser: what tells the app that it is open."""
    page = connected(app)
    page.sendall(
        f"GET /gradio_api/heartbeat/{session} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    )
    assert b" 200 " in page.recv(1000)
    return page


def kept(app: RunningApp) -> list[Path]:
    """All files of all visitors. Folders may go while they are looked at."""
    folder = app.context.visitors.folder
    return [
        Path(inside, file)
        for name in ("uploads", "visitors")
        for inside, _, files in os.walk(folder / name)
        for file in files
    ]


def test_what_was_sent_leaves_with_its_page_and_nobody_elses(
    app: RunningApp, sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitors = app.context.visitors
    monkeypatch.setattr(visitors, "_limits", replace(LIMITS, idle_seconds=3600.0))
    pages = {name: opened(app, name) for name in ("one", "other")}
    addresses = {name: sent(app, sound) for name in pages}
    assert addresses["one"] != addresses["other"]
    for session, address in addresses.items():
        assert "figure" in dropped(app, address, session)
    assert file(app, addresses["one"]) == (200, sound)
    pages["one"].close()
    until(lambda: "one" not in visitors._open)
    until(lambda: visitors.locate(addresses["one"]) is None)
    assert file(app, addresses["other"]) == (200, sound)
    assert len(kept(app)) == 4, "what the other gave, its copy, picture and playable sound"
    pages["other"].close()
    until(lambda: not kept(app))


def test_what_nobody_claims_goes_after_the_grace(app: RunningApp, sound: bytes) -> None:
    address = sent(app, sound)
    assert file(app, address)[0] == 200
    until(lambda: app.context.visitors.locate(address) is None)
    assert file(app, address)[0] == 404
    assert "This file is not here any more: give it again." in dropped(app, address, "late")


def test_what_waits_for_its_turn_belongs_to_who_waits(
    app: RunningApp, sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would go, as nobody's, while those before it are answered."""
    monkeypatch.setattr(app.page._queue, "active_jobs", [])  # nobody's turn comes
    waits = sent(app, sound)
    begun(app, "ask_dropped", [[as_file(waits)], "", False, "as recorded"], "waits")
    assert app.context.visitors.locate(waits) in kept(app)
    time.sleep(2.0)  # more than the grace of what is nobody's
    app.context.visitors.tidy()
    assert app.context.visitors.locate(waits) is not None


def beginning(length: int, so_far: int) -> bytes:
    """An upload that announces a length, as far as it has come."""
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        'Content-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
    )
    return head.encode() + bytes(so_far)


def test_an_upload_that_breaks_off_goes_at_once(app: RunningApp) -> None:
    uploads = app.context.visitors.uploads
    until(lambda: not list(uploads.iterdir()))
    with connected(app) as page:
        page.sendall(beginning(900_000, 300_000))
        until(lambda: [path for path in uploads.rglob("*") if path.is_file()])
    until(lambda: not list(uploads.iterdir()), 0.4)


def test_uploads_at_the_same_time_share_the_room(app: RunningApp) -> None:
    """What the first has announced is not given to the second; it is again when it breaks off."""
    uploads = app.context.visitors.uploads
    until(lambda: not kept(app))
    begun = beginning(1_200_000, 100_000)
    with connected(app) as first, connected(app) as second:
        first.sendall(begun)
        until(lambda: [path for path in uploads.rglob("*") if path.is_file()])
        second.sendall(begun)
        second.settimeout(20)
        answer = b""
        while b"minute" not in answer and (more := second.recv(1000)):
            answer += more
        assert b" 400 " in answer.splitlines()[0]
        assert b"The 2 MB that files of all visitors may have are taken. Try again in a" in answer
    until(lambda: not list(uploads.iterdir()))
    assert upload(app, "a.wav", bytes(1_200_000))[0] == 200
    until(lambda: not list(uploads.iterdir()))


@pytest.mark.parametrize(
    "part",
    [
        b'name="a"',
        b'name="a"; filename="b"\r\n\r\nx\r\n--x\r\nContent-Disposition: form-data; name="c"',
    ],
)
def test_a_bad_upload_leaves_nothing(app: RunningApp, part: bytes) -> None:
    body = (
        b"--x\r\nContent-Disposition: form-data; " + part + b"\r\n\r\n" + bytes(2000) + b"\r\n--x--"
    )
    status, _ = call(f"{app.address}gradio_api/upload", body, "multipart/form-data; boundary=x")
    assert status == 400
    until(lambda: not list(app.context.visitors.uploads.iterdir()), 0.4)


def test_a_page_may_not_have_more_than_its_share(app: RunningApp, sound: bytes) -> None:
    assert LIMITS.visitor_bytes == 1_000_000
    big = sound + bytes(1_100_000)
    said = dropped(app, sent(app, big), "greedy")
    assert "This page would have 1.1 MB of files with that, and one may have 1 MB: load it" in said
    assert not kept(app)
    assert "figure" in dropped(app, sent(app, sound), "greedy")


def test_a_page_that_was_left_alone_says_so_once(app: RunningApp, sound: bytes) -> None:
    page = app.page
    assert "figure" in dropped(app, sent(app, sound), "idle")
    assert "idle" in page.state_holder.session_data
    until(lambda: "idle" not in app.context.visitors._open)
    until(lambda: "idle" not in page.state_holder.session_data)
    assert not kept(app)
    assert (
        "What this page had was removed, as nothing was done on it for too long. Load it again."
        in (event(app, "ask", ["What?", 1.0], "idle"))
    )
    assert "There is no sound yet" in event(app, "ask", ["What?", 1.0], "idle")


def test_a_page_that_begins_anew_is_not_told_that_it_was_left_alone(
    app: RunningApp, sound: bytes
) -> None:
    assert "figure" in dropped(app, sent(app, sound), "again")
    until(lambda: "again" not in app.context.visitors._open)
    assert "figure" in dropped(app, sent(app, sound), "again")
    assert "What this page had was removed" not in event(app, "ask", ["What?", 1.0], "again")


def test_a_full_disk_is_said(
    app: RunningApp, sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = sent(app, sound)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=999))
    status, body = upload(app, "tone.wav", sound)
    said = "The disk of this computer is full: 999 bytes are free, 1 kB are to stay free"
    assert (status, said in body.decode()) == (400, True)
    assert said in dropped(app, address, "full")
    name = next(iter(samples_of(app.context.assets_dir)))
    assert said in event(app, "ask_picked", [name, "", False, "as recorded"], "full")
    assert str(app.context.folder) not in body.decode()


def test_a_session_costs_no_more_with_each_event(app: RunningApp, sound: bytes) -> None:
    page = app.page
    address = sent(app, sound)
    for _ in range(3):
        assert "figure" in dropped(app, address, "often")
        event(app, "ask", ["What?", 1.0], "often")
        state = page.state_holder.session_data["often"]
        assert state.config_values.keys() <= page.blocks.keys()
        assert state.blocks_config.blocks.keys() == page.blocks.keys()


def test_what_nobody_reads_is_forgotten(app: RunningApp, monkeypatch: pytest.MonkeyPatch) -> None:
    from NatureLM.app import uploads

    queue = app.page._queue
    asked = begun(app, "ask", ["What?", 1.0], "deaf").rpartition("/")[2]
    until(lambda: not queue.event_ids_to_events)
    app.context.visitors.tidy()
    assert "deaf" in queue.pending_messages_per_session
    monkeypatch.setattr(uploads, "_UNREAD_SECONDS", 0.0)
    queue.event_ids_to_events[asked] = SimpleNamespace()
    for _ in range(2):
        app.context.visitors.tidy()
        time.sleep(0.2)
    assert "deaf" in queue.pending_messages_per_session, "it is still worked on"
    queue.event_ids_to_events.clear()
    until(lambda: "deaf" not in queue.pending_messages_per_session)
    assert "deaf" not in queue.pending_event_ids_session


def test_the_queue_outlives_those_who_leave_it(app: RunningApp) -> None:
    queue = app.page._queue
    for number in range(3000):  # of which Gradio keeps 2000
        queue.pending_messages_per_session[f"many {number}"] = asyncio.Queue()
    assert "many 0" in queue.pending_messages_per_session
    gone = SimpleNamespace(alive=True, session_hash="gone", _id="1")
    queue.send_message(gone, SimpleNamespace())
    assert "gone" not in queue.pending_messages_per_session


def test_a_page_that_nobody_asks_takes_little_of_the_processor(
    app: RunningApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio's queue would look 300 times in this time whether somebody asks."""
    looked: list[Any] = []
    length = type(app.page._queue).__len__

    def look(queue: Any) -> int:
        looked.append(queue)
        return int(length(queue))

    monkeypatch.setattr(type(app.page._queue), "__len__", look)
    time.sleep(0.3)
    assert 0 < looked.count(app.page._queue) < 60


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("x" * 100_001, "A field has 100,001 characters, and 100,000 are the most that are taken."),
        ("[1]" * 11, "The question names clips 11 times, and 10 times at most are taken."),
    ],
)
def test_a_question_is_bounded(app: RunningApp, sound: bytes, question: str, said: str) -> None:
    assert "figure" in dropped(app, sent(app, sound), "asks")
    assert said in event(app, "ask", [question, 1.0], "asks")


def test_nobody_passes_those_who_wait(app: RunningApp) -> None:
    page = app.page
    (number,) = [one._id for one in page.fns.values() if one.api_name == "ask"]
    body = json.dumps({"data": ["What?", 1.0], "fn_index": number, "session_hash": "x"}).encode()
    assert call(f"{app.address}gradio_api/run/predict", body, "application/json")[0] == 404


def test_no_path_of_the_computer_is_on_the_page(tmp_path: Path, sound: bytes) -> None:
    """Neither those of the app's own files, nor of the model, of runs, or of the program."""

    from NatureLM.app.page import about, status_line

    def fails() -> None:
        raise NatureLMError(f"{tmp_path}/secret/model.bin: no such file")

    with running(tmp_path / "secret", load=fails, model=f"{tmp_path}/secret/model") as app:
        seen = [call(app.address + page)[1].decode() for page in ("", "config", "gradio_api/info")]
        body = upload(app, "tone.wav", sound)[1]
        (address,) = json.loads(body)
        seen += [
            body.decode(),
            dropped(app, address, "one"),
            event(app, "ask", ["What?", 1.0], "one"),
        ]
        seen += [upload(app, "..", b"")[1].decode(), dropped(app, f"{tmp_path}/x", "one")]
        seen += [
            file(app, name)[1].decode()
            for name in (f"{address}/x", address[:-3], "uploads", f"uploads/../{address}")
        ]
        with_job = event(
            app, "folder_start", [[as_file(address)],
            "What?", 1.0, 10.0, 10.0, "mean", 1.0, "", "any answer", 0.0], "one",
        )  # fmt: skip
        seen += [with_job, status_line(app.context), about(app.context)]
    assert "The model model could not be loaded: model.bin: no such file" in "".join(seen)
    assert "The model could not be loaded. model.bin: no such file" in seen[5]
    assert "<dd>model</dd>" in seen[-1]
    here = [str(app.context.folder), app.context.folder.name, str(tmp_path), "site-packages"]
    here += [str(Path(__file__).parents[2]), f"{Path.home()}/"]
    for text in seen:
        assert not [path for path in here if path in text], text[:300]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("/srv/models/mine: there is no config.json", "mine: there is no config.json"),
        ("[Errno 13] Permission denied: '/srv/x/y.wav'", "[Errno 13] Permission denied: 'y.wav'"),
        ("~/models/mine and C:\\Users\\me\\x.wav", "mine and x.wav"),
        (
            "1/2 of org/model at https://example.org/a/b",
            "1/2 of org/model at https://example.org/a/b",
        ),
    ],
)
def test_messages_name_files_without_folders(said: str, shown: str) -> None:
    assert without_paths(said) == shown


def test_a_file_of_runs_has_an_address_and_goes_with_the_page(
    app: RunningApp, sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio copies what a handler gives: a clip of an experiment, the tables of a job."""
    from gradio import Audio

    page = app.page
    clip = app.context.runs_dir / "clip.wav"
    clip.write_bytes(sound)
    listen = next(one for one in page.fns.values() if one.name == "listen")
    monkeypatch.setattr(listen, "inputs", [])
    monkeypatch.setattr(listen, "fn", lambda: [Audio(value=str(clip)), ""])
    who = SimpleNamespace(session_hash="hears")
    heard = page.process_api(listen, [], request=who, root_path="http://here")
    with ThreadPoolExecutor(1) as pool:  # browser tests leave a loop in this thread
        shown = pool.submit(asyncio.run, heard).result()["data"]
    address = shown[0]["value"]["path"]
    assert shown[0]["value"]["url"] == f"http://here/gradio_api/file={address}"
    assert file(app, address) == (200, sound)
    assert str(app.context.runs_dir) not in json.dumps(shown)
    app.context.visitors.closed("hears")
    until(lambda: app.context.visitors.locate(address) is None)
    assert clip.exists()


def test_a_timeline_is_told_no_path() -> None:
    from NatureLM.app.timeline import _for_the_page

    def fails(_: Any) -> dict[str, Any]:
        raise UsageError("dawn.wav: /srv/runs/jobs/x/recordings/00001.wav cannot be read")

    assert _for_the_page(fails)({}) == {"error": "dawn.wav: 00001.wav cannot be read"}


def test_folders_are_for_nobody_else(tmp_path: Path) -> None:
    context = AppContext(AppSettings(runs_dir=tmp_path / "runs"), loaded(FakePipeline()))
    try:
        with context.visitors.upload() as sent:
            pass
        for folder in (context.folder, sent, sent.parent, context.visitors.of("one").folder):
            assert folder.stat().st_mode & 0o777 == 0o700, folder
    finally:
        context.close()
    assert not context.folder.exists()


# Who goes, without a page


def test_it_is_tidied_where_events_leave_no_files(visitors: Visitors) -> None:
    with visitors.event("looks"):
        assert visitors._tidying.is_alive()


@pytest.fixture
def visitors(tmp_path: Path) -> Iterator[Visitors]:
    made = Visitors(tmp_path, Limits(disk_bytes=1000, free_bytes=0), grace_seconds=60)
    yield made
    made.close()


def gave(
    visitors: Visitors, session: str, size: int, *, idle: float = 0, taken: float = 60
) -> Path:
    """A visitor with so many bytes, who did nothing for so many seconds."""
    with visitors.upload() as folder:
        (folder / "sound").write_bytes(bytes(size))
    visitors.claim(session, [folder / "sound"])
    visitor = visitors.of(session)
    visitor.seen -= idle
    visitor.taken -= taken
    return folder


def test_who_is_idle_for_longest_makes_room(visitors: Visitors) -> None:
    gave(visitors, "long", 100, idle=300)
    gave(visitors, "longer", 300, idle=500)
    gave(visitors, "nothing", 0, idle=900)
    gave(visitors, "active", 400)
    visitors.make_room(200)
    assert len(visitors._open) == 4, "there was room"
    visitors.make_room(300)
    assert list(visitors._open) == ["long", "nothing", "active"]
    visitors.make_room(600)
    assert list(visitors._open) == ["nothing", "active"]
    assert visitors.why_sent_away("long").startswith(
        "What this page had was removed, because others"
    )
    assert visitors.why_sent_away("long") == ""


def test_strangers_who_fill_the_disk_do_not_keep_others_out(visitors: Visitors) -> None:
    """They seem active; whoever has most for longest goes before those with little."""
    gave(visitors, "ordinary", 20, taken=600)
    for number in range(4):
        gave(visitors, f"stranger {number}", 240, taken=60 + number)
    visitors.make_room(100)
    assert "ordinary" in visitors._open
    assert "stranger 3" not in visitors._open
    assert len(visitors._open) == 4


def test_what_is_worked_on_stays(visitors: Visitors) -> None:
    gave(visitors, "works", 400, idle=5000)
    gave(visitors, "new", 400, taken=0)
    with visitors.event("works"):
        visitors.tidy()
        with pytest.raises(
            UsageError, match=r"The 1 kB that files of all visitors may have are tak"
        ):
            visitors.make_room(300)
    assert set(visitors._open) == {"works", "new"}


def test_a_file_that_two_pages_show_goes_with_the_last(visitors: Visitors) -> None:
    folder = gave(visitors, "one", 100)
    visitors.claim("two", [folder / "sound"], is_sent=False)
    for session in ("one", "two"):
        assert folder.exists()
        visitors.closed(session)
        visitors._open[session].closed = time.monotonic() - 61
        visitors.tidy()
    assert not folder.exists()


def test_files_that_are_used_up_go(visitors: Visitors, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = gave(visitors, "one", 100)
    elsewhere = visitors.folder / "sample.wav"
    elsewhere.write_bytes(b"sound")
    visitors.use_up(visitors.of("one"), [folder / "sound", elsewhere])
    visitors.tidy()
    assert (folder / "sound").exists(), "the page may be asking for it"
    monkeypatch.setattr(context_module, "_SOON", 0.0)
    visitors.tidy()
    assert not (folder / "sound").exists()
    assert elsewhere.exists()


def test_what_gradio_forgets_is_removed(visitors: Visitors) -> None:
    left = [visitors.uploads / "tmpabc", visitors.folder / "visitors" / "gone" / "x.png"]
    left[1].parent.mkdir()
    for path in left:
        path.touch()
        for one in (path, path.parent):
            os.utime(one, (time.time() - 100,) * 2)
    visitors.tidy()
    assert not left[0].exists()
    assert not left[1].parent.exists()


# Apps that were killed

_APP = """
import sys, time
from pathlib import Path
from NatureLM.app.context import AppContext
from NatureLM.app.settings import AppSettings
context = AppContext(AppSettings(runs_dir=Path(sys.argv[1])))
print(context.folder, flush=True)
time.sleep(600)
"""


def test_folders_of_killed_apps_are_swept_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    command = [sys.executable, "-c", _APP, str(tmp_path / "runs")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        folders = [Path(one.stdout.readline().strip()) for one in started]  # type: ignore[union-attr]
        (folders[0] / "uploads" / "left.wav").write_bytes(b"sound")
        started[0].kill()
        started[0].wait()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / ".lock").touch()
        (tmp_path / "naturelm-app-link").symlink_to(elsewhere)
        (tmp_path / "naturelm-app-new").mkdir()
        old = tmp_path / "naturelm-app-old"  # what came while its app removed it
        (old / "uploads").mkdir(parents=True)
        (old / "uploads" / "late.wav").write_bytes(b"sound")
        os.utime(old, (0, 0))
        strange = tmp_path / "naturelm-app-strange"
        strange.mkdir()
        (strange / ".lock").symlink_to(elsewhere / ".lock")
        assert folders[0].exists()
        context = AppContext(AppSettings(runs_dir=tmp_path / "runs"))
        assert not folders[0].exists()
        assert folders[1].exists(), "its app lives"
        assert {path.name for path in tmp_path.glob("naturelm-app-*")} == {
            *("naturelm-app-link", "naturelm-app-new", "naturelm-app-strange"),
            *(folders[1].name, context.folder.name),
        }
        assert (elsewhere / ".lock").exists()
        context.close()
        assert not context.folder.exists()
        if hasattr(os, "getuid"):
            started[1].kill()
            started[1].wait()
            monkeypatch.setattr(os, "getuid", lambda: 12345)
            AppContext(AppSettings(runs_dir=tmp_path / "runs")).close()
            assert folders[1].exists(), "it is of another user"
    finally:
        for one in started:
            one.kill()
            one.wait()


_SERVED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from web_app import FakePipeline, free_port
from NatureLM.app.page import serve
from NatureLM.app.settings import AppSettings
from NatureLM.cli.terminal import _terminable
AppSettings.load = lambda self: FakePipeline()
settings = AppSettings(runs_dir=Path(sys.argv[2]), port=free_port())
with _terminable():
    serve(settings, lambda text: print(text, flush=True))
"""


def test_an_app_that_is_stopped_leaves_nothing(tmp_path: Path, sound: bytes) -> None:
    """Though whoever stops it is impatient."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [
        sys.executable,
        "-c",
        _SERVED,
        str(Path(__file__).parents[1]),
        str(tmp_path / "runs"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as served:
        try:
            said = iter(served.stdout.readline, "")  # type: ignore[union-attr]
            address = next(said).split()[4]
            until(lambda: "is ready" in next(said))
            app = RunningApp(address, None)
            assert "figure" in dropped(app, sent(app, sound), "one")
            (folder,) = tmp_path.glob("naturelm-app-*")
            for path in folder.rglob("*"):
                wanted = 0o700 if path.is_dir() else 0o600
                assert path.stat().st_mode & 0o777 == wanted, path
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                served.send_signal(number)
                time.sleep(0.2)
            served.wait(30)
        finally:
            served.kill()
    assert not list(tmp_path.glob("naturelm-app-*"))


def test_a_quota_can_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[AppSettings] = []
    monkeypatch.setattr("NatureLM.app.page.serve", lambda settings, say: seen.append(settings))
    naturelm("inference-app", "--disk-quota", "5", "--runs-dir", tmp_path)
    assert seen[0].limits == replace(Limits(), disk_bytes=5 * 10**9)
    assert seen[0].limits.visitor_bytes == 2_500_000_000
