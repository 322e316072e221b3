"""Temperatures that are fitted, kept beside a model, and used where they were fitted for."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.errors import UsageError
from NatureLM.inference.calibration import (
    Calibration,
    CalibrationError,
    beside_model,
    find_calibration,
    fit_temperature,
    nll,
    read_calibration,
    write_calibration,
)

KNOWN = Calibration(1.5, "sum", 1.0, "abc", "What is it?", 4, 20, 18)


def test_the_temperature_of_a_sharpened_model_is_found() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(4000, 5)) * 2
    shares = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    right = [int(rng.choice(5, p=row)) for row in shares]
    found = fit_temperature((true * 3).tolist(), right)  # three times too sure
    assert found == pytest.approx(3, rel=0.06)


@given(
    rows=st.lists(st.lists(st.floats(-20, 0), min_size=2, max_size=5), min_size=1, max_size=12),
    others=st.lists(st.floats(0.05, 50), min_size=5, max_size=5),
)
def test_no_other_temperature_is_better(rows: list[list[float]], others: list[float]) -> None:
    right = [place % len(row) for place, row in enumerate(rows)]
    if all(len(set(row)) == 1 for row in rows):
        with pytest.raises(UsageError, match="all labels have the same scores"):
            fit_temperature(rows, right)
        return
    best = nll(rows, right, fit_temperature(rows, right))
    assert all(best <= nll(rows, right, other) + 1e-6 for other in others)


def test_a_fit_needs_samples() -> None:
    with pytest.raises(UsageError, match="to no samples"):
        fit_temperature([], [])
    with pytest.raises(ValueError, match="1 rows of scores were given with 2"):
        fit_temperature([[0.0, 1.0]], [0, 1])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "calibration.json"
    write_calibration(KNOWN, path)
    assert read_calibration(path) == KNOWN
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"temperature": 0}, "temperature is 0, and it must be above 0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"normalize": "max"}, "normalize is 'max'"),
        ({"merging_alpha": None}, "merging_alpha is None, not a number"),
        ({"schema_version": 7}, "no calibration of schema version 1"),
        ({"labels": ...}, "lacks labels"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(KNOWN, path)
    data = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))
    with pytest.raises(CalibrationError, match=says):
        read_calibration(path)
    for content, reason in (("{", "is no JSON"), ("[]", "no calibration")):
        path.write_text(content)
        with pytest.raises(CalibrationError, match=reason):
            read_calibration(path)
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_calibration(tmp_path / "absent.json")


def test_it_is_found_beside_the_model_and_fits_its_weights_and_alpha(tmp_path: Path) -> None:
    assert find_calibration(tmp_path, "auto") is None
    path = beside_model(tmp_path)
    assert path == tmp_path / "calibration.json"
    write_calibration(KNOWN, path)
    assert find_calibration(tmp_path, "auto") == KNOWN
    assert find_calibration(tmp_path, None) is None
    assert find_calibration("", path) == KNOWN
    assert find_calibration("", KNOWN) == KNOWN
    assert KNOWN.mismatch("abc", 1.0) is None
    why = "the calibration was made at α = 1, so confidences at α = 0.4 are not calibrated"
    assert KNOWN.mismatch("abc", 0.4) == why
    assert "made for other weights" in str(KNOWN.mismatch("other", 1.0))
    assert beside_model("somebody/a-model") is None


@pytest.mark.parametrize(("scores", "edge"), [([[4.0, 0.0]], True), ([[2.0, 0.0]] * 3, False)])
def test_samples_that_do_not_tell_are_noticed(scores: list[list[float]], edge: bool) -> None:
    right = [0] * len(scores) if edge else [0, 0, 1]
    found = replace(KNOWN, temperature=round(fit_temperature(scores, right), 4))
    assert found.is_at_the_edge is edge
