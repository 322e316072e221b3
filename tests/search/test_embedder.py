"""Vectors of windows: the mean over what holds sound, whatever the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from NatureLM.audio import Window, iter_windows
from NatureLM.cli.search import load_embedder
from NatureLM.errors import UsageError
from NatureLM.models import NatureLM
from NatureLM.models.checkpoint.tensors import StoredTensor
from NatureLM.search.build import Embedder


def windows(seconds: float = 23.0, window: float = 10.0) -> list[Window]:
    samples = 0.2 * np.random.default_rng(1).normal(size=round(seconds * 16000))
    return list(
        iter_windows(samples, input_sample_rate=16000, window_seconds=window, hop_seconds=window)
    )


@pytest.mark.parametrize("layer", ["encoder", "projected"])
def test_the_mean_over_what_holds_sound(nano: NatureLM, layer: str) -> None:
    heard = windows()
    embedder = Embedder(nano, layer, batch=2)
    vectors = embedder.vectors(heard)
    assert vectors.shape == (3, embedder.width)
    assert vectors.dtype == np.float32
    wav_BS = torch.stack([torch.from_numpy(one.samples) for one in heard])
    with torch.inference_mode():
        every_BPE = nano.encode_patches(wav_BS) if layer == "encoder" else nano.encode_audio(wav_BS)
    assert vectors[0] == pytest.approx(every_BPE[0].mean(0).numpy(), abs=1e-5)
    # Three seconds of ten are sound.
    positions = int(np.ceil(0.3 * every_BPE.shape[1]))
    assert vectors[2] == pytest.approx(every_BPE[2, :positions].mean(0).numpy(), abs=1e-5)
    alone = np.concatenate([Embedder(nano, layer, batch=1).vectors([one]) for one in heard])
    assert vectors == pytest.approx(alone, abs=1e-5)
    assert embedder.vectors([]).shape == (0, embedder.width)


@pytest.mark.parametrize("layer", ["encoder", "projected"])
def test_vectors_need_nothing_of_the_language_model(
    nano: NatureLM, nano_folder: Path, monkeypatch: pytest.MonkeyPatch, layer: str
) -> None:
    read: list[str] = []
    plain = StoredTensor.read

    def spy(tensor: StoredTensor, *args: Any) -> torch.Tensor:
        read.append(tensor.name)
        return plain(tensor, *args)

    monkeypatch.setattr(StoredTensor, "read", spy)
    embedder = load_embedder(str(nano_folder / "checkpoint"), layer, "cpu", "auto")
    assert read
    assert not [name for name in read if name.startswith(("llama_", "model.", "lm_head"))]
    assert embedder.fingerprint == Embedder(nano, layer).fingerprint
    assert np.array_equal(embedder.vectors(windows()), Embedder(nano, layer).vectors(windows()))


def test_times_of_slowed_sound_are_those_of_the_recording(nano: NatureLM) -> None:
    """Three seconds of sound as it is heard are 0.3 s of a recording that is slowed ten times."""
    (window,) = windows(3.0)
    slow = Window(0, 0.0, 0.3, window.samples)
    embedder = Embedder(nano)
    assert np.array_equal(embedder.vectors([slow], 10.0), embedder.vectors([window]))


def test_less_memory_halves_the_batch(
    nano: NatureLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard = windows(30.0)
    wanted = Embedder(nano).vectors(heard)
    embedder = Embedder(nano, batch=3)
    encode = nano.encode_patches

    def small(wav_BS: torch.Tensor) -> torch.Tensor:
        if wav_BS.shape[0] > 1:
            raise torch.OutOfMemoryError("no memory")
        return encode(wav_BS)

    monkeypatch.setattr(nano, "encode_patches", small)
    assert embedder.vectors(heard) == pytest.approx(wanted, abs=1e-5)
    assert len(caplog.records) == 1
    assert embedder.batch == 1


def test_the_fingerprint_names_what_hears(nano: NatureLM) -> None:
    before = {layer: Embedder(nano, layer).fingerprint for layer in ("encoder", "projected")}
    assert len(set(before.values())) == 2
    changes = {
        "beats.encoder.layers.0.fc1.bias": {"encoder", "projected"},
        "audio_llama_proj.bias": {"projected"},
        "llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight": set(),
    }
    parameters = dict(nano.named_parameters())
    for name, changed in changes.items():
        parameter = parameters[name]
        old = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-3
        now = {layer: Embedder(nano, layer).fingerprint for layer in before}
        with torch.no_grad():
            parameter.copy_(old)
        assert {layer for layer in before if now[layer] != before[layer]} == changed
    assert Embedder(nano).fingerprint == before["encoder"]


def test_wrong_use(nano: NatureLM) -> None:
    with pytest.raises(UsageError, match="'middle', and it must be one of encoder, projected"):
        Embedder(nano, "middle")
    with pytest.raises(UsageError, match="batch size is 0"):
        Embedder(nano, batch=0)
