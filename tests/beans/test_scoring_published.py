"""The published answers give the published numbers, and cases made here those of the textbook."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from NatureLM.evaluation.answers import ReadOptions
from NatureLM.evaluation.bootstrap import BootstrapOptions
from NatureLM.evaluation.captions import cider
from NatureLM.evaluation.names import parse_rules, read_map
from NatureLM.evaluation.protocols import Matcher, protocol
from NatureLM.evaluation.score import score
from NatureLM.evaluation.tasks import LabelSets

TOLERANCE = 1e-9
NAMES = {
    "Accuracy": "accuracy",
    "Precision": "precision",
    "Recall": "recall",
    "F1 Score": "f1",
    "Top-1 Accuracy": "top1",
    "n": "n",
}
QUERIES = {"cbi": ["common", "scientific", "combined"]}
QUERIES["zf-indiv"] = ["original", "reversed", "no_classes"]
FEW = BootstrapOptions(resamples=20)


@pytest.fixture(scope="session")
def published(shared_dir: Path) -> Path:
    """Folder of the published answers."""
    if not (shared_dir / "published").is_dir():
        pytest.skip("the published answers are not on this machine")
    return shared_dir / "published"


@pytest.mark.shared
@pytest.mark.parametrize(
    ("file", "numbers"),
    [
        ("cbi", 33 * 2 * 6),
        ("closed_set_classification_2", 11 * 13),
        ("textual_in_context_learning", 11 * 13),
        ("zf-indiv", 3 * 2 * 6),
    ],
)
def test_published_numbers(published: Path, file: str, numbers: int) -> None:
    expected = json.loads((published / "expected_metrics.json").read_text())
    reading = ReadOptions()
    if file == "cbi":
        rules = parse_rules(["query=1:scientific", "query=2:both"])
        reading = ReadOptions(
            rules=rules, scientific=read_map(published / "cbi_scientific_names.json")
        )
    protocols = [protocol("beans-zero"), protocol("paper")]
    if file not in QUERIES:
        protocols.append(protocol("mention"))
    scores = score([published / f"{file}.jsonl.gz"], protocols, options=reading, bootstrap=FEW)
    compared = 0
    for record in scores.records():
        name = f"{file}/{QUERIES[file][record['query']]}" if file in QUERIES else file
        wanted = expected[name][str(record["lora_scale"])]
        if record["protocol"] == "mention":
            assert record["accuracy"] == pytest.approx(wanted["contains_one"], abs=TOLERANCE)
            compared += 1
            continue
        for theirs, ours in NAMES.items():
            value = wanted[record["protocol"].replace("-", "_")][theirs]
            assert record[ours] == pytest.approx(value, abs=TOLERANCE), (record, theirs)
            compared += 1
    assert compared == numbers


@pytest.mark.shared
def test_metric_cases(published: Path) -> None:
    cases = json.loads((published / "metric_cases.json").read_text())
    checks = {"classification": check_labels, "detection": check_sets, "captioning": check_captions}
    for case in cases:
        checks[case["task"]](case)
    assert {case["task"] for case in cases} == checks.keys()


def check_labels(case: dict[str, Any]) -> None:
    labels = sorted(set(case["labels"]))
    codes = Matcher(protocol("beans-zero"), "cbi", labels).codes(case["predictions"])
    assert [labels[code] for code in codes] == case["processed"]
    for theirs, ours in list(NAMES.items())[:-1]:
        true, predicted = case["labels"], case["processed"]
        assert weighted(true, predicted)[ours] == pytest.approx(case["metrics"][theirs], abs=1e-9)


def check_sets(case: dict[str, Any]) -> None:
    labels = sorted({*case["label_set"], "None"})
    matcher = Matcher(protocol("beans-zero"), "gibbons", labels, is_detection=True)
    true = matcher.sets(case["labels"])
    predicted = matcher.sets(case["predictions"])
    processed = [tuple(sorted(set(one.split(", ")) - {"None"})) for one in case["processed"]]
    assert [tuple(labels[code] for code in one) for one in predicted] == processed
    found = LabelSets(true, predicted, labels).metrics()
    for name in ("Precision", "Recall", "F1"):
        assert found[name.lower()] == pytest.approx(case["metrics"][name], abs=TOLERANCE)
    assert found["map"] == pytest.approx(case["metrics"]["mAP"], abs=0.1)  # only indicative


def check_captions(case: dict[str, Any]) -> None:
    found = cider(case["predictions"], case["labels"])
    assert found == pytest.approx(case["metrics"]["per_item"], abs=TOLERANCE)
    assert found.mean() == pytest.approx(case["metrics"]["CIDEr"], abs=TOLERANCE)


def weighted(true: list[str], predicted: list[str]) -> dict[str, float]:
    """The metrics, label by label."""
    sums = dict.fromkeys(("precision", "recall", "f1"), 0.0)
    for label in set(true):
        hits = sum(t == p == label for t, p in zip(true, predicted, strict=True))
        support, answered = true.count(label), predicted.count(label)
        precision, recall = hits / max(answered, 1), hits / support
        sums["precision"] += support * precision
        sums["recall"] += support * recall
        sums["f1"] += support * (2 * precision * recall / (precision + recall or 1))
    accuracy = float(np.mean([t == p for t, p in zip(true, predicted, strict=True)]))
    return {name: value / len(true) for name, value in sums.items()} | {
        "accuracy": accuracy,
        "top1": accuracy,
    }


COMMON = ["Barn Owl", "Black Phoebe", "Common Loon", "Green Heron", "Mallard", "Veery"]
SCIENTIFIC = {
    "Barn Owl": "Tyto alba",
    "Black Phoebe": "Sayornis nigricans",
    "Common Loon": "Gavia immer",
    "Green Heron": "Butorides virescens",
    "Mallard": "Anas platyrhynchos",
    "Veery": "Catharus fuscescens",
}
SAID = "The common name for the focal species in the audio is"


def made_answer(rng: np.random.Generator, name: str) -> tuple[str, str | None, str]:
    """An answer, what it is taken for under `paper`, and under `strict`; None: no label."""
    way = rng.integers(6)
    if way == 0:
        return name, name, name
    if way == 1:
        return f"{name[:-2]}<|end_of_text|> Mallard", name, "-"
    if way == 2:
        return f"{SAID} {name}.", name, "-"
    if way == 3:
        return f"{name}, which is heard at dusk in summer", name, "-"
    if way == 4:
        return f" {name.upper()} ", None, name  # every letter is another one
    return "I am sorry, nothing can be heard here", None, "-"


def test_made_answers_give_the_numbers_of_the_textbook(
    write_answers: Callable[..., Path], make_row: Callable[..., dict[str, Any]]
) -> None:
    """The published files may not be here: the same questions, asked of answers made here."""
    rng = np.random.default_rng(7)
    rows, wanted = [], {}
    names: list[Callable[[str], str]] = [str, SCIENTIFIC.__getitem__]
    names.append(lambda label: f"{SCIENTIFIC[label]} : {label}")
    for query, scored in enumerate(names):
        for alpha in (0.0, 0.5, 1.0):
            true, paper, strict = [], [], []
            for number in range(60):
                label = COMMON[min(rng.geometric(0.4) - 1, 5)] if number > 5 else COMMON[number]
                heard = label if rng.random() < 0.3 + alpha / 2 else COMMON[rng.integers(6)]
                text, as_paper, as_strict = made_answer(rng, scored(heard))
                more = {"query": query, "lora_scale": alpha, "dataset_name": "cbi"}
                rows.append(make_row(number, label, text, **more))
                true.append(scored(label))
                paper.append(as_paper or "None")
                strict.append(as_strict)
            wanted[query, alpha, "paper"] = weighted(true, paper)
            wanted[query, alpha, "strict"] = weighted(true, strict)
    reading = ReadOptions(
        rules=parse_rules(["query=1:scientific", "query=2:both"]), scientific=SCIENTIFIC
    )
    protocols = [protocol("paper"), protocol("strict")]
    scores = score([write_answers(rows, "made.jsonl.gz")], protocols, options=reading)
    assert len(scores.groups) == len(wanted)
    for record in scores.records():
        numbers = wanted[record["query"], record["lora_scale"], record["protocol"]]
        assert {name: record[name] for name in numbers} == pytest.approx(numbers, abs=TOLERANCE)
        low, high = record["intervals"]["accuracy"]
        assert low <= record["accuracy"] <= high
        assert 0 < high - low < 0.4
        assert record["baselines"]["random"]["accuracy"] == pytest.approx(1 / 6, abs=0.02)
