"""Learning curves and confusions are what the logs and answers say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from NatureLM.errors import NatureLMError
from recipes.tiny import pictures
from recipes.tiny.pictures import OTHER, confusions, stage_curves

ANSWERS = [
    {"question": "common name", "truth": truth, "answer": answer}
    for truth, answer in (("Dog", "Dog"), ("Dog", "Cat"), ("Cat", "Cat"), ("Cat", "a cat?"))
]


def lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for path, accuracies in (
        ("teachers/teacher_0", [0.6]),
        ("teachers/teacher_1", [0.5]),
        ("encoder/listener", [0.4, 0.7]),
    ):
        found: list[dict[str, object]] = [{"kind": "train", "step": 100, "loss": 2.0}]
        found += [
            {"kind": "valid", "step": 100 * step, "accuracy": value}
            for step, value in enumerate(accuracies, start=1)
        ]
        lines(tmp_path / path / "log.jsonl", found)
    training: list[dict[str, object]] = [
        {"kind": "train", "step": 10, "loss": 3.0},
        {"kind": "train", "step": 20, "loss": 1.0},
        {"kind": "valid", "step": 20, "loss": 1.5},
    ]
    for stage in ("text", "audio", "polish"):
        lines(tmp_path / stage / "run" / "log.jsonl", training)
    return tmp_path


def test_curves(run: Path) -> None:
    text, hearing, audio, polish = stage_curves(run).values()
    assert text["training"] == ([10, 20], [3.0, 1.0])
    assert text["unseen wordings"] == ([20], [1.5])
    assert audio["valid, unseen wordings"] == ([20], [1.5])
    assert polish["training"] == ([10, 20], [3.0, 1.0])
    assert hearing["teacher 1"] == ([100], [0.5])
    assert hearing["encoder"] == ([100, 200], [0.4, 0.7])


def test_confusions() -> None:
    columns, counts = confusions(ANSWERS, "common name")
    assert columns == ["Cat", "Dog", OTHER]
    assert counts == [[1, 0, 1], [1, 1, 0]]
    with pytest.raises(NatureLMError, match="none to the question 'group'"):
        confusions(ANSWERS, "group")


def test_both_pictures_are_written_and_repeatable(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lines(run / "answers.jsonl", ANSWERS)  # type: ignore[arg-type]
    out = tmp_path / "out"
    arguments = ["--run", str(run), "--answers", str(run / "answers.jsonl")]
    assert pictures.main([*arguments, "--output-path", str(out)]) == 0
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(first) == {"tiny-learning-curves.svg", "tiny-confusions.svg"}
    assert b"teacher 1" in first["tiny-learning-curves.svg"]
    assert pictures.main([*arguments, "--output-path", str(out)]) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
