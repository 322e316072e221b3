"""Species lists of every kind, and what is said about those that are none."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from NatureLM.errors import UsageError
from NatureLM.species import (
    SpeciesList,
    default_question,
    hints,
    known_names,
    presets,
    read_species_list,
)

RAVEN = (
    "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tSpecies\n"
    "1\tSpectrogram 1\t1\t0.0\t1.5\tWood Thrush\n"
    "2\tSpectrogram 1\t1\t4.0\t5.0\tBlue Jay\n"
    "3\tSpectrogram 1\t1\t6.0\t6.5\tWood Thrush\n"
)
BIRDNET = "Corvus corax_Common Raven\nTurdus merula_Eurasian Blackbird\n"


def read(folder: Path, content: str | bytes, **options: Any) -> SpeciesList:
    """What is read of a list with this content."""
    path = folder / "list.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_species_list(path, **options)


@pytest.mark.parametrize(
    ("content", "names", "kind"),
    [
        ("Gray Wolf\nCoyote\n", ("Gray Wolf", "Coyote"), "common"),
        ("# wolves\nGray Wolf\n", ("Gray Wolf",), "common"),
        ("\ufeffGray Wolf\r\n\r\n  Coyote  \r\n", ("Gray Wolf", "Coyote"), "common"),
        ("Canis lupus\nCanis latrans\n", ("Canis lupus", "Canis latrans"), "scientific"),
        ("Gray wolf\nBarn owl\n", ("Gray wolf", "Barn owl"), "common"),
        ("Gray Wolf, Coyote", ("Gray Wolf", "Coyote"), "common"),
        ("common_name\nGray Wolf\n", ("Gray Wolf",), "common"),
        ("Common Name,Scientific Name\nGray Wolf,Canis lupus\n", ("Gray Wolf",), "common"),
        (
            'id;label\n1;"Beluga; White Whale"\n2;Narwhal\n',
            ("Beluga; White Whale", "Narwhal"),
            None,
        ),
        (RAVEN, ("Wood Thrush", "Blue Jay"), "common"),
        (BIRDNET, ("Common Raven", "Eurasian Blackbird"), "common"),
        ("Beluga, White Whale\nNarwhal\n", ("Beluga, White Whale", "Narwhal"), "common"),
        ("common_name\nBeluga, White Whale\nDog\n", ("Beluga, White Whale", "Dog"), "common"),
        (
            BIRDNET + "Dog_Dog\nHuman vocal_Human vocal\n",
            ("Common Raven", "Eurasian Blackbird", "Dog", "Human vocal"),
            "common",
        ),
        (
            "Aedes (Stegomyia) aegypti_Mosquito\nTurdus merula Linnaeus, 1758_Blackbird\n",
            ("Mosquito", "Blackbird"),
            "common",
        ),
        ("Barn Owl # by night\nDog\t# by day\n", ("Barn Owl", "Dog"), "common"),
        (
            'Selection\tNotes\tSpecies\n1\ta "b #2\tDog\n2\tc\tCat\n3\td" e\tCow\n',
            ("Dog", "Cat", "Cow"),
            "common",
        ),
        ("sea_waves\nDog\n", ("sea_waves", "Dog"), "common"),  # as ESC-50 calls it
        ("Kro\u0308te\nDog\u00a0\n", ("Kröte", "Dog"), "common"),
    ],
)
def test_files_of_every_kind(
    tmp_path: Path, content: str, names: tuple[str, ...], kind: str | None
) -> None:
    found = read(tmp_path, content)
    assert found.names == names
    assert kind is None or found.kind == kind
    assert found.notes == ()


@pytest.mark.parametrize(
    ("content", "prefer", "names", "note"),
    [
        (BIRDNET + "Wolf\n", "common", ("Common Raven", "Eurasian Blackbird", "Wolf"),
         "1 of 3 lines is not `Scientific name_Common name`, read 'Wolf' as it stands"),
        (BIRDNET + "Gryllus_Cricket\n", "scientific", ("Corvus corax", "Turdus merula", "Gryllus"),
         "1 of 3 lines is not"),
        ("Aedes (Stegomyia) aegypti_Mosquito\n", "scientific", ("Aedes aegypti",), "1 of 1 lines"),
        ("Common_Raven\nBarn Owl\n", "common", ("Common Raven", "Barn Owl"),
         "1 of 2 lines is no name alone, read 'Common_Raven' as 'Common Raven'"),
        ("Corvus_corax_Common_Raven\n", "common", ("Common Raven",), "as 'Common Raven'"),
        ("Turdus merula Linnaeus, 1758\nCorvus (Corvus) corax\n", "common",
         ("Turdus merula", "Corvus corax"), "2 of 2 lines are no name alone"),
        ('"Gray Wolf"\n', "common", ("Gray Wolf",), "read '\"Gray Wolf\"' as 'Gray Wolf'"),
    ],
)  # fmt: skip
def test_lines_that_are_read_otherwise_are_said(
    tmp_path: Path, content: str, prefer: Any, names: tuple[str, ...], note: str
) -> None:
    found = read(tmp_path, content, prefer=prefer)
    assert found.names == names
    assert note in found.notes[0]


WORDS = st.text("abcdeföß", min_size=3, max_size=5)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lines=st.lists(st.tuples(st.integers(0, 3), WORDS, WORDS), min_size=1, max_size=6),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    form=st.sampled_from(["NFC", "NFD"]),
)
def test_mixed_lists_are_read_line_by_line(
    tmp_path: Path, lines: list[tuple[int, str, str]], encoding: str, form: Any
) -> None:
    """BirdNET's lines, lines of its noises, plain names and comments, in any order."""
    texts, wanted = [], []
    for kind, one, other in lines:
        name = f"{one.title()} {other.title()}"
        latin = "Corvus " + "abcdef"[len(one) % 6] * 4
        texts.append([f"{latin}_{name}", f"{name}_{name}", name, f"{name} # {latin}_x"][kind])
        wanted.append(name)
    text = "\n".join(texts)
    text = text if encoding == "cp1252" else unicodedata.normalize(form, text)
    assert read(tmp_path, text.encode(encoding)).names == tuple(dict.fromkeys(wanted))


