"""The web app on a port of its own, a pipeline that answers what a test wants to hear, and jobs."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from NatureLM.app.context import AppContext
from NatureLM.app.job import Job
from NatureLM.app.jobs import Jobs
from NatureLM.app.settings import AppSettings, Limits
from NatureLM.config import Config, load_config
from NatureLM.inference.background import PipelineLoader
from NatureLM.inference.windows import AskOptions
from NatureLM.results.rows import read_rows

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "assets"
BUBBLES = "#ask-chat :is([data-testid=user], [data-testid=bot])"


def echo(question: str, clips: Sequence[Any]) -> list[str]:
    """Says what it was asked, in three pieces."""
    seconds = ", ".join(f"{len(clip) / 16_000:g} s" for clip in clips)
    return ["You asked: ", question, f" ({len(clips)} clips: {seconds})"]


class FakeConversation:
    """Keeps what it was asked."""

    def __init__(self, pipeline: FakePipeline, alpha: float) -> None:
        self.alpha = alpha
        self.turns: list[SimpleNamespace] = []
        self.closed = False
        self._pipeline = pipeline

    def __enter__(self) -> FakeConversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def prompt(self) -> str:
        return "".join(f"<user>{turn.question}<model>{turn.answer}" for turn in self.turns)

    def ask(self, query: str, audios: Sequence[Any] = ()) -> Iterator[str]:
        turn = SimpleNamespace(question=query, answer="", clips=tuple(audios))
        self.turns.append(turn)
        for piece in self._pipeline.answer(query, audios):
            self._pipeline.gate.wait(10)
            turn.answer += piece
            yield piece

    def close(self) -> None:
        self.closed = True


class FakeEncoder:
    """Hears how loud a sound is, and how it goes up and down."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(
            sample_rate=16_000, window_seconds=10, fbank_cfg={}, patch_samples=2560
        )
        self.beats = SimpleNamespace(width=3, state_dict=dict)
        self.processor = self
        self.revisions: dict[str, str] = {}
        self.name_or_path = "naturelm-tiny"

    def prepare_audio(self, samples: Any) -> Any:
        import torch

        padded = torch.zeros(160_000)
        padded[: len(samples)] = torch.as_tensor(samples)[:160_000]
        return padded

    def encode_patches(self, wav_BS: Any) -> Any:
        import torch

        parts_BPS = wav_BS.unflatten(1, (10, -1))
        steps_BPS = parts_BPS.diff(dim=-1)
        told = (parts_BPS.square(), steps_BPS.square(), steps_BPS.diff(dim=-1).square())
        return torch.stack([one.mean(dim=-1).add(1e-6).log() for one in told], dim=-1)


class FakePipeline:
    """`answer` makes the pieces of an answer; while `gate` is clear no piece comes."""

    def __init__(self, answer: Callable[[str, Sequence[Any]], list[str]] = echo) -> None:
        self.answer = answer
        self.gate = threading.Event()
        self.gate.set()
        self.model = FakeEncoder()
        self.cfg = load_config()
        self.revisions: dict[str, str] = {}
        self.conversations: list[FakeConversation] = []
        self.asked_windows: list[dict[str, Any]] = []

    def conversation(self, *, alpha: float, input_sample_rate: float) -> FakeConversation:
        self.conversations.append(FakeConversation(self, alpha))
        return self.conversations[-1]

    def compare_alphas(
        self, clips: Sequence[Any], query: str, alphas: Sequence[float], **_: Any
    ) -> list[str]:
        return ["".join(self.answer(f"{query} {alpha:g}", clips)) for alpha in alphas]

    def windows(self, audios: Sequence[Any], query: str, **options: Any) -> Iterator[Any]:
        """Two windows: in the first the first label is likely, in the second the last."""
        self.asked_windows.append({"audios": audios, "query": query, **options})
        labels = list(options["labels"])
        for number, ordered in enumerate((labels, labels[::-1])):
            shares = [2.0 ** -(place + 1) for place in range(len(labels))]
            pairs = [
                (name, share / sum(shares)) for name, share in zip(ordered, shares, strict=True)
            ]
            yield SimpleNamespace(
                start=10.0 * number,
                end=10.0 * number + 10,
                text=pairs[0][0],
                confidence=pairs[0][1],
                alternatives=tuple(pairs[1:]),
            )


