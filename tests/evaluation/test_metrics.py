"""Metrics and intervals against their definitions."""

from __future__ import annotations

import math
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from answer_files import weighted_by_hand
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.errors import NatureLMError
from NatureLM.evaluation import metrics as metrics_module
from NatureLM.evaluation.metrics import (
    BootstrapOptions,
    Spice,
    accuracy,
    auroc,
    average_precision,
    calibration_error,
    cell_counts,
    cider,
    class_counts,
    clustered_interval,
    find_spice,
    macro_accuracy,
    multiplicities,
    percentile_interval,
    reliability_bins,
    set_counts,
    weighted_scores,
)


def test_accuracy_and_macro_accuracy_by_hand() -> None:
    correct = [True, True, True, False]
    labels = ["Dog", "Dog", "Dog", "Cat"]
    assert accuracy(correct) == 0.75
    assert macro_accuracy(correct, labels) == 0.5
    assert macro_accuracy(correct, labels, np.array([1.0, 1.0, 1.0, 0.0])) == 1.0
    assert math.isnan(accuracy([], None))


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="1 captions with 2 references"):
        cider(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="labels"):
        macro_accuracy([True], ["Dog", "Cat"])
    with pytest.raises(ValueError, match="weights"):
        accuracy([True], np.ones(2))


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_integer_weights_equal_repetition(rows: list[tuple[bool, str]]) -> None:
    weights = np.arange(len(rows), dtype=np.float64) % 3
    repeated = [row for row, weight in zip(rows, weights, strict=True) for _ in range(int(weight))]
    correct, labels = [r[0] for r in rows], [r[1] for r in rows]
    if repeated:
        expected = macro_accuracy([r[0] for r in repeated], [r[1] for r in repeated])
        assert macro_accuracy(correct, labels, weights) == pytest.approx(expected)
        assert accuracy(correct, weights) == pytest.approx(np.mean([r[0] for r in repeated]))


def test_clusters_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    per_cluster = rng.random(40) < 0.7
    correct = np.repeat(per_cluster, 10).astype(float)
    clustered = clustered_interval(lambda w: accuracy(correct, w), list(np.repeat(range(40), 10)))
    alone = clustered_interval(lambda w: accuracy(correct, w), list(range(400)))
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)
    assert clustered.low <= clustered.value <= clustered.high
    assert (clustered.samples, clustered.clusters) == (400, 40)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        hits = (rng.random(100) < 0.7).astype(float)
        e = clustered_interval(
            lambda w, h=hits: accuracy(h, w), list(range(100)), repeats=200, seed=trial
        )
        covered += e.low <= 0.7 <= e.high
    assert covered >= 50


def test_interval_is_seeded_and_checks_its_input() -> None:
    correct = np.array([1.0, 0.0, 1.0, 1.0])
    a, b = (clustered_interval(lambda w: accuracy(correct, w), "abcd", seed=3) for _ in range(2))
    assert a == b
    with pytest.raises(ValueError, match="at least one"):
        clustered_interval(lambda w: 0.0, [])


pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 5)), min_size=1, max_size=40)


