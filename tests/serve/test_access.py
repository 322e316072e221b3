"""Which routes there are, who may ask, what may be opened and sent, and what reaches the log."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from commands import naturelm
from hypothesis import given
from hypothesis import strategies as st
from served import DOG, OWL, PLAIN, QUESTION, Running, audio, message, noise, serving, text, wav
from web_app import free_port, until

from NatureLM.errors import NatureLMError, UsageError
from NatureLM.serve import server, sound
from NatureLM.serve.settings import Limits, ServeSettings, check_exposure, read_api_keys

SCHEMATHESIS = shutil.which("schemathesis")
KEY = "a-key-of-the-lab-0123456789"
ROUTES = (
    ("GET", "/"), ("GET", "/info"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/docs"),
    ("GET", "/docs/docs.js"), ("GET", "/v1/models"), ("GET", "/v1/models/naturelm-tiny"),
    ("POST", "/predict"), ("POST", "/v1/chat/completions"), ("POST", "/v1/decisions"),
    ("POST", "/v1/embeddings"), ("POST", "/v1/audio/transcriptions"), ("POST", "/v1/windows"),
)  # fmt: skip


# -- keys and names ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked() -> Any:
    with serving(api_keys={"lab": KEY, "field": KEY[::-1]}) as service:
        yield service


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_but_health_needs_a_key(locked: Running, method: str, path: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {KEY}x"}):
        answer = httpx.request(method, f"{locked.address}{path}", headers=headers, verify=PLAIN)
        assert answer.status_code == 401, path
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert "`Authorization: Bearer …`" in error["message"]
    right = {"authorization": f"Bearer {KEY}"}
    answer = httpx.request(method, f"{locked.address}{path}", headers=right, verify=PLAIN)
    assert answer.status_code != 401
    assert locked.get("/health").status_code == 200


def test_a_browser_comes_to_the_list_of_routes(service: Running, locked: Running) -> None:
    """At the address that is printed; with keys after the form."""
    with httpx.Client(
        follow_redirects=True, headers={"accept": "text/html"}, verify=PLAIN
    ) as browser:
        assert browser.get(service.address).url.path == "/docs"
        form = browser.get(locked.address)
        assert (form.status_code, "Send an API key as" in form.text) == (401, True)
        page = browser.post(f"{locked.address}/login", data={"token": KEY})
        assert (page.status_code, page.url.path) == (200, "/docs")
        assert browser.get(f"{locked.address}/openapi.json").status_code == 200


def test_every_route_is_known_to_the_guard(service: Running) -> None:
    """A route that is added without a rule would not be reached, and one here is not forgotten."""
    described = {
        (method.upper(), path.replace("{name}", "naturelm-tiny"))
        for path, methods in service.get("/openapi.json").json()["paths"].items()
        for method in methods
    }
    pages = {("GET", path) for path in ("/", "/docs", "/docs/docs.js", "/openapi.json")}
    assert described | pages == {
        *ROUTES,
        ("GET", "/health"),
    }


def test_every_route_is_described(service: Running) -> None:
    told = service.get("/openapi.json").json()
    for path, methods in told["paths"].items():
        for method, one in methods.items():
            assert one["description"], path
            assert set(one["responses"]) == {"200", "4XX", "5XX"}, path
            if method == "post":
                (content,) = one["requestBody"]["content"].values()
                assert content["schema"], path
    assert told["info"]["summary"]
    assert "#/$defs/" not in str(told), "references lead somewhere"


def test_the_page_of_routes_asks_nobody_else(service: Running) -> None:
    page = service.get("/docs").text + service.get("/docs/docs.js").text
    assert "://" not in page
    assert service.get("/docs/other.js").status_code == 404
    assert service.get("/docs/..%2fserver.py").status_code == 404


@pytest.mark.slow
@pytest.mark.skipif(
    SCHEMATHESIS is None, reason="schemathesis is not installed (pip install schemathesis)"
)
def test_2000_requests_of_schemathesis_find_no_fault(service: Running, tmp_path: Path) -> None:
    assert SCHEMATHESIS is not None
    routes = len(service.get("/openapi.json").json()["paths"])
    command = [
        SCHEMATHESIS, "run", f"{service.address}/openapi.json",
        "--checks", "not_a_server_error",
        "--max-examples", str(2000 // routes + 1),
        "--request-timeout", "60",
        "--workers", "2",
        "--seed", "1",
        "--suppress-health-check", "all",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-4000:]


def test_names_that_are_not_ours_are_refused(service: Running) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", f"evil.example:{service.settings.port}"):
        answer = service.get("/v1/models", headers={"host": host})
        assert answer.status_code == 403
    page = {"origin": "https://evil.example"}
    assert service.post("/v1/decisions", {}, headers=page).status_code == 403
    answer = service.get("/v1/models")
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_open_address_needs_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NATURELM_API_KEYS", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.7", "lab.example"):
        with pytest.raises(UsageError, match=r"--api-key-file.*--insecure"):
            check_exposure(ServeSettings(host=host), insecure=False)
        check_exposure(ServeSettings(host=host), insecure=True)
        check_exposure(ServeSettings(host=host, api_keys={"a": KEY}), insecure=False)
    check_exposure(ServeSettings(host="127.0.0.1"), insecure=False)

    file = tmp_path / "keys"
    file.write_text(f"# ours\nlab={KEY}\n\n{KEY[::-1]} # without a name\n")
    monkeypatch.setenv("NATURELM_API_KEYS", "ci=cccccccccccccccccccc")
    assert read_api_keys([], file) == {
        "ci": "cccccccccccccccccccc", "lab": KEY, "key-3": KEY[::-1],
    }  # fmt: skip
    for bad, words in (("short", "at least 16"), (f"a b={KEY} x", "without blanks")):
        with pytest.raises(UsageError, match=words):
            read_api_keys([bad], None)
    with pytest.raises(UsageError, match="twice"):
        read_api_keys([f"a={KEY}", f"b={KEY}"], None)
    assert KEY not in repr(ServeSettings(api_keys={"a": KEY}))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("token=5", "did you mean 'tokens'"),
        ("tokens", "there is no such limit"),
        ("tokens=0", "above 0"),
        ("tokens=1.5", "a whole number"),
        ("clip_seconds=nan", "a number"),
        ("body_bytes=many", "body_bytes|size"),
    ],
)
def test_limits_are_checked(given: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Limits().with_values([given])
    set_so = Limits().with_values(["tokens=7", "clip_seconds=2.5", "body_bytes=2MiB"])
    assert (set_so.tokens, set_so.clip_seconds, set_so.body_bytes) == (7, 2.5, 2**21)


# -- what is too much --------------------------------------------------------------------------


def _flac(seconds: int) -> bytes:
    """A FLAC of one value: an hour of it takes some kB."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 48_000, 2, format="FLAC") as sound:
        block = np.full((48_000, 2), 0.25)
        block[::7] = 0.5
        for _ in range(seconds):
            sound.write(block)
    return file.getvalue()


