"""Running a plan: rows, resuming after any stop, refusing, windows of clips."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from commands import rows
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
from numpy.typing import NDArray
from torch import Tensor

from NatureLM.config.schema import TableSource
from NatureLM.data.sample import Clip, Sample, open_samples, read_window
from NatureLM.evaluation.protocols import protocol
from NatureLM.evaluation.score import score
from NatureLM.experiments.plan import Plan, Renderer
from NatureLM.experiments.run import (
    ANSWERS,
    EXPORT,
    ClipLoader,
    TrialProgress,
    TrialStore,
    weights_of,
)
from NatureLM.generation.audio_cache import AudioEncoder, EmbeddingCache
from NatureLM.generation.decoding import DecodingSession
from NatureLM.models import NatureLM
from NatureLM.results.rows import OutputError, RunSettings


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


def test_a_row_for_every_trial_with_the_answer_of_plain_generation(
    model: NatureLM, whole: Path
) -> None:
    trials = {trial.id: trial for trial in plan_of().trials()}
    rows = rows_of(whole)
    assert {row["cell"] for row in rows} == trials.keys()
    decoding = GENERATE.model_dump(exclude={"merging_alpha"})
    for row in rows[::5]:
        trial = trials[row["cell"]]
        clip = trial.audios[0]
        wav = clip.source.read(start=0.0, duration=None, sample_rate=16000)
        (text,) = model.generate([trial.prompt], [[wav]], alpha=trial.alpha, **decoding)
        assert row == {
            "prediction": text,
            "label": trial.label,
            "id": trial.sample_id,
            "dataset_name": "made-up",
            "prompt": trial.prompt,
            "query": trial.query,
            "lora_scale": trial.alpha,
            "cluster": trial.cluster,
            "task": "classification",
            "cell": trial.id,
            "run": rows[0]["run"],
        }


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
    exported = rows(files[1])
    assert [row["id"] for row in exported] == ["s0", "s1", "s2", "s3"]
    assert {row["lora_scale"] for row in exported} == {0.57}
    assert exported[0].keys() >= {"prediction", "label", "id", "dataset_name", "prompt"}


def test_batches_and_threads_change_no_byte(model: NatureLM, whole: Path, tmp_path: Path) -> None:
    run(model, plan_of(), tmp_path, batch_tokens=400, workers=1)
    assert sorted_lines(tmp_path) == sorted_lines(whole)


def test_a_finished_run_asks_nothing_again(model: NatureLM, whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "again"))
    before = (folder / ANSWERS).read_bytes()
    summary = run(model, plan_of(), folder)
    assert (summary.progress.answers, summary.progress.before, summary.encoded) == (0, 36, 0)
    assert (folder / ANSWERS).read_bytes() == before


def test_bad_clips_are_reported_and_tried_again(
    model: NatureLM, whole: Path, tmp_path: Path
) -> None:
    summary = run(model, plan_of(broken=(1,)), tmp_path)
    assert (summary.progress.answers, summary.progress.errors) == (27, 9)
    failed = [row for row in rows_of(tmp_path) if "error" in row]
    assert {row["id"] for row in failed} == {"s1"}
    assert "silent.wav" in failed[0]["error"]
    assert failed[0]["error_type"] == "AudioError"
    assert "9 without an answer" in str(summary)
    mended = run(model, plan_of(), tmp_path)
    assert (mended.progress.answers, mended.progress.before, mended.encoded) == (9, 27, 1)
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
    last: list[TrialProgress] = []

    def progress(tally: TrialProgress) -> None:
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
        ({"template": "{}"}, "other text around the questions"),
        ({"samples": 3}, "datasets.made-up: 4 there, 3 now"),
        ({"samples": 5, "alphas": (0.0, 0.57, 1.0)}, "datasets.made-up: 4 there, 5 now"),
    ],
)
def test_what_leaves_answers_out_is_refused_and_nothing_is_wiped(
    changes: dict[str, Any], says: str, model: NatureLM, whole: Path
) -> None:
    before = (whole / ANSWERS).read_bytes()
    with pytest.raises(OutputError, match="does not ask for") as caught:
        run(model, plan_of(**changes), whole)
    assert says in str(caught.value)
    assert "plan: " not in str(caught.value)
    assert (whole / ANSWERS).read_bytes() == before


@pytest.mark.parametrize(
    "steps",
    [[{"samples": 2}, {}], [{"samples": 2, "alphas": (0.57,)}, {"alphas": (0.57, 0.58)}, {}]],
)
def test_a_run_may_grow(
    steps: list[dict[str, Any]], model: NatureLM, whole: Path, tmp_path: Path
) -> None:
    """More samples, α or questions: the same rows in the end as of one run, each asked once."""
    asked = 0
    for step in steps:
        summary = run(model, plan_of(**step), tmp_path)
        assert summary.progress.before == asked
        asked += summary.progress.answers
    assert asked == len(plan_of())
    assert sorted_lines(tmp_path) == sorted_lines(whole)
    assert run(model, plan_of(queries=(*QUERIES, "Again?")), tmp_path).progress.answers == 12


@pytest.mark.parametrize("name", ["label", "cluster"])
def test_another_truth_is_refused(name: str, model: NatureLM, whole: Path) -> None:
    before = (whole / ANSWERS).read_bytes()
    plan = plan_of()
    samples = [replace(plan.samples[0], **{name: "other"}), *plan.samples[1:]]
    changed = Plan(samples, plan.queries, plan.alphas, Renderer("Q: {} A:"))
    with pytest.raises(OutputError, match=f"'s0' of made-up, whose {name} was .* is 'other' now"):
        run(model, changed, whole)
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

    def plan_in(folder: Path, seconds: dict[str, float], there: Sequence[str] = ()) -> Plan:
        folder.mkdir(exist_ok=True)
        lines = ["file,label", *there]
        for name, length in seconds.items():
            lines.append(f"{name}.wav,Wolf")
            if length:
                wav = np.sin(np.arange(round(length * 8000)) / 5)
                soundfile.write(folder / f"{name}.wav", wav, 8000)
        (folder / "clips.csv").write_text("\n".join(lines))
        samples = open_samples(TableSource(path=str(folder / "clips.csv"))).samples
        return Plan(samples, ["What?"], [0.0, 1.0], Renderer("Q: {} A:"))

    here, there, output = tmp_path / "here", tmp_path / "there", tmp_path / "run"
    assert run(model, plan_in(here, {"a": 0.5, "b": 0}), output).progress.errors == 2
    before = (output / ANSWERS).read_bytes()
    sound = (here / "a.wav").read_bytes()
    (here / "a.wav").write_bytes(sound[:-2] + b"xy")  # as long as it was
    with pytest.raises(OutputError, match=r"about clips/a\.wav, which has changed"):
        run(model, plan_in(here, {"b": 0}, ["a.wav,Wolf"]), output)
    for other in (here, there):
        with pytest.raises(OutputError, match=r"about clips/a\.wav, which has changed"):
            run(model, plan_in(other, {"a": 0.75, "b": 0.5}), output)
        assert (output / ANSWERS).read_bytes() == before
    # The same sound elsewhere goes on, and what could not be read before may be mended.
    done = run(model, plan_in(tmp_path / "moved", {"a": 0.5, "b": 0.5}), output)
    assert (done.progress.before, done.progress.answers, done.progress.errors) == (2, 2, 0)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", '{"audio_path": "x"}\n', "notes", '{"pred'])
def test_a_file_of_something_else_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / ANSWERS
    path.write_text(text)
    if '{"prediction"'.startswith(text):  # an answer that was cut off
        with TrialStore(path) as store:
            store.begin(RunSettings({}))
        assert path.read_text() == ""
        return
    with pytest.raises(OutputError, match="no row of an experiment"):
        TrialStore(path)
    assert path.read_text() == text


def test_an_exception_leaves_whole_rows_and_the_model_as_it_was(
    model: NatureLM, whole: Path, tmp_path: Path
) -> None:
    def stop(tally: TrialProgress) -> None:
        if tally.answers == 7:
            raise KeyboardInterrupt

    plan = plan_of(alphas=(0.57,))
    with pytest.raises(KeyboardInterrupt):
        run(model, plan, tmp_path, progress=stop)
    assert model.folded is None
    assert len(rows_of(tmp_path)) == 7
    assert run(model, plan, tmp_path).progress.before == 7


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


RATE = 16000


@dataclass(frozen=True)
class Noise:
    """A recording of so many seconds, other noise for each length."""

    seconds: float

    def read(
        self, *, start: float, duration: float | None, sample_rate: int
    ) -> NDArray[np.float32]:
        wav = np.random.default_rng(round(self.seconds * 1000)).uniform(
            -0.5, 0.5, round(self.seconds * RATE)
        )
        first = round(start * RATE)
        end = None if duration is None else first + round(duration * RATE)
        return wav[first:end].astype(np.float32)


CLIPS = {
    "model's": Clip("model's", Noise(4.0)),
    "three": Clip("three", Noise(2.0), window=3.0),
    "three, cut": Clip("three, cut", Noise(8.0), window=3.0),
    "five": Clip("five", Noise(5.0), window=5.0),
    "longer than the model's": Clip("longer than the model's", Noise(12.0), window=20.0),
    "part": Clip("part", Noise(30.0), start=4.0, end=7.0, window=3.0),
}
SECONDS = {"model's": 10, "three": 3, "three, cut": 3, "five": 5, "part": 3}
CUT = {"three, cut", "longer than the model's"}


@pytest.mark.parametrize("name", CLIPS)
def test_what_is_heard_of_a_clip(name: str) -> None:
    heard = read_window(CLIPS[name], RATE, 10.0)
    assert heard.seconds == SECONDS.get(name, 10)
    assert len(heard.samples) <= heard.seconds * RATE
    assert heard.is_cut == (name in CUT)


def test_embeddings_are_those_of_exactly_that_length(model: NatureLM) -> None:
    """Whatever is encoded beside it, in batches of any size."""
    assert model.processor is not None
    for batch in (1, 2, 16):
        load = ClipLoader(model, CLIPS.values())
        with AudioEncoder(
            load,
            model.processor.prepare_audio,
            model.encode_audio,
            kept=EmbeddingCache(),
            batch=batch,
        ) as audio:
            clips: dict[str, Any] = audio.get(CLIPS)
        found = {name: clip.audio_QD for name, clip in clips.items()}
        assert load.cut == len(CUT)
        for name, clip in CLIPS.items():
            seconds = SECONDS.get(name, 10)
            alone = _embeddings(model, clip, seconds)
            torch.testing.assert_close(found[name], alone, msg=name)
    assert len({one.shape[0] for one in found.values()}) == 3
    assert found["three"].shape[0] < found["five"].shape[0] < found["model's"].shape[0]


def _embeddings(model: NatureLM, clip: Clip, seconds: int) -> Tensor:
    wav = np.zeros(seconds * RATE, dtype=np.float32)
    sound = clip.source.read(start=clip.start, duration=clip.duration, sample_rate=RATE)
    wav[: len(sound)] = sound[: len(wav)]
    with torch.inference_mode():
        return model.encode_audio(torch.as_tensor(wav)[None])[0]


def test_a_run_hears_each_component_as_it_should(model: NatureLM, tmp_path: Path) -> None:
    """Answers of mixed windows are those of the embeddings of each length, and cuts are said."""
    samples = [
        Sample(name, "made-up", "Wolf", clip, name, task="classification")
        for name, clip in CLIPS.items()
    ]
    plan = Plan(samples, ["What is it?"], [1.0], Renderer("Q: {} A:"))
    done = run(model, plan, tmp_path)
    assert (done.cut, done.progress.errors) == (2, 0)
    assert "2 clips are longer than the window" in str(done)
    rows = {row["id"]: row["prediction"] for row in rows_of(tmp_path)}
    for trial in plan.trials():
        audio = _embeddings(model, CLIPS[trial.sample_id], SECONDS.get(trial.sample_id, 10))
        (text,) = model.generate([trial.prompt], [[audio]], max_new_tokens=4, num_beams=2)
        assert rows[trial.sample_id] == text
