"""What is written is read again in every format, as far as it holds it."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from result_files import error, result_file, window

from NatureLM.formats import FORMATS, read, recognised, write
from NatureLM.results.detections import Detection
from NatureLM.results.rows import WindowRow
from NatureLM.results.tables import alternatives_of, alternatives_text

LETTERS = st.one_of(st.sampled_from("aö学 ,;'\"=+-@#%|"), st.characters(codec="utf-8"))
ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)


def _as_said(text: str) -> str:
    """The text as a name of a file or a species could be."""
    text = unicodedata.normalize("NFC", text)
    text = " ".join("".join(c for c in text if c.isprintable() and c not in "/\\").split())
    return f"{text}a" if text.count('"') % 2 else text


PARTS = (
    st.text(LETTERS, min_size=1, max_size=12)
    .map(_as_said)
    .filter(lambda text: text.strip(" .") and text.casefold() not in ("none", "nocall"))
)
LABELS = PARTS.map(lambda text: f"{text[:1].upper()}{text[1:]}") | st.just("Rallina tricolor")
LABELS_OF = {  # Formats of rows keep every text, and a tag of Camtrap DP ends at a bar
    **dict.fromkeys(
        ("csv", "jsonl", "parquet"), ANY_TEXT.filter(lambda t: t.strip(" ") == t != "")
    ),
    "camtrap-dp": LABELS.map(lambda text: text.replace("|", "/")),
}
PLACES = st.integers(0, 10**8).map(lambda milli: milli / 1e3)
CONTEXT = {
    **{"site": "Creek", "latitude": -12.5, "longitude": 143.25, "recorder": "SM4-1"},
    **{"local_time": "2024-05-10T05:30:00+10:00", "utc_time": "2024-05-09T19:30:00Z"},
}
OTHERS = (("Wren, winter", 0.125), ("Owl", 0.25))


@st.composite
def answers(draw: st.DrawFn, labels: st.SearchStrategy[str]) -> list[WindowRow]:
    """Answers about up to three recordings; none of two is about one stretch."""
    paths = draw(st.lists(st.tuples(PARTS, PARTS), min_size=1, max_size=3, unique=True))
    has_shares = draw(st.booleans())
    made = []
    for folder, name in paths:
        for start in draw(st.lists(PLACES, min_size=1, max_size=3, unique=True)):
            row = window(
                *(f"/naturelm-none/{folder}/{name}.wav", start),
                *(round(start + draw(st.integers(1, 10**5)) / 1000, 3),),
                text=draw(labels.filter(lambda text: text != "None")),
                query=draw(PARTS),
                confidence=draw(st.integers(1, 10**6)) / 10**6 if has_shares else None,
                context=CONTEXT,
            )
            made.append(row)
    return made


def kept(one: Detection, name: str) -> Detection:
    """What a format keeps of a detection."""
    lost: dict[str, Any] = {}
    if name not in ("csv", "jsonl", "parquet", "raven", "camtrap-dp"):
        lost["question"] = ""
    if name in ("audacity", "crowsetta"):
        lost["confidence"] = None
    if name in ("audacity", "ecosounds"):
        lost["audio_path"] = Path(one.audio_path).name if name == "ecosounds" else ""
    if name in ("birdnet", "ecosounds"):
        lost["label"] = one.common_name or one.scientific_name
    if name == "camtrap-dp":
        lost = {"audio_path": Path(one.audio_path).name, "question": one.question.replace("|", "/")}
    if name == "opensoundscape" and one.label.casefold() in ("file", "start_time", "end_time"):
        lost["label"] = lost["common_name"] = f"{one.label}_"
    return replace(one, **lost)


def told(one: Detection) -> tuple[Any, ...]:
    names = (one.label, one.common_name, one.scientific_name, one.question)
    share = -1.0 if one.confidence is None else one.confidence
    return (one.audio_path, round(one.start, 5), round(one.end, 5), share, *names)


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    rows = data.draw(answers(LABELS_OF.get(name, LABELS)))
    more = [window("/b.wav", text="None", context=CONTEXT), error("/c.wav")]
    found = result_file(folder, *rows, *more, settings={"channel": 2})
    target = folder / f"t{FORMATS[name].suffix}"
    written = write(name, found, target, per_recording=name == "audacity")
    tables = [target] if name != "audacity" else sorted(written.path.rglob("*.txt"))
    back = [one for table in tables for one in read(table, name)]
    if name == "audacity":
        assert {one.audio_path for one in back} <= {table.stem for table in tables}
        back = [replace(one, audio_path="") for one in back]
    else:
        assert recognised(target) == name
    if name == "camtrap-dp":
        back = [replace(one, audio_path=Path(one.audio_path).name) for one in back]
    if name == "opensoundscape" and {row.confidence for row in rows} == {1.0}:
        back = [replace(one, confidence=1.0) for one in back]  # scores that could be labels
    assert sorted(map(told, back)) == sorted(told(kept(one, name)) for one in found)


@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet"])
def test_rows_are_read_with_all_that_they_hold(tmp_path: Path, name: str) -> None:
    row = window("/a.wav", text="Wren", alternatives=OTHERS, windows=2, mean_confidence=0.5)
    target = tmp_path / f"t{FORMATS[name].suffix}"
    write(name, result_file(tmp_path, row), target)
    (found,) = read(target)
    assert (found.alternatives, found.windows, found.mean_confidence) == (OTHERS, 2, 0.5)


@given(st.lists(st.tuples(LABELS, st.integers(0, 999).map(lambda n: n / 1000)), max_size=4))
def test_alternatives_are_read_again(pairs: list[tuple[str, float]]) -> None:
    pairs = [(name, share) for name, share in pairs if not any(c.isdigit() for c in name)]
    assert list(alternatives_of(alternatives_text(pairs))) == pairs
