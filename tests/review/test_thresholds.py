"""Reviewed clips give thresholds: known curves are found again, and what cannot be told is said."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import naturelm
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.errors import UsageError
from NatureLM.evaluation.metrics import BootstrapOptions
from NatureLM.results.rows import RunSettings, write_record
from NatureLM.results.thresholds import ALL_SPECIES, read_min_confidence, read_thresholds
from NatureLM.review.folder import Segment, Verdict, VerdictStore, index_path, write_segments
from NatureLM.review.thresholds import (
    agreement_of,
    calibrate_folder,
    fit_curve,
    logit,
    read_review,
    threshold_intervals,
)

MADE = {
    "model": "m",
    "weights": "w",
    "merging_alpha": 0.5,
    "queries": ["What?"],
    "choosing": {"mode": "score", "labels": ["Owl", "Wren"]},
    "calibration": {"temperature": 2.0},
}


def segment(number: int, label: str = "Owl", confidence: float | None = 0.5) -> Segment:
    return Segment(
        clip=f"{label}/{number}.wav",
        recording=f"/card/{number % 7}.wav",
        start=0.0,
        end=10.0,
        clip_start=0.0,
        clip_end=10.0,
        label=label,
        confidence=confidence,
        question="What?",
    )


def reviewed(folder: Path, clips: list[tuple[Segment, str]], reviewer: str = "Ann") -> Path:
    write_segments(folder, [one for one, _ in clips])
    write_record(index_path(folder), RunSettings({"answers": MADE}))
    with VerdictStore(folder) as store:
        for one, verdict in clips:
            if verdict:
                store.add(one.clip, reviewer, verdict)
    return folder


def by_curve(count: int, a: float, b: float, seed: int = 0) -> tuple[list[float], list[bool]]:
    """Clips whose chance of being right follows a curve."""
    drawn = np.random.default_rng(seed)
    shares = drawn.uniform(0.02, 0.98, count)
    chance = 1 / (1 + np.exp(-(a + b * logit(shares))))
    return shares.tolist(), (drawn.uniform(size=count) < chance).tolist()


def clips_by_curve(count: int) -> tuple[list[tuple[Segment, str]], list[bool]]:
    """Clips with their verdicts, and which are right."""
    shares, right = by_curve(count, 0.5, 2.0)
    clips = [
        (segment(n, confidence=share), "yes" if ok else "no")
        for n, (share, ok) in enumerate(zip(shares, right, strict=True))
    ]
    return clips, right


@given(st.floats(-2, 2), st.floats(0.5, 3), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_known_curve_is_found_again(a: float, b: float, seed: int) -> None:
    curve = fit_curve(*by_curve(4000, a, b, seed))
    assert curve.intercept == pytest.approx(a, abs=0.35)
    assert curve.slope == pytest.approx(b, rel=0.2)
    for chance in (0.85, 0.99):
        threshold = curve.threshold(chance)
        assert threshold is not None
        if 1e-3 < threshold < 1 - 1e-3:
            assert float(curve.chance(threshold)) == pytest.approx(chance)


@given(st.integers(1, 9), st.integers(4, 20))
@settings(max_examples=25, deadline=None)
def test_clips_that_one_confidence_parts_have_a_curve_all_the_same(cut: int, count: int) -> None:
    shares = [(n + 0.5) / count for n in range(count)]
    right = [share > cut / 10 for share in shares]
    curve = fit_curve(shares, right)
    assert math.isfinite(curve.intercept)
    assert abs(curve.slope) < 50


def test_the_penalised_curve_is_the_one_of_the_method() -> None:
    """Firth's estimate maximises log-likelihood + half the logarithm of the information."""
    shares, right = by_curve(25, 0.3, 1.2, 3)
    x, y = logit(np.array(shares)), np.array(right, dtype=float)

    def penalised(a: float, b: float) -> float:
        p = 1 / (1 + np.exp(-(a + b * x)))
        w = p * (1 - p)
        information = w.sum() * (w * x * x).sum() - (w * x).sum() ** 2
        likely = (y * np.log(p) + (1 - y) * np.log(1 - p)).sum()
        return float(likely + 0.5 * np.log(information))

    found = fit_curve(shares, right)
    best = penalised(found.intercept, found.slope)
    for da, db in ((0.02, 0), (-0.02, 0), (0, 0.02), (0, -0.02)):
        assert penalised(found.intercept + da, found.slope + db) < best


def test_intervals_hold_the_truth_and_know_of_recordings() -> None:
    truth = 1 / (1 + math.exp(-(math.log(0.9 / 0.1) - 0.5) / 1.5))
    held = 0
    for seed in range(20):
        shares, right = by_curve(120, 0.5, 1.5, seed)
        ((low, high),) = filter(
            None,
            threshold_intervals(shares, right, range(120), [0.9], BootstrapOptions(300)),
        )
        held += low <= truth <= high
    assert held >= 17
    shares, right = by_curve(60, 0.5, 1.5)
    alone, grouped = (
        threshold_intervals(shares * 3, right * 3, keys, [0.9], BootstrapOptions(300))[0]
        for keys in (range(180), list(range(60)) * 3)
    )
    assert alone is not None
    assert grouped is not None
    assert grouped[1] - grouped[0] > alone[1] - alone[0]
    assert threshold_intervals(shares, right, ["a"] * 60, [0.9], BootstrapOptions(9)) == [None]