def test_a_list_of_which_nothing_is_known_is_said() -> None:
    known = known_names("naturelm-tiny")
    (note,) = hints(["Wuffwuff", "Miauz"], known)
    assert "none of the 2 names is known here" in note
    assert not list(hints(["Wuffwuff", "Dog"], known))


def test_the_kind_of_names_can_be_chosen(tmp_path: Path) -> None:
    both = "scientific_name,common_name\nCanis lupus,Gray Wolf\n"
    found = read(tmp_path, both, prefer="scientific")
    assert (found.names, found.kind) == (("Canis lupus",), "scientific")
    latin = read(tmp_path, BIRDNET, prefer="scientific")
    assert latin.names == ("Corvus corax", "Turdus merula")
    found = read(tmp_path, "scientific_name,n\nCanis lupus,4\nCanis latrans,2\n")
    assert found.kind == "scientific"
    assert "has no common names, so the scientific ones are taken" in found.notes[0]


@pytest.mark.parametrize(
    ("content", "pairs"),
    [
        (BIRDNET, {"Common Raven": "Corvus corax", "Eurasian Blackbird": "Turdus merula"}),
        (
            BIRDNET + "Wolf\n",
            {"Common Raven": "Corvus corax", "Eurasian Blackbird": "Turdus merula"},
        ),
        ("scientific_name,common_name\nCanis lupus,Gray Wolf\n", {"Gray Wolf": "Canis lupus"}),
        (
            "Common Name\tScientific Name\nCoyote\t Canis  latrans\nDog\t\n",
            {"Coyote": "Canis latrans"},
        ),
        # A name with two partners has none: it cannot be told which is meant.
        (
            "common,scientific\nHen,Gallus gallus\nRooster,Gallus gallus\n" + 2 * "Owl,Tyto alba\n",
            {"Owl": "Tyto alba"},
        ),
        ("Barn Owl\n", {}),
        ("species,n\nBarn Owl,3\n", {}),
    ],
)
@pytest.mark.parametrize("prefer", ["common", "scientific"])
def test_lists_with_both_names_pair_them(
    tmp_path: Path, content: str, pairs: dict[str, str], prefer: Any
) -> None:
    found = read(tmp_path, content, prefer=prefer)
    assert found.scientific == pairs
    assert found == read(tmp_path, content, prefer=prefer)
    hash(found)


