"""Sound that requests bring: base64, files below allowed folders, addresses of allowed hosts.

Every clip of every route is opened here, so nothing goes around the limits. Bytes are written to a
private file, because decoders read files; it is removed as soon as it is decoded.

A host is resolved once, each address that it has is looked at, and the connection goes to that very
address, so that a second answer of the name server changes nothing. Redirects are followed by hand
and go through the same checks. Time and bytes are counted while the sound comes.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import tempfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, urljoin, urlsplit

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio import AudioError
from NatureLM.audio.decode import RecordingInfo, SoundLimits, probe
from NatureLM.audio.windows import read_noted_clip
from NatureLM.errors import UsageError
from NatureLM.serve.settings import RequestError, ServeSettings, over_limit
from NatureLM.util import digest, format_bytes

SoundKind = Literal["base64", "path", "url"]
_DATA_URL = re.compile(r"data:[\w.+/-]{0,100}(?:;[\w.+/=-]{0,100}){0,4};base64,", re.A | re.I)
_REDIRECTS = 3
_BLOCK = 64 * 1024
_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True)
class Source:
    """Sound as a request names it.

    kind: what `value` is: base64, a path on the server, or an address
    param: where the request names it
    seconds: of its beginning that are heard; None for all that the model hears at once
    """

    kind: SoundKind
    value: str
    param: str
    seconds: float | None = None


@dataclass(frozen=True, eq=False)
class Clip:
    """A decoded clip.

    name: digest of the samples: equal sound is encoded once
    samples: float32 (samples,) at the model's rate
    seconds: of sound that is heard
    note: "silent", "constant" or "cancelled" where there is no sound, else ""
    """

    name: str
    samples: NDArray[np.float32]
    seconds: float
    note: str = ""

    def refuse_silence(self, param: str) -> None:
        """Raise RequestError where there is nothing to hear: an answer would be invented."""
        if self.note:
            raise RequestError(
                f"{param}: there is no sound to ask about ({self.note}); ask_silence asks for it "
                "all the same",
                param=param,
                code="silent_audio",
            )


class SoundReader:
    """Opens the sound of requests, within the limits of the service.

    settings: which folders and hosts are allowed, and the limits
    sample_rate: Hz, of the model
    window_seconds: what the model hears at once
    """

    def __init__(
        self, settings: ServeSettings, sample_rate: int, window_seconds: float, folder: Path
    ) -> None:
        self._settings, self._limits = settings, settings.limits
        self._rate, self._longest = sample_rate, window_seconds
        self._folder = folder

    def clip(self, source: Source) -> Clip:
        """The clip, decoded. Raises RequestError that says what is wrong and where.

        Blocks: call it from a thread.
        """
        limits, param = self._limits, source.param
        most = SoundLimits(
            seconds=limits.clip_seconds,
            decoded_bytes=limits.decoded_bytes,
            channels=limits.channels,
        )
        longest = min(source.seconds or self._longest, self._longest)
        with self.file(source) as path:
            try:
                info = probe(path, most)
                samples, note = read_noted_clip(
                    path, duration=longest, sample_rate=self._rate, name=param, limits=most
                )
            except AudioError as error:
                raise sound_error(error, param) from None
        return Clip(digest(samples, size=16).hex(), samples, min(info.duration, longest), note)

    def check(self, path: Path, param: str, name: str) -> RecordingInfo:
        """What a recording says it holds; raises RequestError for more than is allowed.

        name: what its sender calls it
        """
        limits = self._limits
        most = SoundLimits(seconds=limits.recording_seconds, channels=limits.channels)
        try:
            return probe(path, most)
        except AudioError as error:
            raise sound_error(error, param, name, "recording_seconds") from None

    @contextlib.contextmanager
    def file(self, source: Source) -> Iterator[Path]:
        """The sound as a file; one that was made for it goes at the end."""
        if source.kind == "path":
            yield self._allowed_path(source)
            return
        data = self._bytes(source)
        with private_file(self._folder) as file:
            file.write(data)
            file.flush()
            del data
            yield Path(file.name)

    def _bytes(self, source: Source) -> bytes:
        value = source.value
        if source.kind == "base64":
            return _from_base64(value, source.param)
        match = _DATA_URL.match(value)
        if match is None and value[:5].lower() == "data:":
            raise RequestError(
                f"{source.param}: a data: address holds its sound in base64 "
                "(data:audio/wav;base64,…)",
                param=source.param,
                code="invalid_base64",
            )
        if match is None:
            try:
                return fetch(
                    value,
                    self._settings.allow_url_hosts,
                    most_bytes=self._limits.body_bytes,
                    seconds=self._limits.fetch_seconds,
                )
            except UsageError as error:
                raise RequestError(f"{source.param}: {error}", param=source.param) from None
        return _from_base64(value[match.end() :], source.param)

    def _allowed_path(self, source: Source) -> Path:
        """The file that a path names, if it lies below an allowed folder, links followed."""
        refusal = RequestError(
            f"{source.param}: this path is not open to requests; the service opens files below "
            "the folders that --allow-root names",
            param=source.param,
            code="path_not_allowed",
        )
        try:
            path = Path(source.value).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            raise refusal from None
        roots = [root.resolve() for root in self._settings.allow_roots]
        if not any(path.is_relative_to(root) for root in roots) or not path.is_file():
            raise refusal
        return path


def private_file(folder: Path) -> Any:
    """A file that nobody else reads; it goes when it is closed."""
    return tempfile.NamedTemporaryFile(dir=folder, prefix="sound-")


def audio_part(part: dict[str, Any], param: str) -> Source:
    """The sound of a part of a message, as OpenAI (`input_audio`) and vLLM (`audio_url`) write it.

    Raises RequestError for a part that says otherwise.
    """
    kind = part.get("type")
    inner = part.get(kind) if isinstance(kind, str) else None
    if not isinstance(inner, dict):
        raise RequestError(f"{param}.{kind} must be an object", param=param)
    key = "data" if kind == "input_audio" else "url"
    value = inner.get(key)
    if not isinstance(value, str) or not value:
        raise RequestError(f"{param}.{kind}.{key} must be a string with the sound", param=param)
    return Source("base64" if key == "data" else "url", value, f"{param}.{kind}.{key}")


def _from_base64(text: str, param: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(
            f"{param}: this is not base64; send the bytes of a sound file in base64, without a "
            "prefix",
            param=param,
            code="invalid_base64",
        ) from None


def sound_error(
    error: AudioError, param: str, name: str = "the sound", seconds: str = "clip_seconds"
) -> RequestError:
    """What is wrong with sound, without the name of the file that it was kept in.

    seconds: the limit of its length
    """
    reason = error.renamed(name).reason
    advice = f" {error.advice}." if error.advice and "--" not in error.advice else ""
    limit = ""
    if error.kind == "TooLongAudio":
        limit = "decoded_bytes" if "decoded" in error.reason else seconds
    elif error.kind == "ChannelError" and "channel " not in error.reason:
        limit = "channels"
    more = f"The limit {limit!r} of the service says so." if limit else ""
    message = f"{param}: {reason}.{advice} {more}".strip()
    return RequestError(message, param=param, code=error.kind)


def too_large(what: str, size: int, limit: str, most: int) -> RequestError:
    """The refusal (413) of a body or a batch."""
    shown = (format_bytes(size), format_bytes(most)) if limit.endswith("bytes") else (size, most)
    told = f"{what} has {shown[0]}, and {shown[1]} are allowed"
    return over_limit(told, limit, status=413, code="request_too_large")


# -- addresses --------------------------------------------------------------------------------


class _PinnedConnection(http.client.HTTPConnection):
    """A connection to one address of a host, encrypted where `context` is given."""

    def __init__(
        self, host: str, port: int, address: str, seconds: float, context: ssl.SSLContext | None
    ) -> None:
        super().__init__(host, port, timeout=seconds)
        self._address, self._context = address, context

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._context is not None:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self.host)


def fetch(
    url: str,
    allowed_hosts: Collection[str],
    *,
    most_bytes: int,
    seconds: float,
    schemes: Collection[str] = ("https",),
) -> bytes:
    """The bytes at an address. Raises UsageError, which never says what stands there.

    allowed_hosts: names, compared whole and without case; `host:port` where it is not the usual one
    """
    end = time.monotonic() + seconds
    for _ in range(_REDIRECTS + 1):
        parts = _checked(url, allowed_hosts, schemes)
        found = _get(parts, most_bytes, end)
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise UsageError("the address leads to another one too often")


def _checked(url: str, allowed: Collection[str], schemes: Collection[str]) -> SplitResult:
    """The parts of an address, if it may be opened."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise UsageError("this is no address") from None
    if parts.scheme not in schemes or not host or parts.username or parts.password:
        raise UsageError(
            "sound may be given as a data: address, and as "
            f"{' or '.join(schemes)} where the service allows its host (--allow-url-host)"
        )
    usual = port in (None, _PORTS.get(parts.scheme))
    name = host if usual else f"{host}:{port}"
    if name.lower() not in {one.lower() for one in allowed}:
        raise UsageError("the service does not open this host; --allow-url-host allows one")
    return parts


