"""Commands called in this process, and a model that answers at once, from name and time.

As a program it is `naturelm infer` with that model: `python commands.py SECONDS_PER_ANSWER [ARGS]`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from NatureLM.audio import AudioError
from NatureLM.audio.decode import probe
from NatureLM.cli.infer import InferRequest
from NatureLM.cli.main import beans_app, naturelm_app
from NatureLM.inference.windows import AskOptions, RecordingError, WindowResult
from NatureLM.results.store import WindowStore

ASK = ("--audio-path", "calls", "--query", "What is it?")


def naturelm(*args: object) -> Result:
    """What `naturelm` does with these words."""
    return CliRunner().invoke(naturelm_app, list(map(str, args)))


def beans(*args: object) -> Result:
    """What `beans` does with these words."""
    return CliRunner().invoke(beans_app, list(map(str, args)))


def call(*args: object, ends: int = 0, by: Callable[..., Result] = naturelm) -> str:
    """What a program prints with these words, ending with this code."""
    done = by(*args)
    assert done.exit_code == ends, done.output
    return done.output


def start(folder: Path, *words: str, seconds: float = 0.0, **given: Any) -> subprocess.Popen[str]:
    """`naturelm` in a process of its own, with a model that takes so many seconds an answer.

    given: of `Popen`; `shell` is a line of sh in which "$@" stands for the command
    """
    shell, environment = given.pop("shell", 'exec "$@"'), given.pop("env", {})
    program = [sys.executable, __file__, str(seconds), *words]
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **given}
    # What nohup or a shell's background job ignores, its children would ignore, too.
    names = [name for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), signal.SIG_DFL) for name in names}
    try:
        return subprocess.Popen(
            ["sh", "-c", shell, "sh", *program],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
            **given,
        )
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def calls_in(folder: Path) -> Path:
    """The folder, with recordings of 25 s and 3 s in `calls`."""
    write_wav(folder / "calls" / "cuckoo.wav", 25)
    write_wav(folder / "calls" / "wolf.WAV", 3)
    return folder


def rows(path: Path | str) -> list[dict[str, Any]]:
    """What stands in a result file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: Iterable[object]) -> Path:
    """A file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_wav(path: Path, seconds: float, sample_rate: int = 8000) -> Path:
    """A quiet square wave."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((b"\x00\x01" * 20 + b"\x00\xff" * 20) * int(seconds * sample_rate / 40))
    return path


@dataclass
class FakePipeline:
    """Windows of true length; `seconds` for each answer; `text` makes the answer."""

    seconds: float = 0.0
    weights: str = "fake"
    text: Callable[[Path, float, str], str] = lambda path, start, query: f"{path.stem} {start:g}"
    stop_after: int | None = None
    asked: list[tuple[str, float, str]] = field(default_factory=list)
    loaded: int = 0
    revisions: dict[str, str] = field(default_factory=dict)
    given: list[tuple[InferRequest, Any, AskOptions]] = field(default_factory=list)

    def load(self, request: InferRequest, config: Any, options: AskOptions) -> FakePipeline:
        """In the place of `NatureLM.cli.infer.load_pipeline`."""
        self.loaded += 1
        self.given.append((request, config, options))
        return self

    def settings(self, options: AskOptions) -> dict[str, Any]:
        return {"weights": self.weights, "dtype": "float32", "prompt_template": "{}"}

    def unanswered(
        self, recordings: Sequence[Path], options: AskOptions, store: WindowStore, **_: Any
    ) -> Iterator[WindowResult | RecordingError]:
        for path in recordings:
            try:
                duration = probe(path).duration
            except AudioError as error:
                yield RecordingError(str(path), error)
                continue
            start = 0.0
            while start == 0 or duration - start >= 0.5:
                end = min(duration, start + options.window_length_seconds)
                for query in options.queries:
                    if not store.is_done(path, start, query):
                        yield self.answer(path, start, end, query, options)
                start += options.hop_length_seconds

    def answer(
        self, path: Path, start: float, end: float, query: str, options: AskOptions
    ) -> WindowResult:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        time.sleep(self.seconds)
        self.asked.append((path.name, start, query))
        return WindowResult(
            audio_path=str(path),
            start=start,
            end=end,
            query=query,
            text=self.text(path, start, query),
            merging_alpha=options.merging_alpha,
            prompt=query,
            window_index=0,
        )


if __name__ == "__main__":
    from NatureLM.cli import infer, main

    infer.load_pipeline = FakePipeline(seconds=float(sys.argv.pop(1))).load
    main.naturelm()
