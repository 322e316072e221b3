"""The layer in front of web applications: what it lets through, and what it answers itself."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import time
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from web_app import started

from NatureLM.web import server as web_server
from NatureLM.web.guard import SECURITY_HEADERS, Guard, Route, Rules
from NatureLM.web.server import LOOPBACK, bound_connections

T = TypeVar("T")
ROUTES = (
    Route("/|/config"),
    Route(r"/static/[\w./-]+", public=True),
    Route("/ask", methods=("POST",), body=1000, seconds=0.2),
    Route("/upload", methods=("POST",), body=10**6, only_files=True),
    Route("/draw", methods=("POST",), body=100, seconds=0.2, at_once=2, waiting=1),
    Route("/socket", methods=("WEBSOCKET",)),
)
OPEN = Rules(ROUTES)
LOCKED = Rules(
    ROUTES,
    keys={"token": "the-secret-of-the-page", "lab": "another-key-0123456789"},
    people={"ann": "correct horse", "bo": "battery staple"},
)
HOST = "127.0.0.1:5001"


class Application:
    """Reads the whole body, remembers who asked for what, and answers `fine`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.visitors: list[Any] = []
        self.has_left = False
        self.at_work = self.most_at_work = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.visitors.append(scope.get("visitor"))
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        seen = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.has_left = True
                break
            seen += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        await self.gate.wait()
        self.at_work -= 1
        self.asked.append((scope["path"], seen))
        headers = [(b"access-control-allow-origin", b"*"), (b"x-own", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"fine"})


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def detail(self) -> str:
        return str(json.loads(self.body)["detail"])


async def ask(
    layer: Any,
    path: str = "/",
    method: str = "GET",
    body: Iterable[bytes] | bytes = b"",
    query: str = "",
    pause: float = 0.0,
    kind: str = "http",
    client: str = "192.0.2.1",
    **headers: Any,
) -> Answer:
    """One request as a server hands it on; a header may be given several times, as a list."""
    given = {"host": HOST, **{name.replace("_", "-"): value for name, value in headers.items()}}
    raw = [
        (name.encode(), one.encode("latin-1"))
        for name, value in given.items()
        for one in (value if isinstance(value, list) else [value])
        if one is not None
    ]
    scope = {"type": kind, "path": path, "query_string": query.encode(), "headers": raw}
    scope |= {"client": (client, 5), "scheme": "http"} | (
        {"method": method} if kind == "http" else {}
    )
    pieces = iter([body] if isinstance(body, bytes) else body)
    answer, is_over = Answer(), False

    async def receive() -> dict[str, Any]:
        nonlocal is_over
        if is_over:
            return {"type": "http.disconnect"}
        if pause:
            await asyncio.sleep(pause)
        piece = next(pieces, None)
        is_over = piece is None or isinstance(body, bytes)
        return {"type": "http.request", "body": piece or b"", "more_body": not is_over}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert not answer.status
            answer.status = message["status"]
            answer.headers = {n.decode(): v.decode() for n, v in message["headers"]}
        elif message["type"] == "http.response.body":
            answer.body += message.get("body", b"")
        else:
            answer.body = message["type"].encode()

    await layer(scope, receive, send)
    return answer


def in_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives, in a thread without a loop: browser tests leave one in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def asked(rules: Rules = OPEN, **request: Any) -> tuple[Answer, Application]:
    async def once() -> tuple[Answer, Application]:
        application = Application()
        return await ask(Guard(application, rules), **request), application

    return in_a_loop(once())


