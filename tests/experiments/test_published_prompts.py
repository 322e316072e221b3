"""Prompts of our configurations equal those of the published answers, up to the shuffle."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from NatureLM.config import Config, ExperimentConfig, load_config
from NatureLM.data.clip import Clip
from NatureLM.data.sample import Sample
from NatureLM.experiments.plan import Plan, Renderer, select

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


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
    cells = list(plan.trials())
    assert {(one.sample_id, one.label, one.alpha) for one in cells} == {
        (row["id"], row["label"], row["lora_scale"]) for row in rows
    }
    theirs = Counter(row["prompt"] for row in rows)
    ours = Counter(one.prompt for one in cells)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 2
    assert min(ours.values()) > 0.35 * len(cells)
    # A sample has one order for all α.
    assert len({(one.sample_id, one.prompt) for one in cells}) == plan.n_samples


def test_the_configuration_of_the_published_template() -> None:
    assert Config().model.prompt_template.startswith("<|start_header_id|>user<|end_header_id|>\n\n")
