"""Clips are heard in the window of their component, and cut ones are counted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiment_runs import rows_of, run
from numpy.typing import NDArray
from torch import Tensor

from NatureLM.data.clip import Clip, read_window
from NatureLM.data.sample import Sample
from NatureLM.experiments.plan import Plan, Renderer
from NatureLM.experiments.run import ClipLoader
from NatureLM.generation.audio_cache import AudioEncoder, EmbeddingCache
from NatureLM.models import NatureLM

RATE = 16000


@dataclass(frozen=True)
class Noise:
    """A recording of so many seconds, other noise for each length."""

    seconds: float

    def read(
        self, *, start: float, duration: float | None, sample_rate: int
    ) -> NDArray[np.float32]:
        wav = np.random.default_rng(round(self.seconds * 1000)).uniform(
            -0.5, 0.5, round(self.seconds * RATE)
        )
        first = round(start * RATE)
        end = None if duration is None else first + round(duration * RATE)
        return wav[first:end].astype(np.float32)


CLIPS = {
    "model's": Clip("model's", Noise(4.0)),
    "three": Clip("three", Noise(2.0), window=3.0),
    "three, cut": Clip("three, cut", Noise(8.0), window=3.0),
    "five": Clip("five", Noise(5.0), window=5.0),
    "longer than the model's": Clip("longer than the model's", Noise(12.0), window=20.0),
    "part": Clip("part", Noise(30.0), start=4.0, end=7.0, window=3.0),
}
SECONDS = {"model's": 10, "three": 3, "three, cut": 3, "five": 5, "part": 3}
CUT = {"three, cut", "longer than the model's"}


@pytest.fixture(scope="module")
def model(nano_folder: Path) -> NatureLM:
    return NatureLM.from_pretrained(nano_folder / "checkpoint", dtype=torch.float64)


@pytest.mark.parametrize("name", CLIPS)
def test_what_is_heard_of_a_clip(name: str) -> None:
    heard = read_window(CLIPS[name], RATE, 10.0)
    assert heard.seconds == SECONDS.get(name, 10)
    assert len(heard.samples) <= heard.seconds * RATE
    assert heard.is_cut == (name in CUT)


def test_embeddings_are_those_of_exactly_that_length(model: NatureLM) -> None:
    """Whatever is encoded beside it, in batches of any size."""
    assert model.processor is not None
    for batch in (1, 2, 16):
        load = ClipLoader(model, CLIPS.values())
        with AudioEncoder(
            load,
            model.processor.prepare_audio,
            model.encode_audio,
            kept=EmbeddingCache(),
            batch=batch,
        ) as audio:
            clips: dict[str, Any] = audio.get(CLIPS)
        found = {name: clip.audio_QD for name, clip in clips.items()}
        assert load.cut == len(CUT)
        for name, clip in CLIPS.items():
            seconds = SECONDS.get(name, 10)
            alone = _embeddings(model, clip, seconds)
            torch.testing.assert_close(found[name], alone, msg=name)
    assert len({one.shape[0] for one in found.values()}) == 3
    assert found["three"].shape[0] < found["five"].shape[0] < found["model's"].shape[0]


def _embeddings(model: NatureLM, clip: Clip, seconds: int) -> Tensor:
    wav = np.zeros(seconds * RATE, dtype=np.float32)
    sound = clip.source.read(start=clip.start, duration=clip.duration, sample_rate=RATE)
    wav[: len(sound)] = sound[: len(wav)]
    with torch.inference_mode():
        return model.encode_audio(torch.as_tensor(wav)[None])[0]


def test_a_run_hears_each_component_as_it_should(model: NatureLM, tmp_path: Path) -> None:
    """Answers of mixed windows are those of the embeddings of each length, and cuts are said."""
    samples = [
        Sample(name, "made-up", "Wolf", clip, name, task="classification")
        for name, clip in CLIPS.items()
    ]
    plan = Plan(samples, ["What is it?"], [1.0], Renderer("Q: {} A:"))
    done = run(model, plan, tmp_path)
    assert (done.cut, done.progress.errors) == (2, 0)
    assert "2 clips are longer than the window" in str(done)
    rows = {row["id"]: row["prediction"] for row in rows_of(tmp_path)}
    for cell in plan.trials():
        audio = _embeddings(model, CLIPS[cell.sample_id], SECONDS.get(cell.sample_id, 10))
        (text,) = model.generate([cell.prompt], [[audio]], max_new_tokens=4, num_beams=2)
        assert rows[cell.sample_id] == text
