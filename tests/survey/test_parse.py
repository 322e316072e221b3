"""Free answers as values; what may mean two things is never decided."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from NatureLM.errors import UsageError
from NatureLM.survey.lists import ClosedList, counts, names
from NatureLM.survey.parse import (
    MOST_CHARACTERS,
    Unparsed,
    check_unit,
    count,
    json_checker,
    json_value,
    number,
    text,
    yes_no,
)


@pytest.mark.parametrize(
    "answer",
    [
        *("Yes", "Yes.", "yes", "YES!", "**Yes**", "“Yes”", "y", "True", "Present"),
        *("yes, there is one", "Yes, a robin is singing.", "Yes, no doubt", "Yes: a wren"),
        *("Answer: yes", "The answer is yes.", "Final answer: **Yes**"),
        "I hear a robin in the distance. Answer: Yes",
        "#0.00s - 10.00s#: Yes",
        "Yes<|end_of_text|>No",
    ],
)
def test_yes(answer: str) -> None:
    assert yes_no(answer) is True


@pytest.mark.parametrize(
    "answer",
    [
        *("No", "no.", "NO", "n", "False", "absent", "Not present"),
        *("No, there is only rain", "No birds", "No bird is vocalizing.", "There are no birds."),
        *("Answer: no", "It is rain that I hear. The answer is: No."),
    ],
)
def test_no(answer: str) -> None:
    assert yes_no(answer) is False


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "",
            " ",
            "None",
            "A bird",
            "maybe",
            "not sure",
            "nothing",
            "Yesterday",
            "north",
            "no-one",
        ),
        *("yes and no", "Yes/No", "Yes or no", "no, yes", "Yes, there are no birds"),
        *("No idea", "No doubt, a bird", "No birds, but a frog", "It depends", "yes, maybe"),
        *(
            "Answer: yes. Answer: no",
            "I cannot tell",
            "yes?",
            "There is a dog",
            "no answer",
            "No 3",
        ),
    ],
)
def test_neither_yes_nor_no(answer: str) -> None:
    assert yes_no(answer) == Unparsed(answer)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        *(
            ("3", 3),
            ("three", 3),
            ("Three.", 3),
            ("0", 0),
            ("zero", 0),
            ("One", 1),
            ("1,200", 1200),
        ),
        *(("about 3", 3), ("approximately three birds", 3), ("3 birds", 3), ("5 calls.", 5)),
        *(("There are two owls calling", 2), ("I hear one bird", 1), ("only one bird", 1)),
        *(("twenty-one", 21), ("a dozen", 12), ("a single call", 1), ("a pair of ducks", 2)),
        *(("A total of 12 vocalizations", 12), ("3 different species", 3), ("15 times", 15)),
        *(("three (3)", 3), ("Answer: 4", 4), ("The number of birds is 7.", 7)),
        *(("2: Robin, Wren", 2), ("2 species: Robin and Wren", 2), ("1: Robin", 1)),
        *(("None", 0), ("No birds", 0), ("There are no calls.", 0), ("nothing", 0)),
    ],
)
def test_counts(answer: str, value: int) -> None:
    assert count(answer) == value


@pytest.mark.parametrize(
    "answer",
    [
        *("", "several", "many birds", "a few", "a couple", "A bird", "some"),
        *("3 or 4", "3-4", "3 to 5", "two or three", "between 2 and 4", "3, maybe 4"),
        *("at least 3", "more than 3", "up to 5", "no more than 3", "3+", ">3", "fewer than 10"),
        *("2 robins and a wren", "2 robins and 1 wren", "two robins and two wrens"),
        *("3.5", "-3", "10 s", "4 kHz", "the loud one is a wren", "Species 7", "the 3rd bird"),
        *(
            "1: Robin 2: Wren",
            "2 s: robin, wren",
            "one of them is a wren",
            "of 2 birds none is heard",
        ),
        *("3?", "not 3", "3: Robin, Wren", "None, but 2 dogs", "not sure, 3", "99999999999"),
    ],
)
def test_no_count(answer: str) -> None:
    assert count(answer) == Unparsed(answer)


@pytest.mark.parametrize(
    ("answer", "unit", "value"),
    [
        *(("3100 Hz", "Hz", 3100), ("4.5 kHz", "Hz", 4500), ("4.5kHz", "Hz", 4500)),
        *(("4.5 KHZ.", "Hz", 4500), ("0.004 MHz", "Hz", 4000), ("3100 hertz", "kHz", 3.1)),
        *(("4,5 kHz", "Hz", 4500), ("1,654.75", "Hz", 1654.75), ("1.654,75 Hz", "Hz", 1654.75)),
        *(("1,654 Hz", "Hz", 1654), ("3 100 Hz", "Hz", 3100), ("0,5 kHz", "Hz", 500)),
        *(("about 3100 Hz", "Hz", 3100), ("4.5 kHz (4500 Hz)", "Hz", 4500)),
        *(("4.5 ± 0.5 kHz", "Hz", 4500), ("two kilohertz", "Hz", 2000), ("4500", "Hz", 4500)),
        ("The mean fundamental frequency is 3100 Hz.", "Hz", 3100),
        ("In the 10 s recording the pitch is 3100 Hz", "Hz", 3100),
        *(("F0 is 320 Hz", "Hz", 320), ("1e3 Hz", "Hz", 1000), ("Answer: 320 Hz", "Hz", 320)),
        *(("2,5 s", "s", 2.5), ("250 ms", "s", 0.25), ("1 min", "s", 60), ("2 minutes", "min", 2)),
        *(("39 dB", "dB", 39), ("-3 dB", "dB", -3), ("−3 dB", "dB", -3), ("50 %", "%", 50)),
        *(("12 calls/min", "calls/min", 12), ("0.5", None, 0.5), ("120 m", "km", 0.12)),
    ],
)
def test_numbers(answer: str, unit: str | None, value: float) -> None:
    assert number(answer, unit) == value


@pytest.mark.parametrize(
    "answer",
    [
        *("", "None", "high", "NaN", "infinity", "20 calls", "39 dB", "5k", "2 s"),
        *("2131-4440 Hz", "2 to 4 kHz", "between 2 and 4 kHz", "2–4 kHz", "3 kHz and 5 kHz"),
        *("above 4 kHz", "at least 3 kHz", "up to 8 kHz", "3 or 4 kHz", "<4 kHz", "maybe 3 kHz"),
        *("not 3100 Hz", "3100+ Hz", "4.5.2 Hz", "3100 Hz?", "it isn't 3 kHz"),
        *("1e999 Hz", "3100 Hz, 3200 Hz", "Answer: 3 kHz. Answer: 4 kHz"),
    ],
)
def test_no_number(answer: str) -> None:
    assert number(answer, "Hz") == Unparsed(answer)


def test_a_unit_is_one_word() -> None:
    for unit in ("Hz", "kHz", "%", "calls/min", None):
        check_unit(unit)
    for unit in ("", "k Hz", "3", "m s-1"):
        with pytest.raises(ValueError, match="a unit is one word"):
            check_unit(unit)


@given(
    value=st.floats(-1e12, 1e12).map(lambda one: round(one, 3)),
    unit=st.sampled_from(["Hz", "kHz", "s", "ms", "min", "dB", "m", "%", "calls/min", None]),
)
@settings(max_examples=200, deadline=None)
def test_numbers_come_back(value: float, unit: str | None) -> None:
    assert number(f"{value:f}" + (f" {unit}" if unit else ""), unit) == value


@given(value=st.integers(0, 999_999_999))
@settings(max_examples=50, deadline=None)
def test_counts_come_back(value: int) -> None:
    assert count(str(value)) == value
    assert count(f"There are {value} birds.") == value


# -- JSON and text ----------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"species": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["species"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def follows() -> Callable[[Any], bool]:
    return json_checker(SCHEMA)


@pytest.mark.parametrize(
    "answer",
    [
        '{"species": "Wren"}',
        ' {"species": "Wren"}\n<|end_of_text|>',
        '```json\n{"species": "Wren"}\n```',
        '```\n{"species": "Wren"}\n```',
        'Here it is: {"species": "Wren"}.',
        'Here {is} it: {"species": "Wren"} and again {"species": "Wren"}',
    ],
)
def test_json(answer: str, follows: Callable[[Any], bool]) -> None:
    assert json_value(answer, follows) == {"species": "Wren"}


@pytest.mark.parametrize(
    "answer",
    [
        *("", "Wren", "{", '{"species": 3}', '{"species": "Wren", "x": 1}', "[]", "null"),
        '{"species": "Wren"} or {"species": "Robin"}',
        '{"species": "Wren", "species": "Robin"}',
        '{"species": "Wren", "n": NaN}',
        "[" * 3000,
        '{"a":' * 3000,
    ],
)
def test_no_json(answer: str, follows: Callable[[Any], bool]) -> None:
    assert json_value(answer, follows) == Unparsed(answer)


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "species"}, "this is no JSON Schema"),
        ({"$ref": "http://example.org/bird.json"}, "refers to 'http://example.org/bird.json'"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "refers to '#/$defs/b', which is not in it"),
    ],
)
def test_what_is_no_schema(schema: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem.replace("$", r"\$")):
        json_checker(schema)


def test_a_schema_may_refer_to_itself() -> None:
    schema = {"$defs": {"b": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/b"}}}
    check = json_checker(schema)
    assert check({"a": "x"})
    assert not check({"a": 1})


def test_text() -> None:
    assert text(" A wren sings. \n<|end_of_text|>x") == "A wren sings."
    assert text("  ") == Unparsed("  ")


# -- whatever is said -------------------------------------------------------------------------

CLOSED = ClosedList(
    ["Wren", "Blue Jay", "Barn Owls"], {"Tyto alba": "Barn Owls"}, with_letters=True
)
PARSERS: dict[str, Callable[[str], Any]] = {
    "yes_no": yes_no,
    "count": count,
    "number": lambda said: number(said, "kHz"),
    "bare number": number,
    "json": lambda said: json_value(said, lambda value: True),
    "one": CLOSED.one,
    "several": CLOSED.several,
    "names": names,
    "counts": counts,
    "text": text,
}
WORDS = (
    'yes no none Wren blue jay a b) (c) 3 -4.5 2,5 1e9 kHz Hz s and or : ; , . \n - ± ~ { } [ ] " '
    "three : 2: Answer: not maybe ``` ** % /"
)
PIECES = st.sampled_from(WORDS.split(" "))


@pytest.mark.parametrize("name", PARSERS)
@given(answer=st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=9).map(" ".join)))
@example(answer="\ud800")
@example(answer="9" * 5000)
@example(answer="1" * 25 + "," + "2" * 25 + "e999 kHz")
@settings(max_examples=100, deadline=None)
def test_nothing_that_is_said_raises(name: str, answer: str) -> None:
    value = PARSERS[name](answer)
    if isinstance(value, Unparsed):
        assert value.text == answer
    else:
        assert not isinstance(value, float) or math.isfinite(value)
        json.dumps(value, allow_nan=False)


@pytest.mark.parametrize("name", [one for one in PARSERS if one != "text"])
def test_what_is_endless_is_no_answer(name: str) -> None:
    for piece in ("no ", "3 ", "Wren, ", "1,", "(", "{", "a: 1; "):
        said = piece * (MOST_CHARACTERS // len(piece) + 2)
        assert PARSERS[name](said) == Unparsed(said)


@pytest.mark.parametrize("name", PARSERS)
def test_no_answer_takes_long(name: str) -> None:
    """As long as may be read, in forms that would make a careless pattern go back and forth."""
    for piece in (
        "no ",
        "3 ",
        "1,",
        "(",
        "{",
        "[",
        "a ",
        "-",
        "Wren ",
        "b) ",
        "1. ",
        "* ",
        "answer ",
    ):
        PARSERS[name](piece * (MOST_CHARACTERS // len(piece)))