def _get(parts: SplitResult, most_bytes: int, end: float) -> bytes | str:
    """The bytes, or where the server says that they are instead."""
    host = (parts.hostname or "").rstrip(".")
    port = parts.port or _PORTS[parts.scheme]
    context = ssl.create_default_context() if parts.scheme == "https" else None
    try:
        address = public_address(host, port)
        connection = _PinnedConnection(host, port, address, _left(end), context)
        try:
            path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
            connection.request("GET", path, headers={"Accept": "audio/*, */*"})
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308):
                return response.getheader("Location") or ""
            if response.status != 200:
                raise UsageError(f"the server of the sound answered {response.status}")
            return _read(response, connection, most_bytes, end)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UsageError(f"the sound could not be fetched ({type(error).__name__})") from None


def _read(
    response: http.client.HTTPResponse,
    connection: http.client.HTTPConnection,
    most_bytes: int,
    end: float,
) -> bytes:
    data = bytearray()
    while True:
        if connection.sock is not None:
            connection.sock.settimeout(_left(end))
        block = response.read1(_BLOCK)
        if not block:
            return bytes(data)
        data += block
        _left(end)
        if len(data) > most_bytes:
            raise UsageError(f"the sound has more than {format_bytes(most_bytes)} (body_bytes)")


def _left(end: float) -> float:
    """Seconds that are left. Raises UsageError where there are none."""
    left = end - time.monotonic()
    if left <= 0:
        raise UsageError("the sound did not come in time (fetch_seconds)")
    return left


def public_address(host: str, port: int) -> str:
    """The first address of a host, if all that it has are of the public internet.

    Raises UsageError for private, loopback, link-local, multicast and reserved ones, whatever way
    they are written (`::ffff:127.0.0.1`, 6to4, NAT64 and Teredo of such among them).
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(one[4][0]) for one in found]
    for address in addresses:
        if not _is_public(ipaddress.ip_address(address.partition("%")[0])):
            raise UsageError("the service does not open addresses of its own network")
    return addresses[0]


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    inner: list[ipaddress.IPv4Address | None] = []
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo
        inner = [address.ipv4_mapped, address.sixtofour, *(teredo or ())]
        if address in ipaddress.ip_network("64:ff9b::/96"):
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    is_plain = address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_unspecified
    )
    within = [one for one in inner if one is not None]
    if within:  # is_global looks at some of them only
        return all(_is_public(one) for one in within)
    return is_plain
