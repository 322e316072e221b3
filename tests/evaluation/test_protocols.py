"""Protocols take answers for labels; the published answers give the published numbers."""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answer_files import NAMES as COMMON
from answer_files import row, weighted_by_hand, write_answers
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.errors import UsageError
from NatureLM.evaluation.answers import ReadOptions, parse_rules, read_map
from NatureLM.evaluation.metrics import BootstrapOptions, cider
from NatureLM.evaluation.protocols import (
    PROTOCOLS,
    UNMATCHED,
    LabelSets,
    Matcher,
    nearest,
    protocol,
)
from NatureLM.evaluation.score import score

pytest.importorskip("rapidfuzz")

BIRDS = ("American Robin", "Common Loon", "Gray Wolf", "Veery")


def label_of(answer: str, name: str, labels: tuple[str, ...] = BIRDS, dataset: str = "cbi") -> str:
    [code] = Matcher(protocol(name), dataset, sorted(labels)).codes([answer])
    return sorted(labels)[code] if code != UNMATCHED else "no label"


def distance(a: str, b: str) -> int:
    """Levenshtein distance by the textbook."""
    above = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        here = [i]
        for j, y in enumerate(b, start=1):
            here.append(min(above[j] + 1, here[-1] + 1, above[j - 1] + (x != y)))
        above = here
    return above[-1]


@given(
    st.lists(st.text("abc :", max_size=14), min_size=1, max_size=8),
    st.lists(st.text("abc :", max_size=9), min_size=1, max_size=6, unique=True),
    st.sampled_from([None, 0, 2, 5]),
)
@settings(max_examples=60, deadline=None)
def test_nearest_is_the_textbook_distance_and_the_first_of_equals(
    texts: list[str], labels: list[str], limit: int | None
) -> None:
    labels = sorted(labels)
    for text, code in zip(texts, nearest(texts, labels, limit), strict=True):
        distances = [distance(text, label) for label in labels]
        best = min(distances)
        if limit is not None and best > limit:
            assert code == UNMATCHED
        else:
            assert code == distances.index(best)


LONG = "Common Loon, which is a diving bird of northern lakes"
SAID = "The common name for the focal species in the audio is"
LATIN = "The scientific name for the focal species in the audio is Gray Wolf"
TYPED = ("R\u00fcppell's Vulture", "Bee-eater ", "\u02bbAkepa")
WOLVES, BIRDS_HEARD, DOGS = ("None", "Gray Wolf"), ("One", "More"), ("Dog", "dog")


@pytest.mark.parametrize(
    ("name", "answer", "label", "more"),
    [
        # However far it is, the nearest label is taken.
        ("beans-zero", "I hear an American Robin singing", "American Robin", ()),
        ("beans-zero", "", "Veery", ()),
        ("beans-zero", "common loon<|end_of_text|>American Robin", "Common Loon", ()),
        # Answers are cleaned, read up to the first comma for some data sets, and have a limit.
        ("paper", f"{SAID} Gray Wolf.", "Gray Wolf", ()),
        ("paper", "Gray Wolfxxxxx", "Gray Wolf", ()),
        ("paper", "Gray Wolfxxxxxx", "no label", ()),
        ("paper", LONG, "Common Loon", (BIRDS, "cbi")),
        ("paper", LONG, "Common Loon", (BIRDS, "watkins")),
        ("paper", LONG, "no label", (BIRDS, "unseen-family-cmn")),
        ("paper", f"{LATIN}, or Veery", "Gray Wolf", (BIRDS, "cbi")),
        ("paper", f"{LATIN}, or Veery", "Gray Wolf", (BIRDS, "watkins")),
        ("paper", LATIN, "no label", (BIRDS, "unseen-family-cmn")),
        ("paper", "something else entirely", "None", (WOLVES,)),
        ("paper", "1", "One", (BIRDS_HEARD, "zf-indiv")),
        ("paper", "0", "One", (BIRDS_HEARD, "zf-indiv")),
        ("paper", " 1.5 ", "One", (BIRDS_HEARD, "zf-indiv")),
        ("paper", "-3", "One", (BIRDS_HEARD, "zf-indiv")),
        ("paper", "2", "More", (BIRDS_HEARD, "zf-indiv")),
        ("paper", "17", "More", (BIRDS_HEARD, "zf-indiv")),
        # One label and no other.
        ("mention", "Surely a GRAY WOLF, howling.", "Gray Wolf", ()),
        ("mention", "A Gray Wolf or a Veery", "no label", ()),
        ("mention", "A wolf", "no label", ()),
        ("mention", "Veery<|end_of_text|> Gray Wolf", "Veery", ()),
        # The label and nothing else.
        ("strict", "  gray WOLF\n", "Gray Wolf", ()),
        ("strict", "Gray Wolf.", "no label", ()),
        ("strict", "dog", "dog", (DOGS,)),
        ("strict", "DOG", "Dog", (DOGS,)),
        # However letters, apostrophes, dashes and blanks are typed.
        ("strict", "Ru\u0308ppell\u2019s\u00a0Vulture ", TYPED[0], (TYPED,)),
        ("strict", "R\u00dcPPELL\u00b4S  vulture", TYPED[0], (TYPED,)),
        ("strict", "Bee\u2011eater", TYPED[1], (TYPED,)),
        ("strict", "'Akepa", TYPED[2], (TYPED,)),
        ("mention", "A ru\u0308ppell\u2032s\u202fvulture\u2014or so", TYPED[0], (TYPED,)),
        ("mention", "\u201cBee\u2013Eater\u201d", TYPED[1], (TYPED,)),
        ("mention", "the \u2018A\u00adkepa", TYPED[2], (TYPED,)),
        ("beans-zero", "Bee\u2011eater", TYPED[1], (TYPED,)),  # the nearest, one edit away
        ("paper", "Ru\u0308ppell\u2019s Vu", "no label", (TYPED,)),  # eight edits
    ],
)
def test_what_an_answer_is_taken_for(name: str, answer: str, label: str, more: Any) -> None:
    assert label_of(answer, name, *more) == label