# routes


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/", "GET", 200),
        ("/", "HEAD", 200),
        ("/config", "GET", 200),
        ("/static/a/b.js", "GET", 200),
        ("/ask", "POST", 200),
        ("/", "POST", 405),
        ("/ask", "GET", 405),
        ("/ask", "OPTIONS", 405),
        ("/", "TRACE", 405),
        ("/Config", "GET", 404),
        ("/config/", "GET", 404),
        ("/config.", "GET", 404),
        ("/config%2e", "GET", 404),
        ("//config", "GET", 404),
        ("/./config", "GET", 404),
        ("/static/../config", "GET", 404),
        ("/static/..", "GET", 404),
        ("/static/./a", "GET", 404),
        ("/static/a\n", "GET", 404),
        ("/static/%2e%2e/config", "GET", 404),
        ("/config\0", "GET", 404),
        ("/config\n", "GET", 404),
        ("/process_recording", "POST", 404),
        ("", "GET", 404),
        ("*", "OPTIONS", 404),
    ],
)
def test_only_listed_routes_are_let_through(path: str, method: str, status: int) -> None:
    answer, application = asked(path=path, method=method)
    assert answer.status == status
    assert bool(application.asked) == (status == 200)
    if status == 404:
        assert answer.detail == "There is nothing at this address."
    if status == 405:
        assert answer.headers["allow"] in ("GET, HEAD", "POST")
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers[name] == value
    assert "access-control-allow-origin" not in answer.headers
    assert ("x-own" in answer.headers) == (status == 200)


@given(st.text(max_size=40), st.sampled_from(["GET", "POST", "PUT", "OPTIONS", "x" * 30]))
def test_any_path_is_answered(path: str, method: str) -> None:
    answer, application = asked(path="/" + path, method=method)
    listed = any(re.fullmatch(route.path, "/" + path) for route in ROUTES)
    assert answer.status in ((200, 404, 405) if listed else (404,))
    assert [one for one, _ in application.asked] == (["/" + path] if answer.status == 200 else [])


def test_a_path_below_a_root_is_matched_without_it() -> None:
    async def once() -> Answer:
        layer = Guard(Application(), OPEN)

        async def below(scope: Any, receive: Any, send: Any) -> None:
            await layer({**scope, "root_path": "/birds"}, receive, send)

        return await ask(below, "/birds/config")

    assert in_a_loop(once()).status == 200


# hosts and origins

NAMED = Rules(ROUTES, hosts=(*LOOPBACK, "field.example"), proxied=("birds.example.org",))
NET = Rules(ROUTES, hosts=("localhost", "station"), addresses=True)


@pytest.mark.parametrize(
    ("rules", "host", "status"),
    [
        *[
            (OPEN, host, 200)
            for host in ("localhost", "LocalHost:5001", "localhost.:80", HOST, "[::1]:5001")
        ],
        (OPEN, "[0:0:0:0:0:0:0:1]", 200),
        *[
            (OPEN, host, 403)
            for host in (
                *("evil.example", "localhost.evil.example", "127.0.0.1.nip.io:5001", "0.0.0.0"),
                *("127.1", "0x7f000001", "2130706433", "192.168.0.2", "localhost:5001@evil", ""),
                *("localhost:", "localhost:999999", "localhost..", " ", "localhost/"),
                *("[::1", "[::ffff:127.0.0.1]", "127.0.0.1:5001\\evil.example", "localhost, x"),
            )
        ],
        (OPEN, None, 400),
        (OPEN, [HOST, HOST], 400),
        (NAMED, "field.example:8000", 200),
        (NAMED, "birds.example.org", 200),
        (NAMED, "example.org", 403),
        (NET, "192.168.0.2:5001", 200),
        (NET, "[fe80::1]:5001", 200),
        (NET, "station", 200),
        (NET, "0.0.0.0:5001", 403),
        (NET, "evil.example", 403),
    ],
)  # fmt: skip
def test_only_names_of_the_server_are_taken(rules: Rules, host: Any, status: int) -> None:
    answer, application = asked(rules, host=host)
    assert answer.status == status
    assert bool(application.asked) == (status == 200)
    if status == 403:
        assert re.fullmatch(
            r"This server is not called [\w.:\[\]?-]*\. Whoever runs it can let it have that name "
            r"with --allow-host\.",
            answer.detail,
        )


@given(st.text(max_size=60).filter(lambda text: text.isascii()))
def test_any_host_is_answered(host: str) -> None:
    answer, _ = asked(host=host)
    plain = re.fullmatch(r"(localhost|127\.0\.0\.1|\[::1\])\.?(:\d{1,5})?", host.strip().lower())
    assert answer.status == (200 if plain else 403)


