"""Addresses of files: on this machine, and in object stores and on web servers (`s3://`, `gs://`,
`az://`, `https://`). What is behind them: `storage.remote`.

A `RemotePath` is made by `as_path` alone, of what the owner of the process typed or wrote into a
list. Further down a string is never taken for an address, so that nothing which a visitor of a
service sends can reach a store. Credentials come only as the libraries find them (environment,
profiles, roles); addresses that hold some are refused, because they would stand in every row.
"""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias, TypeVar
from urllib.parse import parse_qsl, quote, unquote

from NatureLM.errors import NatureLMError, UsageError
from NatureLM.progress import printable
from NatureLM.util import did_you_mean

SCHEMES = ("s3", "gs", "az", "abfs", "abfss", "https", "http", "memory")
"""Of addresses, besides `file`, which is a local path; `memory` is fsspec's, for tests."""
_ALIASES = {"gcs": "gs", "s3a": "s3"}
WEB = ("https", "http")
_HOST = r"(\[[^]]*\]|[^:]*)(:\d*)?"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_SECRET = re.compile(
    r"sig(nature)?$|^x-(amz|goog)-|token|secret|password|passwd|credential|api_?key|access_?key|auth",
    re.IGNORECASE,
)
HOW_TO_SIGN_IN = (
    "credentials come from the environment or a profile, as the store's own programs take them "
    "(AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME)"
)


class StorageError(NatureLMError, OSError):
    """A store or web server did not give or take a file; the message says what it said."""


@dataclass(frozen=True, order=True)
class RemotePath:
    """An address of a file or folder; made by `as_path`. It has the names of a `Path`."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        return self.url

    @property
    def scheme(self) -> str:
        """Such as `s3`."""
        return self.url.partition("://")[0]

    @property
    def parts(self) -> tuple[str, ...]:
        """The bucket or host with its scheme, the folders, and the name."""
        scheme, _, rest = self._plain.partition("://")
        bucket, *others = rest.split("/")
        return (f"{scheme}://{bucket}", *(one for one in others if one))

    @property
    def name(self) -> str:
        """Of the file; of a bucket ""."""
        return self.parts[-1] if len(self.parts) > 1 else ""

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The ending of the name, with the dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        """The folder; of a bucket itself."""
        return RemotePath("/".join(self.parts[:-1] or self.parts))

    def with_name(self, name: str) -> RemotePath:
        """Another file beside it."""
        return self.parent / name

    def __truediv__(self, name: str) -> RemotePath:
        """What has this name below the folder; `..` leads up, never out of the bucket."""
        below = posixpath.normpath("/" + "/".join([*self.parts[1:], name])).lstrip("/")
        if self.scheme in WEB:
            below = quote(below, safe="/%:@!$&'()*+,;=~ ")
        return RemotePath(f"{self.parts[0]}/{below}")

    @property
    def _plain(self) -> str:
        """Without a query, which web addresses may have."""
        return re.split(r"[?#]", self.url)[0] if self.scheme in WEB else self.url


AnyPath: TypeAlias = Path | RemotePath
PathT = TypeVar("PathT", Path, RemotePath, AnyPath)


def local_only(path: AnyPath, option: str) -> Path:
    """A path of this machine. Raises UsageError for an address, where none is taken."""
    if isinstance(path, RemotePath):
        raise UsageError(f"{option} is {path}, and it must be a path of this machine")
    return path


def is_url(text: str) -> bool:
    """Whether a string has the form of an address, of whatever kind."""
    return _URL.match(text) is not None


def as_path(text: str | os.PathLike[str], place: str = "") -> AnyPath:
    """The path that a string is: a local one, or one of a store for `s3://bucket/a.wav`.

    place: where it stands, for messages

    Raises UsageError for addresses of a kind that is not known, and for those with credentials.
    """
    if isinstance(text, RemotePath | Path):
        return text
    text = os.fspath(text)
    found = _URL.match(text)
    if found is None:
        return Path(text)
    scheme, rest = _ALIASES.get(found[1].lower(), found[1].lower()), text[found.end() :]
    start = f"{place}: " if place else ""
    if scheme == "file":
        return _local(rest, start)
    if scheme not in SCHEMES:
        raise UsageError(
            f"{start}addresses of the kind {scheme}:// are not read"
            f"{did_you_mean(scheme, SCHEMES, '{}://')}; there are "
            f"{', '.join(f'{one}://' for one in ('file', *SCHEMES[:-1]))}"
        )
    _refuse_credentials(scheme, rest, start)
    if not rest.strip("/") or rest.startswith("/"):
        raise UsageError(f"{start}{scheme}://{rest}: names no bucket or host")
    return RemotePath(f"{scheme}://{rest}")


def _local(rest: str, start: str) -> Path:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise UsageError(f"{start}file://{rest}: write file:///full/path")
    path = unquote(path)
    return Path(path if re.match(r"[A-Za-z]:", path) else f"/{path}")


def _refuse_credentials(scheme: str, rest: str, start: str) -> None:
    """Raise UsageError, which does not repeat them, for an address that holds credentials."""
    authority = re.split(r"[/?#]", rest)[0]
    user, at, host = authority.rpartition("@")
    is_container = scheme in ("abfs", "abfss", "az") and ":" not in user
    query = rest.partition("?")[2] if "?" in rest else ""
    names = [name for name, _ in parse_qsl(query, keep_blank_values=True)]
    # Behind the slash of a secret the rest of it and the @ would be taken for folders.
    is_cut = not at and not re.fullmatch(_HOST if scheme in WEB else "[^:]*", authority)
    if (at and not is_container) or is_cut or any(map(_SECRET.search, names)):
        raise UsageError(
            f"{start}the address {scheme}://{'' if is_cut else host}/... holds credentials, and "
            f"results name their recordings; give it without them: {HOW_TO_SIGN_IN}"
        )


def real_path(path: str | os.PathLike[str]) -> str:
    """What all names of one file share: its real path, or its address."""
    text = os.fspath(path)
    return text if is_url(text) else os.path.realpath(text)


def full_path(path: str | os.PathLike[str]) -> str:
    """A name that means the same from every folder: links are not followed."""
    text = os.fspath(path)
    return text if is_url(text) else os.path.abspath(text)


def is_absolute(text: str) -> bool:
    """Whether a name means the same from every folder."""
    return is_url(text) or os.path.isabs(text)


def join(folder: AnyPath, name: str, place: str = "") -> AnyPath:
    """What a list in a folder means by a name: an address, or a path that counts from the folder.

    Raises UsageError where a list from elsewhere names a file of this machine.
    """
    path = as_path(name, place)
    if isinstance(path, RemotePath):
        return path
    if isinstance(folder, Path):
        return folder / path
    if path.is_absolute() or name.startswith(("/", "\\")) or is_url(name):
        raise UsageError(
            f"{place + ': ' if place else ''}{printable(name)}: a list that was read from "
            f"{folder.parts[0]} may not name files of this machine; its rows are addresses, or "
            "paths that count from its folder"
        )
    return folder / name.replace("\\", "/")
