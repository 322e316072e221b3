"""The numbers of the page on confidence: counted right, and put where they go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from NatureLM.data.clip import Clip
from NatureLM.data.sample import Sample
from NatureLM.errors import NatureLMError
from NatureLM.experiments.calibrate import Scored, fit_calibration, measure
from NatureLM.generation.labels import LabelScores
from recipes.tiny.reliability import BEGIN, END, known_or_unseen, rewrite

ROOT = Path(__file__).resolve().parents[2]


def scored(label: str, scores: tuple[float, ...], cluster: str = "") -> Scored:
    source: Any = None
    sample = Sample(label + cluster, "d", label, Clip("c", source), cluster or label)
    return Scored(sample, LabelScores(("Dog", "Owl", "None"), scores, scores))


def test_known_species_are_told_from_unseen_ones_by_their_confidence() -> None:
    known = [scored("Dog", (0.0, -5.0, -5.0), str(n)) for n in range(6)]
    unseen = [scored("Wolf", (-1.0, -1.2, -0.5), str(n)) for n in range(6, 12)]
    found = known_or_unseen(known, unseen, 1.0)
    assert found["auroc"]["value"] == 1.0
    assert found["none_known"] == 0
    assert found["none_unseen"] == 1
    assert known_or_unseen(known, known, 1.0)["auroc"]["value"] == 0.5


def test_a_measure_counts_right_answers_and_how_sure_they_were() -> None:
    samples = [
        scored("Dog", (0.0, -1.0, -9.0), "a"),
        scored("Owl", (0.0, -1.0, -9.0), "b"),
        scored("Wolf", (0.0, -1.0, -9.0), "c"),
    ]
    found = measure(samples, 1.0, repeats=50)
    sure = samples[0].confidence(1.0)
    assert found.accuracy.value == pytest.approx(1 / 3)
    assert found.error.value == pytest.approx(sure - 1 / 3)
    assert (found.error.samples, found.error.clusters) == (3, 3)
    assert json.loads(json.dumps(found.plain()))["bins"][0]["samples"] == 3
    flat = measure(samples, 100.0, repeats=50)
    assert flat.accuracy.value == found.accuracy.value
    assert flat.bins != found.bins


def test_a_calibration_needs_labels_of_the_list() -> None:
    model: Any = type("Model", (), {"fingerprint": "abc"})()
    samples = [scored("Dog", (0.0, -1.0, -9.0), "a"), scored("Owl", (0.0, -1.0, -9.0), "b")]
    found = fit_calibration(model, [*samples, scored("Wolf", (0.0, -1.0, -9.0))], "What?")
    assert (found.samples, found.clusters, found.labels) == (2, 2, 3)
    with pytest.raises(NatureLMError, match="has a label that is in the list"):
        fit_calibration(model, [scored("Wolf", (0.0, -1.0, -9.0))], "What?")


def test_the_page_holds_the_numbers_of_its_file(tmp_path: Path) -> None:
    """What stands between the marks is made from reliability.json and nothing else."""
    numbers = json.loads((ROOT / "docs/explanation/tiny-model/reliability.json").read_text())
    text = (ROOT / "docs/explanation/confidence.md").read_text(encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    rewrite(page, numbers)
    assert page.read_text(encoding="utf-8") == text
    page.write_text(text.replace(BEGIN, "").replace(END, ""), encoding="utf-8")
    with pytest.raises(NatureLMError, match="between which the numbers go"):
        rewrite(page, numbers)
