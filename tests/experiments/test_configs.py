"""Configurations that ship load, show their plans, and give the published prompts."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import call

from NatureLM.config import Config, ExperimentConfig, load_config
from NatureLM.config.schema import TableSource
from NatureLM.data.sample import Clip, Sample
from NatureLM.errors import ConfigError
from NatureLM.experiments.plan import Plan, Renderer, make_plan, select
from NatureLM.survey import preset_names
from NatureLM.survey.questionnaire import QuestionnaireFile
from recipes.small.study import StudyConfig as SmallStudyConfig
from recipes.tiny.study import StudyConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OF_TWO_OR_MORE = ["their_classification", "just_classify", "just_classify_explained"]
OF_TWO_OR_MORE += ["just_list_random", "just_list_random_trainver"]
TABLE = [
    "cbi",
    "watkins",
    "zf_indiv",
    *(f"{name}{end}" for name in OF_TWO_OR_MORE for end in ("", "_3", "_all")),
    "closed_set_classification_2",
    "closed_set_classification_all",
    "inference_incontext",
    "in_context_random",
    "in_context_spotted_first",
    "in_context_dalls_first",
    "textual_in_context_learning",
    "in_context_learning_1_example",
    "in_context_learning_5_examples",
]
ALPHAS = [round(0.1 * step, 1) for step in range(11)]
SAMPLES = {"": 15, "2": 15, "3": 18, "all": 21}  # of unseen-family-cmn, by the end of the name


def extended(name: str) -> ExperimentConfig:
    config = load_config(CONFIGS / f"{name}.yml")
    assert config.generate.max_new_tokens == 100
    assert config.extended is not None
    assert config.extended.lora_scales == ALPHAS
    return config.extended


def with_data(config: ExperimentConfig, folder: Path) -> ExperimentConfig:
    return config.model_copy(update={"data": TableSource(path=str(folder))})


def test_the_table_is_complete() -> None:
    """Every configuration with an experiment is in the table above, and in configs/README.md."""
    found = {path.stem for path in CONFIGS.glob("*.yml") if load_config(path).extended is not None}
    assert found == set(TABLE)
    page = (CONFIGS / "README.md").read_text(encoding="utf-8")
    assert not [name for name in [*TABLE, "tiny/experiment"] if f"`{name}`" not in page]


READ_BY_OTHERS = {
    "tiny/study.yml": StudyConfig.model_validate,
    "small/study.yml": SmallStudyConfig.model_validate,
    "accelerate/ddp.yml": lambda data: data["distributed_type"],
    "accelerate/fsdp.yml": lambda data: data["distributed_type"],
    **{f"surveys/{name}.yml": QuestionnaireFile.model_validate for name in preset_names()},
}
"""What is no configuration of ours, and what its reader makes of it."""


def test_every_file_loads(caplog: pytest.LogCaptureFixture) -> None:
    found = {path.relative_to(CONFIGS).as_posix(): path for path in CONFIGS.rglob("*.yml")}
    assert found.keys() >= READ_BY_OTHERS.keys()
    for name, path in found.items():
        if name in READ_BY_OTHERS:
            assert READ_BY_OTHERS[name](yaml.safe_load(path.read_text(encoding="utf-8")))
            with pytest.raises(ConfigError):
                load_config(path)
        else:
            load_config(path)
    assert not caplog.messages


@pytest.mark.parametrize("name", TABLE)
def test_each_shows_its_plan(name: str, beans_zero: Path) -> None:
    config = extended(name)
    counts = {"cbi": 5, "watkins": 4, "zf_indiv": 4}
    end = name.rsplit("_", 1)[-1]
    expected = counts.get(name, SAMPLES[end if end in SAMPLES else ""])
    queries = 3 if name in counts else 1
    options = ["--cfg-path", CONFIGS / f"{name}.yml", "--data-path", beans_zero, "--dry-run"]
    plan = call("infer", *options)  # `beans` shows the same: `tests/cli/test_experiments.py`
    shown = dict(line.split(maxsplit=1) for line in plan.splitlines()[:10])
    assert shown["samples"] == str(expected)
    assert shown["encodings"] == str(expected)
    assert shown["generations"] == str(expected * queries * 11)
    assert shown["queries"] == str(queries)
    assert shown["time"].startswith("about ")
    for number in range(queries):
        assert f"\nquery {number}, for sample" in plan
    assert config.queries is not None
    assert "{" not in plan.split("query 0", 1)[1]


def test_orders_that_are_named(beans_zero: Path) -> None:
    for name, first in (
        ("in_context_spotted_first", "Spotted Elachura, Dall's Porpoise"),
        ("in_context_dalls_first", "Dall's Porpoise, Spotted Elachura"),
    ):
        trials = list(make_plan(with_data(extended(name), beans_zero), "{}").trials())
        assert trials
        assert all(f"exactly one of: {first}\n" in trial.prompt for trial in trials)


def test_the_two_names_of_one_experiment() -> None:
    assert extended("inference_incontext") == extended("in_context_random")


def test_examples_are_spliced(beans_zero: Path) -> None:
    """So many clips of each species, none of them the one under test."""
    for name, n in (("in_context_learning_1_example", 1), ("in_context_learning_5_examples", 5)):
        config = extended(name)
        assert config.n_examples == n
        for trial in make_plan(with_data(config, beans_zero), "{}").trials():
            assert len(set(trial.audios)) == len(trial.audios) == 2 * n + 1
            assert trial.audios[-1].key == f"unseen-family-cmn/{trial.sample_id}@0.0+10.0"


def test_the_small_one_on_a_table_of_ones_own(tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "common_name", "family", "split"])
        for i in range(12):
            writer.writerow(
                [f"{i}.wav", ["Cat", "Dog"][i % 2], f"f{i // 3}", ["test", "train"][i % 3 > 0]]
            )
    config = CONFIGS / "tiny" / "experiment.yml"
    words = ("infer", "--cfg-path", config, "--data-path", table, "--dry-run")
    plan = call(*words)
    assert "generations  132" in plan  # 4 samples x 3 queries x 11 scales
    assert "model        naturelm-tiny" in plan
    assert "samples      12" in call(*words, "--options", "extended.data.where={}")


def published(shared: Path, name: str) -> list[dict[str, Any]]:
    with gzip.open(shared / "published" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def our_plan(name: str, rows: list[dict[str, Any]]) -> Plan:
    """The plan of a configuration over the samples of the published answers."""
    config = load_config(CONFIGS / f"{name}.yml")
    assert config.extended is not None
    samples: dict[str, Sample] = {}
    for row in rows:
        clip = Clip(row["id"], None)  # type: ignore[arg-type]
        sample = Sample(row["id"], row["dataset_name"], row["label"], clip, row["id"])
        samples.setdefault(row["id"], sample)
    assert config.extended.datasets == [rows[0]["dataset_name"]]
    tested, species = select(config.extended, list(samples.values()))
    renderer = Renderer(config.model.prompt_template, species)
    extended: ExperimentConfig = config.extended
    return Plan(tested, extended.queries, extended.lora_scales, renderer)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["cbi", "zf-indiv"])
def test_prompts_without_a_list_are_equal(name: str, shared_dir: Path) -> None:
    rows = published(shared_dir, name)
    plan = our_plan(name.replace("-", "_"), rows)
    theirs = {(row["id"], row["query"], row["lora_scale"]): row["prompt"] for row in rows}
    ours = {(one.sample_id, one.query, one.alpha): one.prompt for one in plan.trials()}
    assert {key: ours[key] for key in theirs} == theirs
    assert name == "zf-indiv" or ours.keys() == theirs.keys()


@pytest.mark.shared
@pytest.mark.parametrize("name", ["closed_set_classification_2", "textual_in_context_learning"])
def test_shuffled_prompts_are_equal_up_to_the_shuffle(name: str, shared_dir: Path) -> None:
    """The same two prompts, both used, and each about as often."""
    rows = published(shared_dir, name)
    plan = our_plan(name, rows)
    trials = list(plan.trials())
    assert {(one.sample_id, one.label, one.alpha) for one in trials} == {
        (row["id"], row["label"], row["lora_scale"]) for row in rows
    }
    theirs = Counter(row["prompt"] for row in rows)
    ours = Counter(one.prompt for one in trials)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 2
    assert min(ours.values()) > 0.35 * len(trials)
    # A sample has one order for all α.
    assert len({(one.sample_id, one.prompt) for one in trials}) == len(plan.samples)


def test_the_configuration_of_the_published_template() -> None:
    assert Config().model.prompt_template.startswith("<|start_header_id|>user<|end_header_id|>\n\n")
