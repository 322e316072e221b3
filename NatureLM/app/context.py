"""What all tabs share: the model once it is loaded, the jobs, and who has the page open."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from NatureLM.app.jobs import Jobs
from NatureLM.app.settings import AppSettings
from NatureLM.errors import NatureLMError
from NatureLM.models.registry import EMBEDDED

if TYPE_CHECKING:
    from NatureLM.inference.pipeline import Pipeline

ModelState = Literal["waiting", "loading", "ready", "failed"]
GRACE_SECONDS = 60.0
"""How long a page that was closed or lost its connection keeps what it has."""

T = TypeVar("T")


class AppContext:
    """One app.

    folder: temporary, goes with the app
    tabs: the page's `gr.Tabs`; the page sets it before it builds the tabs, as the next one
    handed_over: a `gr.State` with a recording that another tab hands to Long recording: (path,
        name that the visitor knows), or None
    """

    tabs: Any
    handed_over: Any

    def __init__(self, settings: AppSettings, pipeline: Pipeline | None = None) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.model_name = settings.model or EMBEDDED
        self.runs_dir = settings.runs_dir.resolve()
        self.assets_dir = None if settings.assets_dir is None else settings.assets_dir.resolve()
        self.folder = Path(tempfile.mkdtemp(prefix="naturelm-app-")).resolve()
        self.uploads = self.folder / "uploads"
        self.uploads.mkdir()
        self.visitors = Visitors(self.folder / "visitors")
        self.jobs = Jobs(self.runs_dir, self.pipeline, model=self.model_name, limits=self.limits)
        self.state: ModelState = "waiting" if pipeline is None else "ready"
        self.error: str | None = None  # why the model did not load
        self._pipeline = pipeline
        self._settled = threading.Event()
        self._start = threading.Lock()
        if pipeline is not None:
            self._settled.set()

    @property
    def sample_rate(self) -> int:
        """Hz, of what the model hears; that of the published model until it is known."""
        return 16_000 if self._pipeline is None else int(self._pipeline.model.config.sample_rate)

    @property
    def alpha(self) -> float:
        if self.settings.alpha is not None:
            return self.settings.alpha
        config = self.settings.config
        return 1.0 if config is None else config.generate.merging_alpha

    def start_loading(self) -> None:
        """Load the model in a thread of its own; a second call does nothing."""
        with self._start:
            if self.state != "waiting":
                return
            self.state = "loading"
        threading.Thread(target=self._load, name="load model", daemon=True).start()

    def pipeline(self, timeout: float | None = None) -> Pipeline:
        """The loaded pipeline; waits for it. Raises NatureLMError that says why there is none."""
        self.start_loading()
        if not self._settled.wait(timeout):
            raise NatureLMError("The model is still loading. Try again in a moment.")
        if self._pipeline is None:
            raise NatureLMError(f"The model could not be loaded. {self.error}")
        return self._pipeline

    def visitor(self, request: Any) -> Visitor:
        """Whoever has the page open that this `gr.Request` came from."""
        return self.visitors.of(getattr(request, "session_hash", None))

    def close(self) -> None:
        """Stop the job that is worked on and remove all that is temporary."""
        self.jobs.close()
        self.visitors.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _load(self) -> None:
        from NatureLM.config import Config
        from NatureLM.inference.pipeline import Pipeline, load_model

        settings = self.settings
        config = settings.config or Config()
        try:
            model = load_model(
                self.model_name,
                config,
                device=settings.device,
                dtype=settings.dtype,
                revision=settings.revision,
                weights_hash=settings.weights_hash,
            )
            self._pipeline = Pipeline(model, config=config)
            self.state = "ready"
        except Exception as error:  # the page lives on and says so, whatever a library raised
            is_ours = isinstance(error, NatureLMError)
            self.error = str(error) if is_ours else f"{type(error).__name__}: {error}"
            self.state = "failed"
        finally:
            self._settled.set()


@dataclass
class Visitor:
    """One open page. `folder` has an unguessable name and goes with the page."""

    folder: Path
    lock: threading.RLock = field(default_factory=threading.RLock)
    leaving: threading.Timer | None = None
    _kept: dict[str, Any] = field(default_factory=dict)

    def keep(self, name: str, make: Callable[[], T]) -> T:
        """What is kept under this name, made at the first call."""
        with self.lock:
            if name not in self._kept:
                self._kept[name] = make()
            value: T = self._kept[name]
            return value

    def stay(self) -> None:
        """Come back before the grace is over."""
        if self.leaving is not None:
            self.leaving.cancel()
            self.leaving = None

    def leave(self) -> None:
        """Close what can be closed and remove the folder."""
        self.stay()
        with self.lock:
            for value in self._kept.values():
                if hasattr(value, "close"):
                    value.close()
            self._kept.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


class Visitors:
    """All open pages of one app, by the session that the browser was given."""

    def __init__(self, folder: Path, grace_seconds: float = GRACE_SECONDS) -> None:
        self._folder = folder
        self._grace = grace_seconds
        self._lock = threading.Lock()
        self._open: dict[str | None, Visitor] = {}

    def of(self, session: str | None) -> Visitor:
        """The visitor of a session; a new one at the first call."""
        with self._lock:
            if session not in self._open:
                folder = self._folder / secrets.token_urlsafe(16)
                folder.mkdir(parents=True)
                self._open[session] = Visitor(folder)
            self._open[session].stay()
            return self._open[session]

    def closed(self, session: str | None) -> None:
        """The page was closed: what it had goes after the grace, unless it comes back."""
        with self._lock:
            visitor = self._open.get(session)
            if visitor is None or visitor.leaving is not None:
                return
            visitor.leaving = threading.Timer(self._grace, self._remove, [session])
            visitor.leaving.daemon = True
            visitor.leaving.start()

    def close(self) -> None:
        """Everybody leaves at once: the app ends."""
        with self._lock:
            visitors = list(self._open.values())
            self._open.clear()
        for visitor in visitors:
            visitor.leave()

    def _remove(self, session: str | None) -> None:
        with self._lock:
            visitor = self._open.get(session)
            if visitor is None or visitor.leaving is None:
                return
            del self._open[session]
        visitor.leave()