@given(
    words=st.lists(
        st.text("aÉéöñřộ'\u2019-\u2013", min_size=1, max_size=6), min_size=1, max_size=3
    ),
    forms=st.lists(st.sampled_from(["NFC", "NFD"]), min_size=2, max_size=2),
    blank=st.sampled_from([" ", "\u00a0", "  ", "\t"]),
    name=st.sampled_from(["strict", "mention"]),
)
def test_a_label_is_itself_in_any_form(
    words: list[str], forms: list[str], blank: str, name: str
) -> None:
    """Also where the labels hold it in several forms: they are one."""
    label = unicodedata.normalize(forms[0], " ".join(words))
    answer = unicodedata.normalize(forms[1], f" {blank.join(words)} ").replace("'", "\u2019")
    labels = sorted({label, answer, "Xylophone"})
    matcher = Matcher(protocol(name), "mine", labels)
    assert matcher.codes([answer]).tolist() == [matcher.place[label]]
    assert matcher.place[label] == matcher.place[answer] != matcher.place["Xylophone"]


@pytest.mark.parametrize("answer", ["nan", "inf", "1e9", "1_0", "2 birds", "٢"])
def test_what_is_no_bare_number_is_no_count(answer: str) -> None:
    assert protocol("paper").read(answer, "zf-indiv") == answer


def test_detection_reads_lists() -> None:
    labels = ("Gibbon duet", "None", "Single pulse gibbon call")
    matcher = Matcher(protocol("beans-zero"), "gibbons", labels, is_detection=True)
    answers = ["Single pulse gibbon ca, Howler monkey", "none", "", "Gibbon duet,Gibbon duet"]
    assert matcher.sets(answers) == [(2,), (), (), (0,)]
    mention = Matcher(protocol("mention"), "gibbons", labels, is_detection=True)
    assert mention.sets(["a gibbon duet and a single pulse gibbon call"]) == [(0, 2)]
    strict = Matcher(protocol("strict"), "gibbons", labels, is_detection=True)
    assert strict.sets(["gibbon duet , Single pulse gibbon ca"]) == [(0,)]


def test_protocols_have_names() -> None:
    assert list(PROTOCOLS) == ["beans-zero", "paper", "mention", "strict"]
    assert protocol("beans_zero") is PROTOCOLS["beans-zero"]
    with pytest.raises(UsageError, match=r"'best'.*beans-zero, paper, mention, strict"):
        protocol("best")


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
    found = weighted_by_hand(case["labels"], case["processed"])
    for theirs, ours in list(NAMES.items())[:-1]:
        assert found[ours] == pytest.approx(case["metrics"][theirs], abs=1e-9)


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


SCIENTIFIC = {name: f"Species of {name[::-1]}" for name in COMMON}


def ways(name: str) -> list[tuple[str, str, str]]:
    """Answers with what they are taken for under `paper` and under `strict`."""
    return [
        (name, name, name),
        (f"{name[:-2]}<|end_of_text|> Mallard", name, "-"),
        (f"{SAID} {name}.", name, "-"),
        (f"{name}, which is heard at dusk in summer", name, "-"),
        (f" {name.upper()} ", "None", name),  # every letter is another one
        ("I am sorry, nothing can be heard here", "None", "-"),
    ]


@pytest.mark.usefixtures("own_folder")
def test_made_answers_give_the_numbers_of_the_textbook() -> None:
    """The published files may not be here: the same questions, asked of answers made here."""
    rng = np.random.default_rng(7)
    rows, wanted = [], {}
    names: list[Callable[[str], str]] = [str, SCIENTIFIC.__getitem__]
    names.append(lambda label: f"{SCIENTIFIC[label]} : {label}")
    for (query, scored), alpha in itertools.product(enumerate(names), (0.0, 0.5, 1.0)):
        samples = []
        for number in range(60):
            label = COMMON[min(rng.geometric(0.4) - 1, 5)] if number > 5 else COMMON[number]
            heard = label if rng.random() < 0.3 + alpha / 2 else COMMON[rng.integers(6)]
            text, *taken = ways(scored(heard))[rng.integers(6)]
            more = {"query": query, "lora_scale": alpha, "dataset_name": "cbi"}
            rows.append(row(number, label, text, **more))
            samples.append((scored(label), *taken))
        true, paper, strict = map(list, zip(*samples, strict=True))
        wanted[query, alpha, "paper"] = weighted_by_hand(true, paper)
        wanted[query, alpha, "strict"] = weighted_by_hand(true, strict)
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
