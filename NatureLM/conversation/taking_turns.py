"""One pass of a model at a time, in the order in which threads asked for it."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any
from weakref import WeakKeyDictionary


class QueueLock:
    """A lock that is given in the order of asking.

    Python's own goes to whoever is quickest, and a thread that generates text takes it again
    before a waiting one has woken up.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._held = False

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            mine = threading.Event()
            self._waiting.append(mine)
        try:
            mine.wait()
        except BaseException:  # interrupted: give the place in the queue away
            with self._guard:
                given = mine not in self._waiting
                if not given:
                    self._waiting.remove(mine)
            if given:
                self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().set()  # it stays held, by the next one
            else:
                self._held = False


_locks: WeakKeyDictionary[Any, QueueLock] = WeakKeyDictionary()
_making = threading.Lock()


def lock_of(model: Any) -> QueueLock:
    """The lock of a model, the same for all that use it."""
    with _making:
        return _locks.setdefault(model, QueueLock())
