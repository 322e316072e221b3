"""Labels of a list, letters of options, names and counts, in free answers."""

from __future__ import annotations

import pytest

from NatureLM.survey.lists import ClosedList, counts, names, options_text
from NatureLM.survey.parse import Unparsed

LABELS = ["Common Raven", "Raven", "Green Treefrog", "Ruddy Turnstone", "Kestrel", "Ö-Bird"]
BIRDS = ClosedList(LABELS, {"Corvus corax": "Common Raven"})
OPTIONS = ClosedList(["Wren", "Robin", "Blue Jay"], with_letters=True)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        *((one, one) for one in LABELS),
        *(("common raven", "Common Raven"), ("COMMON RAVENS.", "Common Raven")),
        *(("It is a common raven", "Common Raven"), ("a raven", "Raven"), ("o bird", "Ö-Bird")),
        *(("green tree frog", "Green Treefrog"), ("Green Tree-Frogs", "Green Treefrog")),
        *(("Common Raven (Corvus corax)", "Common Raven"), ("Corvus corax", "Common Raven")),
        *(("The focal species is the Kestrel.", "Kestrel"), ("“Kestrel”", "Kestrel")),
        *(("It sounds like a kestrel", "Kestrel"), ("Answer: Kestrel", "Kestrel")),
        *(("None", None), ("none of these", None), ("No animals", None), ("Nothing.", None)),
    ],
)
def test_one_label(answer: str, label: str | None) -> None:
    assert BIRDS.one(answer) == label


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "",
            "Blue Jay",
            "Kestrels and others, or a hawk",
            "a raven or a kestrel",
            "Kestrel, Raven",
        ),
        *("not a kestrel", "no kestrel", "maybe a kestrel", "It isn't a kestrel", "Kestre"),
        *(
            "Answer: Kestrel. Answer: Raven",
            "a kestrel?",
            "The kestrel is absent",
            "Kestrel instead of a raven",
            "None, but a kestrel",
        ),
    ],
)
def test_no_label(answer: str) -> None:
    assert BIRDS.one(answer) == Unparsed(answer)


@pytest.mark.parametrize(
    ("answer", "labels"),
    [
        ("Kestrel, Raven", ["Kestrel", "Raven"]),
        ("kestrels; green tree frogs and a raven.", ["Kestrel", "Green Treefrog", "Raven"]),
        ("I can hear a kestrel and a raven", ["Kestrel", "Raven"]),
        ("1. Kestrel\n2. Raven", ["Kestrel", "Raven"]),
        ("2: Kestrel, Raven", ["Kestrel", "Raven"]),
        ("Kestrel, Kestrel", ["Kestrel"]),
        *(("None", []), ("None of the above.", [])),
    ],
)
def test_several_labels(answer: str, labels: list[str]) -> None:
    assert BIRDS.several(answer) == labels


@pytest.mark.parametrize(
    "answer",
    ["", "Kestrel, Blue Jay", "3: Kestrel, Raven", "a kestrel, not a raven", "None, Raven"],
)
def test_a_list_with_anything_else_is_no_list_of_labels(answer: str) -> None:
    assert BIRDS.several(answer) == Unparsed(answer)


def test_labels_with_commas() -> None:
    whales = ClosedList(["Beluga, White Whale", "Narwhal"])
    assert whales.one("Beluga, White Whale") == "Beluga, White Whale"
    assert whales.several("narwhals, beluga, white whale") == ["Narwhal", "Beluga, White Whale"]


def test_labels_that_sound_like_nothing() -> None:
    closed = ClosedList(["No bird", "Nothing", "Bird"])
    assert [closed.one(one) for one in ("no bird", "Nothing", "None")] == [
        "No bird",
        "Nothing",
        None,
    ]
    assert closed.several("no birds") == ["No bird"]


