"""The review page: its files, the clips of a folder by their numbers, and the verdicts.

`review_app` makes the application for one folder, without access rules; `guarded` puts these in
front of it; `serve` runs it until it is stopped. In the web app it is mounted for folders of jobs.
"""

from __future__ import annotations

import hashlib
import io
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from NatureLM.audio import AudioError
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.progress import printable
from NatureLM.review.folder import Segment, VerdictStore, checked_reviewer, read_segments
from NatureLM.util import library, parse_json
from NatureLM.web.guard import Guard, Route, page_rules
from NatureLM.web.server import App, check_port, in_address, is_loopback, server_config

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from starlette.applications import Starlette

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'"
)
SLOWED = (1, 2, 4, 10)
"""How many times slower a clip can be heard."""
TOPS = (12_000, 8000, 24_000, 0)
"""Up to how many Hz a clip can be drawn; 0 for all that it has."""
_PARTS = {
    "review.html": "text/html",
    "review.css": "text/css",
    **dict.fromkeys(("review.js", "clips.js", "saving.js"), "text/javascript"),
}
_FILE_BYTES, _SECONDS, _DECODED_BYTES = 200 * 10**6, 600.0, 400 * 10**6  # of a clip
_PLAYED_RATES = 8000, 48_000  # Hz, least and most, that every browser and sound card plays
_BODY_BYTES = 8192


class Clips:
    """A folder of clips that is open for review; `close` ends that.

    shown: the folder in a command, where that is not as it is given
    title: how the page calls the clips; the name of the folder, if nothing else is given

    Raises UsageError where the folder has no index, OutputError where no verdicts can be written.
    """

    def __init__(self, folder: Path, shown: str = "", title: str = "") -> None:
        self.folder = Path(os.path.realpath(folder))
        self.shown, self.title = shown or str(folder), title or self.folder.name
        self.segments = read_segments(folder)
        if not self.segments:
            raise UsageError(f"{folder}: there are no clips in its index, so nothing to review")
        self.store = VerdictStore(folder)

    def close(self) -> None:
        self.store.close()

    @cached_property
    def id(self) -> str:
        """Tells this folder from any other, for what a browser keeps; no path is in it."""
        return hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Number of each clip."""
        return {one.clip: number for number, one in enumerate(self.segments)}

    def told(self) -> dict[str, Any]:
        """What the page needs to know of the folder and its clips."""
        return {
            "id": self.id,
            "folder": printable(self.shown),
            "title": printable(self.title),
            "clips": [_told(one) for one in self.segments],
        }

    def sound(self, number: int) -> tuple[NDArray[np.float32], int]:
        """The samples of a clip, all channels mixed, and their rate in Hz.

        Raises UsageError where the file is gone or lies outside of the folder, AudioError where it
        cannot be read.
        """
        from NatureLM.audio.decode import SoundLimits, probe
        from NatureLM.audio.windows import read_noted_clip

        if number >= len(self.segments):
            raise UsageError(f"there is no clip {number} here; load the page anew")
        clip = self.segments[number].clip
        path = Path(os.path.realpath(self.folder / clip))
        if not path.is_relative_to(self.folder) or not path.is_file():
            raise UsageError(f"{printable(clip)}: this clip is not in the folder any more")
        limits = SoundLimits(_FILE_BYTES, _SECONDS, _DECODED_BYTES)
        try:
            rate = round(probe(path, limits).sample_rate)
            return read_noted_clip(path, sample_rate=rate, limits=limits)[0], rate
        except AudioError as error:
            raise UsageError(f"{printable(clip)}: {error.renamed(clip).reason}") from None

    def said_by(self, reviewer: str) -> dict[str, Any]:
        """Verdicts of a reviewer as (number, verdict), oldest first, and the names of all.

        What others said is there once the reviewer has judged every clip, so that nobody follows
        anybody.
        """
        mine: list[tuple[int, str]] = []
        others: dict[str, dict[int, str]] = {}
        names: dict[str, None] = {}
        for one in self.store.verdicts():
            names[one.reviewer] = None
            number = self.numbers.get(one.clip)
            if number is None:
                continue  # of a clip that is not in the index any more
            if one.reviewer == reviewer:
                mine.append((number, one.verdict))
            else:
                others.setdefault(one.reviewer, {})[number] = one.verdict
        is_done = len(mine) == len(self.segments)
        return {"verdicts": mine, "reviewers": list(names), "others": others if is_done else None}


def _told(one: Segment) -> dict[str, Any]:
    """A clip for the page: no folder of this computer, times in seconds of the clip."""
    return {
        "clip": one.clip,
        "label": one.label,
        "names": [name for name in (one.common_name, one.scientific_name) if name],
        "confidence": one.confidence,
        "recording": PureWindowsPath(one.recording).name,  # which knows both kinds of slashes
        "start": one.start,
        "end": one.end,
        "from": max(0.0, one.start - one.clip_start),
        "to": one.end - one.clip_start,
        "question": one.question,
        "site": one.site,
        "time": one.local_time,
        "slowed": one.time_expansion,
    }


def review_app(clips: Callable[[Any], Clips]) -> Starlette:
    """The application, whose addresses are relative, so that it can be mounted anywhere.

    clips: the folder that a request is about; raises NatureLMError where there is none
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route as At

    def part(name: str, kind: str) -> At:
        async def given(request: Any) -> Response:
            return Response(_static(name), media_type=kind)

        return At("/" if name == "review.html" else f"/{name}", given)

    def listed(request: Any) -> Response:
        return JSONResponse(clips(request).told())

    def said(request: Any) -> Response:
        reviewer = checked_reviewer(request.query_params.get("reviewer"))
        return JSONResponse(clips(request).said_by(reviewer))

    def sound(request: Any) -> Response:
        slowed = _one_of(request, "slowed", SLOWED)
        samples_S, rate = clips(request).sound(request.path_params["number"])
        return Response(heard(samples_S, rate, slowed), media_type="audio/wav")

    def picture(request: Any) -> Response:
        top = _one_of(request, "top", TOPS)
        samples_S, rate = clips(request).sound(request.path_params["number"])
        image, hertz = drawn(samples_S, rate, top)
        facts = {"x-seconds": f"{len(samples_S) / rate:.6g}", "x-hertz": f"{hertz:g}"}
        return Response(image, media_type="image/png", headers=facts)

    async def judged(request: Any) -> Response:
        body = await request.body()
        return JSONResponse(await run_in_threadpool(_judge, clips, request, body))

    async def refused(request: Any, error: Exception) -> Response:
        known = {_ChangedError: 409, UsageError: 400}
        status = next((s for kind, s in known.items() if isinstance(error, kind)), 503)
        return JSONResponse({"detail": str(error)}, status)

    return Starlette(
        routes=[
            *(part(name, kind) for name, kind in _PARTS.items()),
            At("/api/clips", listed),
            At("/api/verdicts", said),
            At("/api/verdicts", judged, methods=["POST"]),
            At("/api/clips/{number:int}/sound", sound),
            At("/api/clips/{number:int}/picture", picture),
        ],
        exception_handlers={NatureLMError: refused},
    )


