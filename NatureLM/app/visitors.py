"""What belongs to one open page: a folder of its own and what the tabs keep there."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

GRACE_SECONDS = 60.0
"""How long a page that was closed or lost its connection keeps what it has."""


@dataclass
class Visitor:
    """One page. `folder` has an unguessable name and goes with the page."""

    folder: Path
    lock: threading.RLock = field(default_factory=threading.RLock)
    _kept: dict[str, Any] = field(default_factory=dict)

    def keep(self, name: str, make: Callable[[], T]) -> T:
        """What is kept under this name, made at the first call."""
        with self.lock:
            if name not in self._kept:
                self._kept[name] = make()
            value: T = self._kept[name]
            return value

    def leave(self) -> None:
        """Close what can be closed and remove the folder."""
        with self.lock:
            for value in self._kept.values():
                close = getattr(value, "close", None)
                if close is not None:
                    close()
            self._kept.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


class Visitors:
    """All open pages of one app, by the session that the browser was given."""

    def __init__(self, folder: Path, grace_seconds: float = GRACE_SECONDS) -> None:
        self._folder = folder
        self._grace = grace_seconds
        self._lock = threading.Lock()
        self._open: dict[str, Visitor] = {}
        self._leaving: dict[str, threading.Timer] = {}

    def __len__(self) -> int:
        return len(self._open)

    def of(self, session: str | None) -> Visitor:
        """The visitor of a session; a new one at the first call."""
        key = session or "no session"
        with self._lock:
            timer = self._leaving.pop(key, None)
            if timer is not None:
                timer.cancel()
            if key not in self._open:
                folder = self._folder / secrets.token_urlsafe(16)
                folder.mkdir(parents=True)
                self._open[key] = Visitor(folder)
            return self._open[key]

    def closed(self, session: str | None) -> None:
        """The page was closed: what it had goes after the grace, unless it comes back."""
        key = session or "no session"
        with self._lock:
            if key not in self._open or key in self._leaving:
                return
            timer = threading.Timer(self._grace, self._remove, [key])
            timer.daemon = True
            self._leaving[key] = timer
        timer.start()

    def _remove(self, key: str) -> None:
        with self._lock:
            if self._leaving.pop(key, None) is None:
                return
            visitor = self._open.pop(key, None)
        if visitor is not None:
            visitor.leave()

    def close(self) -> None:
        """Everybody leaves at once: the app ends."""
        with self._lock:
            timers, visitors = list(self._leaving.values()), list(self._open.values())
            self._leaving.clear()
            self._open.clear()
        for timer in timers:
            timer.cancel()
        for visitor in visitors:
            visitor.leave()
