"""What the timeline's script asks the app for: pictures and sound of a stretch of a recording."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, TypeAlias

from NatureLM.app.context import AppContext
from NatureLM.app.jobs import Job, JobRecording
from NatureLM.app.jobs.sound import JobSound
from NatureLM.errors import NatureLMError

ServerFunction: TypeAlias = Callable[[Any], dict[str, Any]]

_COLUMNS = 1200
_CLOSE_UP_COLUMNS = 1000


def server_functions(context: AppContext) -> list[ServerFunction]:
    """`stretch` and `listen`; each takes job, recording, start and end, and never raises."""
    sound = JobSound(context.library, lambda: context.sample_rate)

    def stretch(wanted: Any) -> dict[str, Any]:
        def draw(job: Job, recording: JobRecording, start: float, end: float) -> dict[str, Any]:
            columns = int(wanted.get("columns", _COLUMNS))
            highest = context.sample_rate / 2000 * job.settings.time_expansion
            return {
                "picture": _base64(sound.stretch(job, recording, start, end, columns)),
                "kilohertz": f"{highest:g}",
            }

        return _answer(context, wanted, draw)

    def listen(wanted: Any) -> dict[str, Any]:
        def play(job: Job, recording: JobRecording, start: float, end: float) -> dict[str, Any]:
            return {
                "picture": _base64(sound.stretch(job, recording, start, end, _CLOSE_UP_COLUMNS)),
                "sound": _base64(sound.heard(job, recording, start, end)),
            }

        return _answer(context, wanted, play)

    return [stretch, listen]


def _answer(
    context: AppContext,
    wanted: Any,
    make: Callable[[Job, JobRecording, float, float], dict[str, Any]],
) -> dict[str, Any]:
    """Answer a request of the page, or say what is wrong; what it sends is not trusted."""
    try:
        job = context.library.open(wanted["job"])
        recording = {one.file: one for one in job.recordings}[wanted["recording"]]
        return make(job, recording, float(wanted["start"]), float(wanted["end"]))
    except NatureLMError as error:
        return {"error": str(error)}
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return {"error": "The page asked for something that is not there: load it again."}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
