"""How one app is set up, the bounds of what it takes, and the library that it needs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from NatureLM.errors import UsageError
from NatureLM.inference.background import ModelSettings
from NatureLM.review.server import routes as review_routes
from NatureLM.util import library
from NatureLM.web.guard import Route, Rules, page_rules

_ASSETS = Path("assets")


@dataclass(frozen=True)
class Limits:
    """Bounds of one app. Seconds are of sound, bytes of files."""

    upload_bytes: int = 4 * 10**9  # a recording, whichever tab it is dropped into
    ask_seconds: float = 300.0  # a clip that is asked about; longer ones belong into Long recording
    drop_bytes: int = 40 * 10**9  # all recordings that are dropped at once
    question_bytes: int = 2 * 10**6  # a request that is no upload
    clips: int = 10  # in one prompt
    question_characters: int = 2000  # with all that is in the question
    list_bytes: int = 10**6  # a file with a list of species
    labels: int = 1000  # names in a list of species
    long_seconds: float = 24 * 3600.0  # a recording in Long recording
    folder_files: int = 2000  # recordings in one job
    job_answers: int = 200_000  # of one job: windows of all its recordings, times its questions
    waiting_jobs: int = 8  # behind the one that runs
    waiting_questions: int = 32  # of all visitors
    disk_bytes: int = 80 * 10**9  # files of all visitors together, without those of jobs
    idle_seconds: float = 3600.0  # without an event, after which a visitor goes
    free_bytes: int = 10**9  # of a disk that stay free: nothing is written that leaves less
    answers_at_once: int = 4  # questions that are worked on at the same time
    pictures_at_once: int = 2  # stretches of recordings that are drawn or heard at the same time
    waiting_pictures: int = 16  # behind those, of all visitors
    sessions: int = 128  # whose page remembers its job and recording; the page takes 0.5 MB of each

    @property
    def visitor_bytes(self) -> int:
        """Of the files of one visitor."""
        return self.disk_bytes // 2


@dataclass(frozen=True, kw_only=True)
class AppSettings(ModelSettings):
    """What `naturelm inference-app` was told; at `alpha` the sliders stand at first.

    assets_dir: folder of sample recordings
    runs_dir: folder of jobs and experiments
    hosts: names under which a reverse proxy is reached
    token: opens the page; None where it is open to whoever reaches it, or to `people`
    people: name → password
    """

    host: str = "127.0.0.1"
    port: int = 5001
    share: bool = False
    assets_dir: Path | None = None
    runs_dir: Path = Path("runs")
    hosts: tuple[str, ...] = ()
    token: str | None = None
    people: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)


def read_people(path: Path | None) -> dict[str, str]:
    """Name → password of a file with `name:password` on each line. Raises UsageError."""
    if path is None:
        return {}
    try:
        mode = path.stat().st_mode
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: --auth cannot read it: {error}") from None
    if os.name == "posix" and mode & 0o077:
        raise UsageError(
            f"{path}: others on this computer can open it (mode {mode & 0o777:o}), and it has "
            f"passwords: chmod 600 {path}"
        )
    people: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, colon, password = line.strip().partition(":")
        if not line.strip() or line.startswith("#"):
            continue
        if not colon or not name or len(password) < 8 or name in people:
            raise UsageError(
                f"{path}, line {number}: each line is name:password, each name once, a password "
                "of 8 characters or more"
            )
        people[name] = password
    if not people:
        raise UsageError(f"{path}: there is nobody in it; each line is name:password")
    return people


def guard_rules(settings: AppSettings) -> Rules:
    """What of Gradio can be reached: what the page asks for, and what its Python client does."""
    limits, api = settings.limits, "/gradio_api"
    routes = (
        Route("/|/theme.css|/config"),
        Route(r"/(assets|static)/[\w./-]+|/favicon\.ico", public=True),
        Route(f"{api}/info"),
        # Files of visitors by their addresses: no path, and nothing that Gradio would fetch. What
        # was sent may be a page: it runs nothing.
        Route(
            f"{api}/file=(uploads|visitors)/.+",
            policy="default-src 'none'; frame-ancestors 'none'; sandbox allow-downloads",
        ),
        Route(f"{api}/startup-events", public=True),  # Gradio asks itself for it
        Route(rf"{api}/heartbeat/\w{{1,64}}|{api}/queue/data|{api}/upload_progress"),
        Route(rf"{api}/call/\w+/\w{{1,64}}"),
        Route(
            rf"{api}/queue/join|{api}/run/predict|{api}/call/\w+",
            methods=("POST",),
            body=limits.question_bytes,
        ),
        Route(f"{api}/cancel|{api}/reset", methods=("POST",), body=4096),
        Route(
            f"{api}/component_server/?",  # `stretch` and `listen` of the timelines
            methods=("POST",),
            body=4096,
            at_once=limits.pictures_at_once,
            waiting=limits.waiting_pictures,
        ),
        Route(
            f"{api}/upload",
            methods=("POST",),
            body=limits.drop_bytes,
            seconds=12 * 3600.0,
            only_files=True,
        ),
        *review_routes(r"/review/[A-Za-z0-9_-]{32}"),  # of jobs,
    )
    return page_rules(
        *(routes, settings.host, settings.port),
        proxied=settings.hosts,
        token=settings.token,
        people=settings.people,
    )


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
