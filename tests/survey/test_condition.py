"""Conditions on earlier columns: what they mean, and what they refuse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.errors import UsageError
from NatureLM.survey.condition import MOST_CHARACTERS, read_condition, waves


@dataclass(frozen=True)
class Earlier:
    name: str
    type: str
    labels: tuple[str, ...] = ()
    several: bool = False
    is_scored: bool = False


COLUMNS = {
    one.name: one
    for one in (
        Earlier("bird", "yes_no", ("Yes", "No"), is_scored=True),
        Earlier("species", "choice", ("Barn Owl", "Öwl"), is_scored=True),
        Earlier("calls", "choice", ("song", "alarm call"), several=True),
        Earlier("n", "count"),
        Earlier("pitch", "number"),
        Earlier("said", "text"),
        Earlier("all", "names"),
        Earlier("facts", "json"),
    )
}
VALUES: dict[str, Any] = {
    "bird": True,
    "species": "Barn Owl",
    "calls": ["song"],
    "n": 3,
    "pitch": 4.5,
    "said": "A Wren sings",
    "all": [],
}
SURE = {"bird": 0.9, "species": 0.4}


@pytest.mark.parametrize(
    "condition",
    [
        *(
            "bird",
            'bird == "yes"',
            'bird == "Yes"',
            "bird == true",
            'bird != "no"',
            "not bird == false",
        ),
        *('species == "Barn Owl"', 'species == "barn owl"', 'species in ["Öwl", "Barn owl"]'),
        *(
            "species != none",
            'species != "Öwl"',
            'species not in ["Öwl"]',
            "species in ('Barn Owl',)",
        ),
        *('"song" in calls', '"alarm call" not in calls', "calls != none", "all == none"),
        *("n == 3", "n >= 3", "2 < n <= 3", "n in [1, 3]", "pitch > 4.4", "-1 < n", "n < pitch"),
        *('"wren" in said', "bird.confidence >= 0.8", "species.confidence < bird.confidence"),
        *('bird and n > 2 or species == "Öwl"', "not (n == 1)", "(bird) and (n == 3)"),
        *('bird == "no" or n == 3', "true and bird"),
    ],
)
def test_what_holds(condition: str) -> None:
    assert read_condition(condition, COLUMNS).holds(VALUES, SURE)
    opposite = read_condition(f"not ({condition})", COLUMNS)
    assert not opposite.holds(VALUES, SURE)


@pytest.mark.parametrize(
    ("condition", "values", "holds"),
    [
        ("bird", {}, False),
        ("not bird", {}, False),
        ("bird or n == 3", {"n": 3}, True),
        ("bird or n == 3", {"n": 2}, False),
        ("bird and n == 3", {"n": 3}, False),
        ("not (bird and n == 3)", {"n": 2}, True),
        ("species == none", {"species": None}, True),
        ("species == none", {}, False),
        ('species != "Öwl"', {"species": None}, True),
        ('"song" in calls', {"calls": []}, False),
        ('"song" not in calls', {"calls": []}, True),
        ("calls == none", {"calls": []}, True),
        ("bird.confidence > 0.5", {"bird": True}, False),
        ("not bird.confidence > 0.5", {"bird": True}, False),
        ("1 < n < 3", {}, False),
        ("n == 1", {"n": True}, False),
    ],
)
def test_what_is_not_known_does_not_hold(
    condition: str, values: dict[str, Any], holds: bool
) -> None:
    assert read_condition(condition, COLUMNS).holds(values, {}) is holds


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        ("", "cannot be read"),
        ('bird = "yes"', "compare with =="),
        ("brid", "did you mean bird"),
        ("bird == yes", "texts stand in quotes"),
        ("species", "is no yes or no by itself"),
        ('species == "Barn Oul"', "did you mean 'Barn Owl'"),
        ('bird == "maybe"', 'is "yes" or "no"'),
        ("bird == 1", 'is "yes" or "no"'),
        ('n == "three"', "n is a number"),
        ("species == 3", "species is a text"),
        ("species > 3", "species is no number"),
        ('n > "3"', "is a number"),
        ('calls == "song"', 'write "..." in calls'),
        ('"Barn Owl" in species', "compare it with =="),
        ('species in "Barn Owl"', "stands a list"),
        ("n.confidence > 0.5", "n has no confidence"),
        ("bird.real", "bird.real is not allowed"),
        ("facts == none", "facts is JSON"),
        ("true", "names no column"),
        ("none", "is no yes or no"),
        ("bird is true", "`is` is not allowed"),
        ("len(said) > 3", "is not allowed"),
        ("n + 1 == 3", "is not allowed"),
        ("[bird for bird in n]", "is not allowed"),
        ("__import__('os')", "is not allowed"),
        ("bird if n else n", "is not allowed"),
        ("said == f'{n}'", "is not allowed"),
        ("n == 3j", "is not allowed"),
        ("lambda: bird", "is not allowed"),
        ("n == b'3'", "is not allowed"),
        ("n == ...", "is not allowed"),
        ("(n := 3) == 3", "is not allowed"),
        ("n[0] == 3", "is not allowed"),
        ("not " * 220 + "bird" + " " * 200, "more than"),
        ("(" * 300 + "bird" + ")" * 300, "cannot be read"),
    ],
)
def test_what_is_no_condition(condition: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_condition(condition, COLUMNS)
    assert problem in str(caught.value)


WORDS = (
    'bird species n pitch "yes" "Barn Owl" 3 0.5 == != < >= in not and or ( ) [ ] , none true '
    ".confidence = : lambda"
)


@given(parts=st.lists(st.sampled_from(WORDS.split(" ")), max_size=9))
@settings(max_examples=300, deadline=None)
def test_a_condition_is_refused_or_has_an_answer(parts: list[str]) -> None:
    try:
        condition = read_condition(" ".join(parts), COLUMNS)
    except UsageError:
        return
    assert condition.columns <= COLUMNS.keys()
    for values in ({}, VALUES, dict.fromkeys(VALUES)):
        assert condition.holds(values, SURE) in (True, False)
    assert len(" ".join(parts)) <= MOST_CHARACTERS


def test_waves() -> None:
    conditions = {
        "bird": None,
        "species": read_condition("bird", COLUMNS),
        "n": None,
        "pitch": read_condition('species == "Öwl" and n > 1', COLUMNS),
        "said": read_condition("n == 2", COLUMNS),
    }
    assert waves(conditions) == (("bird", "n"), ("species", "said"), ("pitch",))
    assert waves({}) == ()
