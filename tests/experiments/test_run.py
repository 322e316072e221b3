"""Running a plan: rows, resuming, refusing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from experiment_runs import (
    ALPHAS,
    GENERATE,
    QUERIES,
    plan_of,
    rows_of,
    run,
    sorted_lines,
)

from NatureLM.config.base import TableSource
from NatureLM.data.sample import open_samples
from NatureLM.evaluation.protocols import protocol
from NatureLM.evaluation.score import score
from NatureLM.experiments.plan import Plan, Renderer
from NatureLM.experiments.run import ANSWERS, EXPORT, TrialProgress, weights_of
from NatureLM.experiments.store import TrialStore
from NatureLM.models import NatureLM
from NatureLM.results.rows import OutputError
from NatureLM.results.settings import RunSettings


def test_a_row_for_every_cell_with_the_answer_of_plain_generation(
    model: NatureLM, whole: Path
) -> None:
    cells = {cell.id: cell for cell in plan_of().trials()}
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


def test_the_second_writer_is_told(whole: Path) -> None:
    with TrialStore(whole / ANSWERS), pytest.raises(OutputError, match="another run is writing"):
        TrialStore(whole / ANSWERS)


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
