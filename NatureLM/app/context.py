"""What all tabs share: the model once it is loaded, the jobs, and who has the page open."""

from __future__ import annotations

import ctypes
import logging
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from NatureLM.app.clips import check_free, without_paths
from NatureLM.app.jobs import Jobs
from NatureLM.app.settings import AppSettings, Limits
from NatureLM.errors import UsageError
from NatureLM.inference.background import PipelineLoader
from NatureLM.util import format_bytes

if TYPE_CHECKING:
    from NatureLM.app.reviews import Reviews
    from NatureLM.inference.pipeline import Pipeline

GRACE_SECONDS = 60.0
"""How long a page that was closed or lost its connection keeps what it has."""

_SOON = 10.0  # seconds within which a page claims what it has sent
_IDLE_ENOUGH = 120.0  # seconds after which a visitor may have to go where room is needed
_MOST_SENT_AWAY = 10_000
_SHOWN = (".png", ".wav")
_PREFIX, _LOCK = "naturelm-app-", ".lock"
_ABANDONED_SECONDS = 3600.0  # for which a folder that nobody has locked is left alone
_IDLE = "What this page had was removed, as nothing was done on it for too long. Load it again."
_MADE_ROOM = "What this page had was removed, because others needed the room. Load it again."
logger = logging.getLogger(__name__)

T = TypeVar("T")


class AppContext:
    """One app.

    folder: temporary, goes with the app
    remembered: components with the ids of the jobs that a browser remembers
    loader: of the pipeline, where another part of the process asks it, too
    closing: what is closed with it, the last one first
    reviews: of clips of jobs; the page sets it before it builds the tabs, as the next ones
    tabs: the page's `gr.Tabs`
    handed_over: a `gr.State` with a recording that another tab hands to Long recording: (path,
        name that the visitor knows), or None
    """

    reviews: Reviews
    tabs: Any
    handed_over: Any

    def __init__(self, settings: AppSettings, loader: PipelineLoader | None = None) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.model_name = settings.name
        self.runs_dir = settings.runs_dir.resolve()
        self.assets_dir = None if settings.assets_dir is None else settings.assets_dir.resolve()
        self.closing = ExitStack()
        self.folder = self.closing.enter_context(_locked_folder())
        self.visitors = Visitors(self.folder, self.limits)
        self.loader = loader or PipelineLoader(settings.load)
        self.jobs = Jobs(self.runs_dir, self.pipeline, model=self.model_name, limits=self.limits)
        self.closing.callback(self.visitors.close)
        self.closing.callback(self.jobs.close)
        self.remembered: list[Any] = []

    @property
    def sample_rate(self) -> int:
        """Hz, of what the model hears; that of the published model until it is known."""
        loaded = self.loader.loaded
        return 16_000 if loaded is None else int(loaded.model.config.sample_rate)

    def pipeline(self, timeout: float | None = None) -> Pipeline:
        """See `PipelineLoader.wait`."""
        return self.loader.wait(timeout)

    @property
    def shown_model(self) -> str:
        """What the page calls the model."""
        return without_paths(self.model_name)

    def visitor(self, request: Any) -> Visitor:
        """Whoever has the page open that this `gr.Request` came from."""
        return self.visitors.of(getattr(request, "session_hash", None))

    def close(self) -> None:
        """Stop the job that is worked on and remove all that is temporary."""
        self.closing.close()


@dataclass
class Visitor:
    """One open page. `folder` has an unguessable name and goes with the page.

    uploads: folders of what was sent from it
    used: files of those that are not needed any more, and since when
    seen, taken, closed: time of its last event, of its last upload, and of its end, if it had one;
        seconds of the monotonic clock
    """

    folder: Path
    lock: threading.RLock = field(default_factory=threading.RLock)
    uploads: set[Path] = field(default_factory=set)
    used: list[tuple[float, Path]] = field(default_factory=list)
    seen: float = field(default_factory=time.monotonic)
    taken: float = 0.0
    closed: float | None = None
    _kept: dict[str, Any] = field(default_factory=dict)

    def keep(self, name: str, make: Callable[[], T]) -> T:
        """What is kept under this name, made at the first call."""
        with self.lock:
            if name not in self._kept:
                self._kept[name] = make()
            value: T = self._kept[name]
            return value

    def kept(self, name: str) -> Any:
        """What is kept under this name, None where nothing is."""
        with self.lock:
            return self._kept.get(name)

    def forget(self, name: str) -> None:
        """Keep it no longer."""
        with self.lock:
            self._kept.pop(name, None)

    def leave(self) -> None:
        """Close what can be closed and remove the folder."""
        with self.lock:
            for value in self._kept.values():
                if hasattr(value, "close"):
                    value.close()
            self._kept.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


