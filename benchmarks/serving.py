"""Many clients of one service beside one client after the other: requests a second, latencies.

python benchmarks/serving.py                     # 64 chats with 1, 8 and 64 clients
python benchmarks/serving.py --requests 16       # a short try
python benchmarks/serving.py --soak 600          # ten minutes of load with clients of all kinds
python benchmarks/serving.py --json docs/explanation/performance/serving.json  # for the page

It starts `naturelm serve` with the embedded model on a port of its own, and asks in three ways:

- `new clips`: each chat is about a clip of its own that was never heard, and the answer is short.
  Most of the time goes into encoding, which no batch makes quicker on a processor.
- `known clips`: the same about clips that were asked about before, so nothing is encoded.
- `long answers`: about eight known clips, 100 tokens each (`min_tokens`), sampled from streams of
  their own.

Answers of all rounds are compared with those of one after the other. The time to the first token of
a single stream is compared with that of the plain `Pipeline` in this process, in turn and with a
pause in between, as threads of the other still spin for a moment.

The soak sends chats beside requests that are broken, too large, slow or cut off, and watches the
memory of the service (resident set) and what is left running. Its exit code is 1 where memory grew
by more than 100 MB after the first minute, an answer was an error of the service, or rows are left.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import soundfile
from measure import NATURELM, ROOT, free_port, machine, write_figures

QUESTION = "Caption the audio"
TOKENS = 32
MOST_GROWTH = 100 * 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--soak", type=float, metavar="SECONDS")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with service() as (address, process):
        if options.soak:
            return soak(address, process, options.soak)
        found = {
            "machine": machine(),
            "first_token": first_token(address),
            "rounds": rounds(address, options.requests, options.clients),
        }
    for one in found["rounds"]:
        print(
            f"{one['way']:>12}, {one['clients']:>3} clients: {one['per_second']:.1f} chats/s "
            f"({one['times']:.2f} x), "
            f"median {one['p50'] * 1000:6.0f} ms, 95 % {one['p95'] * 1000:6.0f} ms, "
            f"{one['equal']} of {one['requests']} answers equal"
        )
    first = found["first_token"]
    print(
        f"first token: service {first['service'] * 1000:.0f} ms, pipeline "
        f"{first['pipeline'] * 1000:.0f} ms: {first['service'] / first['pipeline']:.2f} x"
    )
    write_figures(options.json, found)
    return 0


class _Raw(argparse.RawDescriptionHelpFormatter):
    """Shows the text of this file as it stands."""


@contextlib.contextmanager
def service(*more: str) -> Iterator[tuple[str, psutil.Process]]:
    """A running service, ready to answer."""
    port = free_port()
    command = [*NATURELM, "serve", "--port", str(port), *more]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log
        )
        address = f"http://127.0.0.1:{port}"
        try:
            while process.poll() is None:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{address}/health").status_code == 200:
                        break
                time.sleep(0.2)
            yield address, psutil.Process(process.pid)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            if process.returncode not in (0, -15, 143):
                log.seek(0)
                print(log.read()[-4000:].decode(errors="replace"), file=sys.stderr)


def clip(number: int, seconds: float = 4.0) -> bytes:
    """A chirp of its own for every number, as WAV."""
    chance = np.random.default_rng(number)
    times = np.arange(round(seconds * 16_000)) / 16_000
    low, high = chance.uniform(400, 1500), chance.uniform(2000, 6000)
    phase = 2 * np.pi * (low * times + (high - low) / (2 * seconds) * times**2)
    file = io.BytesIO()
    sound = 0.3 * np.sin(phase) * (np.sin(2 * np.pi * chance.uniform(1, 5) * times) > 0)
    soundfile.write(file, sound + chance.normal(0, 0.01, len(times)), 16_000, format="WAV")
    return file.getvalue()


def body(number: int, **more: Any) -> dict[str, Any]:
    data = base64.b64encode(clip(number)).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    content = [part, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    return {"model": "naturelm-tiny", "messages": messages, "max_tokens": TOKENS, **more}


WAYS: dict[str, dict[str, Any]] = {
    "new clips": {},
    "known clips": {},
    "long answers": {"max_tokens": 100, "min_tokens": 100, "temperature": 1.0, "top_p": 1.0},
}
RECORDINGS = 8  # of the long answers


def rounds(address: str, requests: int, clients: Sequence[int]) -> list[dict[str, Any]]:
    """Every way with every number of clients; answers are compared with those of one client."""
    _round(address, [body(10**6 + number) for number in range(4)], 1)
    return [
        row
        for place, (way, more) in enumerate(WAYS.items())
        for row in _rounds_of(address, way, 100_000 * place, more, requests, clients)
    ]


def _rounds_of(
    address: str,
    way: str,
    first: int,
    more: dict[str, Any],
    requests: int,
    clients: Sequence[int],
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for place, count in enumerate(clients):
        shift = 1000 * place if way == "new clips" else 0
        few = RECORDINGS if way == "long answers" else requests
        bodies = [
            body(first + shift + number % few, **more, **({"seed": number} if more else {}))
            for number in range(requests)
        ]
        if way != "new clips" and not place:
            _round(address, [{**one, "max_tokens": 1, "min_tokens": 0} for one in bodies], 8)
        seconds, latencies, answers = _round(address, bodies, count)
        alone = answers if count == 1 else _round(address, bodies, 1)[2]
        found.append(
            {
                "way": way,
                "clients": count,
                "requests": requests,
                "per_second": requests / seconds,
                "p50": statistics.median(latencies),
                "p95": sorted(latencies)[int(0.95 * (len(latencies) - 1))],
                "equal": sum(mine == other for mine, other in zip(answers, alone, strict=True)),
            }
        )
        found[-1]["times"] = found[-1]["per_second"] / found[0]["per_second"]
    return found


def _round(
    address: str, bodies: Sequence[dict[str, Any]], clients: int
) -> tuple[float, list[float], list[str]]:
    """Seconds of all, seconds of each, answers."""
    limits = httpx.Limits(max_connections=clients)
    with (
        httpx.Client(timeout=300, limits=limits) as client,
        ThreadPoolExecutor(clients) as pool,
    ):

        def one(sent: dict[str, Any]) -> tuple[float, str]:
            began = time.perf_counter()
            answer = client.post(f"{address}/v1/chat/completions", json=sent)
            answer.raise_for_status()
            seconds = time.perf_counter() - began
            return seconds, answer.json()["choices"][0]["message"]["content"]

        began = time.perf_counter()
        found = list(pool.map(one, bodies))
        return time.perf_counter() - began, [s for s, _ in found], [text for _, text in found]


def markdown(report: dict[str, Any]) -> str:
    """The table for the page."""
    lines = [
        "| chats | clients | a second | times one client | median, ms | 95 %, ms | equal answers |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one['way']} | {one['clients']} | {one['per_second']:.1f} | {one['times']:.1f} × "
        f"| {one['p50'] * 1000:.0f} | {one['p95'] * 1000:.0f} "
        f"| {one['equal']} of {one['requests']} |"
        for one in report["rounds"]
    ]
    return "\n".join(lines)


def first_token(address: str, times: int = 9) -> dict[str, float]:
    """Median seconds to the first text of a stream, from the service and from `Pipeline.stream`.

    Taken in turn, each time with a clip that was not heard before.
    """
    from NatureLM.inference.pipeline import Pipeline

    pipeline = Pipeline("naturelm-tiny")
    taken: dict[str, list[float]] = {"service": [], "pipeline": []}
    with httpx.Client(timeout=60) as client, tempfile.TemporaryDirectory() as folder:
        for number in range(10**7, 10**7 + times + 1):
            sent = body(number, stream=True)
            path = Path(folder) / "clip.wav"
            path.write_bytes(clip(number))
            began = time.perf_counter()
            address_of = f"{address}/v1/chat/completions"
            with client.stream("POST", address_of, json=sent) as answer:
                for line in answer.iter_lines():
                    if '"content": "' in line and '"content": ""' not in line:
                        break
            taken["service"].append(time.perf_counter() - began)
            time.sleep(0.5)
            began = time.perf_counter()
            next(iter(pipeline.stream(str(path), QUESTION)))
            taken["pipeline"].append(time.perf_counter() - began)
            time.sleep(0.5)
    return {name: statistics.median(one[1:]) for name, one in taken.items()}


# -- load that is not kind ---------------------------------------------------------------------


def soak(address: str, process: psutil.Process, seconds: float) -> int:
    """All kinds of clients for so long; 1 where the service did not bear it."""
    end, counts, lock = time.monotonic() + seconds, Counter[str](), threading.Lock()
    answers: dict[int, str] = {}
    wrong: list[str] = []

    def good(chance: random.Random) -> str:
        number = chance.randrange(40)
        sent = httpx.post(f"{address}/v1/chat/completions", json=body(number), timeout=120)
        if sent.status_code == 429:
            return "sent away"
        text = sent.json()["choices"][0]["message"]["content"]
        with lock:
            if answers.setdefault(number, text) != text:
                wrong.append(f"clip {number}: {answers[number]!r}, then {text!r}")
        return "answered"

    def cut_off(chance: random.Random) -> str:
        kind = {"stream": chance.random() < 0.5, "max_tokens": 1000, "temperature": 2.0}
        try:
            with httpx.stream(
                "POST", f"{address}/v1/chat/completions",
                json=body(chance.randrange(10**6), **kind), timeout=0.3,
            ) as answer:  # fmt: skip
                next(answer.iter_lines())
        except (httpx.TransportError, StopIteration):
            pass
        return "cut off"

    def broken(chance: random.Random) -> str:
        data = bytes(chance.randrange(256) for _ in range(chance.randrange(400)))
        files = {"file": ("a.wav", b"RIFF" + data)}
        path = chance.choice(("/v1/windows", "/v1/audio/transcriptions"))
        sent = httpx.post(f"{address}{path}", files=files, data={"model": "naturelm-tiny"})
        if sent.status_code >= 500:
            wrong.append(f"{path}: {sent.status_code}")
        return "broken"

    def too_large(chance: random.Random) -> str:
        sent = body(0)
        sent["messages"][0]["content"][1]["text"] = "x" * chance.randrange(10**5, 10**8)
        try:
            status = httpx.post(f"{address}/v1/chat/completions", json=sent).status_code
        except httpx.TransportError:
            return "too large"
        if status not in (400, 413):
            wrong.append(f"too large: {status}")
        return "too large"

    def slow(chance: random.Random) -> str:
        host, port = address.removeprefix("http://").split(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))) as one:
            one.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999\r\n\r\n")
            for _ in range(chance.randrange(5)):
                one.sendall(b"{")
                time.sleep(1)
        return "slow"

    kinds = [good, good, good, cut_off, broken, too_large, slow, good]

    def work(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < end:
            try:
                done = kinds[number](chance)
            except Exception as error:
                done = f"failed: {type(error).__name__}"
            with lock:
                counts[done] += 1

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(len(kinds))]
    for thread in threads:
        thread.start()
    time.sleep(min(60.0, seconds / 4))
    before = process.memory_info().rss
    for thread in threads:
        thread.join(seconds + 120)
    time.sleep(2)
    grown = process.memory_info().rss - before
    told = httpx.get(f"{address}/metrics").text.splitlines()
    left = {line.split()[0]: float(line.split()[1]) for line in told if line[:1] != "#"}
    rows = left["naturelm_running"] + left["naturelm_queue"]
    print(f"{dict(counts)}; memory grew by {grown / 2**20:.0f} MiB; {rows:.0f} rows are left")
    for line in wrong[:10]:
        print(line)
    return int(grown > MOST_GROWTH or rows > 0 or bool(wrong) or not counts["answered"])


if __name__ == "__main__":
    sys.exit(main())