def routes(prefix: str = "") -> tuple[Route, ...]:
    """What a guard lets through to the application below `prefix`, a regular expression."""
    parts = "|".join(name for name in _PARTS if name != "review.html").replace(".", "[.]")
    return (
        Route(rf"{prefix}/({parts})?", policy=POLICY),
        Route(rf"{prefix}/api/(clips|verdicts)"),
        # Pages ask for the next clips ahead, so there may be some at once.
        Route(rf"{prefix}/api/clips/\d{{1,7}}/(sound|picture)", at_once=4, waiting=64),
        Route(rf"{prefix}/api/verdicts", ("POST",), body=_BODY_BYTES, seconds=20.0),
    )


def heard(samples_S: NDArray[np.float32], rate: int, slowed: int) -> bytes:
    """A WAV file that every browser plays: the sound stretched, and as much lower.

    slowed: how many times slower it is heard
    """
    import soundfile  # type: ignore[import-untyped, unused-ignore]

    from NatureLM.audio.windows import Resampler

    lowest, highest = _PLAYED_RATES
    played = min(max(rate / slowed, lowest), highest)
    if played != rate / slowed:
        samples_S = Resampler(rate / slowed, played).push(samples_S, last=True)
    file = io.BytesIO()
    soundfile.write(file, samples_S.clip(-1, 1), round(played), "PCM_16", format="WAV")
    return file.getvalue()


