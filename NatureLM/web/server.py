"""A server and what comes to it: its address, its names, and requests, counted and timed."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from NatureLM.errors import NatureLMError, UsageError

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Any, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)\.?(?::(\d{1,5}))?")

_DRAIN_BYTES, _DRAIN_SECONDS = 64 * 10**6, 2.0  # of a refused body, so that the answer is read
_PART_HEADER_BYTES = 8192
_IDLE_SECONDS = 30.0  # without a piece of the body


def is_loopback(host: str) -> bool:
    """Whether only this computer reaches an address to listen at."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def own_names(host: str) -> tuple[str, ...]:
    """Names by which a computer is reached that listens at an address."""
    names = [socket.gethostname(), socket.getfqdn()] if not is_loopback(host) else []
    return (*LOOPBACK, host, *names, *(f"{name}.local" for name in names))


def in_address(host: str) -> str:
    """A name or IP address as it stands in the address of a page."""
    return f"[{host}]" if ":" in host else host


def netloc(text: str) -> tuple[str, str | None] | None:
    """Name and port, if there is one, of `name:port`; None if it is no such thing."""
    match = _HOST.fullmatch(text.lower())
    return None if match is None else (plain_name(match[1]), match[2])


def plain_name(name: str) -> str:
    """A name of a host, or an address, as all spellings of it are compared."""
    name = name.strip().lower().removeprefix("[").removesuffix("]").rstrip(".")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def is_address(name: str) -> bool:
    try:
        return not ipaddress.ip_address(name).is_unspecified
    except ValueError:
        return False


