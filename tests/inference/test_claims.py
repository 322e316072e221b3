"""Detections of another program are asked about where they are, and the rows say who agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from NatureLM.audio.windows import read_noted_clip
from NatureLM.inference.pipeline import Pipeline
from NatureLM.inference.windows import AskOptions, RecordingError, WindowResult, agrees, with_label
from NatureLM.results.detections import Detection
from NatureLM.results.rows import RunSettings, WindowRow, read_rows
from NatureLM.results.store import WindowStore

DOG = Path(__file__).resolve().parents[2] / "assets" / "synthetic_dog.WAV"
WREN = {"label": "House Wren", "scientific_name": "Troglodytes aedon"}


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("House Wren", True),
        ("house-wren", True),
        ("Troglodytes aedon", True),
        ("I hear a House Wren and a crow.", True),
        ("Barn Owl, House Wren", True),
        ("Wren", False),
        ("None", False),
        ("", None),
        ("Yes", True),
        ("No, that is a toad.", False),
        ("No House Wren", False),
        (True, True),
        (None, None),
        (["Dog", "House Wren"], True),
    ],
)
def test_an_answer_agrees_with_a_claim(answer: Any, verdict: bool | None) -> None:
    assert agrees(WREN, answer) is verdict


def claim(start: float, end: float, label: str) -> Detection:
    return Detection(audio_path=str(DOG), start=start, end=end, label=label, confidence=0.5)


def test_claims_are_asked_where_they_are(tmp_path: Path) -> None:
    pipeline = Pipeline()
    claims = (claim(0.5, 1.5, "Dog"), claim(0.5, 1.5, "Cat"), claim(1e6, 1e6 + 3, "Owl"))
    query = "Is it a {label}?"
    asked = AskOptions((query,), mode="score", labels=("Dog", "Cat"))
    output = tmp_path / "x.jsonl"
    for _ in range(2):  # the second run finds all answers there
        with WindowStore(output) as store:
            store.begin(RunSettings({"model": "m", "queries": [query]}), [DOG])
            found = list(
                pipeline.unanswered(
                    [DOG], asked, store, claims={DOG: claims}, fill=with_label, warn=print
                )
            )
            for one in found:
                if isinstance(one, RecordingError):
                    store.add_error(one.audio_path, one.error, 1.0)
                else:
                    assert store.add_answer(one)
    rows = list(read_rows(output))
    windows = [row for row in rows if isinstance(row, WindowRow)]
    assert [(row.start, row.end, row.query) for row in windows] == [(0.5, 1.5, query)] * 2
    assert [row.claim and row.claim["label"] for row in windows] == ["Dog", "Cat"]
    for row in windows:
        assert row.claim is not None
        assert row.claim["agrees"] == (row.text == row.claim["label"])
    assert [row.error for row in rows if not isinstance(row, WindowRow)] != []
    assert [type(one) for one in found] == [RecordingError]


def test_the_prompt_names_the_label() -> None:
    pipeline = Pipeline()
    asked = AskOptions(("Is it a {label}?",))

    class Empty:
        is_done = staticmethod(lambda *_: False)

    made: Any = pipeline.unanswered(
        [DOG],
        asked,
        Empty(),
        claims={DOG: (claim(0, 1, "Dog"),)},
        fill=with_label,  # type: ignore[arg-type]
    )
    (result,) = made
    assert isinstance(result, WindowResult)
    assert "Is it a Dog?" in result.prompt


def test_a_clip_is_slowed_down(tmp_path: Path) -> None:
    fast = np.sin(np.arange(96_000) * 0.5).astype(np.float32) * 0.5
    slow, _ = read_noted_clip(
        fast, input_sample_rate=96_000, start=0.1, duration=0.2, time_expansion=10
    )
    assert len(slow) == 32_000
    plain, _ = read_noted_clip(fast, input_sample_rate=9_600, start=1.0, duration=2.0)
    np.testing.assert_array_equal(slow, plain)
