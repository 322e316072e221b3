"""What a client sends: its headers, and its body, counted and timed as it comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from NatureLM.errors import NatureLMError

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]

_DRAIN_BYTES, _DRAIN_SECONDS = 64 * 10**6, 2.0  # of a refused body, so that the answer is read
_PART_HEADER_BYTES = 8192
_IDLE_SECONDS = 30.0  # without a piece of the body


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
