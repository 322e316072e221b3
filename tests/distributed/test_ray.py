"""`--engine ray` on a cluster of two nodes here: killed actors and nodes, bad files, resumption.

What comes out is, byte for byte, what the plain engine writes. `make test-ray` runs these tests.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from commands import naturelm, write_wav
from conftest import ROOT

from NatureLM.distributed.cluster import RayOptions, connected
from NatureLM.distributed.flow import Job, Piece, Todo, pieces
from NatureLM.errors import UsageError
from NatureLM.inference.windows import AskOptions, Recording
from NatureLM.results.parts import is_parts

pytestmark = pytest.mark.ray
psutil = pytest.importorskip("psutil")
pytest.importorskip("ray")

RECORDINGS, BAD = 36, 6  # one in each block
# Batches of one: the last digit of a confidence hangs on what is computed beside it, in any engine.
CUT = ("--window-length-seconds", "3", "--hop-length-seconds", "3", "--batch-size", "1")
SPREAD = ("--engine", "ray", "--workers", "2", "--block-seconds", "30")
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
COMMANDS = {
    "infer": ("infer", "-a", "calls", "-q", "Who calls?", "-q", "Caption the audio", "--quiet"),
    "survey": ("survey", "who-calls", "calls", "--quiet"),
    "embed": ("embed", "calls"),
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recordings of 3 to 9 s in `calls`, of which every seventh cannot be read."""
    folder = tmp_path_factory.mktemp("archive")
    for number in range(RECORDINGS):
        write_wav(folder / "calls" / f"{number:03}.wav", 3 + number % 4 * 2)
    for number in range(BAD):
        (folder / "calls" / f"{number * 7:03}_bad.wav").write_bytes(b"RIFF no sound")
    return folder


@pytest.fixture(scope="module")
def plain(archive: Path) -> Callable[[str], bytes]:
    """What the plain engine writes, by command."""
    made: dict[str, bytes] = {}

    def written(command: str) -> bytes:
        if command not in made:
            out = archive / f"plain-{command}{'.npz' if command == 'embed' else ''}"
            done = started(archive, command, out, plain=True)
            assert done.wait() == 3, done.communicate()[1]
            made[command] = rows_of(command, out, archive)
        return made[command]

    return written


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster: a head without cores, and two nodes of two."""
    from ray.cluster_utils import Cluster

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.workers = [cluster.add_node(num_cpus=2, wait=True) for _ in range(2)]
    yield cluster
    cluster.shutdown()


def started(
    folder: Path, command: str, out: Path, *more: str, plain: bool = False
) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    words = [*COMMANDS[command], *CUT, *(() if plain else SPREAD), "--output-path", str(out), *more]
    program = "from NatureLM.cli.main import naturelm; naturelm()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        stderr=subprocess.PIPE,
        text=True,
    )


def rows_of(command: str, out: Path, folder: Path) -> bytes:
    """The index; or all rows, in the order of the recordings, without spaces at their ends."""
    if command == "embed":
        return out.read_bytes()
    answers = next(
        one
        for one in (out / "survey.parts", out / "survey.jsonl", out.with_suffix(".parts"), out)
        if one.is_file() or is_parts(one)
    )
    merged = folder / f"{out.name}-merged.jsonl"
    result = naturelm("merge-runs", answers, "-a", folder / "calls", "-o", merged, "--overwrite")
    assert result.exit_code == 3, result.stderr
    assert f"could not be read: {BAD} (" in result.stderr
    assert "again" not in result.stderr  # nothing is there twice
    return merged.read_bytes()


def written(command: str, out: Path) -> bool:
    """Whether some of the work is stored."""
    if command == "embed":
        lines = out.with_name(f"{out.name}.parts") / "rows.jsonl"
        return lines.is_file() and b'"done"' in lines.read_bytes()
    return any(is_parts(one) for one in (out / "survey.parts", out.with_suffix(".parts")))


def wait_for(what: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    until = time.monotonic() + 300
    while not (found := what()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.05)
    return found


def actors() -> list[int]:
    """Processes of models."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if "MapWorker" in " ".join(process.info["cmdline"] or ()):
                found.append(process.pid)
    return found


