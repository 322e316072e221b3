"""Work for Ray Data, without Ray: what is refused, blocks of recordings, windows in pieces."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import FakePipeline, calls_in, naturelm, rows, write_wav

from NatureLM.audio import AudioError
from NatureLM.audio.files import Identity
from NatureLM.distributed import cluster, flow
from NatureLM.distributed.cluster import RayOptions, project_error
from NatureLM.distributed.flow import Job, Piece, Todo, blocks_of, decoded
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.inference.windows import (
    AskOptions,
    Recording,
    RecordingError,
    RecordingWindow,
    WindowStream,
)
from NatureLM.results.detections import ResultFile
from NatureLM.results.parts import read_part
from NatureLM.results.store import question_key

ASK = ("infer", "-a", "calls", "-q", "Who?", "-q", "What?")
CUTTING = AskOptions(("?",), window_length_seconds=1.0, hop_length_seconds=1.0).cutting(8000)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--workers", "2"), "--workers is for --engine ray, and the engine is plain"),
        (("--engine", "spark"), "--engine is 'spark', and it must be one of plain, ray"),
        (("--engine", "ray", "--workers", "0"), "--workers is 0, and it must be at least 1"),
        (("--engine", "ray", "--gpus", "1.5"), "--gpus is 1.5, and above 1 it must be an integer"),
        (("--engine", "ray", "--block-seconds", "0.5"), "--block-seconds is 0.5"),
    ],
)
@pytest.mark.parametrize("command", [ASK, ("survey", "who-calls", "calls"), ("embed", "calls")])
def test_what_cannot_work_is_refused(
    command: tuple[str, ...], given: tuple[str, ...], message: str, own_folder: Path
) -> None:
    calls_in(own_folder)
    refused = naturelm(*command, *given)
    assert refused.exit_code == 2
    assert message in str(refused.exception) + refused.stderr


def test_without_ray_it_is_said_what_to_install(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls_in(own_folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused = naturelm(*ASK, "--engine", "ray")
    assert refused.exit_code == 2
    assert "pip install 'naturelm-audio[ray]'" in str(refused.exception) + refused.stderr


class FakeRay:
    """A cluster with so many cores and GPUs on two machines."""

    def __init__(self, cpus: float, gpus: float) -> None:
        self._there = {"CPU": cpus, "GPU": gpus}

    def cluster_resources(self) -> dict[str, float]:
        return self._there

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True}, {"Alive": True}, {"Alive": False}]


@pytest.mark.parametrize(
    ("there", "options", "device", "planned"),
    [
        ((64, 8), RayOptions(), "auto", (8, 1)),
        ((64, 8), RayOptions(gpus=0.25), "cuda", (32, 0.25)),
        ((64, 4), RayOptions(gpus=0.4), "cuda", (8, 0.4)),  # two on each
        ((64, 8), RayOptions(), "cpu", (2, 0)),
        ((4, 0), RayOptions(), "auto", (2, 0)),
        ((4, 0), RayOptions(workers=3), "auto", (3, 0)),
        ((4, 0), RayOptions(workers=4), "auto", "give --workers 3 or fewer"),
        ((4, 0), RayOptions(), "cuda", "--device cuda needs a GPU"),
        ((4, 1), RayOptions(gpus=1), "cpu", "--gpus 1 is for --device cuda"),
        ((9, 2), RayOptions(workers=3), "auto", "3 models with 1 GPUs each need 3"),
    ],
)
def test_how_many_models_there_are(
    there: tuple[float, float], options: RayOptions, device: str, planned: Any
) -> None:
    if isinstance(planned, str):
        with pytest.raises(UsageError, match=planned):
            cluster._planned(FakeRay(*there), options, device)
    else:
        made = cluster._planned(FakeRay(*there), options, device)
        assert (made.workers, made.gpus) == planned


def test_errors_of_the_cluster_are_those_of_the_project() -> None:
    wrapped = RuntimeError("task failed\nTraceback")
    wrapped.__cause__ = UsageError("the question is too long")
    assert str(project_error(wrapped)) == "the question is too long"
    assert isinstance(project_error(wrapped), UsageError)
    copied = UsageError("Traceback (most recent call last): …")  # as Ray raises it
    copied.cause = UsageError("the question is too long")  # type: ignore[attr-defined]
    assert str(project_error(copied)) == "the question is too long"
    assert "ended: no space left" in str(project_error(RuntimeError("task\nno space left")))


def todo(*paths: Path, **more: Any) -> list[Todo]:
    return [
        Todo(Recording(number, str(path), path, ("Who?", "What?")), **more)
        for number, path in enumerate(paths)
    ]


def test_blocks_are_of_so_many_seconds(tmp_path: Path) -> None:
    paths = [write_wav(tmp_path / f"{n}.wav", seconds) for n, seconds in enumerate((4, 5, 3, 9, 1))]
    (tmp_path / "empty.wav").touch()
    blocks = [[one.recording.number for one in b] for b in blocks_of(todo(*paths), 9)]
    assert blocks == [[0, 1], [2], [3], [4]]
    assert [len(b) for b in blocks_of(todo(*paths, seconds=1.0), 3)] == [3, 2]  # not opened
    assert [len(b) for b in blocks_of(todo(tmp_path / "empty.wav", paths[0]), 4)] == [2]


def test_a_long_recording_is_work_for_several_models(tmp_path: Path) -> None:
    paths = [write_wav(tmp_path / f"{n}.wav", seconds) for n, seconds in enumerate((9, 1, 1))]
    blocks = list(blocks_of(todo(*paths), 2))
    assert [flow._pieces_of(block, 2) for block in blocks] == [5, 1]


def test_pieces_hold_all_windows_and_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[Path] = []
    monkeypatch.setattr(
        flow, "identity", lambda path, **_: looked_at.append(path) or Identity(len(looked_at))
    )
    paths = [
        write_wav(tmp_path / "a.wav", 5),
        tmp_path / "empty.wav",
        write_wav(tmp_path / "b.wav", 2),
    ]
    paths[1].touch()
    block = pickle.loads(pickle.dumps(todo(*paths)))
    made = list(decoded(block, Job(lambda: None, CUTTING, 3.0)))  # type: ignore[arg-type, return-value]
    whole = list(WindowStream([one.recording for one in block], CUTTING, input_sample_rate=0))
    items = [item for piece in made for item in piece.items]
    assert [len(piece.items) for piece in made] == [3, 3, 2]
    for item, other in zip(items, whole, strict=True):
        assert type(item) is type(other)
        if isinstance(item, RecordingWindow) and isinstance(other, RecordingWindow):
            assert (item.key, item.window.start) == (other.key, other.window.start)
            np.testing.assert_array_equal(item.window.samples, other.window.samples)
    assert [piece.ended for piece in made] == [{}, {str(paths[0]): 5}, {str(paths[2]): 2}]
    assert [list(piece.identities) for piece in made][1] == [str(paths[0]), str(paths[1])]
    assert made[0].identities[str(paths[0])] == made[1].identities[str(paths[0])]
    assert looked_at == paths  # each once: all of a file is read for it


def test_windows_that_are_answered_are_left_out(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", 3)
    done = {(1_000_000, question_key(query, "")) for query in ("Who?", "What?")}
    done.add((2_000_000, question_key("Who?", "")))  # the other question is open
    (piece,) = decoded(todo(path, done=frozenset(done)), Job(lambda: None, CUTTING, 60.0))  # type: ignore[arg-type, return-value]
    assert [one.window.start for one in piece.items] == [0.0, 2.0]
    assert piece.ended == {str(path): 3}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    """One process stands for the cluster: a model that answers what the plain engine's does."""
    fake = FakePipeline()
    monkeypatch.setattr("NatureLM.cli.infer.load_pipeline", fake.load)
    monkeypatch.setattr(cluster, "check_ray", lambda: None)
    about = {"settings": fake.settings(None), "revisions": {}, "sample_rate": 8000}  # type: ignore[arg-type]

    def answered(cluster: Any, job: Job, todo: list[Todo], about: Any) -> Any:
        for block in blocks_of(todo, job.block_seconds):
            for piece in decoded(block, job):
                asked = job.make.args[1]  # type: ignore[attr-defined]
                piece.items = [made for one in piece.items for made in _made(fake, one, asked)]
                yield piece

    monkeypatch.setattr(flow, "pieces", answered)
    monkeypatch.setattr(flow, "described", lambda *_: about)
    monkeypatch.setattr(cluster, "_planned", lambda *_: None)
    monkeypatch.setattr(cluster, "library", lambda *_: FakeInit())
    return fake


