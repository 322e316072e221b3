"""Many questions from many visitors to one web app: does its memory grow, does it make errors?

python benchmarks/app_soak.py                    # 200 questions from 8 visitors
python benchmarks/app_soak.py --questions 20     # a short try

It starts `naturelm inference-app` with the embedded model on a port of its own, lets every visitor
drop a sample and ask, and measures the memory of the app's process (resident set) after a warm-up
and at the end. The exit code is 1 where an answer is missing or memory grew by more than 100 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "assets"
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
def app() -> Iterator[tuple[str, psutil.Process]]:
    """A running app with the embedded model: its address and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from NatureLM.cli.main import naturelm; naturelm()"]
    with tempfile.TemporaryDirectory() as runs:
        options = ["--port", str(port), "--runs-dir", runs, "--assets-dir", str(ASSETS)]
        process = subprocess.Popen([*command, "inference-app", *options], cwd=ROOT)
        try:
            _wait(port, process)
            yield f"http://127.0.0.1:{port}/", psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(30)


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


def main() -> int:
    """Print what was measured; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--visitors", type=int, default=8)
    parser.add_argument("--warm-up", type=int, default=24, help="questions before memory counts")
    given = parser.parse_args()
    with app() as (address, process):
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
