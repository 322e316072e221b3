"""One ASGI layer in front of a web application: who may ask it for what, and how much they send.

What is not listed in its `Rules` does not reach the application. Bodies are counted while they
come and never collected, so a refusal costs no memory, however much is sent.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import re
import secrets
import time
from base64 import b64decode, urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from html import escape
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from NatureLM.errors import UsageError
from NatureLM.web.server import (
    LOOPBACK,
    App,
    Body,
    Headers,
    Message,
    Receive,
    RefusedError,
    Send,
    is_address,
    is_loopback,
    netloc,
    own_names,
    plain_name,
)

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'self'; connect-src 'self'; "
    "font-src 'self' data:; form-action 'self'; frame-ancestors 'none'; frame-src 'none'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; object-src 'none'; "
    # Gradio writes its settings into the page and makes functions of what components bring.
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "worker-src 'self' blob:",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(self)",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_FORM_HEADERS = {
    "content-type": "text/html; charset=utf-8",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "form-action 'self'; frame-ancestors 'none'",
    "referrer-policy": "same-origin",  # else the browser sends the form with `Origin: null`
}
LOGIN = "/login"
TOKEN_VARIABLE = "NATURELM_TOKEN"
_LEAST_TOKEN = 16  # characters: nobody counts the guesses at a token
_LOGIN_BYTES = 4096
_UNSAFE_PATH = re.compile(r"(^|[/\\])\.\.?($|[/\\])|[\x00-\x1f\x7f]")
_START = re.compile(r"/(\?[\w=&%.+-]*)?")  # where a login may lead
_GUESSES, _GUESS_SECONDS = 10, 60.0  # wrong passwords for one name from one address
_MOST_GUESSED = 10_000  # names and addresses that are remembered


@dataclass(frozen=True)
class Route:
    """Requests that are let through.

    path: a regular expression for the whole path, decoded
    methods: HEAD comes with GET; WEBSOCKET is one of its own
    body: bytes that a request may send
    seconds: that the body may take
    only_files: it is multipart, and each part of it a file with a name
    at_once: requests that are worked on at the same time; 0 for any number
    waiting: requests that wait for those; one more is answered with 429
    public: needs no key
    policy: the Content-Security-Policy of its answers, where it is not that of all
    """

    path: str
    methods: tuple[str, ...] = ("GET",)
    body: int = 0
    seconds: float = 60.0
    only_files: bool = False
    at_once: int = 0
    waiting: int = 0
    public: bool = False
    policy: str = ""

    def __post_init__(self) -> None:
        allowed = {*self.methods, *(("HEAD",) if "GET" in self.methods else ())}
        object.__setattr__(self, "methods", tuple(sorted(allowed)))


@dataclass(frozen=True)
class Rules:
    """All that a guard goes by.

    hosts: names in the address of a request, with any port
    addresses: any IP address is such a name, too, as no stranger's name leads there
    proxied: of `hosts`, those of a reverse proxy that may hand on another name than pages have
    keys: name → secret that opens everything (in the address, as a cookie, as `Bearer`)
    people: name → password (in the form, as `Basic`); with neither keys nor people all is open
    cookie: its name, as all ports of a computer share them
    way_in: what who has no key is told to do
    """

    routes: tuple[Route, ...]
    hosts: tuple[str, ...] = LOOPBACK
    addresses: bool = False
    proxied: tuple[str, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    people: Mapping[str, str] = field(default_factory=dict)
    cookie: str = "naturelm"
    way_in: str = "open the address that the app printed"
    headers: Mapping[str, str] = field(default_factory=lambda: dict(SECURITY_HEADERS))
    error_body: Callable[[int, str], Any] = lambda status, reason: {"detail": reason}


def page_rules(
    routes: tuple[Route, ...],
    host: str,
    port: int,
    *,
    proxied: tuple[str, ...],
    token: str | None,
    **more: Any,
) -> Rules:
    """The rules of a page for people that is served at an address; `more` are other ones."""
    return Rules(
        routes,
        hosts=own_names(host),
        addresses=not is_loopback(host),
        proxied=proxied,
        keys={} if token is None else {"token": token},
        cookie=f"naturelm-{port}",
        **more,
    )


class Guard:
    """The layer. `scope["visitor"]` tells the application whose key or password it was."""

    def __init__(self, app: App, rules: Rules) -> None:
        self._app = app
        self._rules = rules
        self._paths = [(re.compile(route.path), route) for route in rules.routes]
        self._hosts = {plain_name(name) for name in rules.hosts}
        self._proxied = {plain_name(name) for name in rules.proxied}
        self._hosts |= self._proxied
        self._secret = secrets.token_bytes(32)
        self._gates = {r: asyncio.Semaphore(r.at_once) for r in rules.routes if r.at_once}
        self._waiting: dict[Route, int] = defaultdict(int)
        self._guesses: OrderedDict[tuple[str, str], list[float]] = OrderedDict()

    def also_called(self, host: str) -> None:
        """One more name, that was not known when the server started."""
        self._hosts.add(plain_name(host))
        self._proxied.add(plain_name(host))

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope)
        body = Body(receive)
        try:
            route = await self._admitted(scope, headers, body, send)
            if route is not None:
                await self._served(route, scope, headers, body, send)
        except RefusedError as refused:
            await self._refuse(refused, scope, headers, body, send)

    async def _admitted(self, scope: Any, headers: Headers, body: Body, send: Send) -> Route | None:
        """The route of a request; None where the guard has answered it. Raises RefusedError."""
        self._check_host(headers)
        path = str(scope["path"])
        root = str(scope.get("root_path", ""))
        if root and path.startswith(root):
            path = path[len(root) :]
        method = "WEBSOCKET" if scope["type"] == "websocket" else str(scope["method"])
        self._check_origin(method, headers)
        is_locked = bool(self._rules.keys or self._rules.people)
        if is_locked and path == LOGIN and method == "POST":
            await self._log_in(headers, body, scope, send)
            return None
        if is_locked and path == LOGIN and method == "GET":  # loaded anew after a wrong password
            await self._answer(send, 303, b"", {"location": "/"})
            return None
        route = self._route(method, path)
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        token = dict(query).get("token")
        if token is not None and is_locked and method == "GET":
            await self._enter(token, path, query, headers, scope, send)
            return None
        if not is_locked or route.public:
            return route
        scope["visitor"] = self._visitor(headers, scope)
        if scope["visitor"] is None:
            if method == "GET" and "text/html" in headers.one("accept"):
                await self._ask_who(headers, scope, send)
                return None
            raise RefusedError(
                401, f"A key is needed: {self._rules.way_in}.", www_authenticate="Bearer"
            )
        return route

    # what is asked, and from where

    def _route(self, method: str, path: str) -> Route:
        found = [r for pattern, r in self._paths if pattern.fullmatch(path)]
        if not found or _UNSAFE_PATH.search(path):
            raise RefusedError(404, "There is nothing at this address.")
        for route in found:
            if method in route.methods:
                return route
        allowed = ", ".join(sorted({m for route in found for m in route.methods}))
        raise RefusedError(405, f"{method[:20]} is not for this address.", allow=allowed)

    def _check_host(self, headers: Headers) -> None:
        given = headers.all("host")
        if len(given) != 1:
            raise RefusedError(400, "A request names one host.")
        for host in [*given, *headers.listed("x-forwarded-host")]:
            name = (netloc(host) or ("", None))[0]
            if name not in self._hosts and not (self._rules.addresses and is_address(name)):
                shown = re.sub(r"[^\w.:\[\]-]", "?", host[:80])
                raise RefusedError(
                    403,
                    f"This server is not called {shown}. Whoever runs it can let it have that name "
                    "with --allow-host.",
                )

    def _check_origin(self, method: str, headers: Headers) -> None:
        """Pages of other sites send nothing here, and load nothing but the page itself."""
        site, mode = headers.one("sec-fetch-site"), headers.one("sec-fetch-mode")
        is_reading = method in ("GET", "HEAD")
        if site in ("cross-site", "same-site") and not (is_reading and mode == "navigate"):
            raise RefusedError(403, "Pages of other sites may not ask this server.")
        for origin in headers.all("origin"):
            if origin == "null":
                is_own = site == "same-origin"
            else:
                own = [*headers.all("host"), *headers.listed("x-forwarded-host")]
                scheme, _, rest = origin.partition("://")
                place = netloc(rest) if scheme in ("http", "https") else None
                is_own = place is not None and (
                    place in map(netloc, own) or place[0] in self._proxied
                )
            if not is_own and not is_reading:
                raise RefusedError(403, "Pages of other sites may not ask this server.")

    # who asks

    def _visitor(self, headers: Headers, scope: Any) -> str | None:
        """Whose key, password or cookie a request has. Raises RefusedError after many guesses."""
        scheme, _, given = headers.one("authorization").partition(" ")
        if scheme.lower() == "bearer":
            return self._owner(given.strip())
        if scheme.lower() == "basic":
            try:
                name, _, password = b64decode(given.strip(), validate=True).decode().partition(":")
            except ValueError:
                return None
            return self._person(name, password, scope)
        for pair in headers.listed("cookie", ";"):
            name, _, value = pair.partition("=")
            if name == self._rules.cookie:
                return self._from_cookie(value)
        return None

    def _owner(self, secret: str) -> str | None:
        found = None
        for name, key in self._rules.keys.items():
            if _is_same(secret, key):
                found = name
        return found

    def _person(self, name: str, password: str, scope: Any) -> str | None:
        address = str((scope.get("client") or ("",))[0])
        now = time.monotonic()
        # A proxy can say any address, so guesses from all of them together have a limit, too.
        places = {(address, name[:100]): _GUESSES, ("", name[:100]): 10 * _GUESSES}
        wrong = {
            place: [when for when in self._guesses.get(place, []) if now - when < _GUESS_SECONDS]
            for place in places
        }
        if any(len(wrong[place]) >= most for place, most in places.items()):
            raise RefusedError(
                429,
                "Too many wrong passwords: try again in a minute.",
                retry_after=f"{_GUESS_SECONDS:.0f}",
            )
        is_right = _is_same(password, self._rules.people.get(name, "")) and bool(password)
        if is_right and name in self._rules.people:
            self._guesses.pop((address, name[:100]), None)
            return name
        for place in places:
            self._guesses[place] = [*wrong[place], now]
            self._guesses.move_to_end(place)
        while len(self._guesses) > _MOST_GUESSED:
            self._guesses.popitem(last=False)
        return None

    def _cookie(self, name: str, headers: Headers, scope: Any) -> str:
        who = urlsafe_b64encode(name.encode()).decode().rstrip("=")
        seal = hmac.new(self._secret, name.encode(), sha256).hexdigest()
        secure = "https" in (scope.get("scheme"), headers.one("x-forwarded-proto"))
        more = "; Secure" if secure else ""
        return f"{self._rules.cookie}={who}.{seal}; Path=/; HttpOnly; SameSite=Strict{more}"

    def _from_cookie(self, value: str) -> str | None:
        who, _, seal = value.partition(".")
        try:
            name = urlsafe_b64decode(who + "=" * (-len(who) % 4)).decode()
        except ValueError:
            return None
        right = hmac.new(self._secret, name.encode(), sha256).hexdigest()
        return name if _is_same(seal, right) else None

    async def _enter(
        self, token: str, path: str, query: list[tuple[str, str]], headers: Headers,
        scope: Any, send: Send,
    ) -> None:  # fmt: skip
        """Keep a token of the address as a cookie, and lead to the address without it."""
        name = self._owner(token)
        if name is None:
            await self._ask_who(headers, scope, send, "This token is not, or no longer, right.")
            return
        rest = urlencode([(key, value) for key, value in query if key != "token"])
        # An address that begins with two slashes would lead to another host.
        target = "/" + quote(path.lstrip("/"), safe="/=:@,") + (f"?{rest}" if rest else "")
        await self._let_in(name, target, headers, scope, send)

    async def _let_in(
        self, name: str, target: str, headers: Headers, scope: Any, send: Send
    ) -> None:
        more = {"set-cookie": self._cookie(name, headers, scope), "cache-control": "no-store"}
        if headers.one("sec-fetch-site") == "cross-site":
            await self._onward(target, send, more)
        else:
            await self._answer(send, 303, b"", {**more, "location": target})

    async def _onward(self, target: str, send: Send, more: Mapping[str, str]) -> None:
        """Go to an address as from here: the browser keeps the cookie from links of other sites."""
        page = f'<!doctype html><meta http-equiv="refresh" content="0;url={escape(target)}">'
        await self._answer(send, 200, page.encode(), {**_FORM_HEADERS, **more})

    async def _log_in(self, headers: Headers, body: Body, scope: Any, send: Send) -> None:
        body.bound(LOGIN, _LOGIN_BYTES, 10.0)
        body.check_declared(headers)
        sent = (await body.whole()).decode("utf-8", "replace")
        form = dict(parse_qsl(sent, keep_blank_values=True))
        name = self._owner(form.get("token", ""))
        if name is None and self._rules.people:
            name = self._person(form.get("name", ""), form.get("password", ""), scope)
        if name is None:
            wrong = "This is not right; try again."
            await self._ask_who(headers, scope, send, wrong, form.get("next", "/"))
            return
        target = form.get("next", "/")
        await self._let_in(
            name, target if _START.fullmatch(target) else "/", headers, scope, send
        )  # fmt: skip

    async def _ask_who(
        self, headers: Headers, scope: Any, send: Send, wrong: str = "", target: str = ""
    ) -> None:
        query = scope.get("query_string", b"").decode("latin-1")
        if not target:
            kept = [(k, v) for k, v in parse_qsl(query) if k != "token"]
            target = "/" + (f"?{urlencode(kept)}" if kept else "")
        if not wrong and headers.one("sec-fetch-site") == "cross-site":
            await self._onward(target, send, {})
            return
        fields = [("token", "Token", "password")] if self._rules.keys else []
        if self._rules.people:
            fields += [("name", "Name", "text"), ("password", "Password", "password")]
        way_in = self._rules.way_in[:1].upper() + self._rules.way_in[1:]
        inputs = "".join(
            f'<p><label>{label}<br><input name="{name}" type="{kind}"></label></p>'
            for name, label, kind in fields
        )
        page = (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>NatureLM</title>'
            '<meta name="viewport" content="width=device-width">'
            "<style>body{font:16px system-ui,sans-serif;max-width:22em;margin:12vh auto;"
            "padding:0 1em}input{font:inherit;width:100%;box-sizing:border-box;padding:.4em}"
            "button{font:inherit;padding:.4em 1.2em}</style><h1>NatureLM</h1>"
            f'<p role="status">{escape(wrong)}</p><p>{escape(way_in)}, or say who you are.</p>'
            f'<form method="post" action="{LOGIN}">{inputs}'
            f'<input type="hidden" name="next" value="{escape(target)}">'
            "<button>Open</button></form></html>"
        )
        await self._answer(send, 401, page.encode(), _FORM_HEADERS)

    # what goes in and out

    async def _served(
        self, route: Route, scope: Any, headers: Headers, body: Body, send: Send
    ) -> None:
        if scope["type"] == "websocket":
            await self._app(scope, body.receive, send)
            return
        body.bound(scope["path"], route.body, route.seconds)
        body.check_declared(headers)
        if route.only_files:
            body.only_files(headers)
        if not route.at_once:
            await self._passed(route, scope, body, send)
            return
        body.put_back(await body.whole())  # so that nobody slow holds the place of others
        async with self._turn(route):
            await self._passed(route, scope, body, send)

    @asynccontextmanager
    async def _turn(self, route: Route) -> AsyncIterator[None]:
        """Wait until few enough are worked on. Raises RefusedError where too many wait."""
        gate = self._gates[route]
        if gate.locked() and self._waiting[route] >= route.waiting:
            raise RefusedError(
                429, "Too much is asked at once: try again in a moment.", retry_after="5"
            )
        self._waiting[route] += 1
        try:
            await gate.acquire()
        finally:
            self._waiting[route] -= 1
        try:
            yield
        finally:
            gate.release()

    async def _passed(self, route: Route, scope: Any, body: Body, send: Send) -> None:
        """Let the application answer; what it says after a refusal is not sent."""
        has_begun = False

        async def guarded(message: Message) -> None:
            nonlocal has_begun
            if body.refused is not None and not has_begun:
                return
            if message["type"] == "http.response.start":
                has_begun = True
                given = message.get("headers", [])
                message = {**message, "headers": self._with_headers(route, given)}
            await send(message)

        try:
            await self._app(scope, body, guarded)
        except Exception:
            if body.refused is None or has_begun:
                raise
        if body.refused is not None and not has_begun:
            raise body.refused

    def _with_headers(self, route: Route, given: Any) -> list[tuple[bytes, bytes]]:
        own = {name.encode(): value.encode() for name, value in self._rules.headers.items()}
        if route.policy:
            own[b"content-security-policy"] = route.policy.encode()
        kept = [
            (name, value)
            for name, value in given
            if name.lower() not in own and not name.lower().startswith(b"access-control-")
        ]
        return kept + list(own.items())

    async def _refuse(
        self, refused: RefusedError, scope: Any, headers: Headers, body: Body, send: Send
    ) -> None:
        """Say why, wait a little while the client stops sending, and close the connection."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": str(refused)[:120]})
            return
        text = json.dumps(self._rules.error_body(refused.status, str(refused))).encode()
        more = {"content-type": "application/json", "connection": "close", **refused.headers}
        if headers.one("content-type").startswith("multipart/"):  # the page shows it as it is
            text = str(refused).encode()
            more["content-type"] = "text/plain; charset=utf-8"
        await self._answer(send, refused.status, text, more, is_last=False)
        await body.drain()
        await send({"type": "http.response.body", "body": b""})

    async def _answer(
        self, send: Send, status: int, text: bytes, headers: Mapping[str, str], is_last: bool = True
    ) -> None:
        every = {**self._rules.headers, **headers, "content-length": str(len(text))}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in every.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": text, "more_body": not is_last})