def test_a_name_that_a_proxy_hands_on_is_one_of_the_server() -> None:
    for name, status in (("birds.example.org", 200), ("evil.example", 403), (f"{HOST}, x", 403)):
        assert asked(NAMED, x_forwarded_host=name)[0].status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": f"http://{HOST}"}, 200),
        ({"origin": f"HTTP://{HOST}"}, 403),
        ({"origin": f"https://{HOST}"}, 200),
        ({"origin": "http://localhost:5001", "host": "LOCALHOST:5001"}, 200),
        ({"origin": "http://localhost:5001"}, 403),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": "http://127.0.0.1"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": f"http://{HOST}.evil.example"}, 403),
        ({"origin": f"http://{HOST}/"}, 403),
        ({"origin": f"file://{HOST}"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "null", "sec_fetch_site": "same-origin"}, 200),
        ({"origin": [f"http://{HOST}", "https://evil.example"]}, 403),
        ({"sec_fetch_site": "same-origin"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"origin": "https://birds.example.org"}, 200),
        ({"origin": "https://field.example"}, 403),
    ],
)
def test_pages_of_other_sites_send_nothing(headers: dict[str, Any], status: int) -> None:
    answer, application = asked(NAMED, path="/ask", method="POST", **headers)
    assert answer.status == status
    assert bool(application.asked) == (status == 200)
    socket, application = asked(NAMED, path="/socket", kind="websocket", **headers)
    assert socket.body == (b"websocket.accept" if status == 200 else b"websocket.close")
    assert bool(application.visitors) == (status == 200)


@given(st.text(max_size=40).filter(lambda text: text.isascii()))
def test_any_origin_is_answered(origin: str) -> None:
    own = re.fullmatch(r"https?://127\.0\.0\.1\.?:5001", origin.strip(), re.I | re.A)
    answer, _ = asked(path="/ask", method="POST", origin=origin)
    assert answer.status == (200 if own and origin.strip().startswith("http") else 403)


def test_other_sites_may_link_to_the_page_and_load_nothing() -> None:
    for mode, status in (("navigate", 200), ("no-cors", 403), ("cors", 403), ("websocket", 403)):
        assert asked(sec_fetch_site="cross-site", sec_fetch_mode=mode)[0].status == status


# bodies


@pytest.mark.parametrize(
    ("size", "headers", "status"),
    [
        (1000, {}, 200),
        (1001, {}, 413),
        (10**6, {}, 413),
        (1000, {"content_length": "1000"}, 200),
        (1, {"content_length": "1001"}, 413),
        (1, {"content_length": "9" * 5000}, 413),
        (1, {"content_length": "x"}, 400),
        (1, {"content_length": "-1"}, 400),
        (1, {"content_length": "²"}, 400),
        (1, {"content_encoding": "gzip"}, 415),
    ],
)
def test_a_body_has_a_limit(size: int, headers: dict[str, str], status: int) -> None:
    pieces = [bytes(min(100, size - at)) for at in range(0, size, 100)]
    answer, application = asked(path="/ask", method="POST", body=pieces, **headers)
    assert answer.status == status
    assert application.asked == ([("/ask", size)] if status == 200 else application.asked)
    if status == 413:
        assert answer.detail == "At most 1000 bytes may be sent to /ask."
        assert answer.headers["connection"] == "close"
        assert int(answer.headers["content-length"]) == len(answer.body)


def test_a_body_that_is_too_large_looks_like_a_client_that_has_left() -> None:
    """So that what was received is cleared away as it always is."""
    _, application = asked(path="/ask", method="POST", body=[bytes(600), bytes(600), bytes(9)])
    assert application.has_left
    assert application.asked == [("/ask", 600)]


def test_a_route_without_a_body_takes_none() -> None:
    assert asked(content_length="1")[0].status == 413
    assert asked(transfer_encoding="chunked")[0].detail == "At most 0 bytes may be sent to /."
    assert asked(content_length="0")[0].status == 200
    assert asked(body=[b"x", b"y"])[0].status == 413


def test_a_slow_body_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "_DRAIN_SECONDS", 0.2)
    begun = time.monotonic()
    answer, application = asked(path="/ask", method="POST", body=[b"x"] * 900, pause=0.05)
    assert answer.status == 408
    assert answer.detail == (
        "The body took too long: 0.2 seconds for all of it, and 30 without a piece, are what /ask "
        "allows."
    )
    assert application.has_left
    assert time.monotonic() - begun < 5
    monkeypatch.setattr(web_server, "_IDLE_SECONDS", 0.05)
    assert asked(path="/ask", method="POST", body=b"x", pause=0.1)[0].status == 408


