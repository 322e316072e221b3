"""What strangers send to the page costs little memory, whatever it is: measured in its process."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from web_app import FakePipeline, running

from NatureLM.app.settings import Limits

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from /proc"
)
ROOT = Path(__file__).resolve().parents[2]
MEGABYTE = 10**6
MOST = 100 * MEGABYTE
RATE = 100_000
API = "/gradio_api"


def serve(folder: Path) -> None:
    """In a process of its own: the page, with jobs about two recordings, until stdin is closed."""
    from NatureLM.inference.windows import AskOptions

    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    recording = folder / "bat.wav"
    noise = np.random.default_rng(0).normal(0, 0.1, 60 * RATE).astype(np.float32)
    soundfile.write(recording, noise, RATE)
    with running(folder, FakePipeline(), Limits(sessions=16)) as app:
        jobs = [
            app.context.jobs.create(
                "long", [(recording, "bat.wav")], AskOptions(("q",), time_expansion=expansion)
            )
            for expansion in (100.0, 1.0)
        ]
        with urllib.request.urlopen(f"{app.address}config") as config:
            components = json.load(config)["components"]
        (timeline,) = [c["id"] for c in components if c["props"].get("elem_id") == "long-timeline"]
        found = [(job.id, job.recordings[0].file) for job in jobs]
        print(json.dumps([app.address, timeline, found]), flush=True)
        sys.stdin.read()


@dataclass
class Served:
    process: Any
    host: str
    timeline: int
    jobs: list[tuple[str, str]]

    @property
    def memory(self) -> dict[str, int]:
        """Bytes now and at most, since `forget`."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        found = dict(line.split(":") for line in lines if line.startswith("Vm"))
        return {
            name: int(value.split()[0]) * 1024 for name, value in found.items() if "kB" in value
        }

    def forget(self) -> int:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.memory["VmRSS"]

    def send(
        self, path: str, body: Any, kind: str = "application/json", length: int | None = None
    ) -> tuple[int, str]:
        """Status and text of a POST; without a length the body goes in chunks, as it comes."""
        connection = http.client.HTTPConnection(self.host, timeout=60)
        headers = {"Content-Type": kind}
        if length is not None:
            headers["Content-Length"] = str(length)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", API + path, body, headers, encode_chunked=length is None)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def ask(self, name: str, job: int = 0, **wanted: Any) -> tuple[int, Any]:
        """What the timeline asks for."""
        named, recording = self.jobs[job]
        data = {"job": named, "recording": recording, "start": 0, "end": 60, **wanted}
        asked = {"data": data, "component_id": self.timeline, "session_hash": "s", "fn_name": name}
        body = json.dumps(asked).encode()
        status, text = self.send("/component_server/", body, length=len(body))
        return status, json.loads(text)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("gradio", reason="gradio is not installed")
    with subprocess.Popen(
        [sys.executable, __file__, str(tmp_path_factory.mktemp("served"))],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        address, timeline, jobs = json.loads(process.stdout.readline())
        page = Served(process, urlsplit(address).netloc, timeline, jobs)
        for job in (0, 1):  # the first picture brings the libraries with it
            assert "picture" in page.ask("stretch", job, end=0.05)[1]
        yield page
        process.communicate()


def many(megabytes: int, before: bytes = b"", after: bytes = b"") -> Iterator[bytes]:
    yield before
    for _ in range(megabytes * 10):
        yield b"x" * (MEGABYTE // 10)
    yield after


FIELD = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\n'
FILE = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n'
QUESTION = b'{"session_hash": "s", "fn_index": 0, "data": ["'
FORM = "multipart/form-data; boundary=x"
UNNAMED = "Each part of an upload is a file with a name."


@pytest.mark.parametrize("has_length", [True, False], ids=["length", "chunks"])
@pytest.mark.parametrize(
    ("path", "megabytes", "before", "kind", "status", "said"),
    [
        ("/upload", 400, FIELD, FORM, 400, UNNAMED),
        ("/component_server/", 250, FILE, FORM, 413, "At most 4096 bytes may be sent to {}."),
        ("/component_server", 250, FIELD, FORM, 413, "At most 4096 bytes may be sent to {}."),
        ("/process_recording", 250, FILE, FORM, 404, "There is nothing at this address."),
        *[
            (path, 150, QUESTION, "application/json", 413, f"At most {limit} bytes may be sent")
            for path, limit in (
                ("/queue/join", 2 * MEGABYTE),
                ("/run/predict", 2 * MEGABYTE),
                ("/call/ask", 2 * MEGABYTE),
                ("/cancel", 4096),
                ("/reset", 4096),
            )
        ],
        *[
            (path, 50, QUESTION, "application/json", 404, "There is nothing")
            for path in ("/api/ask", "/run/ask", "/call/v2/ask/", "/stream/x", "/vibe-code")
        ],
    ],
)
def test_a_large_body_costs_no_memory(
    served: Served,
    path: str,
    megabytes: int,
    before: bytes,
    kind: str,
    status: int,
    said: str,
    has_length: bool,
) -> None:
    at_rest = served.forget()
    length = len(before) + megabytes * MEGABYTE if has_length else None
    begun = time.monotonic()
    answered, text = served.send(path, many(megabytes, before), kind, length)
    assert answered == status
    assert said.format(API + path) in text
    assert served.memory["VmHWM"] - at_rest < MOST
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("job", [0, 1], ids=["100 times slower", "as recorded"])
@pytest.mark.parametrize("name", ["listen", "stretch"])
def test_sound_costs_as_much_memory_as_is_heard(served: Served, name: str, job: int) -> None:
    at_rest = served.forget()
    answers: list[tuple[int, Any]] = [served.ask(name, job, columns=10**9)]
    assert served.memory["VmHWM"] - at_rest < MOST
    asked = [
        threading.Thread(target=lambda: answers.append(served.ask(name, job, columns=10**9)))
        for _ in range(6)
    ]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join()
    assert {status for status, _ in answers} == {200}
    assert all("picture" in found for _, found in answers)
    if name == "listen":  # a minute as the model hears it, in base64
        assert {len(found["sound"]) for _, found in answers} == {
            (60 * 16_000 * 2 + 44) // 3 * 4 + 4
        }
    assert served.memory["VmHWM"] - at_rest < 2 * MOST, "two are worked on at once"


def test_strangers_who_name_ever_more_sessions_cost_no_memory(served: Served) -> None:
    def visit(number: int) -> None:
        body = json.dumps(
            {"data": {}, "component_id": served.timeline, "session_hash": f"s{number}",
             "fn_name": "listen"}
        ).encode()  # fmt: skip
        assert served.send("/component_server", body, length=len(body))[0] == 200

    for number in range(20):
        visit(number)
    at_rest = served.forget()
    for number in range(20, 80):
        visit(number)
    assert served.memory["VmHWM"] - at_rest < 10 * MEGABYTE


def test_a_folder_of_many_files_is_taken(served: Served) -> None:
    """All of an upload are open at the same time; many systems begin with 256 or 1024 files."""
    file = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="%d.wav"\r\n\r\nsound\r\n'
    )
    body = b"".join(file % number for number in range(600)) + b"--x--\r\n"
    answered, text = served.send("/upload", body, FORM, len(body))
    assert answered == 200
    assert len(json.loads(text)) == 600


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_a_question_that_is_nested_deeply_is_refused(served: Served, opening: str) -> None:
    body = ('{"session_hash": "s", "fn_index": 0, "data": ' + opening * 200_000).encode()
    at_rest = served.forget()
    for path in ("/queue/join", "/run/predict", "/call/ask", "/cancel"):
        assert served.send(path, body, length=len(body))[0] in (400, 413, 422, 500)
    assert served.memory["VmHWM"] - at_rest < MOST
    assert "picture" in served.ask("stretch")[1]


def test_too_many_who_want_to_hear_are_told_to_wait(served: Served) -> None:
    answers: list[int] = []
    asked = [
        threading.Thread(target=lambda: answers.append(served.ask("listen")[0])) for _ in range(30)
    ]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join()
    assert set(answers) == {200, 429}
    assert answers.count(200) >= 18  # two at work, 16 that wait


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