class FakeInit:
    def init(self, **_: Any) -> None:
        pass

    def shutdown(self) -> None:
        pass


def _made(fake: FakePipeline, one: Any, asked: Any) -> list[Any]:
    if isinstance(one, RecordingError):
        return [one]
    window, path = one.window, Path(one.recording.name)
    return [fake.answer(path, window.start, window.end, query, asked) for query in asked.queries]


def test_a_run_is_that_of_the_plain_engine_and_is_resumed(
    own_folder: Path, alone: FakePipeline
) -> None:
    calls_in(own_folder)
    (own_folder / "calls" / "empty.wav").touch()
    spread = ("--engine", "ray", "--block-seconds", "10")
    assert naturelm(*ASK, "--output-path", "plain.jsonl").exit_code == 3
    alone.stop_after = len(alone.asked) + 5
    stopped = naturelm(*ASK, *spread, "--output-path", "x.jsonl")
    assert stopped.exit_code == 130
    assert "answers are in x.parts" in stopped.stderr
    alone.stop_after = None
    resumed = naturelm(*ASK, *spread, "--output-path", "x.jsonl")
    assert resumed.exit_code == 3
    assert "x.parts: has 4 answers of this run" in resumed.stderr
    assert naturelm("merge-runs", "x.parts", "-a", "calls", "-o", "all.jsonl").exit_code == 3
    assert rows("all.jsonl") == rows("plain.jsonl")
    refused = naturelm("merge-runs", "x.parts", "-a", "calls", "-o", "x")  # would empty x.parts
    assert refused.exit_code == 2
    assert "x.parts: holds answers of a run" in refused.stderr
    asked = len(alone.asked)
    assert naturelm(*ASK, *spread, "--output-path", "x.jsonl", "--format", "jsonl").exit_code == 3
    assert len(alone.asked) == asked
    assert sorted(map(str, rows("x.jsonl"))) == sorted(map(str, rows("plain.jsonl")))
    assert ResultFile("x.parts").failed == 1


def test_what_is_not_known_of_a_recording_is_said_once(
    own_folder: Path, alone: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of each piece of it."""
    calls_in(own_folder)
    error = AudioError("calls/cuckoo.wav", "its place is not known", kind="UnknownContext")
    piece = Piece([RecordingError("calls/cuckoo.wav", error)])
    monkeypatch.setattr(flow, "pieces", lambda *_: iter([piece, piece, piece]))
    assert naturelm(*ASK, "--engine", "ray", "--output-path", "x.jsonl").exit_code == 3
    lines = [line for part in Path("x.parts").iterdir() for line in read_part(part)[0]]
    assert len(lines) == 1


def test_errors_of_recordings_survive_the_way(tmp_path: Path) -> None:
    error = AudioError(tmp_path / "a.wav", "the file is empty", kind="EmptyAudio")
    piece = pickle.loads(pickle.dumps(Piece([RecordingError("a.wav", error)])))
    assert str(piece.items[0].error) == str(error)
    assert isinstance(piece.items[0].error, NatureLMError)
