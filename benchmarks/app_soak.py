"""Many questions from many visitors to one web app: does its memory grow, does it make errors?

python benchmarks/app_soak.py                    # 200 questions from 8 visitors
python benchmarks/app_soak.py --questions 20     # a short try
python benchmarks/app_soak.py --hostile 600      # two visitors beside hostile clients, 10 minutes

It starts `naturelm inference-app` with the embedded model on a port of its own, lets every visitor
drop a sample and ask, and measures the memory of the app's process (resident set) after a warm-up
and at the end. The exit code is 1 where an answer is missing or memory grew by more than 100 MB.

With `--hostile` the requests of `benchmarks/hostile.py` come all the time, from a process of their
own. Two visitors drop, ask, ask further, and read the answers of a job, over and over; their
answers must be those of the minute before. Measured are memory, files, threads, and what lies on
the disk. The exit code is 1, too, where a visitor met any error but a polite "wait", where memory
grew after the first minute, where files are left after the grace, or where the app ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from hostile import Page, attacked
from measure import ASSETS, NATURELM, ROOT, free_port, options_for

QUESTIONS = (
    "What is the common name for the focal species in the audio?",
    "Caption the audio",
    "What makes the sound in the audio?",
    "Is it a bird, a frog or a mammal?",
)
MOST_GROWTH = 100 * 2**20
_AS_RECORDED = "as recorded"


@dataclass
class Count:
    """What has happened so far, of all visitors."""

    left: int
    answered: int = 0
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> int | None:
        """The number of the next question; None if there is none left."""
        with self.lock:
            if self.left == 0:
                return None
            self.left -= 1
            return self.left


class Visitor:
    """A session of its own; every few questions it begins anew with another sample."""

    def __init__(self, address: str, number: int) -> None:
        from gradio_client import Client

        self._samples = sorted(ASSETS.glob("*.flac"))
        self._client = Client(address, verbose=False, httpx_kwargs={"timeout": 300.0})
        self._number = number
        self._asked = 0

    def ask(self, question: str) -> str:
        """The answer, as the page shows it."""
        from gradio_client import handle_file

        if self._asked % 5 == 0:
            sample = self._samples[(self._number + self._asked // 5) % len(self._samples)]
            self._client.predict(
                [handle_file(str(sample))], False, _AS_RECORDED, api_name="/ask_dropped"
            )
        self._asked += 1
        chat = self._client.predict(question, 1.0, api_name="/ask")[0]
        last = chat[-1]
        if last["role"] != "assistant":
            raise RuntimeError("the app gave no answer")
        return _text(last["content"])


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content)


@contextlib.contextmanager
def app(folder: Path, *more: str) -> Iterator[tuple[str, psutil.Process]]:
    """A running app with the embedded model, `temp` and `runs` in a folder: address, process."""
    port = free_port()
    options = ["--port", str(port), "--runs-dir", str(folder / "runs")]
    options += ["--assets-dir", str(ASSETS), *more]
    (folder / "temp").mkdir()
    environment = {**os.environ, "TMPDIR": str(folder / "temp")}
    with open(folder / "app.log", "w") as log:
        process = subprocess.Popen(
            [*NATURELM, "inference-app", *options],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        _wait(port, process)
        yield f"http://127.0.0.1:{port}/", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def _wait(port: int, process: subprocess.Popen[bytes], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.5)
    raise SystemExit("the app did not start")


def memory(process: psutil.Process) -> int:
    """Bytes in memory, of the process and those that it started."""
    return int(sum(one.memory_info().rss for one in (process, *process.children(recursive=True))))


def visit(visitor: Visitor, count: Count) -> None:
    """Ask until there is nothing left to ask."""
    while (number := count.take()) is not None:
        try:
            answer = visitor.ask(QUESTIONS[number % len(QUESTIONS)])
            with count.lock:
                count.answered += bool(answer.strip())
                if not answer.strip():
                    count.errors.append("an empty answer")
        except Exception as error:  # every kind is counted, whatever a library raises
            with count.lock:
                count.errors.append(f"{type(error).__name__}: {error}")


def ask_all(visitors: list[Visitor], questions: int) -> Count:
    """So many questions, of all visitors at the same time."""
    count = Count(questions)
    threads = [threading.Thread(target=visit, args=(one, count)) for one in visitors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count


# beside hostile clients

_SHORT_FOLDER = ("synthetic_barn_owl.flac", "synthetic_rain.flac", "synthetic_dog.WAV")
_POLITE = re.compile(r"Queue is full|429|jobs are waiting already|Try again in a m|The app is busy")
_GRACE = 90.0  # seconds until all that visitors left is gone


class Ordinary:
    """A visitor who opens the page, asks, asks further, runs a job of a short folder, and leaves.

    answers: what was answered to whom, so that it can be compared
    """

    def __init__(self, address: str, number: int) -> None:
        self._address, self._number = address, number
        self.seconds: list[float] = []
        self.jobs: list[float] = []
        self.waited: list[str] = []
        self.errors: list[str] = []
        self.answers: dict[tuple[str, str], str] = {}

    def stay(self, end: float) -> None:
        """Come again and again until then, at least once."""
        while True:
            try:
                self.visit()
            except Exception as error:  # every kind is counted
                text = f"{type(error).__name__}: {error}"[:300]
                (self.waited if _POLITE.search(text) else self.errors).append(text)
            if time.monotonic() >= end:
                return
            time.sleep(1.0)

    def visit(self) -> None:
        from gradio_client import Client, handle_file

        samples = sorted(ASSETS.glob("*.flac"))
        sample = samples[(self._number + 2 * len(self.jobs)) % len(samples)]
        client = Client(self._address, verbose=False, httpx_kwargs={"timeout": 300.0})
        try:
            sent = [handle_file(str(sample))]
            notice = client.predict(sent, False, _AS_RECORDED, api_name="/ask_dropped")[2]
            if notice:
                raise RuntimeError(f"the sample was not taken: {notice}")
            for turn, question in enumerate(QUESTIONS[:2], start=1):
                began = time.monotonic()
                chat, _, problem = client.predict(question, 1.0, api_name="/ask")[:3]
                self.seconds.append(time.monotonic() - began)
                if problem or len(chat) != 2 * turn:
                    raise RuntimeError(f"{len(chat)} bubbles after {turn} questions: {problem}")
                self._compare(sample.name, question, _text(chat[-1]["content"]))
            self._run_job(client)
        finally:
            client.close()

    def _run_job(self, client: Any) -> None:
        from gradio_client import handle_file

        page = Page(self._address, session=client.session_hash)
        files = [handle_file(str(ASSETS / name)) for name in _SHORT_FOLDER]
        began = time.monotonic()
        shown = client.predict(
            files, QUESTIONS[0], 1.0, 10.0, 10.0, "mean", 1.0, "", "any answer", 0.0,
            api_name="/folder_start",
        )  # fmt: skip
        if "data-job" not in str(shown):
            raise RuntimeError(f"the job did not begin: {shown[1]}")
        while time.monotonic() - began < 600:
            time.sleep(1.0)
            seen = page.look("folder")
            if "Done:" in str(seen.get("folder-status")):
                break
        else:
            raise RuntimeError(f"the job is not done: {seen.get('folder-status')}")
        self.jobs.append(time.monotonic() - began)
        rows = page.table("folder")
        for row in rows:
            self._compare(str(row[0]), "job", str(row[-1]))
        if len(rows) != len(_SHORT_FOLDER):
            raise RuntimeError(f"{len(rows)} answers of a job of {len(_SHORT_FOLDER)}")
        page.remove("folder")

    def _compare(self, sound: str, question: str, answer: str) -> None:
        if not answer.strip() or self.answers.setdefault((sound, question), answer) != answer:
            self.errors.append(f"{sound}: {answer!r} in place of {self.answers[sound, question]!r}")


def size(folder: Path) -> int:
    """Bytes of the files in a folder; one with several names counts once."""
    found: dict[int, int] = {}
    for top, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(top, name))
                found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def measured(process: psutil.Process, folder: Path) -> dict[str, float]:
    """In MB: memory, and what lies on the disk; numbers of open files, threads, connections."""
    return {
        "memory": memory(process) / 2**20,
        "temp": size(folder / "temp") / 2**20,
        "runs": size(folder / "runs") / 2**20,
        "free": shutil.disk_usage(folder).free / 2**20,
        "files": process.num_fds(),
        "threads": process.num_threads(),
    }


def watch(process: psutil.Process, folder: Path, seconds: float) -> list[dict[str, float]]:
    """Measure every five seconds and print each sixth of it."""
    began, found = time.monotonic(), list[dict[str, float]]()
    while (at := time.monotonic() - began) < seconds and process.is_running():
        with contextlib.suppress(psutil.Error):
            found.append({"at": at, **measured(process, folder)})
            if len(found) % 6 == 1:
                print("  " + "  ".join(f"{k} {v:.0f}" for k, v in found[-1].items()), flush=True)
        time.sleep(5.0)
    return found


def hostile(seconds: float) -> int:
    """Two visitors beside hostile clients; the exit code."""
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with app(folder, "--disk-quota", "1") as (address, process):
            visitors = [Ordinary(address, number) for number in range(2)]
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda one: one.stay(time.monotonic() + 20), visitors))
                calm = [s for one in visitors for s in one.seconds]
                calm_jobs = [s for one in visitors for s in one.jobs]
                for one in visitors:
                    one.seconds.clear()
                end = time.monotonic() + seconds
                with attacked(address, folder, seconds) as statuses:
                    staying = [pool.submit(one.stay, end) for one in visitors]
                    found = watch(process, folder, seconds)
                for one in staying:
                    one.result()
            for one in visitors:  # who comes afterwards need not even wait
                try:
                    one.visit()
                except Exception as error:
                    one.errors.append(f"afterwards: {type(error).__name__}: {error}")
            for left in (folder / "runs" / "jobs").glob("*/job.json"):
                with contextlib.suppress(RuntimeError):
                    Page(address).remove(json.loads(left.read_text())["kind"], left.parent.name)
            print(f"  the attack is over; {_GRACE:.0f} s until all that is left shall be gone")
            found += watch(process, folder, _GRACE)
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                wrong.append("the app ended")
        wrong += [f"left in temp: {path}" for path in (folder / "temp").glob("naturelm-app-*")]
        log = (folder / "app.log").read_text(errors="replace")
        Path(tempfile.gettempdir(), "app_soak.log").write_text(log)
    print("  statuses that the hostile clients got:")
    for kind, counts in sorted(statuses.items()):
        print(f"    {kind:22} " + ", ".join(f"{k} × {n}" for k, n in sorted(counts.items())))
    after = [one for one in found if one["at"] >= 60] or found
    for key, value in found[-1].items():
        if key != "at":
            print(
                f"{key}: {found[0][key]:.0f} at the start, {after[0][key]:.0f} after a minute, "
                f"at most {max(one[key] for one in found):.0f}, {value:.0f} at the end"
            )
    busy = sorted(s for one in visitors for s in one.seconds)
    for what, times in (("before", sorted(calm)), ("beside them", busy)):
        if times:
            print(
                f"seconds per answer, {what}: median {times[len(times) // 2]:.1f}, worst "
                f"{times[-1]:.1f}, of {len(times)} answers"
            )
    jobs = sorted(s for one in visitors for s in one.jobs[len(calm_jobs) // 2 :])
    print(f"seconds per job: before at most {max(calm_jobs, default=0):.0f}, beside {jobs}")
    print(f"asked to wait: {sum(len(one.waited) for one in visitors)}")
    growth = found[-1]["memory"] - after[0]["memory"]
    if growth * 2**20 > MOST_GROWTH:
        wrong.append(f"memory grew by {growth:.0f} MB after a minute")
    for key, most in (("temp", 1000.0), ("runs", 1.0)):
        if found[-1][key] > most:
            wrong.append(f"{found[-1][key]:.0f} MB are left in {key}")
    wrong += [text for one in visitors for text in one.errors]
    for text in wrong[:20]:
        print(f"  WRONG: {text}")
    return int(bool(wrong))


def main() -> int:
    """Print what was measured; the exit code."""
    parser = options_for(__doc__)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--visitors", type=int, default=8)
    parser.add_argument("--warm-up", type=int, default=24, help="questions before memory counts")
    parser.add_argument("--hostile", type=float, default=0, help="seconds of hostile clients")
    given = parser.parse_args()
    if given.hostile:
        return hostile(given.hostile)
    with tempfile.TemporaryDirectory() as folder, app(Path(folder)) as (address, process):
        visitors = [Visitor(address, number) for number in range(given.visitors)]
        warm = ask_all(visitors, given.warm_up)
        before = memory(process)
        began = time.monotonic()
        count = ask_all(visitors, given.questions)
        seconds = time.monotonic() - began
        after = memory(process)
    errors = warm.errors + count.errors
    growth = after - before
    print(
        f"{count.answered} answers to {given.questions} questions of {given.visitors} visitors in "
        f"{seconds:.0f} s, {len(errors)} errors"
    )
    print(
        f"memory: {before / 2**20:.0f} MB after the warm-up, {after / 2**20:.0f} MB at the end, "
        f"growth {growth / 2**20:+.0f} MB (target: at most {MOST_GROWTH / 2**20:.0f} MB)"
    )
    for text in errors[:10]:
        print(f"  {text}")
    return int(bool(errors) or growth > MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
