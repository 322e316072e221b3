"""Whatever stands in a file of answers: each line is scored or counted as an error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from NatureLM.errors import UsageError
from NatureLM.evaluation.answers import ReadOptions
from NatureLM.evaluation.bootstrap import BootstrapOptions
from NatureLM.evaluation.names import ScoringError
from NatureLM.evaluation.protocols import protocol
from NatureLM.evaluation.score import score
from NatureLM.evaluation.write import write_scores

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
KEYS = ("prediction", "label", "id", "dataset_name", "query", "lora_scale", "recording", "error")
often = {
    "prediction": st.sampled_from(["Walrus", "", "Narwhal, or so"]),
    "label": st.sampled_from(["Walrus", "Narwhal", "None"]),
    "id": st.integers(0, 30),
    "dataset_name": st.sampled_from(["watkins", "gibbons", "captioning"]),
    "query": st.integers(0, 1),
    "lora_scale": st.sampled_from([0, 0.5, 1, 1.0]),
}
rows = st.fixed_dictionaries(often)
odd_rows = st.builds(
    lambda row, key, value, drop: {
        name: value if name == key else old
        for name, old in {**row, key: value}.items()
        if not (drop and name == key)
    },
    rows,
    st.sampled_from(KEYS),
    json_values,
    st.booleans(),
)
BY_TASK = ReadOptions(by=("query", "lora_scale", "task"))
lines = st.lists(rows | rows | odd_rows | json_values, max_size=12)


@given(lines)
@example([{**dict.fromkeys(often, "Walrus"), "dataset_name": "watkins", "lora_scale": math.nan}])
@settings(max_examples=60, deadline=None)
def test_every_line_is_scored_or_counted(
    tmp_path_factory: pytest.TempPathFactory, content: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("answers")
    path = Path(folder, "answers.jsonl")
    path.write_text("".join(json.dumps(one) + "\n" for one in content), "utf-8")
    few = BootstrapOptions(resamples=5)
    try:
        scores = score([path], [protocol("paper")], bootstrap=few, on_error="skip")
    except UsageError:
        with pytest.raises(UsageError, match="no answer that can be scored"):
            score([path], [protocol("strict")], on_error="skip")
        return
    records = scores.records()
    assert sum(record["n"] for record in records) + len(scores.problems) == len(content)
    assert {record["errors"] for record in records} == {len(scores.problems)}
    assert len({problem.line for problem in scores.problems}) == len(scores.problems)
    for record in records:
        assert record["accuracy"] is None or 0 <= record["accuracy"] <= 1
    write_scores(scores, folder / "out", {})
    stored = json.loads(
        (folder / "out" / "metrics.json").read_text("utf-8"),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    assert [record["n"] for record in stored] == [record["n"] for record in records]


def test_alpha_is_a_number_however_it_is_written(write_answers: Any, make_row: Any) -> None:
    """Files of several programs: one writes 1, another 1.0, a third "1.0"."""
    made = [make_row(i, "Walrus", "Walrus", lora_scale=a) for i, a in enumerate([1.0, 1, "1.0"])]
    [record] = score([write_answers(made)], [protocol("strict")]).records()
    assert (record["n"], record["lora_scale"]) == (3, 1.0)


def test_tasks_of_a_data_set_are_not_mixed(write_answers: Any, make_row: Any) -> None:
    tasks = ["classification", None, "captioning"]
    made = [make_row(i, "Owl", "Owl", dataset_name="mine", task=t) for i, t in enumerate(tasks)]
    path = write_answers(made)
    with pytest.raises(ScoringError, match=r":3: task is 'captioning', and rows of 'mine' before"):
        score([path], [protocol("strict")])
    one_task = ReadOptions(task="classification")
    assert score([path], [protocol("strict")], options=one_task).records()[0]["n"] == 3
    apart = score([write_answers([made[0], made[2]])], [protocol("strict")], options=BY_TASK)
    assert [group.task for group in apart.groups] == ["captioning", "classification"]
