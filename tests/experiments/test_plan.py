"""Cells: their order, their ids, and the counts that a plan gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from NatureLM.config import ExperimentConfig
from NatureLM.data.sample import Sample
from NatureLM.data.table import DataError
from NatureLM.errors import UsageError
from NatureLM.experiments.plan import FewShotPool, Plan, Renderer, make_plan

MakeSample = Callable[..., Sample]
QUERIES = ["What?", "Which of {species_list}?{randomize}"]


def plan_of(samples: list[Sample], *, template: str = "<{}>", **changes: Any) -> Plan:
    species = ExperimentConfig.model_validate({"species": [{"name": "Wolf"}, {"name": "Wren"}]})
    renderer = Renderer(template, species.species or (), seed=changes.pop("seed", 0))
    settings = {"queries": QUERIES, "alphas": [0.0, 0.57, 0.58], **changes}
    return Plan(samples, settings["queries"], settings["alphas"], renderer)


def test_cells_come_by_sample_then_query_then_alpha(make_sample: MakeSample) -> None:
    plan = plan_of([make_sample("b"), make_sample("a", label="Wren", cluster="c")])
    cells = list(plan.trials())
    assert [(one.sample_id, one.query, one.alpha) for one in cells] == [
        (name, query, alpha) for name in "ba" for query in (0, 1) for alpha in (0.0, 0.57, 0.58)
    ]
    assert len(plan) == len(cells) == 12
    assert (plan.n_samples, plan.n_queries, plan.n_encodings) == (2, 2, 2)
    assert (cells[-1].label, cells[-1].cluster, cells[-1].dataset_name) == ("Wren", "c", "d")
    assert cells[0].prompt == "<<Audio><AudioHere></Audio> What?>"
    assert [clip.key for clip in cells[0].audios] == ["d/b"]


def test_ids_are_of_the_contents(make_sample: MakeSample) -> None:
    one, other = make_sample("a"), make_sample("b")

    def ids(plan: Plan) -> set[str]:
        return {cell.id for cell in plan.trials()}

    base = plan_of([one, other])
    assert len(ids(base)) == len(base)
    turned = plan_of([other, one], alphas=[0.58, 0.0, 0.57], queries=QUERIES[::-1])
    assert ids(turned) == ids(base)
    assert turned.fingerprint() == base.fingerprint()
    assert ids(plan_of([one])) < ids(base)
    for changed in (
        plan_of([one, other], template="({})"),
        plan_of([make_sample("a2"), make_sample("b2")]),
        plan_of([make_sample(name, dataset="e") for name in "ab"]),
        plan_of([one, other], alphas=[0.1, 0.2, 0.3]),
        plan_of([one, other], queries=["Who?", "Where?"]),
    ):
        assert not ids(changed) & ids(base)
        assert changed.fingerprint() != base.fingerprint()


def test_ids_are_the_same_for_ever(make_sample: MakeSample) -> None:
    """Were they others in the next version, runs could not be gone on with."""
    (cell,) = plan_of([make_sample("a")], queries=["What?"], alphas=[0.4]).trials()
    assert cell.id == "ada0db0b508c992e2e325ffc1d8d0c7e"


def test_another_template(make_sample: MakeSample) -> None:
    samples = [make_sample("a")]
    changed = plan_of(samples).with_template("({})")
    assert list(changed.trials()) == list(plan_of(samples, template="({})").trials())


def test_example_clips_count_as_encodings(make_sample: MakeSample) -> None:
    samples = [make_sample(f"s{i}", label=("Wolf", "Wren")[i % 2]) for i in range(6)]
    species = ExperimentConfig.model_validate({"species": [{"name": "Wolf"}, {"name": "Wren"}]})
    renderer = Renderer("{}", species.species or (), FewShotPool(samples, 1, 0, "pool"))
    plan = Plan(samples[:2], ["{audio_examples} <AudioHere>"], [0.0, 1.0], renderer)
    keys = {clip.key for cell in plan.trials() for clip in cell.audios}
    assert plan.n_encodings == len(keys)
    assert all(len(cell.audios) == 3 for cell in plan.trials())
    for cell in plan.trials():
        assert cell.audios[-1].key not in {clip.key for clip in cell.audios[:-1]}


def write_table(folder: Path, rows: str) -> dict[str, str]:
    path = folder / "clips.csv"
    path.write_text(rows)
    return {"path": str(path)}


def build(data: dict[str, Any] | None, **config: Any) -> Plan:
    return make_plan(ExperimentConfig.model_validate({**config, "data": data}), "{}")


ROWS = "file,common_name,family\n" + "".join(
    f"{name}{i}.wav,{name},{name}{i // 2}\n" for name in ("Wolf", "Wren") for i in range(4)
)


def test_a_plan_from_a_table(tmp_path: Path) -> None:
    data = write_table(tmp_path, ROWS)
    config = {"queries": ["{audio_examples}\nAudio: <AudioHere>\nLabel:"], "n_examples": 2}
    plan = build(data, **config, top_k_species=2, lora_scales=[0.5])
    for cell in plan.trials():
        own = cell.audios[-1].key
        assert own == f"clips/{cell.sample_id}"
        same = {
            f"clips/{cell.label}{i}.wav"
            for i in range(4)
            if f"{cell.label}{i // 2}" == (cell.cluster)
        }
        assert own in same
        assert not same & {clip.key for clip in cell.audios[:-1]}
    with pytest.raises(UsageError, match=r"n_examples is 3, and .*clips.csv has only 2 clips of"):
        build(data, **{**config, "n_examples": 3}, top_k_species=2)
    with pytest.raises(UsageError, match=r"n_examples is 9, and .*clips.csv has only"):
        build(data, **{**config, "n_examples": 9}, top_k_species=2)


def test_support_of_its_own(tmp_path: Path) -> None:
    data = write_table(tmp_path, ROWS)
    (tmp_path / "examples.csv").write_text(
        "file,label\nx/1.wav,Wolf\nx/2.wav,Wren\nWolf0.wav,Wolf\n"
    )
    plan = build(
        data,
        queries=["{audio_examples} <AudioHere>"],
        top_k_species=2,
        support=str(tmp_path / "examples.csv"),
    )
    for cell in plan.trials():
        examples = [clip.key for clip in cell.audios[:-1]]
        assert all(key.startswith("support:examples/") for key in examples)
        if cell.sample_id == "Wolf0.wav":
            assert examples == ["support:examples/x/1.wav", "support:examples/x/2.wav"]


def test_no_question_to_ask(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'Wolf0.wav' brings no question .*extended\.queries"):
        build(write_table(tmp_path, ROWS))


def test_its_own_question_for_each(tmp_path: Path) -> None:
    data = write_table(tmp_path, "file,label,instruction_text\na.wav,Wolf,Who?\nb.wav,Owl,What?\n")
    assert [cell.prompt for cell in build(data).trials()] == [
        "<Audio><AudioHere></Audio> Who?",
        "<Audio><AudioHere></Audio> What?",
    ]


def test_top_k_over_data_of_several_datasets(tmp_path: Path) -> None:
    data = write_table(tmp_path, "file,label,dataset_name\na.wav,Wolf,cbi\nb.wav,Owl,watkins\n")
    with pytest.raises(DataError, match=r"top_k_species is 1.*holds cbi, watkins"):
        build(data, queries=["{species_list}"], top_k_species=1)
    assert len(build(data, queries=["{species_list}"], top_k_species=1, datasets=["cbi"])) == 1