needs_multipart = pytest.mark.skipif(
    find_spec("python_multipart") is None, reason="python-multipart is not installed"
)
KIND = "multipart/form-data; boundary=x"


def multipart(name: str | None, content: bytes = b"sound", more: str = "") -> bytes:
    head = (
        f"Content-Disposition: form-data; name=files{'' if name is None else f'; filename={name}'}"
    )
    return f"--x\r\n{head}\r\n{more}\r\n".encode() + content + b"\r\n--x--\r\n"


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (multipart("a.wav"), KIND, ""),
        (multipart("a.wav", bytes(10**5), "Content-Type: audio/wav\r\n"), KIND, ""),
        (multipart(None), KIND, "Each part of an upload is a file with a name."),
        (multipart("a")[:-7] + multipart(None), KIND, "Each part of an upload"),
        (
            multipart("a", more="Content-Disposition: form-data; name=files\r\n"),
            KIND,
            "Each part of an upload",
        ),
        (multipart("a", more="X: " + "y" * 10**5 + "\r\n"), KIND, "The body is no multipart"),
        (b"not at all", KIND, "The body is no multipart"),
        (b"{}", "application/json", "Files are sent as multipart/form-data with a boundary."),
        (b"", "multipart/form-data", "Files are sent as multipart/form-data with a boundary."),
        (b"", "", "Files are sent as multipart/form-data with a boundary."),
        (multipart("a", bytes(10**6)), KIND, "At most 1000000 bytes may be sent to /upload."),
    ],
)
@pytest.mark.parametrize("size", [7, 10**5])
@needs_multipart
def test_an_upload_is_of_files_alone(body: bytes, kind: str, said: str, size: int) -> None:
    size = max(size, len(body) // 15_000)  # that many pieces take a second
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    answer, _ = asked(path="/upload", method="POST", body=pieces, content_type=kind)
    assert answer.status == (413 if said.startswith("At most") else 400 if said else 200)
    assert said in (answer.body.decode() if kind.startswith("multi") else str(answer.body))


@given(st.binary(max_size=300))
@needs_multipart
def test_any_upload_is_answered(body: bytes) -> None:
    answer, _ = asked(path="/upload", method="POST", body=body, content_type=KIND)
    assert answer.status in (200, 400)


def test_what_takes_long_is_done_two_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "_DRAIN_SECONDS", 0.2)

    async def many() -> tuple[list[Answer], Application]:
        application = Application()
        layer = Guard(application, OPEN)
        application.gate.clear()
        requests = [
            asyncio.create_task(ask(layer, "/draw", "POST", body=[b"x", b"y"])) for _ in range(5)
        ]
        await asyncio.sleep(0.1)
        slow = asyncio.create_task(ask(layer, "/draw", "POST", body=[b"x"] * 90, pause=0.05))
        application.gate.set()
        return [*await asyncio.gather(*requests), await slow], application

    answers, application = in_a_loop(many())
    assert sorted(answer.status for answer in answers) == [200, 200, 200, 408, 429, 429]
    assert application.most_at_work == 2
    assert application.asked == [("/draw", 2)] * 3
    (refused, _) = [answer for answer in answers if answer.status == 429]
    assert refused.detail == "Too much is asked at once: try again in a moment."
    assert refused.headers["retry-after"] == "5"


# keys and people


