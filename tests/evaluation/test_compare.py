"""`beans compare`: two sets of answers to the same samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answer_files import row, run, write_answers

from NatureLM.errors import NatureLMError, UsageError
from NatureLM.evaluation.protocols import protocol
from NatureLM.evaluation.score import Side, compare

pytest.importorskip("rapidfuzz")
pytestmark = pytest.mark.usefixtures("own_folder")
NAMES = ["Walrus", "Narwhal"]


def side(path: Path, **where: str) -> Side:
    return Side((path,), where)


def rows(right: list[bool], **more: Any) -> list[dict[str, Any]]:
    return [
        row(i, NAMES[i % 2], NAMES[i % 2 if hit else 1 - i % 2], **more)
        for i, hit in enumerate(right)
    ]


def test_pairs_make_the_interval_narrow() -> None:
    """B is right wherever A is, and on every tenth sample more: that is no chance."""
    rng = np.random.default_rng(0)
    a = list(rng.random(400) < 0.5)
    b = [hit or i % 10 == 0 for i, hit in enumerate(a)]
    files = write_answers(rows(a), "a.jsonl"), write_answers(rows(b), "b.jsonl")
    found = compare(side(files[0]), side(files[1]), protocol("strict"))
    [group] = found.groups
    gained = float(np.mean(b) - np.mean(a))
    one = group.metrics["accuracy"]
    assert one.difference == pytest.approx(gained)
    assert one.interval is not None
    low, high = one.interval
    assert 0 < low < gained < high
    assert high - low < 0.06  # two unpaired runs of 400 would differ by ± 0.07 by chance
    assert one.p < 0.01
    assert group.differ == pytest.approx(gained)
    assert (group.only_a_right, group.only_b_right) == (0.0, pytest.approx(gained))


def test_a_run_does_not_differ_from_itself() -> None:
    path = write_answers(rows([True, False, True, True]))
    [group] = compare(side(path), side(path), protocol("paper")).groups
    for one in group.metrics.values():
        assert (one.difference, one.interval, one.p) == (0.0, (0.0, 0.0), 1.0)
    assert group.differ == 0


def test_rounding_is_no_difference() -> None:
    """Weighted recall is accuracy, summed in another order: both differ by the same chance."""
    rng = np.random.default_rng(1)
    names = [f"animal {i:02}" for i in range(40)]
    wanted = rng.choice(names, 300)
    files = []
    for name in "ab":
        said = np.where(rng.random(300) < 0.55, wanted, rng.choice(names, 300))
        made = [row(i, *pair) for i, pair in enumerate(zip(wanted, said, strict=True))]
        files.append(write_answers(made, f"{name}.jsonl"))
    [group] = compare(side(files[0]), side(files[1]), protocol("strict")).groups
    assert group.metrics["recall"].p == group.metrics["accuracy"].p < 1


def test_only_samples_of_both_count() -> None:
    right = [True, True, False, True, False, True]
    a = write_answers(rows(right)[:5], "a.jsonl")
    b = write_answers(rows(right)[2:], "b.jsonl")
    [group] = compare(side(a), side(b), protocol("strict")).groups
    assert (group.n, group.only_in_a, group.only_in_b) == (3, 2, 1)
    assert group.metrics["accuracy"].a == pytest.approx(1 / 3)


def test_two_alphas_of_one_file(tmp_path: Path) -> None:
    made = rows([True] * 8, lora_scale=0.5) + rows([False] * 8, lora_scale=1)
    path = write_answers(made)
    code, printed, errors = run(
        *("beans", "compare", path, path, "--a-where", "lora_scale=1.0"),
        *("--b-where", "lora_scale=0.5", "--protocol", "strict", "--output-path", "out"),
    )
    assert code == 0, errors
    assert "+1.000 [+1.000, +1.000]" in printed
    assert "100.0%" in printed
    [record] = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert (record["dataset"], record["query"], record["lora_scale"]) == ("watkins", 0, None)
    assert record["metrics"]["f1"]["difference"] == 1.0
    half = write_answers([one | {"query": 0} for one in made[:8]], "half.jsonl")
    words = ("beans", "compare", half, path, "--b-where", "lora_scale=1", "--protocol", "strict")
    for by in ((), ("--by", "query,lora_scale")):
        assert "-1.000 [-1.000, -1.000]" in run(*words, *by)[1]


def test_what_cannot_be_compared_is_said() -> None:
    a = write_answers(rows([True, True]), "a.jsonl")
    other_samples = [one | {"id": "x" + one["id"]} for one in rows([True, True])]
    b = write_answers(other_samples, "b.jsonl")
    with pytest.raises(UsageError, match=r"a\.jsonl and .*b\.jsonl have no group with a sample"):
        compare(side(a), side(b), protocol("strict"))
    with pytest.raises(UsageError, match="no answer with lora_scale=3"):
        compare(side(a, lora_scale="3"), side(a), protocol("strict"))
    turned = [one | {"label": NAMES[1 - i % 2]} for i, one in enumerate(rows([True] * 2))]
    with pytest.raises(NatureLMError, match="'s000' is 'Walrus' in A and 'Narwhal' in B"):
        compare(side(a), side(write_answers(turned, "c.jsonl")), protocol("strict"))


def test_captions_are_compared_by_cider() -> None:
    texts = ["a wolf howls at night", "rain falls on a quiet lake", "a loon wails over it"]
    more = {"dataset_name": "captioning"}
    a = write_answers([row(i, t, texts[0], **more) for i, t in enumerate(texts)], "a.jsonl")
    b = write_answers([row(i, t, t, **more) for i, t in enumerate(texts)], "b.jsonl")
    [group] = compare(side(a), side(b), protocol("paper")).groups
    assert group.metrics["cider"].b == pytest.approx(10)
    assert group.metrics["cider"].difference > 5
    assert (group.differ, group.only_a_right) == (pytest.approx(2 / 3), None)