class Visitors:
    """All open pages of one app, by the session that the browser was given, and what they sent.

    folder: of the app; in it each visitor has a folder in `visitors/`, each upload in `uploads/`
    also_tidy: called whenever it is looked who has gone, every few seconds
    """

    def __init__(
        self, folder: Path, limits: Limits | None = None, grace_seconds: float = GRACE_SECONDS
    ) -> None:
        self.folder, self.uploads, self._folders = folder, folder / "uploads", folder / "visitors"
        for made in (folder, self.uploads, self._folders):
            made.mkdir(mode=0o700, exist_ok=True)
        self.also_tidy: Callable[[], None] = lambda: None
        self._limits = limits or Limits()
        self._grace = grace_seconds
        self._lock = threading.RLock()
        self._open: dict[str | None, Visitor] = {}
        self._busy: Counter[str | None] = Counter()
        self._receiving: dict[Path, int] = {}  # bytes for which there is room
        self._making_room = threading.Lock()
        self._sent_away: dict[str | None, str] = {}
        self._ended = threading.Event()
        self._tidying = threading.Thread(target=self._tidy_again, name="tidy", daemon=True)

    def of(self, session: str | None) -> Visitor:
        """The visitor of a session; a new one at the first call."""
        with self._lock:
            if session not in self._open:
                self._open[session] = Visitor(self._new_folder(self._folders))
            visitor = self._open[session]
            visitor.seen, visitor.closed = time.monotonic(), None
            return visitor

    def closed(self, session: str | None) -> None:
        """The page was closed: what it had goes after the grace, unless it comes back."""
        with self._lock:
            visitor = self._open.get(session)
            if visitor is not None and visitor.closed is None:
                visitor.closed = time.monotonic()

    @contextmanager
    def event(self, session: str | None) -> Iterator[None]:
        """While something happens on a page, its visitor is not idle."""
        with self._lock:
            self._busy[session] += 1
            self._begin_to_tidy()
        try:
            yield
        finally:
            with self._lock:
                self._busy[session] -= 1
                if not self._busy[session]:
                    del self._busy[session]
                if session in self._open:
                    self._open[session].seen = time.monotonic()

    def why_sent_away(self, session: str | None) -> str:
        """Why a page has nothing any more that it had; "" where that is not so or was said."""
        with self._lock:
            return self._sent_away.pop(session, "")

    # what they send

    @contextmanager
    def upload(self) -> Iterator[Path]:
        """A new folder for an upload, which goes where it fails, or where nobody claims it soon."""
        with self._lock:
            folder = self._new_folder(self.uploads)
            self._receiving[folder] = 0
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            with self._lock:
                del self._receiving[folder]

    def claim(
        self,
        session: str | None,
        files: Iterable[Path],
        *,
        is_sent: bool = True,
        is_early: bool = False,
    ) -> None:
        """Let files in `uploads/` go with the page that they were sent from, or are shown on.

        Raises UsageError, and removes those that are new, where what was sent is more than its
        share; where it is early for that, they are claimed later or never.
        """
        folders = {self.uploads / path.relative_to(self.uploads).parts[0] for path in files}
        with self._lock:
            visitor = self.of(session)
            new = folders - visitor.uploads
            if not new:
                return
            visitor.uploads |= new
            visitor.taken = time.monotonic()
            size, most = _size(visitor.folder, *visitor.uploads), self._limits.visitor_bytes
            if size <= most or not is_sent:
                return
            visitor.uploads -= new
        if is_early:
            return
        self._remove_unowned(new)
        raise UsageError(
            f"This page would have {format_bytes(size)} of files with that, and one may have "
            f"{format_bytes(most)}: load it again to begin without those that are there, or give "
            "less."
        )

    def use_up(self, visitor: Visitor, files: Iterable[str | Path]) -> None:
        """Files that were sent are not needed any more."""
        with self._lock:
            now = time.monotonic()
            visitor.used += [
                (now, path) for path in map(Path, files) if path.is_relative_to(self.uploads)
            ]

    def make_room(self, more: int = 0, upload: Path | None = None) -> None:
        """Let go of what is idle for longest until `more` bytes fit, which `upload` then may take.

        Raises UsageError where they do not, or where the disk is full.
        """
        most = self._limits.disk_bytes
        with self._making_room:
            while self._used() + more > most:
                if not self._let_one_go():
                    raise UsageError(
                        f"The {format_bytes(most)} that files of all visitors may have are taken. "
                        "Try again in a minute."
                    )
            check_free(self.folder, self._limits, more)
            with self._lock:
                if upload in self._receiving:
                    self._receiving[upload] += more

    def locate(self, address: str) -> Path | None:
        """The file that the page calls `uploads/…` or `visitors/…`; None where there is none."""
        if "\0" in address or not address.startswith(("uploads/", "visitors/")):
            return None
        path = self.folder / address
        if ".." in path.parts:  # else it could be tried what the folder is called
            return None
        is_own = path.is_relative_to(self.uploads) or (
            path.is_relative_to(self._folders) and path.suffix in _SHOWN
        )
        return path if is_own and path.is_file() and path.resolve() == path else None

    def address(self, path: Path) -> str:
        """What the page calls a file of the app, as `locate` takes it."""
        return path.relative_to(self.folder).as_posix()

    def without_paths(self, text: str) -> str:
        """A text in which files of the app have addresses."""
        if self.folder.name not in text:
            return text
        for folder in (str(self.folder), quote(str(self.folder))):
            text = text.replace(f"{folder}{os.sep}", "").replace(f"{folder}/", "")
        return text

    # who goes

    def tidy(self) -> None:
        """Let go of pages that were closed or idle for too long, and of what belongs to nobody."""
        now = time.monotonic()
        with self._lock:
            gone = [one for one, visitor in self._open.items() if self._has_gone(one, visitor, now)]
            left = [
                self._send_away(session, _IDLE if self._open[session].closed is None else "")
                for session in gone
            ]
            late: list[Path] = []
            for visitor in self._open.values():
                late += [path for since, path in visitor.used if now - since > _SOON]
                visitor.used = [one for one in visitor.used if one[1] not in late]
        for visitor in left:
            self._leave(visitor)
        for path in (*late, *self._unclaimed(self._grace)):
            _remove(path)
        self.also_tidy()

    def close(self) -> None:
        """Everybody leaves at once: the app ends."""
        self._ended.set()
        with self._lock:
            left = [self._send_away(session) for session in list(self._open)]
        for visitor in left:
            self._leave(visitor)

    def _tidy_again(self) -> None:
        while not self._ended.wait(min(_SOON / 2, self._grace)):
            try:
                self.tidy()
                _give_back_memory()
            except Exception:  # the next time may go better
                logger.exception("files of visitors cannot be tidied up")

    def _begin_to_tidy(self) -> None:
        if not self._tidying.is_alive() and not self._ended.is_set():
            self._tidying.start()

    def _new_folder(self, within: Path) -> Path:
        if self._ended.is_set():
            raise UsageError("The app is being closed.")
        self._begin_to_tidy()
        folder = within / secrets.token_urlsafe(16)
        folder.mkdir(mode=0o700)
        return folder

    def _has_gone(self, session: str | None, visitor: Visitor, now: float) -> bool:
        if visitor.closed is not None:
            return now - visitor.closed >= self._grace
        return session not in self._busy and now - visitor.seen >= self._limits.idle_seconds

    def _send_away(self, session: str | None, why: str = "") -> Visitor:
        """Know a visitor no longer; `_leave` is for later, as it waits for what is being done."""
        if why:
            self._sent_away[session] = why
            if len(self._sent_away) > _MOST_SENT_AWAY:
                del self._sent_away[next(iter(self._sent_away))]
        return self._open.pop(session)

    def _leave(self, visitor: Visitor) -> None:
        visitor.leave()
        self._remove_unowned(visitor.uploads)

    def _owned(self) -> set[Path]:
        return {folder for visitor in self._open.values() for folder in visitor.uploads}

    def _remove_unowned(self, folders: Iterable[Path]) -> None:
        with self._lock:
            unowned = set(folders) - self._owned()
        for folder in unowned:
            shutil.rmtree(folder, ignore_errors=True)

    def _unclaimed(self, seconds: float) -> list[Path]:
        """What nobody has claimed for so long, oldest first."""
        with self._lock:
            folders = {visitor.folder for visitor in self._open.values()}
            known = self._receiving.keys() | self._owned() | folders
        found = []
        for path in (*self.uploads.iterdir(), *self._folders.iterdir()):
            if path not in known:
                with suppress(OSError):
                    inside = path.iterdir() if path.is_dir() and not path.is_symlink() else ()
                    changed = max(one.lstat().st_mtime for one in (path, *inside))
                    if time.time() - changed >= seconds:
                        found.append((changed, path))
        return [path for _, path in sorted(found)]

    def _used(self) -> int:
        """Bytes of all visitors, with those that are still to come of uploads."""
        with self._lock:
            receiving = dict(self._receiving)
        coming = (max(0, room - _size(folder)) for folder, room in receiving.items())
        return _size(self.uploads, self._folders) + sum(coming)

    def _let_one_go(self) -> bool:
        """Make some room; whether there was anybody to let go."""
        if unclaimed := self._unclaimed(_SOON):
            _remove(unclaimed[0])
            return True
        now = time.monotonic()
        with self._lock:
            free = [
                (session, visitor)
                for session, visitor in self._open.items()
                if session not in self._busy and now - visitor.taken > _SOON
            ]
        sizes = {one: _size(visitor.folder, *visitor.uploads) for one, visitor in free}
        holding = [(one, visitor) for one, visitor in free if sizes[one]]
        if not holding:
            return False
        idle = [one for one in holding if now - one[1].seen >= _IDLE_ENOUGH]
        # Whoever only pretends to be busy is found by what it holds, and for how long.
        session, visitor = (
            min(idle, key=lambda one: one[1].seen)
            if idle
            else max(holding, key=lambda one: sizes[one[0]] * (now - one[1].taken))
        )
        logger.warning("a visitor's %s go to make room", format_bytes(sizes[session]))
        with self._lock:
            if self._open.get(session) is visitor:
                self._send_away(session, _MADE_ROOM)
        self._leave(visitor)
        return True


