"""Answers from a list of labels, how sure they are, and calibration; claims of another program."""

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
from torch import Tensor

from NatureLM.audio.windows import read_noted_clip
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.generation.engine import Answer, Request
from NatureLM.inference.calibration import (
    Calibration,
    beside_model,
    find_calibration,
    fit_temperature,
    read_calibration,
    write_calibration,
)
from NatureLM.inference.pipeline import Pipeline, _result
from NatureLM.inference.windows import AskOptions, RecordingError, WindowResult, agrees, with_label
from NatureLM.results.detections import Detection
from NatureLM.results.rows import RunSettings, WindowRow, read_rows
from NatureLM.results.store import WindowStore
from NatureLM.results.thresholds import read_min_confidence

LABELS = ["Wolf", "Wood Frog", "Owl"]
QUERY = "What is it?"


@pytest.fixture(scope="module")
def pipeline(nano: Any) -> Pipeline:
    return Pipeline(nano, calibration=None)


def ask(pipeline: Pipeline, clips: list[Tensor], **options: Any) -> list[WindowResult]:
    found = pipeline.windows([clip.numpy() for clip in clips], QUERY, **options)
    return [one for one in found if not isinstance(one, RecordingError)]


def test_scored_answers_are_those_of_score_labels(
    pipeline: Pipeline, nano_waveforms: dict[str, Tensor]
) -> None:
    clips = [nano_waveforms["howl"], nano_waveforms["trill"]]
    found = ask(pipeline, clips, mode="score", labels=LABELS, top_k=2)
    prompt = pipeline.model.processor.render(QUERY)  # type: ignore[union-attr]
    names = [*LABELS, "None"]
    plain = pipeline.model.score_labels([prompt] * 2, [[clip] for clip in clips], names)
    for result, scores in zip(found, plain, strict=True):
        first, second = scores.ranked(2)
        assert result.text == first[0]
        assert result.confidence == pytest.approx(first[1], abs=1e-5)
        assert result.alternatives == ((second[0], pytest.approx(second[1], abs=1e-5)),)


def test_below_the_minimum_the_answer_is_none(
    pipeline: Pipeline, nano_waveforms: dict[str, Tensor]
) -> None:
    clip = [nano_waveforms["howl"]]
    (sure,) = ask(pipeline, clip, mode="score", labels=LABELS)
    (unsure,) = ask(pipeline, clip, mode="score", labels=LABELS, min_confidence=1.0)
    assert unsure.text == "None"
    assert unsure.confidence == pytest.approx(sure.confidence)
    assert unsure.alternatives[0] == (sure.text, pytest.approx(sure.confidence))
    (bound,) = ask(pipeline, clip, mode="constrained", labels=LABELS, min_confidence=1.0)
    assert bound.text == "None"


def test_none_is_no_other_answer_of_none() -> None:
    """Also where it is less sure than is asked for."""
    asked = AskOptions((QUERY,), mode="score", labels=tuple(LABELS), min_confidence=0.5)
    blank = WindowResult("a.wav", 0.0, 10.0, QUERY, "", 1.0, prompt=QUERY, window_index=0)
    made = blank.chosen([("None", 0.4), ("Owl", 0.3)], asked)
    assert (made.text, made.confidence, made.alternatives) == ("None", 0.4, (("Owl", 0.3),))


def test_each_species_has_a_least_confidence_of_its_own(
    pipeline: Pipeline, nano_waveforms: dict[str, Tensor], tmp_path: Path
) -> None:
    clip = [nano_waveforms["howl"]]
    (sure,) = ask(pipeline, clip, mode="score", labels=LABELS)
    path = tmp_path / "thresholds.csv"
    for threshold, text in ((0.0, sure.text), (1.0, "None")):
        path.write_text(f"species,threshold\n{sure.text},{threshold}\n")
        least = read_min_confidence(path)
        (one,) = ask(pipeline, clip, mode="score", labels=LABELS, min_confidence=least)
        assert one.text == text
    path.write_text("species,threshold,weights\nOwl,0.5,another\n")
    least = read_min_confidence(path)
    pipeline.model.fingerprint = "this"
    try:
        with pytest.raises(UsageError, match="other weights"):
            ask(pipeline, clip, mode="score", labels=LABELS, min_confidence=least)
    finally:
        pipeline.model.fingerprint = None


def test_constrained_and_free_answers_say_how_likely_they_are(
    pipeline: Pipeline, nano_waveforms: dict[str, Tensor]
) -> None:
    clip = nano_waveforms["trill"]
    prompt = pipeline.model.processor.render(QUERY)  # type: ignore[union-attr]
    (bound,) = ask(pipeline, [clip], mode="constrained", labels=LABELS, num_beams=1)
    (scores,) = pipeline.model.score_labels([prompt], [[clip]], [*LABELS, "None"])
    likely = scores.log_likelihoods[scores.labels.index(bound.text)]
    assert bound.confidence is not None
    # Scoring takes every token that ends an answer together, decoding the likeliest of them.
    ends = len(pipeline.model.eos_ids)
    assert likely - math.log(ends) - 1e-3 <= math.log(bound.confidence) <= likely + 1e-3
    (free,) = ask(pipeline, [clip], max_new_tokens=4, num_beams=1)
    assert free.confidence is not None
    assert 0 < free.confidence < 1
    assert free.alternatives == ()