@given(pairs, st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_weighted_scores_are_those_by_hand_in_every_resample(
    rows: list[tuple[int, int]], seed: int
) -> None:
    true, predicted = np.array(rows).T
    repeats = np.random.default_rng(seed).integers(0, 3, (len(rows), 4))
    repeats[:, :2] = 1, 0
    together = weighted_scores(class_counts(repeats, true, predicted, 6))
    for column in range(4):
        drawn = [row for row, n in zip(rows, repeats[:, column], strict=True) for _ in range(n)]
        if not drawn:
            assert np.isnan(together["accuracy"][column])
        else:
            found = {name: float(values[column]) for name, values in together.items()}
            assert found == pytest.approx(
                weighted_by_hand(*map(list, zip(*drawn, strict=True))), abs=1e-12
            )


def average_precision_by_steps(true: list[bool], scores: list[float]) -> float:
    """Precision at each distinct threshold, weighted by the recall gained there."""
    found, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [t for t, score in zip(true, scores, strict=True) if score >= threshold]
        recall = sum(taken) / sum(true)
        found += (recall - before) * sum(taken) / len(taken)
        before = recall
    return found


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_average_precision_does_not_depend_on_the_order_of_ties(
    rows: list[tuple[bool, bool]],
) -> None:
    true, predicted = [t for t, _ in rows], [p for _, p in rows]
    if not any(true):
        return
    expected = average_precision_by_steps(true, [float(p) for p in predicted])
    for order in (1, -1):
        sets = np.array(true[::order])[:, None], np.array(predicted[::order])[:, None]
        counts = set_counts(np.ones(len(rows)), *sets)
        found = average_precision(counts, np.asarray(float(len(rows))))
        assert found[0] == pytest.approx(expected, abs=1e-12)


SAMPLES = st.lists(
    st.tuples(st.floats(0, 1).map(lambda x: round(x, 2)), st.booleans(), st.integers(0, 3)),
    min_size=1,
    max_size=40,
)


@given(samples=SAMPLES)
def test_the_area_counts_pairs(samples: list[tuple[float, bool, int]]) -> None:
    up = [(x, n) for x, yes, n in samples if yes]
    down = [(x, n) for x, yes, n in samples if not yes]
    pairs = sum(n * m for _, n in up for _, m in down)
    won = sum(n * m * ((x > y) + (x == y) / 2) for x, n in up for y, m in down)
    values, kinds, weights = zip(*samples, strict=True)
    found = auroc(values, kinds, np.array(weights, dtype=float))
    assert math.isnan(found) if not pairs else found == pytest.approx(won / pairs)


@given(samples=SAMPLES)
def test_weights_are_repetitions(samples: list[tuple[float, bool, int]]) -> None:
    values, kinds, weights = zip(*samples, strict=True)
    repeated = [(x, yes) for x, yes, n in samples for _ in range(n)]
    weighted = calibration_error(values, kinds, np.array(weights, dtype=float))
    if not repeated:
        assert math.isnan(weighted)
        return
    plain = calibration_error(*zip(*repeated, strict=True))
    assert weighted == pytest.approx(plain)
    assert 0 <= plain <= 1


def test_bins_have_their_upper_ends() -> None:
    bins = reliability_bins([0.0, 0.1, 0.11, 1.0], [False, True, True, True], bins=10)
    assert [one.samples for one in bins] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert bins[0].accuracy == 0.5
    assert math.isnan(bins[5].confidence)


def test_calibration_error_of_known_cases() -> None:
    assert calibration_error([0.75] * 4, [True, True, True, False]) == pytest.approx(0)
    assert calibration_error([1.0] * 4, [True, False, False, False]) == pytest.approx(0.75)
    assert calibration_error([0.2, 0.9], [False, True]) == pytest.approx((0.2 + 0.1) / 2)
    with pytest.raises(ValueError, match="2 values were given with 1 truths"):
        calibration_error([0.2, 0.9], [False])


REFERENCES = ["a wolf howls at night", "rain falls on a quiet lake", "a loon wails over the lake"]


@pytest.mark.parametrize(
    ("captions", "references", "scores"),
    [
        (REFERENCES, REFERENCES, [10, 10, 10]),
        (["engine noise"] * 3, REFERENCES, [0, 0, 0]),
        ([""] * 3, REFERENCES, [0, 0, 0]),
        # By hand: only the one word counts, and the lengths are the same.
        (["owl", "owl"], ["owl", "wolf"], [2.5, 0]),
    ],
)
def test_cider_of_known_captions(
    captions: list[str], references: list[str], scores: list[float]
) -> None:
    assert cider(captions, references) == pytest.approx(scores)


def test_rare_words_count_more_than_common_ones() -> None:
    common = cider(["a b c", "howls"], ["a wolf howls", "a x y"])[0]
    rare = cider(["p howls q", "howls"], ["a wolf howls", "a x y"])[0]
    assert rare > common


def test_repeating_a_word_gains_nothing_and_length_costs() -> None:
    once, often = (cider([text, *REFERENCES[1:]], REFERENCES)[0] for text in ("wolf", "wolf " * 5))
    assert often < once


def test_capital_letters_count() -> None:
    assert cider(["A WOLF HOWLS AT NIGHT", "", ""], REFERENCES)[0] == 0


def program(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for Java is a script")
def test_spice_calls_its_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        "import json, sys\n"
        "items = json.load(open(sys.argv[4]))\n"
        "scores = [{'image_id': i['image_id'], 'scores': {'All': {'f': float('nan') if "
        "not i['test'] else float(i['test'] in i['refs'])}}} for i in reversed(items)]\n"
        "json.dump(scores, open(sys.argv[sys.argv.index('-out') + 1], 'w'))\n"
    )
    program(tmp_path, "java", body)
    jar = tmp_path / "spice.jar"
    jar.touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("NATURELM_SPICE_JAR", str(jar))
    spice = find_spice()
    assert isinstance(spice, Spice)
    assert spice(["owl", "wolf", ""], ["owl", "loon", "loon"]).tolist() == [1.0, 0.0, 0.0]
    program(tmp_path, "java", "import sys; sys.exit('no memory')\n")
    with pytest.raises(NatureLMError, match=r"spice\.jar.*no memory"):
        spice(["owl"], ["owl"])


def test_without_java_or_program_a_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_spice() == "SPICE is left out because Java is not installed."
    program(tmp_path, "java", "")
    monkeypatch.delenv("NATURELM_SPICE_JAR", raising=False)
    assert "NATURELM_SPICE_JAR" in str(find_spice())
    assert "gone.jar is not there" in str(find_spice(tmp_path / "gone.jar"))


def all_of(cells: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    return np.concatenate(list(cell_counts(cells, clusters, BootstrapOptions(200, 3))), axis=1)


def test_every_resample_has_as_many_clusters_as_there_are() -> None:
    [drawn] = multiplicities(7, BootstrapOptions(50, 1))
    assert drawn.shape == (7, 50)
    assert (drawn.sum(axis=0) == 7).all()
    assert (drawn.sum(axis=1) > 0).all()


def test_cells_count_the_samples_of_the_drawn_clusters() -> None:
    rng = np.random.default_rng(0)
    clusters = np.concatenate([np.arange(5), rng.integers(0, 5, 25)])
    cells = np.concatenate([np.arange(4), rng.integers(0, 4, 26)])
    [drawn] = multiplicities(5, BootstrapOptions(200, 3))
    expected = [drawn[clusters[cells == cell]].sum(axis=0) for cell in range(4)]
    np.testing.assert_array_equal(all_of(cells, clusters), expected)


def test_blocks_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    cells, clusters = np.arange(40) % 3, np.arange(40) // 2
    whole = all_of(cells, clusters)
    monkeypatch.setattr(metrics_module, "_BLOCK", 500)
    metrics_module._kept.cache_clear()
    assert len(list(cell_counts(cells, clusters, BootstrapOptions(200, 3)))) > 5
    np.testing.assert_array_equal(all_of(cells, clusters), whole)


def test_resamples_without_a_value_are_left_out() -> None:
    assert percentile_interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)
    assert percentile_interval(np.array([np.nan])) is None
