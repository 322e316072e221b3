"""Running a plan: rows, resuming, refusing, and dying at any moment."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from experiment_runs import (
    ALPHAS,
    GENERATE,
    QUERIES,
    die,
    killed,
    plan_of,
    rows_of,
    run,
    sorted_lines,
)

from NatureLM.beans.samples import open_samples
from NatureLM.beans.scoring import protocol, score
from NatureLM.config.tables import TableSource
from NatureLM.experiments.plan import Plan
from NatureLM.experiments.render import Renderer
from NatureLM.experiments.run import ANSWERS, EXPORT
from NatureLM.experiments.settings import weights_of
from NatureLM.experiments.store import CellStore
from NatureLM.experiments.tally import Tally
from NatureLM.generation.session import DecodingSession
from NatureLM.models import NatureLM
from NatureLM.outputs import OutputError, RunSettings

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")


@pytest.fixture(scope="module")
def model(nano_folder: Path) -> NatureLM:
    """In float64 no rounding decides between tokens."""
    return NatureLM.from_pretrained(nano_folder / "checkpoint", dtype=torch.float64)


@pytest.fixture(scope="module")
def whole(model: NatureLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    run(model, plan_of(), folder)
    return folder


def test_a_row_for_every_cell_with_the_answer_of_plain_generation(
    model: NatureLM, whole: Path
) -> None:
    cells = {cell.id: cell for cell in plan_of().cells()}
    rows = rows_of(whole)
    assert {row["cell"] for row in rows} == cells.keys()
    assert model.processor is not None
    for row in rows[::5]:
        cell = cells[row["cell"]]
        clip = cell.audios[0]
        wav = clip.source.read(start=0.0, duration=None, sample_rate=16000)
        (text,) = model.generate([cell.prompt], [[wav]], alpha=cell.alpha, **options())
        assert row == {
            "prediction": text,
            "label": cell.label,
            "id": cell.sample_id,
            "dataset_name": "made-up",
            "prompt": cell.prompt,
            "query": cell.query,
            "lora_scale": cell.alpha,
            "cluster": cell.cluster,
            "task": "classification",
            "cell": cell.id,
            "run": rows[0]["run"],
        }


def options() -> dict[str, Any]:
    return GENERATE.model_dump(exclude={"merging_alpha"})


def test_what_scoring_reads(whole: Path) -> None:
    scores = score([whole], [protocol("beans-zero")])
    assert len(scores.groups) == len(QUERIES) * len(ALPHAS)
    assert scores.answers == len(plan_of())


def test_the_files_of_the_reference(whole: Path) -> None:
    files = sorted((whole / EXPORT).iterdir())
    assert [one.name for one in files] == sorted(
        f"beans_zero_eval_made-up_query{query}_lora{alpha}.jsonl"
        for query in range(3)
        for alpha in ("0.0", "0.57", "0.58")
    )
    rows = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert [row["id"] for row in rows] == ["s0", "s1", "s2", "s3"]
    assert {row["lora_scale"] for row in rows} == {0.57}
    assert rows[0].keys() >= {"prediction", "label", "id", "dataset_name", "prompt"}


def test_batches_and_threads_change_no_byte(model: NatureLM, whole: Path, tmp_path: Path) -> None:
    run(model, plan_of(), tmp_path, batch_tokens=400, workers=1)
    assert sorted_lines(tmp_path) == sorted_lines(whole)


def test_a_finished_run_asks_nothing_again(model: NatureLM, whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "again"))
    before = (folder / ANSWERS).read_bytes()
    summary = run(model, plan_of(), folder)
    assert (summary.answers, summary.before, summary.encoded) == (0, 36, 0)
    assert (folder / ANSWERS).read_bytes() == before


def test_bad_clips_are_reported_and_tried_again(
    model: NatureLM, whole: Path, tmp_path: Path
) -> None:
    summary = run(model, plan_of(broken=(1,)), tmp_path)
    assert (summary.answers, summary.errors) == (27, 9)
    failed = [row for row in rows_of(tmp_path) if "error" in row]
    assert {row["id"] for row in failed} == {"s1"}
    assert "silent.wav" in failed[0]["error"]
    assert failed[0]["error_type"] == "AudioError"
    assert "9 without an answer" in str(summary)
    mended = run(model, plan_of(), tmp_path)
    assert (mended.answers, mended.before, mended.encoded) == (9, 27, 1)
    assert sorted_lines(tmp_path) == sorted_lines(whole)


def test_one_alpha_is_folded_for_the_run(model: NatureLM, whole: Path, tmp_path: Path) -> None:
    seen: list[bool] = []
    plan = plan_of(alphas=(0.57,))
    run(model, plan, tmp_path, progress=lambda tally: seen.append(model.folded is not None))
    assert seen[0] is False
    assert all(seen[1:])
    assert model.folded is None
    wanted = {row["cell"]: row["prediction"] for row in rows_of(whole)}
    assert all(row["prediction"] == wanted[row["cell"]] for row in rows_of(tmp_path))


def test_progress_tells_where_the_run_stands(model: NatureLM, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    last: list[Tally] = []

    def progress(tally: Tally) -> None:
        seen.append((tally.done, tally.total))
        last[:] = [tally]

    run(model, plan_of(2), tmp_path, progress=progress)
    assert seen == [(number, 18) for number in range(19)]
    assert list(last[0].accuracy()) == list(ALPHAS)
    assert all(0 <= share <= 1 for share in last[0].accuracy().values())
    assert last[0].rate > 0
    assert last[0].seconds_left == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"alphas": (0.0, 0.57)}, "lora_scales: [0.0, 0.57, 0.58] there, [0.0, 0.57] now"),
        ({"queries": QUERIES[:2]}, "queries: "),
        ({"template": "{}"}, "plan: "),
        ({"samples": 3}, "datasets.made-up: 4 there, 3 now"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_wiped(
    changes: dict[str, Any], says: str, model: NatureLM, whole: Path
) -> None:
    before = (whole / ANSWERS).read_bytes()
    with pytest.raises(OutputError, match="not mixed") as caught:
        run(model, plan_of(**changes), whole)
    assert says in str(caught.value)
    assert (whole / ANSWERS).read_bytes() == before


def test_another_model_or_decoding_is_refused(
    model: NatureLM, nano: NatureLM, whole: Path, build_model: Callable[..., NatureLM]
) -> None:
    with pytest.raises(OutputError, match='dtype: "float64" there, "float32" now'):
        run(nano, plan_of(), whole)
    with pytest.raises(OutputError, match="weights: "):
        run(build_model(), plan_of(), whole)
    longer = GENERATE.model_copy(update={"max_new_tokens": 5})
    with pytest.raises(OutputError, match=r"generate.max_new_tokens: 4 there, 5 now"):
        run(model, plan_of(), whole, generate=longer)


def test_a_model_without_files_is_named_by_its_weights(
    build_model: Callable[..., NatureLM],
) -> None:

    assert weights_of(build_model(seed=1)) == weights_of(build_model(seed=1))
    assert weights_of(build_model(seed=1)) != weights_of(build_model(seed=2))


def test_a_recording_that_changed_is_refused(model: NatureLM, tmp_path: Path) -> None:
    """Whether it was replaced, or the same table lies in another folder beside other sound."""

    def plan_in(folder: Path, seconds: dict[str, float]) -> Plan:
        folder.mkdir(exist_ok=True)
        lines = ["file,label"]
        for name, length in seconds.items():
            lines.append(f"{name}.wav,Wolf")
            if length:
                wav = np.sin(np.arange(round(length * 8000)) / 5)
                soundfile.write(folder / f"{name}.wav", wav, 8000)
        (folder / "clips.csv").write_text("\n".join(lines))
        samples = open_samples(TableSource(path=str(folder / "clips.csv"))).samples
        return Plan(samples, ["What?"], [0.0, 1.0], Renderer("Q: {} A:"))

    here, there, output = tmp_path / "here", tmp_path / "there", tmp_path / "run"
    assert run(model, plan_in(here, {"a": 0.5, "b": 0}), output).errors == 2
    before = (output / ANSWERS).read_bytes()
    for other in (here, there):
        with pytest.raises(OutputError, match=r"about clips/a\.wav, which has changed"):
            run(model, plan_in(other, {"a": 0.75, "b": 0.5}), output)
        assert (output / ANSWERS).read_bytes() == before
    # The same sound elsewhere goes on, and what could not be read before may be mended.
    done = run(model, plan_in(tmp_path / "moved", {"a": 0.5, "b": 0.5}), output)
    assert (done.before, done.answers, done.errors) == (2, 2, 0)


def test_the_second_writer_is_told(whole: Path) -> None:
    with CellStore(whole / ANSWERS), pytest.raises(OutputError, match="another run is writing"):
        CellStore(whole / ANSWERS)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", '{"audio_path": "x"}\n', "notes", '{"pred'])
def test_a_file_of_something_else_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / ANSWERS
    path.write_text(text)
    if '{"prediction"'.startswith(text):  # an answer that was cut off
        with CellStore(path) as store:
            store.begin(RunSettings({}))
        assert path.read_text() == ""
        return
    with pytest.raises(OutputError, match="no row of an experiment"):
        CellStore(path)
    assert path.read_text() == text


def test_an_exception_leaves_whole_rows_and_the_model_as_it_was(
    model: NatureLM, whole: Path, tmp_path: Path
) -> None:
    def stop(tally: Tally) -> None:
        if tally.answers == 7:
            raise KeyboardInterrupt

    plan = plan_of(alphas=(0.57,))
    with pytest.raises(KeyboardInterrupt):
        run(model, plan, tmp_path, progress=stop)
    assert model.folded is None
    assert len(rows_of(tmp_path)) == 7
    assert run(model, plan, tmp_path).before == 7


class Trap:
    """Kills the process at a moment of its choice."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def in_a_batch(self) -> None:
        """In a pass of the language model."""
        left = self.chance.randrange(1, 8)
        step = DecodingSession.step

        def trapped(session: DecodingSession, tokens_R: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                die()
            return step(session, tokens_R)

        DecodingSession.step = trapped  # type: ignore[method-assign]

    def in_a_write(self) -> None:
        """When a part of a line is on the disk, from none of it to all."""
        left = self.chance.randrange(1, 12)
        share = self.chance.choice([0.0, self.chance.random(), 1.0])
        write = os.write

        def trapped(fd: int, data: bytes) -> int:
            nonlocal left
            left -= 1
            if not left:
                write(fd, data[: int(share * len(data))])
                die()
            return write(fd, data)

        os.write = trapped


@needs_fork
@pytest.mark.parametrize("wanted", [5, pytest.param(24, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    wanted: int, model: NatureLM, whole: Path, tmp_path: Path
) -> None:
    chance = random.Random(wanted)
    trap = Trap(chance)
    kills = {"batch": 0, "write": 0, "time": 0}
    torn = 0
    for trial in range(100):
        if sum(kills.values()) >= wanted and all(kills.values()) and torn:
            break
        folder = tmp_path / f"run{trial}"
        for how in chance.sample(list(kills), 3):
            tokens, workers = chance.choice([200, 700, 5000]), chance.choice([1, 3])
            was_killed = killed(
                lambda: run(
                    model,
                    plan_of(),
                    folder,  # noqa: B023
                    batch_tokens=tokens,  # noqa: B023
                    workers=workers,  # noqa: B023
                ),
                {"batch": trap.in_a_batch, "write": trap.in_a_write}.get(how, lambda: None),
                chance.uniform(0.05, 0.6) if how == "time" else None,
            )
            kills[how] += was_killed
            path = folder / ANSWERS
            torn += (
                path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
            )
        run(model, plan_of(), folder, batch_tokens=1000)
        assert sorted_lines(folder) == sorted_lines(whole)
        assert sorted(one.name for one in (folder / EXPORT).iterdir()) == sorted(
            one.name for one in (whole / EXPORT).iterdir()
        )
    assert kills["batch"] + kills["write"] >= wanted / 2
    assert torn, "no line was ever cut off"
    print(f"kills: {kills}, of which {torn} left a line without its end")


_PROGRAM = """
import sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
import torch
torch.set_num_threads(1)
from experiment_runs import plan_of, run
from NatureLM.models import NatureLM
model = NatureLM.from_pretrained(sys.argv[2], dtype=torch.float64)
print("ready", flush=True)
run(model, plan_of(), Path(sys.argv[3]), batch_tokens=int(sys.argv[4]), workers=int(sys.argv[5]))
"""


@pytest.mark.slow
def test_separate_processes_killed_at_random_moments(
    nano_folder: Path, whole: Path, tmp_path: Path
) -> None:
    chance = random.Random(1)
    tests = Path(__file__).parents[1]
    kills = 0
    while kills < 20:
        folder = tmp_path / f"run{kills}"
        for _ in range(5):
            sizes = [chance.choice(["200", "1000"]), chance.choice(["1", "3"])]
            paths = [tests, nano_folder / "checkpoint", folder]
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *map(str, paths), *sizes],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0, 0.5))
            process.kill()
            kills += process.wait() != 0
            process.stdout.close()
        command = [sys.executable, "-c", _PROGRAM, *map(str, paths), "5000", "2"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        assert sorted_lines(folder) == sorted_lines(whole)
