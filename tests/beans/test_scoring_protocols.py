from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.errors import UsageError
from NatureLM.evaluation.protocols import PROTOCOLS, UNMATCHED, Matcher, nearest, protocol

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


def test_the_nearest_label_is_taken_however_far() -> None:
    assert label_of("I hear an American Robin singing", "beans-zero") == "American Robin"
    assert label_of("", "beans-zero") == "Veery"
    assert label_of("common loon<|end_of_text|>American Robin", "beans-zero") == "Common Loon"


def test_paper_cleans_answers_and_has_a_limit() -> None:
    said = "The common name for the focal species in the audio is"
    assert label_of(f"{said} Gray Wolf.", "paper") == "Gray Wolf"
    assert label_of("Gray Wolfxxxxx", "paper") == "Gray Wolf"
    assert label_of("Gray Wolfxxxxxx", "paper") == "no label"
    long = "Common Loon, which is a diving bird of northern lakes"
    assert label_of(long, "paper") == "Common Loon"
    assert label_of(long, "paper", dataset="unseen-family-cmn") == "no label"
    scientific = "The scientific name for the focal species in the audio is Gray Wolf"
    assert label_of(scientific, "paper") == "Gray Wolf"
    assert label_of(scientific, "paper", dataset="watkins") == "no label"


@pytest.mark.parametrize(
    ("answer", "label"),
    [("1", "One"), ("0", "One"), (" 1.5 ", "One"), ("2", "More"), ("17", "More"), ("-3", "One")],
)
def test_paper_counts_birds(answer: str, label: str) -> None:
    assert label_of(answer, "paper", ("One", "More"), "zf-indiv") == label


@pytest.mark.parametrize("answer", ["nan", "inf", "1e9", "1_0", "2 birds", "٢"])
def test_what_is_no_bare_number_is_no_count(answer: str) -> None:
    assert protocol("paper").read(answer, "zf-indiv") == answer


def test_an_unmatched_answer_is_the_label_none_where_there_is_one() -> None:
    assert label_of("something else entirely", "paper", ("None", "Gray Wolf")) == "None"


def test_mention_wants_one_label_and_no_other() -> None:
    assert label_of("Surely a GRAY WOLF, howling.", "mention") == "Gray Wolf"
    assert label_of("A Gray Wolf or a Veery", "mention") == "no label"
    assert label_of("A wolf", "mention") == "no label"
    assert label_of("Veery<|end_of_text|> Gray Wolf", "mention") == "Veery"


def test_strict_wants_the_label() -> None:
    assert label_of("  gray WOLF\n", "strict") == "Gray Wolf"
    assert label_of("Gray Wolf.", "strict") == "no label"
    assert label_of("dog", "strict", ("Dog", "dog")) == "dog"
    assert label_of("DOG", "strict", ("Dog", "dog")) == "Dog"


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