def test_names_on_the_command_line_and_presets() -> None:
    assert read_species_list("Gray Wolf, Coyote,,").names == ("Gray Wolf", "Coyote")
    assert read_species_list("Gray Wolf").names == ("Gray Wolf",)
    assert read_species_list("dogs", presets={"dogs": ("Dog",)}).names == ("Dog",)
    lists = presets()
    assert "Common Cuckoo" in lists["naturelm-tiny"]
    assert len(read_species_list("cbi", presets=lists).names) == 264
    assert read_species_list("unseen-family-sci", presets=lists).kind == "scientific"


def test_a_name_twice_is_taken_once_and_said() -> None:
    found = read_species_list("Coyote,Gray Wolf,Coyote")
    assert found.names == ("Coyote", "Gray Wolf")
    assert "'Coyote' is more than once in the list" in found.notes[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no name"),
        (b"# nothing\n\n", "holds no name"),
        (b"bird,count\nRobin,3\n", "columns bird, count, and none of them"),
        (b"Selection\tBegin Time (s)\n1\t0.5\n", "columns Selection, Begin Time"),
        (b"common_name,n\n,3\n", "the column 'common_name' is empty"),
        (b"Gr\x81\n", "line 1: is no text in UTF-8, UTF-16 or Windows-1252"),
        (b'id,species\n1,"Dog\n2,Cat\n', "line 2: a quote is not closed"),
        (b"id,species\n1,Dog\n2\n", "line 3: has fewer fields"),
        (b"RIFF\0\0\0\n", "is no text"),
    ],
)
def test_files_that_are_no_lists(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read(tmp_path, content)


def test_a_list_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"birds\.txt does not exist"):
        read_species_list("birds.txt")
    with pytest.raises(UsageError, match="holds no name"):
        read_species_list(" , ")


def test_near_names_are_suggested() -> None:
    known = known_names("naturelm-tiny")
    said = list(hints(["Comon Cuckoo", "common cuckoo", "Common Cuckoo", "Aardvark"], known))
    assert said == [
        "'Comon Cuckoo' is not a name that is known here; did you mean 'Common Cuckoo'?",
        "'common cuckoo' is not a name that is known here; did you mean 'Common Cuckoo'?",
    ]
    assert list(hints(["Aplonis magma"], known)) == [
        "'Aplonis magma' is not a name that is known here; did you mean 'Aplonis magna'?"
    ]


def test_the_question_follows_the_names() -> None:
    assert "scientific name" in default_question(["Canis lupus"], "scientific")
    asked = default_question(["Coyote", "Gray Wolf"], "common", lists_names=True)
    assert "Coyote, Gray Wolf." in asked


def test_names_may_be_longer_together_than_a_file_name() -> None:
    names = tuple(f"Species number {number}" for number in range(40))
    assert read_species_list(", ".join(names)).names == names
    assert read_species_list("a" * 300).names == ("a" * 300,)


@pytest.mark.parametrize("text", ["naturelm-tinyy", "NatureLM-Tiny", "watkin", "esc-50"])
def test_a_preset_with_a_slip_is_no_list_of_one_name(text: str) -> None:
    with pytest.raises(UsageError, match=r"there is no list .*; did you mean"):
        read_species_list(text, presets=presets())


def test_a_name_of_a_preset_is_no_slip_of_the_name_of_one() -> None:
    lists = presets()
    for names in lists.values():
        for name in names:
            assert read_species_list(name, presets=lists).names == (name,) or "," in name


def test_what_can_only_be_a_file_is_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Wolf").mkdir()
    monkeypatch.chdir(tmp_path)
    for text in ("names.tx", "birds.xlsx", "lists/birds"):
        with pytest.raises(UsageError, match="does not exist"):
            read_species_list(text)
    with pytest.raises(UsageError, match="Wolf is a folder"):
        read_species_list("Wolf")
    assert read_species_list("Wolf,").names == ("Wolf",)
    assert read_species_list("Larus sp.").names == ("Larus sp.",)