def basic(name: str, password: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("headers", "who"),
    [
        ({"authorization": "Bearer the-secret-of-the-page"}, "token"),
        ({"authorization": "bearer another-key-0123456789"}, "lab"),
        (basic("ann", "correct horse"), "ann"),
        (basic("bo", "battery staple"), "bo"),
        ({}, None),
        ({"authorization": "Bearer "}, None),
        ({"authorization": "Bearer the-secret-of-the-pag"}, None),
        ({"authorization": "Bearer \xff"}, None),
        ({"authorization": "Basic !"}, None),
        (basic("ann", "battery staple"), None),
        (basic("nobody", ""), None),
        (basic("token", "the-secret-of-the-page"), None),
        ({"cookie": "naturelm=dG9rZW4."}, None),
        ({"cookie": "naturelm=" + "0" * 90}, None),
        ({"cookie": "naturelm=\xff.\xff"}, None),
    ],
)
@pytest.mark.parametrize("path", ["/config", "/ask", "/draw", "/socket"])
def test_every_route_needs_a_key(headers: dict[str, str], who: str | None, path: str) -> None:
    kind = "websocket" if path == "/socket" else "http"
    method = "GET" if path == "/config" else "POST"
    answer, application = asked(LOCKED, path=path, method=method, kind=kind, **headers)
    assert application.visitors == ([] if who is None else [who])
    if kind == "http":
        assert answer.status == (401 if who is None else 200)
    if kind == "http" and who is None:
        assert answer.detail == "A key is needed: open the address that the app printed."
        assert answer.headers["www-authenticate"] == "Bearer"
    assert asked(LOCKED, path="/static/a.css")[0].status == 200


def cookie_of(answer: Answer) -> str:
    return answer.headers["set-cookie"].partition(";")[0]


def test_the_token_of_the_address_becomes_a_cookie() -> None:
    async def visit() -> None:
        application = Application()
        layer = Guard(application, LOCKED)
        token = "the-secret-of-the-page"
        entered = await ask(layer, query=f"token={token}&job=a%26b")
        assert entered.status == 303
        assert entered.headers["location"] == "/?job=a%26b"
        assert token not in str(entered.headers)
        more = entered.headers["set-cookie"].partition("; ")[2]
        assert more == "Path=/; HttpOnly; SameSite=Strict"
        cookie = cookie_of(entered)
        assert (await ask(layer, cookie=f"a=b; {cookie}; c=d")).status == 200
        assert (await ask(layer, cookie=f"{cookie}0")).status == 401
        assert (await ask(Guard(application, LOCKED), cookie=cookie)).status == 401  # another start
        secure = await ask(layer, query=f"token={token}", x_forwarded_proto="https")
        assert secure.headers["set-cookie"].endswith("SameSite=Strict; Secure")
        linked = await ask(layer, query=f"token={token}", sec_fetch_site="cross-site",
                           sec_fetch_mode="navigate")  # fmt: skip
        assert linked.status == 200
        assert b'content="0;url=/"' in linked.body
        assert cookie_of(linked) == cookie
        wrong = await ask(layer, query="token=the-secret&job=7")
        assert wrong.status == 401
        assert b"This token is not, or no longer, right." in wrong.body
        assert b'name="next" value="/?job=7"' in wrong.body
        assert "set-cookie" not in wrong.headers

    in_a_loop(visit())


@pytest.mark.parametrize(
    ("form", "leads"),
    [
        ("name=ann&password=correct+horse&next=/?job=7", "/?job=7"),
        ("name=ann&password=correct+horse&next=//evil.example", "/"),
        ("name=ann&password=correct+horse&next=https://evil.example", "/"),
        ("name=ann&password=correct+horse&next=/%0d%0aset-cookie:x", "/"),
        ("token=the-secret-of-the-page", "/"),
        ("name=ann&password=wrong", None),
        ("name=&password=", None),
        ("", None),
    ],
)
def test_the_form_lets_people_in(form: str, leads: str | None) -> None:
    assert b'action="/login"' in asked(LOCKED, accept="text/html")[0].body
    answer, application = asked(LOCKED, path="/login", method="POST", body=form.encode())
    assert answer.status == (401 if leads is None else 303)
    assert answer.headers.get("location") == leads
    assert application.visitors == []
    assert asked(LOCKED, path="/login", method="POST", body=bytes(5000))[0].status == 413
    assert asked(OPEN, path="/login", method="POST", body=form.encode())[0].status == 404
    assert asked(LOCKED, path="/login")[0].headers["location"] == "/"