def check_port(host: str, port: int) -> None:
    """Raise UsageError where somebody else has the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"port {port} of {host} cannot be used ({error.strerror or error}); choose another "
                "with --port"
            ) from None


def server_config(app: App, host: str, port: int, **more: Any) -> Any:
    """A loaded `uvicorn.Config` of an application that logs what it does itself."""
    import uvicorn

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        **more,
    )
    config.load()
    bound_connections(config)
    return config


def bound_connections(config: Any, connections: int = 500, header_seconds: float = 20.0) -> None:
    """Bound a running `uvicorn.Config`: connections in all, and seconds until a request is there.

    uvicorn itself waits for headers for ever.
    """
    config.limit_concurrency = connections
    config.h11_max_incomplete_event_size = 32 * 1024
    base: Any = config.http_protocol_class

    class Bounded(base):  # type: ignore[misc]
        _until_request: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._until_request is not None:
                self._until_request.cancel()
            super().connection_lost(exc)

        def _watch(self) -> None:
            is_idle = self.cycle is None or self.cycle.response_complete
            if not is_idle and self._until_request is not None:
                self._until_request.cancel()
                self._until_request = None
            elif is_idle and self._until_request is None:
                self._until_request = self.loop.call_later(header_seconds, self._give_up)

        def _give_up(self) -> None:
            self._until_request = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    config.http_protocol_class = Bounded


class RefusedError(NatureLMError):
    """A request that is not let through; its text is what the client reads."""

    def __init__(self, status: int, reason: str, **headers: str) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Headers:
    """The headers of a request, by lower-case name."""

    def __init__(self, scope: Any) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in scope.get("headers", []):
            self._values.setdefault(name.decode("latin-1").lower(), []).append(
                value.decode("latin-1").strip()
            )

    def all(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def one(self, name: str) -> str:
        return (self.all(name) or [""])[0]

    def listed(self, name: str, mark: str = ",") -> list[str]:
        return [part.strip() for value in self.all(name) for part in value.split(mark)]


class Body:
    """What a client sends: counted, timed, and given on piece by piece.

    As `receive` of the application it says that the client has left once `refused` is set.
    """

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.refused: RefusedError | None = None
        self._is_whole = False
        self._has_left = False
        self._seen = 0
        self._put_back: bytes | None = None
        self._parts: _FileParts | None = None
        self.bound("", 0, 0.0)

    def bound(self, path: str, limit: int, seconds: float) -> None:
        self._path, self._limit, self._seconds = path, limit, seconds
        self._end = time.monotonic() + seconds

    def check_declared(self, headers: Headers) -> None:
        """Refuse by the headers alone where they say enough."""
        if headers.one("content-encoding") not in ("", "identity"):
            raise RefusedError(415, "Bodies are sent as they are, without a Content-Encoding.")
        length = headers.one("content-length")
        if length and not (length.isascii() and length.isdigit()):
            raise RefusedError(400, "Content-Length is no number.")
        if int(length[:20] or 0) > self._limit or (
            self._limit == 0 and headers.all("transfer-encoding")
        ):
            raise self._too_much()

    def only_files(self, headers: Headers) -> None:
        self._parts = _FileParts(headers.one("content-type"))

    def put_back(self, sent: bytes) -> None:
        """Give this as the body at the next call."""
        self._put_back = sent

    async def __call__(self) -> Message:
        if self._put_back is not None:
            sent, self._put_back = self._put_back, None
            return {"type": "http.request", "body": sent, "more_body": False}
        if self.refused is not None:
            return {"type": "http.disconnect"}
        if self._is_whole or self._has_left:
            return await self.receive()
        try:
            return await self._next()
        except RefusedError as refused:
            self.refused = refused
            return {"type": "http.disconnect"}

    async def whole(self) -> bytes:
        """All of a small body. Raises RefusedError."""
        parts: list[bytes] = []
        while not self._is_whole and not self._has_left:
            parts.append((await self._next()).get("body", b""))
        if self._has_left:
            raise RefusedError(400, "The body is not whole.")
        return b"".join(parts)

    async def drain(self) -> None:
        """Read what still comes, for a moment, and forget it."""
        end, most = time.monotonic() + _DRAIN_SECONDS, self._seen + _DRAIN_BYTES
        while not self._is_whole and not self._has_left and self._seen < most:
            try:
                await self._one(end - time.monotonic())
            except asyncio.TimeoutError:
                return

    async def _next(self) -> Message:
        try:
            message = await self._one(min(_IDLE_SECONDS, self._end - time.monotonic()))
        except asyncio.TimeoutError:
            raise RefusedError(
                408,
                f"The body took too long: {self._seconds:g} seconds for all of it, and "
                f"{_IDLE_SECONDS:g} without a piece, are what {self._path[:80]} allows.",
            ) from None
        if self._seen > self._limit:
            raise self._too_much()
        if self._parts is not None and message["type"] == "http.request":
            self._parts.push(message.get("body", b""))
        return message

    async def _one(self, seconds: float) -> Message:
        message = await asyncio.wait_for(self.receive(), max(0.001, seconds))
        self._has_left = message["type"] == "http.disconnect"
        self._is_whole = not self._has_left and not message.get("more_body", False)
        self._seen += len(message.get("body", b""))
        return message

    def _too_much(self) -> RefusedError:
        return RefusedError(413, f"At most {self._limit} bytes may be sent to {self._path[:80]}.")


class _FileParts:
    """Looks through a multipart body: a part that is no file would be collected in memory."""

    def __init__(self, content_type: str) -> None:
        from python_multipart.multipart import MultipartParser, parse_options_header

        self._parse_options = parse_options_header
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise RefusedError(400, "Files are sent as multipart/form-data with a boundary.")
        self._name, self._value, self._disposition = b"", b"", b""
        self._parser: Any = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._begin,
                "on_header_field": self._add_name,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._check,
            },
        )

    def push(self, data: bytes) -> None:
        from python_multipart.exceptions import FormParserError

        try:
            self._parser.write(data)
        except FormParserError as error:
            raise RefusedError(400, f"The body is no multipart/form-data: {error}"[:200]) from None

    def _begin(self) -> None:
        self._name, self._value, self._disposition = b"", b"", b""

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name = self._short(self._name + data[start:end])

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value = self._short(self._value + data[start:end])

    def _short(self, text: bytes) -> bytes:
        if len(text) > _PART_HEADER_BYTES:
            raise RefusedError(400, f"A header of a part has at most {_PART_HEADER_BYTES} bytes.")
        return text

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name, self._value = b"", b""

    def _check(self) -> None:
        if b"filename" not in self._parse_options(self._disposition)[1]:
            raise RefusedError(400, "Each part of an upload is a file with a name.")
