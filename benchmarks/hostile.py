"""Clients that mean harm: all kinds of requests to a running web app, for `app_soak.py --hostile`.

Each kind repeats in a thread of its own, all of them in a process of their own; what is counted is
which answer it got.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import multiprocessing
import random
import re
import secrets
import socket
import threading
import time
import wave
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import soundfile

API = "/gradio_api"
MEGABYTE = 10**6
_JSON = "application/json"
_FORM = "multipart/form-data; boundary=x"
_FIELD = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\n'
_FILE = b'--x\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n'
_END = b"\r\n--x--\r\n"
_QUESTION = b'{"session_hash": "s", "fn_index": 6, "data": ["'
_SLOW = 40  # connections that are slow at the same time, of each kind


class Page:
    """What the script of the page does, by plain requests: events of components by their ids."""

    def __init__(self, address: str, session: str = "") -> None:
        self.host = urlsplit(address).netloc
        self.session = session or secrets.token_hex(6)
        config = json.loads(self.ask("GET", "/config")[1])
        self.ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
        self.names = {number: name for name, number in self.ids.items() if name}
        self.events = config["dependencies"]
        self._looks = {
            kind: next(
                one
                for one in self.events
                if one["targets"][0][1] == "tick" and self.ids[f"{kind}-status"] in one["outputs"]
            )
            for kind in ("long", "folder")
        }

    def ask(
        self, method: str, path: str, body: Any = None, timeout: float = 60, **headers: str
    ) -> tuple[int, str]:
        """Status and text; what has no length is sent in chunks."""
        connection = http.client.HTTPConnection(self.host, timeout=timeout)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                given = {name.replace("_", "-"): value for name, value in headers.items()}
                is_chunked = body is not None and not isinstance(body, bytes)
                if "Content-Length" in given:
                    is_chunked = False
                connection.request(method, path, body, given, encode_chunked=is_chunked)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()

    def post(self, path: str, data: Any, timeout: float = 60) -> tuple[int, str]:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        return self.ask("POST", API + path, body, timeout, Content_Type=_JSON)

    def event(self, name: str, kind: str, data: list[Any]) -> dict[str, Any]:
        """Do an event that needs no queue; the values of the components that have an id."""
        wanted = [self.ids[name], kind]
        found = next(one for one in self.events if wanted in one["targets"] and not one["queue"])
        return self._do(found, data)

    def look(self, kind: str) -> dict[str, Any]:
        """The job of this session, as its panel shows it."""
        return self._do(self._looks[kind], [None, None, None, "answer", "", 0.0, None, None])

    def table(self, kind: str) -> list[list[Any]]:
        """The answers of the job of this session, by the filter of its table."""
        seen = self.event(
            f"{kind}-filter", "change", [None, None, None, "answer", " ", 0.0, None, None]
        )
        shown = seen.get(f"{kind}-table") or {}
        return list((shown.get("value") or shown).get("data") or [])

    def open(self, kind: str, job: str) -> None:
        """Let this session show a job, as its browser remembers it."""
        self.event(f"{kind}-earlier", "focus", [[job]])
        self.event(f"{kind}-earlier", "input", [job])

    def stop(self, kind: str) -> None:
        self.event(f"{kind}-stop", "click", [None, None, None, "answer", "", 0.0, None, None])

    def remove(self, kind: str, job: str = "") -> None:
        """Remove the job of this session, or another one."""
        if job:
            self.open(kind, job)
        self.stop(kind)
        for _ in range(60):
            shown = self.event(f"{kind}-remove-sure", "click", [None])
            if "being worked on" not in str(shown.get(f"{kind}-problem")):
                return
            time.sleep(1.0)
        raise RuntimeError(f"a job cannot be removed: {shown.get(f'{kind}-problem')}")

    def upload(self, name: bytes, data: bytes) -> dict[str, Any]:
        """A file as events take it."""
        status, text = self.ask(
            "POST", f"{API}/upload", (_FILE % name) + data + _END, Content_Type=_FORM
        )
        if status != 200:
            raise RuntimeError(f"{status} {text[:100]}")
        return {"path": json.loads(text)[0], "meta": {"_type": "gradio.FileData"}}

    def call(self, name: str, data: list[Any], *, reads: bool = True) -> str:
        """What an event of the queue said last."""
        status, text = self.post(f"/call/{name}", {"data": data, "session_hash": self.session})
        if status != 200 or not reads:
            return f"{status} {text[:22] if status != 200 else ''}"
        return self.ask("GET", f"{API}/call/{name}/{json.loads(text)['event_id']}", timeout=120)[1]

    def _do(self, event: Any, data: list[Any]) -> dict[str, Any]:
        sent = {"data": data, "fn_index": event["id"], "session_hash": self.session}
        status, text = self.post("/run/predict", sent)
        if status != 200:
            raise RuntimeError(f"{status} {text[:200]}")
        values = zip(event["outputs"], json.loads(text)["data"], strict=True)
        return {self.names[number]: value for number, value in values if number in self.names}


class Hostile:
    """All kinds; each method that begins with `do_` is one, and gives what it was answered."""

    def __init__(self, address: str, folder: Path, end: float) -> None:
        self.address, self.folder, self.end = address, folder, end
        self.page = Page(address)
        self.random = random.Random(0)
        self.long = (folder / "long.flac").read_bytes()
        self.bat = (folder / "bat.wav").read_bytes()

    def sound(self, seconds: float = 5.0) -> bytes:
        data = self.bat[44 : 44 + int(seconds * 96_000) * 2]
        with io.BytesIO() as file, wave.open(file, "wb") as sound:
            sound.setparams((1, 2, 96_000, 0, "NONE", ""))
            sound.writeframes(data)
            sound.close()
            return file.getvalue()

    # large bodies

    def _large(self, path: str, megabytes: int, before: bytes, kind: str) -> str:
        has_length = self.random.random() < 0.5
        length = {"Content_Length": str(len(before) + megabytes * MEGABYTE)} if has_length else {}

        def pieces() -> Iterator[bytes]:
            yield before
            for _ in range(megabytes * 4):
                yield b"x" * (MEGABYTE // 4)

        return str(self.page.ask("POST", API + path, pieces(), Content_Type=kind, **length)[0])

    def do_field_without_name(self) -> str:
        return self._large("/upload", 300, _FIELD, _FORM)

    def do_file_for_component(self) -> str:
        return self._large("/component_server", 250, _FILE % b"a", _FORM)

    def do_large_json(self) -> str:
        path = self.random.choice(["/queue/join", "/run/predict", "/call/ask", "/cancel"])
        return self._large(path, 150, _QUESTION, _JSON)

    def do_json_of_two_megabytes(self) -> str:
        return self.page.call("ask", ["x" * 1_900_000, 1.0], reads=False)[:3]

    def do_deep_json(self) -> str:
        body = b'{"session_hash": "s", "fn_index": 6, "data": ' + b"[" * 200_000
        return str(self.page.post("/queue/join", body)[0])

    # what is closed

    def do_closed_route(self) -> str:
        path = self.random.choice(
            ["/process_recording", "/api/ask", "/stream/x", "/monitoring", "/deep_link", "/app_id",
             "/proxy=http://169.254.169.254/", "/file=/etc/passwd", "/file=http://169.254.169.254/",
             "/file=uploads/../../../../etc/passwd", "/vibe-code", "/custom_component/x/client/y"]
        )  # fmt: skip
        return str(self.page.ask(self.random.choice(["GET", "POST"]), API + path, b"x" * 1000)[0])

    def do_foreign_host(self) -> str:
        return str(self.page.ask("GET", "/config", Host="evil.example")[0])

    def do_foreign_origin(self) -> str:
        headers = {"Origin": "http://evil.example", "Content_Type": "text/plain"}
        return str(self.page.ask("POST", f"{API}/queue/join", b"{}", **headers)[0])

    def do_fetch(self) -> str:
        address = self.random.choice(
            ["http://169.254.169.254/latest", "file:///etc/passwd", "/etc/passwd"]
        )
        item = {"path": address, "url": address, "meta": {"_type": "gradio.FileData"}}
        said = Page(self.address).call("ask_dropped", [[item], "", False, "as recorded"])
        return "refused" if "not here any more" in said else said[:80]

    # uploads

    def do_abort_upload(self) -> str:
        with self._connection() as sent:
            head = f"POST {API}/upload HTTP/1.1\r\nHost: {self.page.host}\r\n"
            head += f"Content-Type: {_FORM}\r\nContent-Length: 500000000\r\n\r\n"
            sent.sendall(head.encode() + _FILE % b"a.wav")
            for _ in range(80):
                sent.sendall(bytes(MEGABYTE // 4))
        return "aborted"

    def do_upload_and_leave(self) -> str:
        page = Page(self.address)
        file = page.upload(b"a.wav", self.sound(10))
        if self.random.random() < 0.5:
            return "unclaimed"
        return page.call("ask_dropped", [[file], "", False, "as recorded"], reads=False)

    def do_strange_name(self) -> str:
        name = self.random.choice(
            [b"\x1b[2Jevil\xe2\x80\xae.wav", b"..", b"<script>.wav", b"a" * 400, b"\x07\x00.flac"]
        )
        page = Page(self.address)
        file = page.upload(name, self.sound(1))
        said = page.call("ask_dropped", [[file], "", False, "as recorded"])
        return "BAD" if "\x1b" in json.dumps(said, ensure_ascii=False) else "taken"

    def do_spoilt_sound(self) -> str:
        spoilt = bytearray(self.random.choice([self.sound(1), self.long[:100_000]]))
        for _ in range(30):
            spoilt[self.random.randrange(min(400, len(spoilt)))] = self.random.randrange(256)
        page = Page(self.address)
        file = page.upload(b"a.flac", bytes(spoilt))
        said = page.call("ask_dropped", [[file], "", False, "as recorded"])
        return "BAD" if "program failed" in said else "answered"

    def do_long_sound_as_clip(self) -> str:
        page = Page(self.address)
        said = page.call(
            "ask_dropped", [[page.upload(b"l.flac", self.long)], "", False, "as recorded"]
        )
        return "refused" if "may last" in said else said[-150:]

    # questions

    def do_long_question(self) -> str:
        page = Page(self.address)
        sent = [page.upload(b"a.wav", self.sound(1))]
        page.call("ask_dropped", [sent, "", False, "as recorded"])
        said = page.call("ask", ["é[1] " * 400 + "x" * self.random.choice([0, 10**6]), 1.0])
        is_refused = "notice problem" in said or "characters" in said
        return "refused" if is_refused else said[-150:]

    def do_ask_and_leave(self) -> str:
        """One session that never reads what it is answered."""
        name = self.random.choice(["ask_picked", "ask", "compare_alphas"])
        data = {
            "ask_picked": ["Barn owl", "", False, "as recorded"],
            "ask": ["What is it?", 1.0],
            "compare_alphas": ["What is it?"],
        }
        return self.page.call(name, data[name], reads=False)[:40]

    def do_skip_the_queue(self) -> str:
        """An event of the queue, directly."""
        event = next(one for one in self.page.events if one["api_name"] == "ask")
        data = {"data": ["x", 1.0], "fn_index": event["id"], "session_hash": secrets.token_hex(5)}
        return str(self.page.post("/run/predict", data)[0])

    # sessions

    def do_open_and_leave(self) -> str:
        page = Page(self.address)
        with self._connection() as heart:
            heart.sendall(
                f"GET {API}/heartbeat/{page.session} HTTP/1.1\r\nHost: {page.host}\r\n\r\n".encode()
            )
            heart.recv(100)
            return page.call("ask_picked", ["Barn owl", "", False, "as recorded"], reads=False)

    def do_many_sessions(self) -> str:
        found: Counter[str] = Counter()
        for _ in range(50):
            self.page.session = secrets.token_hex(6)
            found.update(["200" if self.page.look("folder") is not None else "?"])
        return max(found)

    # slow

    def _held(self, head: bytes, drop: bytes, seconds: float) -> str:
        """Many connections that send a head and then drop by drop; whether they stay open."""
        held = []
        for _ in range(_SLOW):
            with contextlib.suppress(OSError):
                held.append(self._connection())
                held[-1].sendall(head)
        until = min(self.end, time.monotonic() + seconds)
        closed = 0
        while time.monotonic() < until:
            time.sleep(2.0)
            for one in held:
                with contextlib.suppress(OSError):
                    one.sendall(drop)
        for one in held:
            one.settimeout(0.01)
            with contextlib.suppress(TimeoutError):
                with contextlib.suppress(ConnectionError):
                    one.recv(100)
                closed += 1
            one.close()
        return "closed or answered" if closed == len(held) else "some stay open"

    def do_slow_headers(self) -> str:
        head = f"GET /config HTTP/1.1\r\nHost: {self.page.host}\r\nX: ".encode()
        return self._held(head, b"x", 40)

    def do_slow_body(self) -> str:
        head = f"POST {API}/queue/join HTTP/1.1\r\nHost: {self.page.host}\r\nContent-Type: {_JSON}"
        return self._held(head.encode() + b"\r\nContent-Length: 100000\r\n\r\n{", b" ", 75)

    def do_slow_upload(self) -> str:
        head = f"POST {API}/upload HTTP/1.1\r\nHost: {self.page.host}\r\nContent-Type: {_FORM}"
        head += "\r\nContent-Length: 100000000\r\n\r\n"
        return self._held(head.encode() + _FILE % b"a.wav", b"x", 60)

    def do_slow_reader(self) -> str:
        """Asks for the page again and again on one connection and reads nothing."""
        request = f"GET /config HTTP/1.1\r\nHost: {self.page.host}\r\n\r\n".encode()
        return self._held(request * 20, b"", 60)

    # jobs

    def _start(self, page: Page, data: bytes, name: bytes, fields: list[Any]) -> str:
        """The id of a job, or why there is none."""
        said = page.call("long_start", [page.upload(name, data), *fields])
        found = re.search(r'data-job=\\?"([\w-]{32})', said)
        return found[1] if found else (re.findall(r"<p>(.*?)<", said) or [said])[0][:90]

    def do_job_of_millions(self) -> str:
        questions = "\n".join(f"What is it, {n}?" for n in range(10))
        fields = [questions, 1.0, 10.0, 0.1, "mean", 1.0, "", "any answer", 0.0]
        found = self._start(Page(self.address), self.long, b"long.flac", fields)
        return re.sub(r"\d", "9", found)

    def do_job_of_a_long_recording(self) -> str:
        page = Page(self.address)
        fields = ["What is it?", 1.0, 10.0, 10.0, "mean", 1.0, "", "any answer", 0.0]
        job = self._start(page, self.long, b"long.flac", fields)
        if " " in job:
            return re.sub(r"\d", "9", job)
        time.sleep(20)
        page.remove("long")
        return "begun"

    def do_many_jobs(self) -> str:
        """More than wait at once; all are stopped then."""
        begun, said = list[Page](), ""
        fields = ["What is it?", 1.0, 10.0, 10.0, "mean", 1.0, "", "any answer", 0.0]
        for _ in range(10):
            page = Page(self.address)
            if " " in (found := self._start(page, self.long, b"long.flac", fields)):
                said = re.sub(r"\d", "9", found)
                break
            begun.append(page)
        for page in begun:
            page.remove("long")
        time.sleep(20)
        return said or "all begun"

    def do_sound_bombs(self) -> str:
        """Stretches and sounds of a recording that is heard 100 times slower."""
        page = Page(self.address)
        fields = ["What is it?", 1.0, 10.0, 10.0, "mean", 100.0, "", "any answer", 0.0]
        job = self._start(page, self.bat, b"bat.wav", fields)
        if " " in job:
            return re.sub(r"\d", "9", job)
        found: Counter[int] = Counter()

        def bomb(name: str) -> None:
            data = {"job": job, "recording": "00001-bat.wav", "start": 0, "end": 1e9}
            asked = {"data": {**data, "columns": 10**9}, "fn_name": name, "session_hash": "s"}
            asked["component_id"] = page.ids["long-timeline"]
            found[page.post("/component_server", asked, timeout=120)[0]] += 1

        threads = [
            threading.Thread(target=bomb, args=(name,)) for name in ("listen", "stretch") * 12
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        page.remove("long")
        return ", ".join(map(str, sorted(found)))

    def _connection(self) -> socket.socket:
        host, _, port = self.page.host.partition(":")
        return socket.create_connection((host, int(port)), 20)


def _attack(address: str, folder: Path, seconds: float, counts: Any) -> None:
    """In a process of its own: each kind in a thread, again and again."""
    hostile = Hostile(address, folder, time.monotonic() + seconds)
    found: dict[str, Counter[str]] = {}

    def repeat(name: str, act: Callable[[], str]) -> None:
        mine = found.setdefault(name, Counter())
        while time.monotonic() < hostile.end:
            try:
                mine[act()] += 1
            except Exception as error:  # each may break off in its own way
                mine[f"{type(error).__name__} {error}"[:60]] += 1
            time.sleep(0.5)

    threads = [
        threading.Thread(target=repeat, args=(name[3:], getattr(hostile, name)), daemon=True)
        for name in dir(hostile)
        if name.startswith("do_")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(1.0, hostile.end + 60 - time.monotonic()))
    counts.put({name: dict(one) for name, one in found.items()})


@contextlib.contextmanager
def attacked(address: str, folder: Path, seconds: float) -> Iterator[dict[str, dict[str, int]]]:
    """While hostile clients are at work; afterwards it has kind → answer → how often."""
    given = folder / "hostile"
    given.mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, 60 * 96_000).astype(np.float32)
    soundfile.write(given / "bat.wav", noise, 96_000, subtype="PCM_16")
    with soundfile.SoundFile(given / "long.flac", "w", 8000, 1) as file:  # six hours
        for _ in range(360):
            file.write(np.zeros(60 * 8000, np.float32))
    spawning = multiprocessing.get_context("spawn")
    counts = spawning.Queue()
    process = spawning.Process(target=_attack, args=(address, given, seconds, counts))
    process.start()
    statuses: dict[str, dict[str, int]] = {}
    try:
        yield statuses
        statuses |= counts.get(timeout=120)
    finally:
        process.terminate()
        process.join()
