"""Species lists of every kind, and what is said about those that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from NatureLM.errors import UsageError
from NatureLM.species import default_question, hints, known_names, presets, read_species_list

RAVEN = (
    "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tSpecies\n"
    "1\tSpectrogram 1\t1\t0.0\t1.5\tWood Thrush\n"
    "2\tSpectrogram 1\t1\t4.0\t5.0\tBlue Jay\n"
    "3\tSpectrogram 1\t1\t6.0\t6.5\tWood Thrush\n"
)
BIRDNET = "Corvus corax_Common Raven\nTurdus merula_Eurasian Blackbird\n"


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
    ],
)
def test_files_of_every_kind(
    tmp_path: Path, content: str, names: tuple[str, ...], kind: str | None
) -> None:
    path = tmp_path / "list.txt"
    path.write_text(content, encoding="utf-8")
    found = read_species_list(path)
    assert found.names == names
    assert kind is None or found.kind == kind
    assert found.notes == ()


def test_the_kind_of_names_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("scientific_name,common_name\nCanis lupus,Gray Wolf\n")
    assert read_species_list(path, prefer="scientific").names == ("Canis lupus",)
    assert read_species_list(path, prefer="scientific").kind == "scientific"
    path.write_text(BIRDNET)
    assert read_species_list(path, prefer="scientific").names == ("Corvus corax", "Turdus merula")
    path.write_text("scientific_name,n\nCanis lupus,4\nCanis latrans,2\n")
    found = read_species_list(path)
    assert found.kind == "scientific"
    assert "has no common names, so the scientific ones are taken" in found.notes[0]


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
        (b"Gr\xe4\n", "no text in UTF-8"),
        (b"RIFF\0\0\0\n", "is no text"),
    ],
)
def test_files_that_are_no_lists(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=says):
        read_species_list(path)


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
    for names in presets().values():
        for name in names:
            assert read_species_list(name, presets=presets()).names == (name,) or "," in name


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