def _give_back_memory() -> None:
    """Let the C library give back what was freed: it keeps that of every thread's busiest time."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in every C library
        if trim is not None:
            trim(0)


def _size(*folders: Path) -> int:
    """Bytes of all files in folders; those with several names count once."""
    found: dict[tuple[int, int], int] = {}
    for top in folders:
        for folder, _, names in os.walk(top):
            for name in names:
                with suppress(OSError):
                    status = os.lstat(os.path.join(folder, name))
                    found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _locked_folder() -> Iterator[Path]:
    """A new folder for temporary files that is locked as long as this process lives.

    Those of processes that were killed are removed.
    """
    from filelock import FileLock

    place = Path(tempfile.gettempdir()).resolve()
    for folder in place.glob(f"{_PREFIX}*"):
        _remove_dead(folder)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    lock = FileLock(folder / f"{_LOCK}.new", thread_local=False)
    lock.acquire(blocking=False)
    with suppress(OSError):  # under its name it is never seen without its lock
        os.rename(folder / f"{_LOCK}.new", folder / _LOCK)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            lock.release()


def _remove_dead(folder: Path) -> None:
    """Remove the folder of an app that does not live any more, if it is one of this user's."""
    from filelock import FileLock, Timeout

    user = getattr(os, "getuid", lambda: 0)()
    with suppress(OSError, Timeout):
        found = folder.lstat()
        if S_ISDIR(found.st_mode) and not {_LOCK, f"{_LOCK}.new"} & {*os.listdir(folder)}:
            # What came while its app removed it has no lock; a new one gets its own at once.
            if found.st_uid == user and time.time() - found.st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
            return
        locked = (folder / _LOCK).lstat()
        is_own = found.st_uid == locked.st_uid == user
        if not (is_own and S_ISDIR(found.st_mode) and S_ISREG(locked.st_mode)):
            return
        lock = FileLock(folder / _LOCK, thread_local=False)
        lock.acquire(blocking=False)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            logger.info("%s: removed, as the app that it belonged to was killed", folder)
        finally:
            lock.release()