def _header(rate: int = 16_000, channels: int = 1, claimed: int = 3200, data: int = 3200) -> bytes:
    """A WAV file that claims what it likes."""
    block = 2 * channels
    form = struct.pack("<HHIIHH", 1, channels, rate, (rate * block) & 0xFFFFFFFF, block, 16)
    body = b"fmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", claimed)
    tone = (np.sin(np.arange(data // 2)) * 9000).astype("<i2").tobytes()
    return b"RIFF" + struct.pack("<I", len(body) + 4 + claimed) + b"WAVE" + body + tone


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (_flac(700), "'clip_seconds'"),
        (_header(channels=255, data=51_000, claimed=51_000), "'channels'"),
        (_header(rate=4_000_000_000), "rate|cannot be opened"),
        (wav(np.full(16_000, np.nan, "f4"), subtype="FLOAT"), "NaN|not finite|infinite"),
    ],
    ids=["long", "255 channels", "4 GHz", "NaN"],
)
def test_sound_that_is_too_much_is_refused_by_name(
    service: Running, data: bytes, words: str
) -> None:
    before = _memory()
    answer = service.chat(audio(data), text(QUESTION))
    assert answer.status_code == 400, answer.text
    assert re.search(words, answer.json()["error"]["message"]), answer.text
    assert _memory() - before < 100e6


def _memory() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss)


def test_a_header_that_claims_gigabytes_is_read_as_what_it_holds(service: Running) -> None:
    before = _memory()
    answer = service.chat(audio(_header(claimed=0xFFFFFF00)), text(QUESTION))
    assert answer.status_code in (200, 400)
    assert _memory() - before < 100e6


