"""A run that dies at any moment goes on to the same bytes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from experiment_runs import die, killed, plan_of, run, sorted_lines

from NatureLM.experiments.run import ANSWERS, EXPORT
from NatureLM.generation.decoding import DecodingSession
from NatureLM.models import NatureLM

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")


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