def until(is_so: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `is_so` gives once it is true."""
    end = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)
    return found


@contextmanager
def started(server: Any) -> Iterator[threading.Thread]:
    """A `uvicorn.Server`, which runs in the thread."""
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield thread
    finally:
        server.should_exit = True
        thread.join(5)
        server.force_exit = True  # whoever is still connected would be waited for
        thread.join(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def loaded(pipeline: Any) -> PipelineLoader:
    """A pipeline that was loaded."""
    loader = PipelineLoader(lambda: pipeline)
    loader.wait()
    return loader


@dataclass
class RunningApp:
    """A page that can be opened."""

    address: str
    context: Any  # AppContext; None where the app runs in another process
    pipeline: Any = None
    page: Any = None


@contextmanager
def running(
    folder: Path,
    pipeline: Any = None,
    limits: Limits | None = None,
    load: Callable[[], Any] | None = None,
    **some: Any,
) -> Iterator[RunningApp]:
    """The app on a port of its own; `load` gives another pipeline later, `some` are settings."""
    gradio = pytest.importorskip("gradio", reason="gradio is not installed")
    from NatureLM.app.page import build, launch

    settings = AppSettings(
        assets_dir=ASSETS,
        runs_dir=folder / "runs",
        limits=limits or Limits(),
        **{"port": free_port(), **some},
    )
    context = AppContext(settings, loaded(pipeline) if load is None else PipelineLoader(load))
    page = build(context)
    assert isinstance(page, gradio.Blocks)
    try:
        yield RunningApp(launch(page, context), context, pipeline, page)
    finally:
        page.close(verbose=False)
        context.close()


def call(address: str, data: bytes | None = None, kind: str = "") -> tuple[int, bytes]:
    """Status and body of a request; a POST where there is data."""
    request = urllib.request.Request(address, data, {"Content-Type": kind} if kind else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def file(app: RunningApp, path: str) -> tuple[int, bytes]:
    """Status and body of a file by its address."""
    return call(f"{app.address}gradio_api/file={path}")


def at_uploads_of(app: RunningApp) -> None:
    """Gradio looks up the folder of uploads each time, and each app of this process sets it."""
    if app.context is not None:
        os.environ["GRADIO_TEMP_DIR"] = str(app.context.visitors.uploads)


def upload(app: RunningApp, name: str, data: bytes) -> tuple[int, bytes]:
    """Status of an upload, and what is answered."""
    body = (
        f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode() + data
    return call(
        f"{app.address}gradio_api/upload",
        body + b"\r\n--x--\r\n",
        "multipart/form-data; boundary=x",
    )


def sent(app: RunningApp, data: bytes, name: str = "tone.wav") -> str:
    """The address of an upload."""
    status, body = upload(app, name, data)
    assert status == 200, body
    return str(json.loads(body)[0])


def as_file(address: str) -> dict[str, Any]:
    """An upload as the page hands it to a function."""
    return {"path": address, "meta": {"_type": "gradio.FileData"}}


def begun(app: RunningApp, name: str, data: list[Any], session: str | None) -> str:
    """Call a function of the page; the address of what it will have said."""
    at_uploads_of(app)
    address = f"{app.address}gradio_api/call/{name}"
    body = json.dumps({"data": data, "session_hash": session}).encode()
    status, answer = call(address, body, "application/json")
    assert status == 200, answer
    return f"{address}/{json.loads(answer)['event_id']}"


def event(app: RunningApp, name: str, data: list[Any], session: str | None) -> str:
    """What a function of the page says."""
    return call(begun(app, name, data, session))[1].decode()


def dropped(app: RunningApp, address: str, session: str | None = None) -> str:
    """What the page answers where an upload is dropped into the tab Ask."""
    return event(app, "ask_dropped", [[as_file(address)], "", False, "as recorded"], session)


def go_to(page: Any, tab: str) -> None:
    """Open a tab, from the menu where the window is too narrow to show it."""
    button = page.get_by_role("tab", name=tab, exact=True)
    if not button.is_visible():
        page.locator(".overflow-menu > button").click()
        button = page.locator(".overflow-dropdown button", has_text=tab)
    button.click()


def put(page: Any, intake: str, *files: Path) -> None:
    """Drop files and wait until the page has taken them or said why not."""
    look = """(intake) => ['clips', 'notice'].map(
        (part) => document.querySelector(`#${intake}-${part} .prose`).innerHTML).join()"""
    before = page.evaluate(look, intake)
    page.set_input_files(f"#{intake}-drop input[type=file]", list(files))
    page.wait_for_function(
        f"([intake, before]) => ({look})(intake) !== before", arg=[intake, before]
    )


def ask(page: Any, question: str) -> str:
    """Ask in the tab Ask, wait for the end of the answer, and give its text."""
    before = messages(page)
    page.fill("#ask-question textarea", question)
    page.click("#ask-send")
    return last_answer(page, before)


def messages(page: Any) -> int:
    """How many bubbles the conversation has."""
    return int(page.locator(BUBBLES).count())


def last_answer(page: Any, before: int) -> str:
    """The text of the answer that comes after so many bubbles, once it has ended."""
    page.wait_for_function(
        """([bubbles, before]) => {
          const send = document.querySelector('#ask-send');
          return document.querySelectorAll(bubbles).length > before + 1
            && send && send.offsetParent !== null;
        }""",
        arg=[BUBBLES, before],
    )
    return str(page.locator(BUBBLES).last.inner_text()).strip()


CUCKOO = ASSETS / "synthetic_common_cuckoo.flac"
HEATH = ASSETS / "synthetic_heath_at_dusk.ogg"
OWL = ASSETS / "synthetic_barn_owl.flac"
SETTINGS = AskOptions(queries=("What is the common name?",))
QUERIES = ("What is the common name?", "Caption the audio")
HALF = AskOptions(QUERIES, merging_alpha=0.5, hop_length_seconds=5.0)
OPTIONS = {"max_new_tokens": 4, "num_beams": 1}
CONFIG = Config.model_validate({"generate": OPTIONS})
MakeJobs = Callable[..., Jobs]


def new_job(jobs: Jobs, *paths: Path, settings: AskOptions = SETTINGS) -> Job:
    return jobs.create("folder", [(path, path.name) for path in paths], settings)


def done_job(jobs: Jobs, *paths: Path, settings: AskOptions = SETTINGS) -> Job:
    """A new job that is begun and has come to rest."""
    return finished(jobs, new_job(jobs, *paths, settings=settings))


def finished(jobs: Jobs, job: Job) -> Job:
    """The job once it is begun and has come to rest."""
    jobs.submit(job.id)
    return rested(jobs, job)


def at_work(jobs: Jobs, job: Job) -> None:
    """Begin a job and wait until it is worked on."""
    jobs.submit(job.id)
    until(lambda: jobs.open(job.id).state == "working")


def rested(jobs: Jobs, job: Job) -> Job:
    assert jobs.wait(job.id, 120)
    return jobs.open(job.id)


def answers(job: Job) -> list[Any]:
    return list(read_rows(job.answers_path)) if job.answers_path.exists() else []


FINE = AskOptions(("What?",), window_length_seconds=0.5, hop_length_seconds=0.5)