def test_bodies_are_counted_while_they_come() -> None:
    with serving(limits=Limits(body_bytes=100_000, upload_bytes=200_000)) as service:
        before = _memory()
        answer = service.chat(text("x" * 10**7))
        assert answer.status_code == 413
        assert "100000" in answer.json()["error"]["message"]

        def endless() -> Any:
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(100):
                yield b"x" * 10**6

        headers = {"content-type": "multipart/form-data; boundary=x"}
        try:
            answer = httpx.post(
                f"{service.address}/v1/windows",
                content=endless(),
                headers=headers,
                timeout=30,
                verify=PLAIN,
            )
            assert answer.status_code == 413
        except httpx.TransportError:
            pass  # the connection was closed while it was sent
        assert _memory() - before < 60e6


def test_more_than_the_queue_holds_is_sent_away_with_a_time(tmp_path: Path) -> None:
    with serving(limits=Limits(queue=2, answers=8)) as service:
        many = {"n": 8, "temperature": 1.0, "max_tokens": 50}
        answer = service.chat(audio(OWL), text("Caption the audio"), **many)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert "limit 'queue'" in answer.json()["error"]["message"]
        # What was taken of the eight is let go of at the next step.
        until(lambda: service.chat(audio(OWL), text(QUESTION)).status_code == 200, 10)


def test_a_deadline_ends_an_answer() -> None:
    with serving(limits=Limits(request_seconds=0.002)) as service:
        answer = service.chat(audio(wav(noise(9))), text("Caption the audio"), max_tokens=1000)
        assert answer.status_code == 504
        assert "limit 'request_seconds'" in answer.json()["error"]["message"]