def test_passwords_are_not_guessed() -> None:
    async def guess() -> None:
        layer = Guard(Application(), LOCKED)
        for number in range(10):
            assert (await ask(layer, **basic("ann", str(number)))).status == 401
        late = await ask(layer, **basic("ann", "correct horse"))
        assert (late.status, late.headers["retry-after"]) == (429, "60")
        assert late.detail == "Too many wrong passwords: try again in a minute."
        assert (await ask(layer, **basic("bo", "battery staple"))).status == 200
        for number in range(100):  # from ever other addresses
            await ask(layer, client=f"198.51.100.{number}", **basic("bo", "wrong"))
        assert (await ask(layer, client="x", **basic("bo", "battery staple"))).status == 429

    in_a_loop(guess())


def test_the_form_cannot_be_written_into() -> None:
    answer, _ = asked(LOCKED, accept="text/html", query='job="><script>alert(1)</script>')
    assert b"<script" not in answer.body
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


# connections


class Protocol:
    """As far as those of uvicorn are looked at."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.cycle: Any = None
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data == b"whole":
            self.cycle = SimpleNamespace(response_complete=False)

    def connection_lost(self, exc: Exception | None) -> None:
        pass


@pytest.mark.parametrize(
    ("sent", "is_closed"), [([], True), ([b"GET"] * 9, True), ([b"GET", b"whole"], False)]
)
def test_a_connection_without_a_request_is_closed(sent: list[bytes], is_closed: bool) -> None:
    async def connect() -> bool:
        config = SimpleNamespace(http_protocol_class=Protocol)
        bound_connections(config, connections=7, header_seconds=0.1)
        assert config.limit_concurrency == 7
        closed: list[bool] = []
        protocol = config.http_protocol_class(asyncio.get_running_loop())
        protocol.connection_made(SimpleNamespace(close=lambda: closed.append(True)))
        for data in sent:
            await asyncio.sleep(0.02)
            protocol.data_received(data)
        await asyncio.sleep(0.15)
        protocol.connection_lost(None)
        return bool(closed)

    assert in_a_loop(connect()) == is_closed


@contextmanager
def serving(layer: Any, **bounds: float) -> Iterator[tuple[str, int]]:
    """A layer on a port of its own."""
    uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    config = uvicorn.Config(layer, port=0, log_level="critical", lifespan="off")
    config.load()
    bound_connections(config, **bounds)
    server = uvicorn.Server(config)
    with started(server):
        yield server.servers[0].sockets[0].getsockname()[:2]


def spoken(address: tuple[str, int], *pieces: bytes, pause: float = 0.0) -> bytes:
    """All that a server answers until it closes the connection."""
    with socket.create_connection(address, timeout=10) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
        answer = b""
        with suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                answer += piece
        return answer


POST = b"POST /ask HTTP/1.1\r\nHost: localhost\r\n"


def test_a_server_answers_hostile_clients_and_closes() -> None:
    with serving(Guard(Application(), OPEN), header_seconds=0.5) as address:
        begun = time.monotonic()
        assert spoken(address) == b""
        assert spoken(address, *[b"GET / HTTP/1.1\r\n", *[b"X: y\r\n"] * 9], pause=0.1) == b""
        assert spoken(address, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10**5).startswith(
            b"HTTP/1.1 400"
        )
        assert b"HTTP/1.1 408" in spoken(address, POST + b"Content-Length: 9\r\n\r\n")
        chunk = b"8000\r\n" + bytes(0x8000) + b"\r\n"
        for head, rest in (
            (b"Content-Length: 2000000\r\n\r\n", [bytes(10**6)] * 2),
            (b"Transfer-Encoding: chunked\r\n\r\n", [*[chunk] * 60, b"0\r\n\r\n"]),
        ):
            answer = spoken(address, POST + head, *rest)
            assert answer.startswith(b"HTTP/1.1 413"), answer
            assert b"connection: close" in answer
            assert answer.endswith(b'At most 1000 bytes may be sent to /ask."}')
        fine = spoken(address, POST + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}")
        assert b"\nfine\r\n" in fine
        assert time.monotonic() - begun < 20


def test_a_server_has_so_many_connections() -> None:
    with serving(Guard(Application(), OPEN), connections=5, header_seconds=0.5) as address:
        idle = [socket.create_connection(address) for _ in range(5)]
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert spoken(address, request).startswith(b"HTTP/1.1 503")
        time.sleep(0.8)  # until those that ask for nothing are closed
        assert b"\nfine\r\n" in spoken(address, request)
        for connection in idle:
            connection.close()
