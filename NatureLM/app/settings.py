"""How one app is set up: what `naturelm inference-app` was told.

What all tabs share: the settings, the model once it is loaded, and who has the page open.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from NatureLM.app.jobs.queue import JobQueue
from NatureLM.app.jobs.store import JobLibrary
from NatureLM.app.limits import Limits
from NatureLM.app.visitors import Visitor, Visitors
from NatureLM.errors import NatureLMError, UsageError

if TYPE_CHECKING:
    from NatureLM.config import Config
    from NatureLM.inference.pipeline import Pipeline


DEFAULT_PORT = 5001
DEFAULT_HOST = "127.0.0.1"
DEFAULT_RUNS = Path("runs")
_ASSETS = Path("assets")


@dataclass(frozen=True)
class AppSettings:
    """`model` None is the embedded one; `config` None the built-in settings; `alpha` None that of
    the configuration. `assets_dir` holds sample recordings, `runs_dir` jobs and experiments.
    """

    model: str | None = None
    config: Config | None = None
    alpha: float | None = None
    device: str = "auto"
    dtype: str = "auto"
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    share: bool = False
    assets_dir: Path | None = None
    runs_dir: Path = DEFAULT_RUNS
    limits: Limits = field(default_factory=Limits)


def folder_of_samples(named: Path | None) -> Path | None:
    """The folder of sample recordings: the named one, else `assets` where there is one.

    Raises UsageError if the named one is no folder.
    """
    if named is None:
        return _ASSETS if _ASSETS.is_dir() else None
    if not named.is_dir():
        raise UsageError(f"{named}: there is no such folder; --assets-dir names one")
    return named


ModelState = Literal["waiting", "loading", "ready", "failed"]
TEMPORARY = "naturelm-app-"


class ModelNotReady(NatureLMError):  # noqa: N818 (nothing went wrong)
    """The model did not load, or not in the time that a visitor waits."""


@dataclass
class PageParts:
    """Components of the page that tabs act on.

    Attributes:
        tabs: the `gr.Tabs`; its ids are the names of the files in `tabs`.
        handed_over: a `gr.State` with a recording that another tab hands to Long recording:
            (path under the visitor's folder, name that the visitor knows), or None.
    """

    tabs: Any
    handed_over: Any


class AppContext:
    """One app. `folder` is temporary and goes with it; `parts` is set while the page is built."""

    parts: PageParts

    def __init__(self, settings: AppSettings, pipeline: Pipeline | None = None) -> None:
        self.settings = settings
        self.limits: Limits = settings.limits
        self.runs_dir = settings.runs_dir.resolve()
        self.assets_dir = None if settings.assets_dir is None else settings.assets_dir.resolve()
        self.folder = Path(tempfile.mkdtemp(prefix=TEMPORARY)).resolve()
        self.uploads = self.folder / "uploads"
        self.uploads.mkdir()
        self.visitors = Visitors(self.folder / "visitors")
        self.library = JobLibrary(self.runs_dir, self.limits)
        self.jobs = JobQueue(
            self.library,
            self.pipeline,
            model=self.model_name,
            waiting=self.limits.waiting_jobs,
        )
        self._pipeline = pipeline
        self._state: ModelState = "waiting" if pipeline is None else "ready"
        self._error: str | None = None
        self._settled = threading.Event()
        self._start = threading.Lock()
        if pipeline is not None:
            self._settled.set()

    @property
    def state(self) -> ModelState:
        """How far the model is."""
        return self._state

    @property
    def error(self) -> str | None:
        """Why the model did not load."""
        return self._error

    @property
    def sample_rate(self) -> int:
        """Hz, of what the model hears; that of the published model until it is known."""
        return 16_000 if self._pipeline is None else int(self._pipeline.model.config.sample_rate)

    @property
    def alpha(self) -> float:
        """The α that the page starts with."""
        if self.settings.alpha is not None:
            return self.settings.alpha
        if self.settings.config is not None:
            return self.settings.config.generate.merging_alpha
        return 1.0

    @property
    def model_name(self) -> str:
        """What the model is called."""
        if self.settings.model is not None:
            return self.settings.model
        from NatureLM.models.registry import EMBEDDED

        return EMBEDDED

    def start_loading(self) -> None:
        """Load the model in a thread of its own; a second call does nothing."""
        with self._start:
            if self._state != "waiting":
                return
            self._state = "loading"
        threading.Thread(target=self._load, name="load model", daemon=True).start()

    def pipeline(self, timeout: float | None = None) -> Pipeline:
        """The loaded pipeline; waits for it. Raises `ModelNotReady` with the reason."""
        self.start_loading()
        if not self._settled.wait(timeout):
            raise ModelNotReady("The model is still loading. Try again in a moment.")
        if self._pipeline is None:
            raise ModelNotReady(f"The model could not be loaded. {self._error}")
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
        try:
            from NatureLM.app.chat import load_pipeline

            self._pipeline = load_pipeline(self.settings)
            self._state = "ready"
        except NatureLMError as error:
            self._fail(str(error))
        except Exception as error:  # the page lives on and says so, whatever a library raised
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            self._settled.set()

    def _fail(self, reason: str) -> None:
        self._error = reason
        self._state = "failed"
