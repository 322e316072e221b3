"""What a service is told: where it listens, who may ask, what may be opened, and how much."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from NatureLM.errors import NatureLMError, UsageError
from NatureLM.inference.background import ModelSettings
from NatureLM.util import did_you_mean, parse_bytes
from NatureLM.web.server import is_loopback

API_KEYS_VARIABLE = "NATURELM_API_KEYS"
_LEAST_KEY = 16  # characters, so that a key cannot be tried out


class RequestError(NatureLMError):
    """A request that is not answered, with what HTTP says of it.

    status: of HTTP
    param: the key that is wrong, such as `messages[0].content`
    code: a word for programs
    retry_after: seconds until it is worth asking again
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    def body(self) -> dict[str, object]:
        """As the OpenAI API writes errors."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def over_limit(told: str, limit: str, **more: Any) -> RequestError:
    """The refusal of what is more than a limit of the service, which it names.

    more: as `RequestError` takes it
    """
    return RequestError(f"{told}; the limit {limit!r} of the service says so", **more)


def _limit(default: float, of: str) -> Any:
    """A limit, and of what it is."""
    return field(default=default, metadata={"of": of})


@dataclass(frozen=True)
class Limits:
    """What one request may take; each is set by `--limit NAME=VALUE`, and messages name it."""

    body_bytes: int = _limit(64 * 2**20, "a request")
    upload_bytes: int = _limit(2 * 2**30, "a recording that is sent as a file")
    values: int = _limit(50_000, "values in the JSON of a request")
    audios: int = _limit(16, "clips in one prompt")
    clip_seconds: float = _limit(600.0, "seconds of a clip, of which the model's window is heard")
    recording_seconds: float = _limit(
        24 * 3600.0, "seconds of a recording that is asked about in windows"
    )
    decoded_bytes: int = _limit(256 * 2**20, "a clip once it is decoded")
    channels: int = _limit(8, "channels of sound")
    characters: int = _limit(50_000, "characters of text in a prompt, and in a list of labels")
    tokens: int = _limit(1024, "tokens of an answer")
    answers: int = _limit(8, "answers to one prompt (`n`)")
    labels: int = _limit(1000, "names of a list that an answer is chosen from")
    questions: int = _limit(64, "questions about one input")
    batch: int = _limit(64, "items of `/predict`")
    rows: int = _limit(200_000, "answers about one recording")
    queue: int = _limit(256, "prompts that wait or are worked on")
    request_seconds: float = _limit(300.0, "seconds until an answer has to be there")
    fetch_seconds: float = _limit(10.0, "seconds for sound that is named by an address")
    cache_bytes: int = _limit(256 * 2**20, "encoded sound that is kept, all keys together")

    def check(self, limit: str, number: int, told: str, **more: Any) -> None:
        """Raise RequestError where a number is above a limit.

        told: what is said then, with places for the number and for the limit
        """
        most = getattr(self, limit)
        if number > most:
            raise over_limit(told.format(number, most), limit, **more)

    def with_values(self, values: Sequence[str]) -> Limits:
        """These with `name=value` in place of some. Raises UsageError."""
        known = {one.name: one for one in fields(self)}
        changed: dict[str, float] = {}
        for text in values:
            name, equals, value = text.partition("=")
            if name not in known or not equals:
                hint = did_you_mean(name, known)
                raise UsageError(
                    f"--limit {text}: there is no such limit{hint}; "
                    f"the limits are {', '.join(known)}"
                )
            is_whole = known[name].type == "int"
            try:
                number = parse_bytes(value) if name.endswith("_bytes") else float(value)
            except ValueError:
                number = 0
            if not (0 < number < 1e15) or (is_whole and number != int(number)):
                kind = "a whole number" if is_whole else "a number"
                raise UsageError(f"--limit {text}: it must be {kind} above 0")
            changed[name] = int(number) if is_whole else number
        return replace(self, **changed)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class ServeSettings(ModelSettings):
    """What `naturelm serve` was told; requests decide what they name themselves.

    api_keys: names of those who may ask, and their keys; without any, everybody may
    allow_roots: folders from which recordings may be named by path
    allow_url_hosts: hosts from which recordings may be named by address
    server_names: names under which the service is reached, besides the address it listens at
    log_prompts: write prompts and answers to the log
    with_page: whether the web page that asks the same model is at the root of the address
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: dict[str, str] = field(default_factory=dict, repr=False)
    allow_roots: tuple[Path, ...] = ()
    allow_url_hosts: tuple[str, ...] = ()
    server_names: tuple[str, ...] = ()
    log_prompts: bool = False
    with_page: bool = False
    limits: Limits = field(default_factory=Limits)

    @property
    def is_loopback(self) -> bool:
        """Whether only this computer can reach the service."""
        return is_loopback(self.host)


def read_api_keys(given: Sequence[str], file: Path | None) -> dict[str, str]:
    """Name → key of those who may ask, from options, a file and the environment.

    Each is `key` or `name=key`; a file has one a line, and `#` begins a comment. Keys without a
    name are called `key-1` and so on. Raises UsageError for one that is short or named twice.
    """
    lines = [*given, *os.environ.get(API_KEYS_VARIABLE, "").split()]
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--api-key-file {file} cannot be read: {error}") from None
        lines += [line.partition("#")[0].strip() for line in text.splitlines()]
    keys: dict[str, str] = {}
    for line in filter(None, lines):
        name, equals, key = line.partition("=")
        if not equals or not name:
            name, key = f"key-{len(keys) + 1}", line
        name, key = name.strip(), key.strip()
        if len(key) < _LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError(
                f"the API key of {name!r} must have at least {_LEAST_KEY} printable ASCII "
                "characters without blanks; `openssl rand -hex 32` makes a good one"
            )
        if name in keys or key in keys.values():
            raise UsageError(f"the API key of {name!r}: this name or key is there twice")
        keys[name] = key
    return keys


def check_exposure(settings: ServeSettings, *, insecure: bool) -> None:
    """Raise UsageError where others could reach the service and need no key."""
    if settings.is_loopback or settings.api_keys or insecure:
        return
    raise UsageError(
        f"everybody who reaches {settings.host} could use the service: give an API key "
        f"(--api-key-file, or the environment variable {API_KEYS_VARIABLE}), or say --insecure"
    )