def test_labels_that_differ_little_are_told_apart() -> None:
    closed = ClosedList(["Frog", "Frogs", "Sea Lion", "Sealion"])
    assert [closed.one(one) for one in ("frog", "frogs", "Sea Lion", "sealion")] == [
        *("Frog", "Frogs", "Sea Lion", "Sealion")
    ]
    assert closed.one("sea-lions") == "Sea Lion"


def test_a_name_of_two_labels_is_neither() -> None:
    closed = ClosedList(["Chicken", "Rooster"], {"Gallus gallus": "Rooster"})
    assert closed.one("Gallus gallus") == "Rooster"
    assert ClosedList(["ab c", "a bc"]).one("abc") == Unparsed("abc")


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        *((one, "Robin") for one in ("B", "b", "(b)", "b)", "**B**", "B.", "[B]", "b) Robin")),
        *((one, "Robin") for one in ("B: Robin", "B. Robin", "B - robin", "Option B", "choice b")),
        *(
            (one, "Robin")
            for one in ("Answer: B", "The correct answer is B.", "Robin", "(b) Robin")
        ),
        *(("A", "Wren"), ("A wren is singing", "Wren"), ("A robin", "Robin"), ("c", "Blue Jay")),
    ],
)
def test_letters(answer: str, label: str) -> None:
    assert OPTIONS.one(answer) == label


@pytest.mark.parametrize(
    "answer", ["A and B", "A, B", "B) Wren", "A-C", "A - B", "D", "d)", "AB", "A or C", "A call"]
)
def test_no_letter(answer: str) -> None:
    assert OPTIONS.one(answer) == Unparsed(answer)


def test_several_letters() -> None:
    assert OPTIONS.several("A, C") == ["Wren", "Blue Jay"]
    assert OPTIONS.several("a) Wren, c) Blue Jay") == ["Wren", "Blue Jay"]
    assert OPTIONS.several("a) Robin, c) Blue Jay") == Unparsed("a) Robin, c) Blue Jay")


def test_letters_count_only_where_the_question_has_them() -> None:
    assert ClosedList(["Wren", "Robin"]).one("B") == Unparsed("B")
    assert options_text(["Wren", "Robin"]) == "A: Wren\nB: Robin"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Robin, Wren", ["Robin", "Wren"]),
        ("2: Robin, Wren", ["Robin", "Wren"]),
        ("1. Robin 2. Wren", ["Robin", "Wren"]),
        ("- Robin\n- Wren", ["Robin", "Wren"]),
        ("Turdus merula and Corvus corax.", ["Turdus merula", "Corvus corax"]),
        ("a robin and the wren", ["robin", "wren"]),
        ("Robin", ["Robin"]),
        ("None", []),
        ("No species", []),
    ],
)
def test_names(answer: str, found: list[str]) -> None:
    assert names(answer) == found


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "5",
        "I hear a robin",
        "Robin, probably",
        "3: Robin, Wren",
        "There is nothing to hear, unknown",
    ],
)
def test_no_names(answer: str) -> None:
    assert names(answer) == Unparsed(answer)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Robin: 6; Wren: 5", {"Robin": 6, "Wren": 5}),
        ("Robin: 1, Wren: 2", {"Robin": 1, "Wren": 2}),
        ("Robin (6), Wren (5)", {"Robin": 6, "Wren": 5}),
        ('{"Robin": 6, "Wren": 2}', {"Robin": 6, "Wren": 2}),
        ("Robin: 3 calls, 920–2130 Hz; Wren: 2 calls, 2.7-9.5 kHz.", {"Robin": 3, "Wren": 2}),
        ("None", {}),
    ],
)
def test_counts_of_names(answer: str, found: dict[str, int]) -> None:
    assert counts(answer) == found


@pytest.mark.parametrize(
    "answer", ["", "5", "Robin", "Robin: 2; Robin: 3", "Robin: many", "a: 1.5"]
)
def test_no_counts_of_names(answer: str) -> None:
    assert counts(answer) == Unparsed(answer)
