"""Answers from a list of labels: what they are, how sure, and what else was likely."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.inference.calibration import Calibration
from NatureLM.inference.pipeline import Pipeline
from NatureLM.inference.windows import RecordingError, WindowResult

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