def test_a_calibration_changes_how_sure_and_not_what(
    nano: Any, pipeline: Pipeline, nano_waveforms: dict[str, Tensor]
) -> None:
    clips = list(nano_waveforms.values())
    known = Calibration(50.0, "sum", 1.0, nano.fingerprint, QUERY, 4, 9, 9)
    calibrated = Pipeline(nano, calibration=known)
    for raw, flat in zip(
        ask(pipeline, clips, mode="score", labels=LABELS),
        ask(calibrated, clips, mode="score", labels=LABELS),
        strict=True,
    ):
        assert flat.text == raw.text
        assert flat.confidence is not None
        assert flat.confidence == pytest.approx(0.25, abs=0.1)
    said: list[str] = []
    other = Pipeline(nano, calibration=replace(known, weights="other"))
    ask(other, clips[:1], mode="score", labels=LABELS, warn=said.append)
    assert any("other weights" in text for text in said)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mode": "guess"}, "mode is 'guess', and it must be one of generate, constrained, score"),
        ({"mode": "score"}, "mode 'score' needs labels"),
        ({"labels": LABELS}, "mode is 'generate'"),
        ({"mode": "score", "labels": "Owl"}, "labels must be a list of strings"),
        ({"mode": "score", "labels": LABELS, "several": True}, "several is for mode constrained"),
        ({"mode": "score", "labels": LABELS, "top_k": 0}, "top_k is 0"),
        ({"mode": "score", "labels": LABELS, "min_confidence": 2.0}, "min_confidence is 2"),
        ({"min_confidence": 0.5}, "min_confidence is for mode score and mode constrained"),
        ({"mode": "score", "labels": ["Owl", "Owl"]}, "'Owl' is in the list twice"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    pipeline: Pipeline,
    nano_waveforms: dict[str, Tensor],
    options: dict[str, Any],
    says: str,
) -> None:
    with pytest.raises(UsageError, match=says):
        ask(pipeline, [nano_waveforms["howl"]], **options)


@pytest.mark.shared
def test_field_recordings_get_plausible_confidences(shared_dir: Path) -> None:
    field = shared_dir / "data" / "field"
    labels = ["Barn Owl", "American Toad", "Dog", "Common Cuckoo"]
    files = [field / "great_plains_toad.wav", field / "nri-StreamMUWO.mp3"]
    found = Pipeline("naturelm-tiny").windows(files, "What is it?", mode="score", labels=labels)
    results = [one for one in found if isinstance(one, WindowResult)]
    assert results
    for one in results:
        assert one.text in (*labels, "None")
        assert one.confidence is not None
        shares = [one.confidence, *(share for _, share in one.alternatives)]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) <= 1 + 1e-6


# Calibration


FITTED = Calibration(1.5, "sum", 1.0, "abc", "What is it?", 4, 20, 18)


def test_the_temperature_of_a_sharpened_model_is_found() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(4000, 5)) * 2
    shares = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    right = [int(rng.choice(5, p=row)) for row in shares]
    found = fit_temperature((true * 3).tolist(), right)  # three times too sure
    assert found == pytest.approx(3, rel=0.06)


def nll(rows: list[list[float]], right: list[int], temperature: float) -> float:
    """Mean of -log probability of the right labels."""
    shares = [np.asarray(row) / temperature for row in rows]
    return float(
        np.mean(
            [np.logaddexp.reduce(share) - share[n] for share, n in zip(shares, right, strict=True)]
        )
    )


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
    write_calibration(FITTED, path)
    assert read_calibration(path) == FITTED
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"temperature": 0}, "temperature is 0, and it must be a number above 0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"normalize": "max"}, "normalize is 'max'"),
        ({"merging_alpha": None}, "merging_alpha is None, and it must be a number"),
        ({"schema_version": 7}, "no calibration of schema version 1"),
        ({"labels": ...}, "lacks labels"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = tmp_path / "calibration.json"
    write_calibration(FITTED, path)
    data = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))
    with pytest.raises(NatureLMError, match=says):
        read_calibration(path)
    for content, reason in (("{", "is no JSON"), ("[]", "no calibration")):
        path.write_text(content)
        with pytest.raises(NatureLMError, match=reason):
            read_calibration(path)
    with pytest.raises(NatureLMError, match="cannot be read"):
        read_calibration(tmp_path / "absent.json")


def test_it_is_found_beside_the_model_and_fits_its_weights_and_alpha(tmp_path: Path) -> None:
    assert find_calibration(tmp_path, "auto") is None
    path = beside_model(tmp_path)
    assert path == tmp_path / "calibration.json"
    write_calibration(FITTED, path)
    assert find_calibration(tmp_path, "auto") == FITTED
    assert find_calibration(tmp_path, None) is None
    assert find_calibration("", path) == FITTED
    assert find_calibration("", FITTED) == FITTED
    assert FITTED.mismatch("abc", 1.0) is None
    why = "the calibration was made at α = 1, so confidences at α = 0.4 are not calibrated"
    assert FITTED.mismatch("abc", 0.4) == why
    assert "made for other weights" in str(FITTED.mismatch("other", 1.0))
    assert beside_model("somebody/a-model") is None


@pytest.mark.parametrize(("scores", "edge"), [([[4.0, 0.0]], True), ([[2.0, 0.0]] * 3, False)])
def test_samples_that_do_not_tell_are_noticed(scores: list[list[float]], edge: bool) -> None:
    right = [0] * len(scores) if edge else [0, 0, 1]
    found = replace(FITTED, temperature=round(fit_temperature(scores, right), 4))
    assert found.is_at_the_edge is edge


def test_an_answer_without_a_word_stays_one() -> None:
    """It is no `None`, which would say that nothing fits."""
    result = WindowResult(
        audio_path="a", start=0.0, end=1.0, query="q", prompt="q", merging_alpha=1.0, text="",
        window_index=0,
    )  # fmt: skip
    answer = Answer(Request((0, result), "q", ()), "", log_probability=-1.0, tokens=1)
    assert _result(answer, AskOptions(("q",)), None).text == ""


# Detections of another program, which are asked about where they are

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
                    assert store.add(one)
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