# -- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://sounds.example/a.wav",
        "https://other.example/a.wav",
        "https://sounds.example.evil.example/a.wav",
        "https://sounds.example@evil.example/a.wav",
        "https://user:pw@sounds.example/a.wav",
        "https://sounds.example:8443/a.wav",
        "https://127.0.0.1/a.wav",
        "file:///etc/passwd",
        "ftp://sounds.example/a.wav",
        "https://",
        "https://[::1",
        "//sounds.example/a.wav",
    ],
)
def test_only_allowed_hosts_are_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: Any, **__: Any) -> Any:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket, "create_connection", opened)
    monkeypatch.setattr(socket, "getaddrinfo", opened)
    with pytest.raises(UsageError):
        sound.fetch(url, ["sounds.example"], most_bytes=10, seconds=1)
    with pytest.raises(UsageError):
        sound.fetch(url, [], most_bytes=10, seconds=1)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "0.0.0.0",
        "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:a00:1::80ff:fffe",
    ],
)  # fmt: skip
def test_addresses_of_an_own_network_are_not_asked(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the name server says, and in whatever way the address is written."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = [(socket.AF_INET, 1, 6, "", ("93.184.216.34", 443)), (family, 1, 6, "", (address, 443))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(UsageError, match="its own network"):
        sound.public_address("sounds.example", 443)


@given(st.ip_addresses())
def test_what_is_asked_is_public(address: Any) -> None:
    if sound._is_public(address):
        assert address.is_global
        assert not address.is_multicast


class _Server:
    """A server that says one thing to everybody."""

    def __init__(self, response: bytes, pause: float = 0.0) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._response, self._pause = response, pause
        self.asked = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.asked += 1
            with connection:
                connection.recv(65_536)
                try:
                    for start in range(0, len(self._response), 1000):
                        connection.sendall(self._response[start : start + 1000])
                        time.sleep(self._pause)
                except OSError:
                    pass

    def close(self) -> None:
        self._socket.close()


def _got(
    monkeypatch: pytest.MonkeyPatch, response: bytes, pause: float = 0.0, **limits: Any
) -> bytes:
    """What is fetched from a server on loopback, which stands for one of the internet."""
    server = _Server(response, pause)
    monkeypatch.setattr(sound, "public_address", lambda host, port: "127.0.0.1")
    try:
        return sound.fetch(
            f"http://sounds.example:{server.port}/a.wav",
            [f"sounds.example:{server.port}"],
            **{"most_bytes": 10**6, "seconds": 5, **limits},
            schemes=("http",),
        )
    finally:
        server.close()


def test_sound_is_fetched_within_bytes_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ok = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    assert _got(monkeypatch, ok + DOG) == DOG
    with pytest.raises(UsageError, match=r"more than 50 kB \(body_bytes\)"):
        _got(monkeypatch, ok + b"x" * 100_000, most_bytes=50_000)
    began = time.monotonic()
    with pytest.raises(UsageError, match=r"in time \(fetch_seconds\)|could not be fetched"):
        _got(monkeypatch, ok + b"x" * 100_000, pause=0.1, seconds=0.5)
    assert time.monotonic() - began < 3
    with pytest.raises(UsageError, match="answered 404"):
        _got(monkeypatch, b"HTTP/1.1 404 Not Found\r\n\r\n")
    with pytest.raises(UsageError, match="could not be fetched"):
        _got(monkeypatch, b"220 this is mail\r\n")


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:1/", "https://evil.example/", "file:///etc/passwd", "//evil/x"]
)
def test_redirects_go_through_the_same_checks(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    moved = f"HTTP/1.1 302 Found\r\nLocation: {target}\r\n\r\n".encode()
    with pytest.raises(UsageError, match="--allow-url-host"):
        _got(monkeypatch, moved)
    with pytest.raises(UsageError, match="too often"):
        _got(monkeypatch, b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n")


def test_an_address_in_a_request_is_refused_by_default(service: Running) -> None:
    for url in ("https://example.org/a.wav", "http://127.0.0.1:1/", "file:///etc/passwd"):
        part = {"type": "audio_url", "audio_url": {"url": url}}
        answer = service.chat(part, text(QUESTION))
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "messages[0].content[0].audio_url.url"
    data = f"data:audio/wav;base64,{base64.b64encode(DOG).decode()}"
    part = {"type": "audio_url", "audio_url": {"url": data}}
    assert service.chat(part, text(QUESTION)).status_code == 200


# -- the log, and the end ----------------------------------------------------------------------


def test_the_log_holds_sizes_and_times_only(caplog: pytest.LogCaptureFixture) -> None:
    secret = "The owl of Minerva flies at dusk"
    with caplog.at_level(logging.DEBUG), serving(api_keys={"lab": KEY}) as service:
        parts, headers = (audio(OWL), text(secret)), {"authorization": f"Bearer {KEY}"}
        assert service.chat(*parts, headers=headers).status_code == 200
        assert service.chat(*parts, headers=headers, merging_alpha=secret).status_code == 400
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "POST /v1/chat/completions 200" in said
    assert "lab" in said
    for hidden in (secret, KEY, base64.b64encode(OWL[:60]).decode()):
        assert hidden not in said


def test_prompts_are_logged_where_that_is_wanted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), serving(log_prompts=True) as service:
        assert service.chat(audio(DOG), text(QUESTION)).status_code == 200
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert QUESTION in said
    assert "answered: 'Dog'" in said


def test_an_engine_that_dies_ends_the_service_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving() as service:
        told: list[str] = []
        engine = service.model._engine
        monkeypatch.setattr(service.model, "_on_failure", told.append)

        def fail(*_: Any) -> Any:
            raise MemoryError("no room for keys")

        monkeypatch.setattr(engine._engine, "advance", fail)
        answer = service.chat(audio(DOG), text(QUESTION))
        assert answer.status_code == 503
        until(lambda: told, 5)
        assert told == [
            "the engine has failed (MemoryError: no room for keys), so the service ends"
        ]
        assert service.get("/health").status_code == 503
        assert service.chat(audio(DOG), text(QUESTION)).status_code == 503


@pytest.mark.parametrize(
    ("command", "run"),
    [("serve", "NatureLM.serve.server.serve"), ("inference-app", "NatureLM.app.page.serve")],
)
def test_a_configuration_names_the_model_where_no_option_does(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, run: str
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(run, lambda settings, say: seen.append(settings.name))
    for words in ([], ["--options", "model.ckpt=a/model"]):
        naturelm(command, *words)
        naturelm(command, *words, "--model", "another/model")
    assert seen == ["naturelm-tiny", "another/model", "a/model", "another/model"]


def _start(port: int) -> subprocess.Popen[str]:
    code = "from NatureLM.cli.main import naturelm; naturelm()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def _wait(port: int, process: subprocess.Popen[str]) -> None:
    def is_ready() -> bool:
        assert process.poll() is None, process.communicate()[0]
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/health", verify=PLAIN).status_code == 200
        return False

    until(is_ready, 90)


def test_sigterm_lets_answers_come_to_their_end() -> None:
    port = free_port()
    process = _start(port)
    try:
        _wait(port, process)
        more = {"max_tokens": 100, "temperature": 2.0, "stream": True}
        body = message(audio(OWL), text("Caption the audio"), **more)
        address = f"http://127.0.0.1:{port}/v1/chat/completions"
        with httpx.stream("POST", address, json=body, timeout=60, verify=PLAIN) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""] or "data: [DONE]" in rest
        said, _ = process.communicate(timeout=30)
        assert process.returncode in (0, 143, -signal.SIGTERM), said
        assert "POST /v1/chat/completions 200, " in said
        assert "Traceback" not in said
    finally:
        process.kill()


def test_a_model_that_cannot_be_loaded_ends_the_service_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    settings = ServeSettings(model=str(tmp_path), port=free_port())
    with ThreadPoolExecutor(1) as pool:  # a browser test leaves its loop running in this thread
        ended = pool.submit(server.serve, settings)
        with pytest.raises(NatureLMError, match="cannot be loaded"):
            ended.result(90)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = naturelm("serve", "--port", port)
    assert refused.exit_code == 2
    assert f"port {port}" in refused.output
    assert "--port" in refused.output


def _sent(service: Running, path: str, body: bytes, kind: str, much: int | None = None) -> Any:
    """A connection on which a request was sent, or so much of it."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    one = socket.create_connection(("127.0.0.1", service.settings.port))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.sendall(head.encode() + body[:much])
    return one


def _form(data: bytes, **fields: Any) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://x", data=fields, files={"file": ("a.wav", data)})
    return request.read(), request.headers["content-type"]


def test_a_recording_that_is_cut_off_is_no_fault(
    service: Running, caplog: pytest.LogCaptureFixture
) -> None:
    body, kind = _form(wav(noise(60)), model="naturelm-tiny")
    with caplog.at_level(logging.INFO):
        for path in ("/v1/windows", "/v1/audio/transcriptions"):
            _sent(service, path, body, kind, 100_000).close()
            until(lambda path=path: f"POST {path} 499" in caplog.text)
    assert "failed" not in caplog.text
    assert not list(service.model.folder.iterdir())


def test_who_goes_while_sound_is_decoded_leaves_nothing_in_the_log(
    service: Running, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = service.model.sound.clip
    monkeypatch.setattr(service.model.sound, "clip", lambda one: (time.sleep(0.3), read(one))[1])
    body = json.dumps(message(audio(DOG), text(QUESTION))).encode()
    with caplog.at_level(logging.INFO):
        one = _sent(service, "/v1/chat/completions", body, "application/json")
        time.sleep(0.1)
        one.close()
        until(lambda: "completions 499" in caplog.text)
        time.sleep(0.5)
        gc.collect()
        until(lambda: service.get("/health").status_code == 200)
    assert "never retrieved" not in caplog.text


def test_a_stream_whose_client_goes_before_it_begins_is_given_up(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have waited long; nothing is decoded for nobody."""
    asked, given_up = threading.Event(), threading.Event()

    class Waiting:
        future: Future[Any] = Future()
        cancel = given_up.set

    def submit(*_: Any) -> Any:
        asked.set()
        return Waiting

    monkeypatch.setattr(service.model, "_submit", submit)
    body = message(text("Caption the audio"), stream=True)
    one = _sent(service, "/v1/chat/completions", json.dumps(body).encode(), "application/json")
    assert asked.wait(10)
    one.close()
    assert given_up.wait(10)


def test_who_reads_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a client would hold a thread, a file and places in the queue."""
    monkeypatch.setattr(server, "_SEND_SECONDS", 0.05)
    counted: list[Any] = []

    class Figures:
        count = staticmethod(lambda *of: counted.append(of))

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def stuck(message: Any) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        logged = server._Logged(answer, Figures)  # type: ignore[arg-type]
        await asyncio.wait_for(logged({"type": "http", "method": "POST"}, None, stuck), 5)

    with ThreadPoolExecutor(1) as pool:  # a browser test leaves its loop running in this thread
        pool.submit(asyncio.run, main()).result()
    assert counted[0][:2] == ("other", 499)


def test_recordings_leave_room_for_those_who_cannot_wait() -> None:
    with serving(limits=Limits(queue=8)) as service:
        body, kind = _form(wav(noise(120)), hop_length_seconds="0.5")
        clients = [_sent(service, "/v1/windows", body, kind) for _ in range(3)]
        until(lambda: service.figures()["naturelm_queue"])
        answers = [service.chat(audio(DOG), text(QUESTION)).status_code for _ in range(5)]
        assert answers == [200] * 5
        for one in clients:
            one.close()
