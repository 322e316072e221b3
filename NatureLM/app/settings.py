"""How one app is set up: what `naturelm inference-app` was told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from NatureLM.app.limits import Limits
from NatureLM.errors import UsageError

if TYPE_CHECKING:
    from NatureLM.config import Config

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
