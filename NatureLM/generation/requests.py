"""What the engine is asked and what it answers."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One generation.

    key: whatever the caller knows it by
    prompt: complete text with placeholders, template included
    audios: names of the clips, the i-th for the i-th placeholder
    alpha: share of the adapter
    stream: number of the random stream when sampling; requests with one number draw alike
    """

    key: Hashable
    prompt: str
    audios: tuple[str, ...]
    alpha: float = 1.0
    stream: int = 0


@dataclass(frozen=True)
class Answer:
    """The text that a request was answered with, or the error that kept it from one."""

    request: Request
    text: str | None
    error: Exception | None = None

    @property
    def key(self) -> Hashable:
        return self.request.key