def kill_actor(cluster: Any) -> None:
    os.kill(actors()[0], signal.SIGKILL)


def kill_node(cluster: Any) -> None:
    """The raylet goes at once, and with it all processes of the node."""
    node = cluster.workers[0]
    (raylet,) = node.all_processes["raylet"]
    os.kill(raylet.process.pid, signal.SIGKILL)
    cluster.workers.append(cluster.add_node(num_cpus=2))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kill", [kill_actor, kill_node])
def test_what_is_killed_loses_and_doubles_nothing(
    command: str,
    kill: Callable[[Any], None],
    nodes: Any,
    archive: Path,
    plain: Callable[[str], bytes],
    tmp_path: Path,
) -> None:
    expected = plain(command)
    out = tmp_path / ("x.npz" if command == "embed" else "x.jsonl" if command == "infer" else "x")
    process = started(archive, command, out, "--ray-address", nodes.address)
    wait_for(lambda: written(command, out), process)
    kill(nodes)
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 3, errors
    assert errors.count("Error: calls/") == BAD
    assert rows_of(command, out, archive) == expected


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_goes_on(
    command: str,
    number: signal.Signals,
    archive: Path,
    plain: Callable[[str], bytes],
    tmp_path: Path,
) -> None:
    expected = plain(command)
    out = tmp_path / ("x.npz" if command == "embed" else "x.jsonl" if command == "infer" else "x")
    process = started(archive, command, out)
    wait_for(lambda: written(command, out), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else -number), errors
    again = started(archive, command, out)
    _, errors = again.communicate(timeout=500)
    assert again.returncode == 3, errors
    assert "going on from there" in errors
    assert rows_of(command, out, archive) == expected


CUTTING = AskOptions(("?",), window_length_seconds=1.0, hop_length_seconds=1.0).cutting(8000)


def made_of(path: Path, make: Callable[[], Any]) -> list[Any]:
    """What two models make of a recording, a second at a time."""
    todo = [Todo(Recording(0, str(path), path, ("Who?",)))]
    with connected(RayOptions(workers=2), "cpu") as here:
        found = pieces(here, Job(make, CUTTING, 1.0), todo, {})
        return [item for piece in found for item in piece.items]


def test_the_pieces_of_a_long_recording_go_to_all_models(tmp_path: Path) -> None:
    class WhoAnswers:
        about: Mapping[str, Any] = {}

        def answer(self, piece: Piece) -> None:
            time.sleep(0.3)
            piece.items = [os.getpid()]

    made = made_of(write_wav(tmp_path / "long.wav", 30), WhoAnswers)
    assert len(made) == 30
    assert len(set(made)) == 2


@pytest.mark.parametrize("when", ["making", "asking"])
def test_errors_of_models_are_said_as_they_are(when: str, tmp_path: Path) -> None:
    class Refuses:
        about: Mapping[str, Any] = {"dtype": "float16"} if when == "making" else {}

        def answer(self, piece: Piece) -> None:
            raise UsageError("the question is too long")

    of_a_machine = r"^the machines of the cluster would answer differently(.|\n)*the same model$"
    message = of_a_machine if when == "making" else "^the question is too long$"
    with pytest.raises(UsageError, match=message):
        made_of(write_wav(tmp_path / "short.wav", 2), Refuses)


def test_a_cluster_that_is_not_there_is_named(archive: Path, tmp_path: Path) -> None:
    process = started(archive, "infer", tmp_path / "x.jsonl", "--ray-address", "127.0.0.1:1")
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 2
    assert "--ray-address 127.0.0.1:1: there is no Ray cluster that can be used" in errors


def test_what_the_model_refuses_is_said_as_ever(archive: Path, tmp_path: Path) -> None:
    process = started(archive, "infer", tmp_path / "x.jsonl", "--window-length-seconds", "90")
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("Error: --window-length-seconds is 90, and ")