def drawn(samples_S: NDArray[np.float32], rate: int, top: int) -> tuple[bytes, float]:
    """A spectrogram as PNG, and up to how many Hz it goes.

    top: that at most; 0 for all that the clip has
    """
    from NatureLM.audio.windows import Resampler
    from NatureLM.reports.clips import picture_of

    if top and rate > 2 * top:
        samples_S, rate = Resampler(rate, 2 * top).push(samples_S, last=True), 2 * top
    return picture_of(samples_S, rate), rate / 2


class _ChangedError(UsageError):
    """The page shows clips that the folder does not have any more."""


def _judge(clips: Callable[[Any], Clips], request: Any, body: bytes) -> dict[str, Any]:
    """Keep the verdict of a request; what is answered then."""
    try:
        sent = parse_json(body)
    except ValueError:
        sent = None
    if not isinstance(sent, dict):
        raise UsageError("a verdict is sent as a JSON object with clip, reviewer and verdict")
    found, clip = clips(request), sent.get("clip")
    if not isinstance(clip, str) or clip not in found.numbers:
        raise _ChangedError("this clip is not in the folder any more; load the page anew")
    verdict = sent.get("verdict")
    made = found.store.add(clip, sent.get("reviewer", ""), verdict if verdict is not None else "?")
    return {"clip": clip, "verdict": made.verdict, "at": made.at}


def _one_of(request: Any, name: str, allowed: Sequence[int]) -> int:
    """A number of the address; the first of the allowed ones where it has none."""
    given = request.query_params.get(name, str(allowed[0]))
    if given not in map(str, allowed):
        raise UsageError(f"{name} must be one of {', '.join(map(str, allowed))}")
    return int(given)


def _static(name: str) -> str:
    return (files("NatureLM.review") / "static" / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class ReviewSettings:
    """What `naturelm review` was told.

    reviewer: whose verdicts the printed address begins with; None lets the page ask
    hosts: names under which a reverse proxy is reached
    token: opens the page; None where it is open to whoever reaches it
    """

    folder: Path
    reviewer: str | None = None
    host: str = "127.0.0.1"
    port: int = 5002
    hosts: tuple[str, ...] = ()
    token: str | None = None

    def address(self, host: str) -> str:
        """What is opened in a browser of a computer that calls this one `host`."""
        given = {"token": self.token, "reviewer": self.reviewer}
        query = urlencode({name: value for name, value in given.items() if value is not None})
        return f"http://{in_address(host)}:{self.port}/" + (f"?{query}" if query else "")


def guarded(app: App, settings: ReviewSettings) -> Guard:
    """The application behind who may ask for what."""
    return Guard(
        app,
        page_rules(
            *(routes(), settings.host, settings.port),
            proxied=settings.hosts,
            token=settings.token,
            way_in="open the address that naturelm review printed",
        ),
    )


def make_server(settings: ReviewSettings, clips: Clips) -> Any:
    """A `uvicorn.Server`, whose `run` serves until its `should_exit` is set or a signal comes."""
    import uvicorn

    app = guarded(review_app(lambda _: clips), settings)
    more = {"timeout_graceful_shutdown": 10, "lifespan": "off", "ws": "none"}
    return uvicorn.Server(server_config(app, settings.host, settings.port, **more))


def need_libraries() -> None:
    """Raise UsageError, with the extra to install, where a library of the page is missing."""
    for module in ("starlette", "uvicorn", "PIL"):
        library(module, f"naturelm review needs {module}: pip install 'naturelm-audio[review]'")


def serve(settings: ReviewSettings, say: Callable[[str], None] = print) -> None:
    """Show the page until SIGTERM or Ctrl-C. Raises NatureLMError where that cannot be."""
    need_libraries()
    clips = Clips(settings.folder)
    try:
        check_port(settings.host, settings.port)
        server = make_server(settings, clips)
        say(f"The review is at {settings.address(settings.host)} (stop it with Ctrl-C).")
        if not is_loopback(settings.host):
            others = replace(settings, reviewer=None).address(socket.gethostname())
            say(f"Others in the network open {others}")
            if settings.token is None:
                say("Everybody who reaches it can review, as --no-token wants it.")
        say(f"Verdicts are kept in {clips.store.path}.")
        server.run()
    finally:
        clips.close()