def test_a_folder_gives_thresholds_that_commands_read(tmp_path: Path) -> None:
    clips, right = clips_by_curve(80)
    clips += [(segment(n, "Wren", 0.5 + n / 100), "yes") for n in range(20)]
    clips += [(segment(n, "Dog"), "unsure") for n in range(30)]
    folder = reviewed(tmp_path, clips)
    made = calibrate_folder(folder)
    lines = {(one.species, one.probability): one for one in read_thresholds(made.path)}
    owl = lines["Owl", 0.9]
    assert owl.threshold is not None
    assert owl.low is not None
    assert owl.high is not None
    assert 0.5 < owl.low < owl.threshold < owl.high < 1
    assert (owl.clips, owl.right) == (80, sum(right))
    assert (owl.scale.weights, owl.scale.merging_alpha, owl.scale.temperature) == ("w", 0.5, 2.0)
    assert lines["Wren", 0.95].why == "all 20 clips are right: review some that are less sure"
    assert lines["Dog", 0.95].why == "too few clips were judged: 0, and 20 are needed"
    assert lines[ALL_SPECIES, 0.85].clips == 100
    least = read_min_confidence(f"{folder}:0.9")
    assert least.of("Owl", "What?") == pytest.approx(owl.threshold, abs=1e-6)
    assert least.of("Wren") == least.of(ALL_SPECIES) == math.inf
    assert least.check(MADE, ["What?"]) == []
    other = {**MADE, "calibration": {"temperature": 1.0}}
    assert "another calibration (2.0, not 1.0)" in least.check(other, ["What?"])[0]


@pytest.mark.parametrize(
    ("verdicts", "why"),
    [
        (["yes"] * 24 + ["no"], "only 1 wrong of 25 clips"),
        (["no"] * 25, "all 25 clips are wrong: review some that are more sure"),
        (["yes"] * 5 + ["no"] * 20, "surer answers are not more often right"),
        (["no"] * 20 + ["yes"] * 5, "no reviewed answer is as sure as"),
    ],
)
def test_what_cannot_be_told_is_said(verdicts: list[str], why: str, tmp_path: Path) -> None:
    clips = [(segment(n, confidence=0.1 + n / 100), v) for n, v in enumerate(verdicts)]
    if "as sure as" in why:  # some of the unsure ones are right, too
        clips = [(one, "yes" if n in (3, 9) else v) for n, (one, v) in enumerate(clips)]
    made = calibrate_folder(reviewed(tmp_path, clips))
    line = next(one for one in made.thresholds if one.probability == 0.99)
    assert line.threshold is None
    assert line.why.startswith(why)


def test_several_reviewers_decide_by_majority(tmp_path: Path) -> None:
    one, two, three, four = (segment(n) for n in range(4))
    reviewed(tmp_path, [(one, "yes"), (two, "yes"), (three, "unsure"), (four, "")])
    with VerdictStore(tmp_path) as store:
        for clip, reviewer, verdict in (
            (one, "Bob", "no"),
            (one, "Cem", "no"),
            (two, "Bob", "no"),
            (three, "Bob", "yes"),
        ):
            store.add(clip.clip, reviewer, verdict)
        store.add("gone.wav", "Bob", "yes")
    review = read_review(tmp_path)
    assert [(clip.clip, ok) for clip, ok in review.judged] == [
        (one.clip, False),
        (three.clip, True),
    ]
    assert (review.undecided, review.unknown) == (1, 1)
    assert (review.agreement.reviewers, review.agreement.clips) == (3, 2)


def votes(*clips: str) -> list[Verdict]:
    """Verdicts of reviewers a, b, c, … by clip: y, n, u."""
    words = {"y": "yes", "n": "no", "u": "unsure"}
    return [
        Verdict(str(number), reviewer, words[vote], "")
        for number, clip in enumerate(clips)
        for reviewer, vote in zip("abcd", clip, strict=False)
        if vote in words
    ]


def test_agreement_of_two_is_cohens() -> None:
    # 20 both yes, 5 yes and no, 10 no and yes, 15 both no: kappa 0.4 (a common textbook example).
    found = agreement_of(votes(*["yy"] * 20, *["yn"] * 5, *["ny"] * 10, *["nn"] * 15, "yu"))
    assert (found.clips, found.share) == (50, pytest.approx(0.7))
    assert found.kappa == pytest.approx(0.4)


def test_agreement_of_more_is_fleisss() -> None:
    found = agreement_of(votes("yyy", "yyn", "nnn", "ynn"))
    # P = (1 + 1/3 + 1 + 1/3) / 4, half of all votes are yes.
    assert found.kappa == pytest.approx((2 / 3 - 0.5) / 0.5)
    assert agreement_of(votes("yy", "yy")).kappa is None
    assert agreement_of(votes("y")).clips == 0


def test_the_command_shows_and_writes(tmp_path: Path) -> None:
    clips, _ = clips_by_curve(60)
    clips.append((replace(segment(99, "=Wren"), clip="Wren/1.wav"), "yes"))
    folder = reviewed(tmp_path, clips)
    done = naturelm("calibrate", folder)
    assert done.exit_code == 0, done.output
    assert "=Wren: no threshold for 0.95: too few clips were judged: 1" in done.output
    assert "Judged: 61 of 61 clips; undecided: 0; reviewers: 1." in done.output
    assert (folder / "thresholds.csv").is_file()
    assert (folder / "thresholds.svg").read_text().lstrip().startswith("<?xml")
    refused = naturelm("calibrate", folder, "--query", "What?")
    assert refused.exit_code == 2
    assert "--query is for tables" in refused.output


def test_a_folder_that_nobody_reviewed_says_so(tmp_path: Path) -> None:
    write_segments(tmp_path, [segment(0)])
    with pytest.raises(UsageError, match="naturelm review"):
        calibrate_folder(tmp_path)
    with VerdictStore(tmp_path) as store:
        store.add(segment(0).clip, "Ann", "unsure")
    with pytest.raises(UsageError, match="no clip was judged"):
        calibrate_folder(tmp_path)