def token_for(
    host: str, hosts: tuple[str, ...], *, share: bool, given: str | None, none: bool, people: bool
) -> str | None:
    """The token that opens the page: the given one, one of the environment, or a new one.

    None where only this computer reaches the page, where people have passwords, or where `none`
    is wanted. Raises UsageError for a token that is short, and for wishes that exclude each other.
    """
    if none:
        if share:
            raise UsageError(
                "--share opens the page to the internet, so it has a token: leave --no-token out"
            )
        if given is not None:
            raise UsageError("--token and --no-token exclude each other: give one of them")
        return None
    source = "--token" if given is not None else TOKEN_VARIABLE
    token = given if given is not None else os.environ.get(TOKEN_VARIABLE) or None
    if token is None:
        is_needed = share or not (people or (is_loopback(host) and not hosts))
        return secrets.token_urlsafe(24) if is_needed else None
    is_plain = token.isascii() and token.replace("-", "").replace("_", "").isalnum()
    if len(token) < _LEAST_TOKEN or not is_plain:
        raise UsageError(
            f"{source} has {len(token)} characters; a token has {_LEAST_TOKEN} or more of "
            "a-z, A-Z, 0-9, - and _"
        )
    return token


def _is_same(given: str, right: str) -> bool:
    """In a time that does not tell how much of it is right, nor how long it is."""
    return hmac.compare_digest(
        sha256(given.encode("utf-8", "surrogatepass")).digest(), sha256(right.encode()).digest()
    )
