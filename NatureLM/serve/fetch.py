"""Sound from an address, for services that allow it: named hosts only, never a private address.

A host is resolved once, each address that it has is looked at, and the connection goes to that very
address, so that a second answer of the name server changes nothing. Redirects are followed by hand
and go through the same checks. Time and bytes are counted while the sound comes.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Collection
from urllib.parse import SplitResult, urljoin, urlsplit

from NatureLM.errors import UsageError
from NatureLM.util import format_bytes

_REDIRECTS = 3
_BLOCK = 64 * 1024
_PORTS = {"https": 443, "http": 80}


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
