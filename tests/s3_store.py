"""A bucket on this machine: moto's server, and before it a proxy that fails as networks do."""

from __future__ import annotations

import http.client
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from NatureLM import storage
from NatureLM.results import uploads
from NatureLM.storage import RemotePath


@dataclass
class Faults:
    """What the proxy does besides passing requests on.

    wrong: told method and path of a request, says what goes wrong with it: "503", "slow" (it takes
        `delay` seconds), "cut" (the connection ends in the middle of the body), "" for nothing
    requests: (method, path, range) of all that came
    """

    wrong: Callable[[str, str], str] = lambda method, path: ""
    delay: float = 0.0
    requests: list[tuple[str, str, str]] = field(default_factory=list)

    def reset(self) -> None:
        self.wrong, self.delay = lambda method, path: "", 0.0
        self.requests.clear()

    def of(self, name: str, method: str = "") -> list[tuple[str, str, str]]:
        """The requests about a file."""
        return [one for one in self.requests if name in one[1] and method in ("", one[0])]


@dataclass
class Store:
    """A server with one bucket.

    endpoint: of the proxy, as AWS_ENDPOINT_URL gives it
    """

    endpoint: str
    bucket: str
    faults: Faults

    def __truediv__(self, name: str) -> RemotePath:
        path = storage.as_path(f"{self}/{name}")
        assert isinstance(path, RemotePath)
        return path

    def __str__(self) -> str:
        return f"s3://{self.bucket}"

    def put(self, source: Path | bytes, name: str) -> RemotePath:
        data = source if isinstance(source, bytes) else source.read_bytes()
        uploads.write_bytes(self / name, data)
        return self / name

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "of-a-test",
            "AWS_SECRET_ACCESS_KEY": "of-a-test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NATURELM_REMOTE_SECONDS": "20",
        }


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    """Both servers, which this process uses."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    port = moto._server.server_port if moto._server is not None else 0
    faults = Faults()
    proxy = _Proxy(("127.0.0.1", 0), _handler(port, faults))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    store = Store(f"http://127.0.0.1:{proxy.server_port}", f"frogs-{uuid.uuid4().hex[:8]}", faults)
    storage._FIRST_WAIT, first_wait = 0.01, storage._FIRST_WAIT
    before = {name: os.environ.get(name) for name in store.environment}
    os.environ.update(store.environment)
    storage._filesystem.cache_clear()
    try:
        system, _ = storage.filesystem(store / "x")
        system.mkdir(store.bucket)
        faults.reset()
        yield store
    finally:
        storage._FIRST_WAIT = first_wait
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        storage._filesystem.cache_clear()
        proxy.shutdown()
        proxy.server_close()  # waits for the requests that are being answered
        moto.stop()


@pytest.fixture
def store(server: Store) -> Store:
    """The bucket, of which nothing is known yet, and which fails at nothing."""
    server.faults.reset()
    storage._stats.clear()
    storage._blocks.clear()
    return server


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is none."""


def _handler(port: int, faults: Faults) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            faults.requests.append((self.command, self.path, self.headers.get("Range", "")))
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            wrong = faults.wrong(self.command, self.path)
            if wrong == "503":
                self.answer(503, [], b"<Error><Code>ServiceUnavailable</Code></Error>")
                return
            if wrong == "slow":
                time.sleep(faults.delay)
            server = http.client.HTTPConnection("127.0.0.1", port)
            headers = {name: value for name, value in self.headers.items() if name != "Connection"}
            server.request(self.command, self.path, body, headers)
            given = server.getresponse()
            data = given.read()
            server.close()
            self.answer(given.status, given.getheaders(), data, is_cut=wrong == "cut")

        def answer(
            self, status: int, headers: list[Any], data: bytes, *, is_cut: bool = False
        ) -> None:
            left_out = ("connection", "transfer-encoding", "content-length", "date", "server")
            self.send_response(status)
            size = str(len(data))
            for name, value in headers:
                if name.lower() not in left_out:
                    self.send_header(name, value)
                elif name.lower() == "content-length" and self.command == "HEAD":
                    size = value
            self.send_header("Content-Length", size)
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(data[: len(data) // 2] if is_cut else data)
            if is_cut:
                self.wfile.flush()
                self.connection.close()
                self.close_connection = True

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on

        def log_message(self, *given: Any) -> None:
            """Nothing is said."""

    return Handler
