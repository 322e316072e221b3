"""The encoder stage on a handful of made-up sounds: changes of spectrograms, training, files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from NatureLM.config import load_config
from NatureLM.training.tiny import architecture
from NatureLM.training.tiny.encoder import (
    EncoderSettings,
    load_encoder,
    predict,
    train_encoder,
)
from NatureLM.training.tiny.sounds import Clip
from NatureLM.training.tiny.spectrograms import Changes, Spectrograms, whole_windows

LABELS = ["Cat", "Dog", "Rain"]
NOTHING = Changes(speed=0, gain_db=(0, 0), shift_bins=0, mix=0, noise=0, mask_bins=0, mask_time=0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    made = []
    for number in range(6):
        label = LABELS[number % 3]
        time = np.arange(16000 * (1 + number % 2)) / 16000
        pitch = 400 * (1 + number % 3)
        wav = 0.3 * np.sin(2 * np.pi * pitch * time) + 0.01 * rng.standard_normal(len(time))
        path = folder / f"{number}.flac"
        soundfile.write(path, wav.astype(np.float32), 16000)
        made.append(Clip(path, label, "", "", f"f{number}", "train", "animals"))
    return made


def test_unchanged_batches_are_the_clips_placed_in_silence(clips: list[Clip]) -> None:
    data = Spectrograms(clips, LABELS, balance=0.5)
    fbank, target = data.batch(8, 20, NOTHING, np.random.default_rng(1))
    assert fbank.shape == (8, 20 * 64, 64)
    assert torch.equal(target.sum(dim=1), torch.ones(8))
    assert torch.equal(target.max(dim=1).values, torch.ones(8))
    windows = whole_windows(clips, data.config)
    for row, wanted in zip(fbank, target.argmax(dim=1), strict=True):
        loud = row[row.mean(dim=1) > data.floor + 0.2]
        originals = [
            w[w.mean(dim=1) > data.floor + 0.2]
            for w, clip in zip(windows, clips, strict=True)
            if clip.label == LABELS[int(wanted)]
        ]
        # the last frame is lost to the change of speed
        assert any(
            len(o) - 2 <= len(loud) <= len(o) and torch.equal(loud[:-2], o[: len(loud) - 2])
            for o in originals
        )


def test_mixing_shares_the_target_and_everything_is_seeded(clips: list[Clip]) -> None:
    data = Spectrograms(clips, LABELS, balance=0.0)
    mixed = Changes(mix=1.0)
    one, target = data.batch(16, 8, mixed, np.random.default_rng(2))
    two, _ = data.batch(16, 8, mixed, np.random.default_rng(2))
    assert torch.equal(one, two)
    assert torch.allclose(target.sum(dim=1), torch.ones(16))
    assert (target.max(dim=1).values < 1).any()
    assert float(one.min()) >= data.floor - 1e-5


def test_balance_draws_rare_classes_as_often(clips: list[Clip]) -> None:
    uneven = [*clips, *[clips[0]] * 6]
    data = Spectrograms(uneven, LABELS, balance=1.0)
    shares = np.bincount(data.targets, weights=data.probabilities)
    assert np.allclose(shares, 1 / 3)


def test_cosine_filters_find_the_direction_of_most_variance() -> None:
    rng = np.random.default_rng(0)
    ramp = np.cos(np.pi * (np.arange(8) + 0.5) * 2 / 8)
    patches = rng.standard_normal((50, 1, 1)) * ramp[None, :, None] * np.ones((1, 1, 8))
    patches = patches.astype(np.float32) + 1e-3 * rng.standard_normal((50, 8, 8)).astype(np.float32)
    first = architecture.cosine_filters(patches, 1)[0]
    expected = ramp[:, None] * np.ones((1, 8))
    cosine = np.sum(first * expected) / np.linalg.norm(first) / np.linalg.norm(expected)
    assert abs(cosine) > 0.999


def test_training_learns_and_its_files_load(clips: list[Clip], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    settings = EncoderSettings(
        steps=12, phases=((1.0, 8, 6),), warmup=2, smoothing=0.0, changes=NOTHING, average=0.5
    )
    rows: list[dict[str, object]] = []
    train_encoder(clips, clips, LABELS, settings, tmp_path, rows.append)
    assert rows[-1]["step"] == 12
    assert float(str(rows[-1]["valid"])) > 0.6
    loaded = load_encoder(tmp_path, LABELS)
    logits = predict(loaded, whole_windows(clips, architecture.fbank_config()))
    hits = logits.argmax(dim=1) == torch.tensor([LABELS.index(clip.label) for clip in clips])
    assert round(float(hits.float().mean()), 4) == rows[-1]["valid"]
    assert (tmp_path / "beats.safetensors").is_file()


def test_configuration_file_says_the_same_sizes() -> None:
    model = load_config(Path("configs/tiny/audio.yml")).model
    beats = model.beats_cfg.model_dump()
    assert {key: beats[key] for key in architecture.BEATS} == architecture.BEATS
    fbank = model.fbank_cfg.model_dump()
    assert {key: fbank[key] for key in architecture.FBANK} == architecture.FBANK
    for key, value in architecture.NATURELM.items():
        held = getattr(model, key)
        held = held.model_dump() if hasattr(held, "model_dump") else held
        if isinstance(value, dict):
            assert {name: held[name] for name in value} == value
        else:
            assert held == value
