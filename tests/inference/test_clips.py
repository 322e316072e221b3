"""Clips asked as they are: streams, conversations, α side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from NatureLM.audio import AudioError
from NatureLM.errors import UsageError
from NatureLM.inference.pipeline import Pipeline
from NatureLM.inference.windows import WindowResult
from NatureLM.models import NatureLM

QUERY = "What is it?"
SHORT = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def pipeline(nano: NatureLM) -> Pipeline:
    return Pipeline(nano)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Four seconds of a rising tone at 22.05 kHz."""
    t = np.arange(4 * 22050) / 22050
    path = tmp_path / "tone.wav"
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * (500 + 300 * t) * t), 22050)
    return path


def test_a_stream_is_the_answer_of_windows(pipeline: Pipeline, recording: Path) -> None:
    (whole,) = pipeline.windows([recording], QUERY, alpha=0.5, num_beams=1, **SHORT)
    assert isinstance(whole, WindowResult)
    pieces = list(pipeline.stream(recording, QUERY, alpha=0.5, **SHORT))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 1
    samples, rate = soundfile.read(recording, dtype="float32")
    by_array = pipeline.stream([samples], QUERY, alpha=0.5, input_sample_rate=rate, **SHORT)
    assert "".join(by_array) == whole.text


def test_a_conversation_takes_files_of_later_turns(pipeline: Pipeline, recording: Path) -> None:
    conversation = pipeline.conversation([recording], **SHORT)
    "".join(conversation.ask(QUERY))
    "".join(conversation.ask("And this one?", [recording]))
    assert conversation.prompt.count("<AudioHere>") == 2
    assert conversation.alpha == 1.0
    with pytest.raises(AudioError, match=r"nothing\.wav"):
        next(conversation.ask("And this?", [recording.with_name("nothing.wav")]))
    assert len(conversation.turns) == 2


def test_without_clips_nothing_is_said_of_sound(pipeline: Pipeline) -> None:
    conversation = pipeline.conversation(**SHORT)
    "".join(conversation.ask(QUERY))
    assert "<Audio>" not in conversation.prompt


def test_the_beginning_of_a_long_clip_is_heard_and_that_is_said(
    pipeline: Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "long.wav"
    noise = 0.1 * np.random.default_rng(0).normal(size=12 * 16000)
    soundfile.write(path, noise, 16000)
    whole = "".join(pipeline.stream([path], QUERY, **SHORT))
    assert caplog.messages == [f"{path}: lasts 12.0 s, and the first 10 s of it are heard"]
    samples, rate = soundfile.read(path)
    start = pipeline.stream(samples[: 10 * rate], QUERY, **SHORT)
    assert "".join(start) == whole
    assert len(caplog.messages) == 1


def test_alphas_side_by_side(
    nano: NatureLM, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(nano)
    encoded: list[int] = []
    encode = nano.encode_audio

    def spy(wav_BS: Any, *args: Any) -> Any:
        encoded.append(wav_BS.shape[0])
        return encode(wav_BS, *args)

    monkeypatch.setattr(nano, "encode_audio", spy)
    alphas = [1.0, 0.0, 0.5, 1.0]
    query = "Is <AudioHere> like <AudioHere>?"
    answers = pipeline.compare_alphas([recording, recording], query, alphas, **SHORT)
    assert sum(encoded) <= 2
    alone = [
        pipeline.compare_alphas([recording, recording], query, [alpha], **SHORT)[0]
        for alpha in alphas
    ]
    assert answers == alone
    assert len(set(answers)) > 1
    (one,) = pipeline.windows([recording], QUERY, alpha=0.25, **SHORT)
    assert isinstance(one, WindowResult)
    assert pipeline.compare_alphas(recording, QUERY, [0.25], **SHORT) == [one.text]
    assert pipeline.compare_alphas(recording, QUERY, []) == []
    with pytest.raises(UsageError, match="placeholder takes one clip"):
        pipeline.compare_alphas(recording, query, [1.0])
    with pytest.raises(UsageError, match="empty"):
        pipeline.compare_alphas(recording, " ", [1.0])
