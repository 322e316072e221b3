"""How one app is set up, the bounds of what it takes, and the library that it needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from NatureLM.errors import UsageError
from NatureLM.util import library

if TYPE_CHECKING:
    from NatureLM.config import Config

_ASSETS = Path("assets")


@dataclass(frozen=True)
class Limits:
    """Bounds of one app. Seconds are of sound, bytes of files."""

    upload_bytes: int = 4 * 10**9  # a recording, whichever tab it is dropped into
    ask_seconds: float = 300.0  # a clip that is asked about; longer ones belong into Long recording
    clips: int = 10  # in one prompt
    question_characters: int = 2000  # with all that is in the question
    list_bytes: int = 10**6  # a file with a list of species
    labels: int = 1000  # names in a list of species
    long_seconds: float = 24 * 3600.0  # a recording in Long recording
    folder_files: int = 2000  # recordings in one job
    waiting_jobs: int = 8  # behind the one that runs
    waiting_questions: int = 32  # of all visitors
    free_bytes: int = 10**9  # of a disk that stay free: nothing is written that leaves less
    answers_at_once: int = 4  # questions that are worked on at the same time


@dataclass(frozen=True)
class AppSettings:
    """What `naturelm inference-app` was told.

    model: name, id or folder; None for the embedded one
    config: None for the built-in settings
    alpha: where the sliders stand at first; None for that of the configuration
    assets_dir: folder of sample recordings
    runs_dir: folder of jobs and experiments
    """

    model: str | None = None
    config: Config | None = None
    alpha: float | None = None
    device: str = "auto"
    dtype: str = "auto"
    host: str = "127.0.0.1"
    port: int = 5001
    share: bool = False
    assets_dir: Path | None = None
    runs_dir: Path = Path("runs")
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


def need_gradio() -> None:
    """Turn the telemetry of Gradio off; raises UsageError where it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Else the browser keeps what was asked and answered after the page is closed.
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    with past_proxies():
        library(
            "gradio",
            "the web app needs gradio, which is not installed: pip install 'naturelm-audio[app]'",
        )


@contextmanager
def past_proxies() -> Iterator[None]:
    """Within the block no request goes through a proxy, nor fails for what one needs.

    Gradio opens clients when it is imported, and asks its own page when it is launched.
    """
    before = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    for name in before:
        del os.environ[name]
    os.environ["NO_PROXY"] = "*"  # else the settings of the system count
    try:
        yield
    finally:
        del os.environ["NO_PROXY"]
        os.environ.update(before)


def keep_loopback_direct(host: str) -> None:
    """Let no later request of this process to itself go through a proxy that is set."""
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name.strip() for name in given.split(",") if name.strip()]
    if "*" not in names:
        names += ["localhost", "127.0.0.1", "::1", host]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys(names))
