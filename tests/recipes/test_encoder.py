"""The encoder stage on a handful of made-up sounds: changes of spectrograms, training, files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from commands import rows

from NatureLM.config import Config, load_config
from NatureLM.models import NatureLM, NatureLMConfig
from NatureLM.models.checkpoint.load import build_on_meta
from NatureLM.models.checkpoint.tensors import tensor_refs
from NatureLM.training.build import QFORMER, part_tensors
from NatureLM.training.optim import is_hidden_matrix, trainable
from recipes.tiny import architecture
from recipes.tiny.data import Clip
from recipes.tiny.encoder import (
    ENCODER,
    AudioClassifier,
    EncoderSettings,
    Schedule,
    SlowNorm,
    SoundNet,
    Sounds,
    SpectrogramBatches,
    Teachers,
    TeacherSettings,
    load_classifier,
    load_teachers,
    train_encoder,
    train_teacher,
)
from recipes.tiny.spectrograms import Augmentation, Spectrograms, frequency_response, spectrogram

LABELS = ["Cat", "Dog", "Rain"]
NOTHING = Augmentation(
    speed=0, gain_db=(0, 0), shift_bins=0, mix=0, noise=0, mask_bins=0, mask_time=0
)


def whole_windows(clips: list[Clip], data: Spectrograms) -> torch.Tensor:
    """The clips as the model encodes them: windows padded with silence, (N, T, M)."""
    windows = np.full((len(clips), 4000, 64), data.floor, np.float32)
    for row, clip in zip(windows, clips, strict=True):
        fbank = spectrogram(clip.path, data.config)
        row[: len(fbank)] = fbank
    return torch.from_numpy(windows)


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
    windows = whole_windows(clips, data)
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
    mixed = Augmentation(mix=1.0)
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


@pytest.fixture(scope="module")
def sounds(clips: list[Clip]) -> Sounds:
    return Sounds(Spectrograms(clips, LABELS, 0.0), clips, LABELS)


@torch.no_grad()
def answers(model: torch.nn.Module, sounds: Sounds) -> list[str]:
    logits = model.eval()(whole_windows(list(sounds.valid), sounds.training))
    return [LABELS[place] for place in logits.argmax(dim=1).tolist()]


class InFloat32(EncoderSettings):
    """Processors that lack bfloat16 take several times as long for it."""

    def config(self, folder: Path, seed: int) -> Config:
        made = super().config(folder, seed)
        return made.model_copy(update={"run": made.run.model_copy(update={"amp": False})})


LEARNS = InFloat32(
    Schedule(16, ((1.0, 12, 6),), warmup=2, average=0.5), smoothing=0.0, changes=NOTHING
)


@contextmanager
def few_layers() -> Iterator[None]:
    """Two layers of the encoder, which share their distances, and one of the Q-Former."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setitem(architecture.BEATS, "encoder_layers", 2)
        changed.setitem(architecture.NATURELM["qformer_cfg"], "num_hidden_layers", 1)
        yield


@pytest.fixture
def small() -> Iterator[None]:
    with few_layers():
        yield


@pytest.fixture(scope="module")
def trained(sounds: Sounds, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an encoder of few layers that learned from labels alone."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    with few_layers():
        train_encoder(sounds, None, LEARNS, folder)
    return folder


@pytest.mark.usefixtures("small")
def test_training_learns_and_its_files_load(sounds: Sounds, trained: Path) -> None:
    assert {path.name for path in trained.rglob("*.*")} == {ENCODER, "log.jsonl"}
    train, valid = rows(trained / "listener" / "log.jsonl")
    assert (train["kind"], train["step"]) == ("train", 16)
    assert (valid["kind"], valid["step"]) == ("valid", 16)
    assert train["learning_rate"] == pytest.approx(0.02 * LEARNS.learning_rate)
    assert valid["accuracy"] > 0.6
    model = load_classifier(trained, LABELS)
    right = [a == c.label for a, c in zip(answers(model, sounds), sounds.valid, strict=True)]
    assert sum(right) / len(right) == pytest.approx(valid["accuracy"], abs=1e-3)


def test_windows_grow_and_batches_shrink_from_phase_to_phase(sounds: Sounds) -> None:
    settings = EncoderSettings(Schedule(4, ((0.5, 8, 3), (0.5, 12, 2))), changes=NOTHING)
    batches = SpectrogramBatches(sounds.training, settings, settings.smoothed, 1)
    made = [step for ((step,),) in batches.steps(0, 4)]
    assert [tuple(batch["fbank"].shape) for batch in made] == (
        [(3, 8 * 64, 64)] * 2 + [(2, 12 * 64, 64)] * 2
    )
    assert torch.equal(next(batches.steps(3, 4))[0][0]["fbank"], made[3]["fbank"])
    assert torch.allclose(made[0]["target"].max(dim=1).values, torch.tensor(0.95 + 0.05 / 3))


def test_muon_trains_hidden_matrices_alone(sounds: Sounds) -> None:
    patches = np.random.default_rng(0).standard_normal((4, 64, 64)).astype(np.float32)
    model = AudioClassifier(architecture.new_encoder(patches, 0), 3)
    muon = {name for name, value in trainable(model) if is_hidden_matrix(name, value)}
    assert "head.value.weight" in muon
    assert not {"head.weight_predictor.weight", "head.class_predictor.weight"} & muon


TEACHERS = TeacherSettings(
    count=2, width=4, schedule=Schedule(4, ((1.0, 8, 6),), warmup=2, average=0.5), changes=NOTHING
)


def test_teachers_are_kept_and_only_missing_ones_are_trained(
    clips: list[Clip], sounds: Sounds, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    watched = replace(sounds, valid=clips[:1])

    def train() -> None:
        for number in range(TEACHERS.count):
            train_teacher(watched, TEACHERS, tmp_path, 1, number)

    train()
    one, two = load_teachers(tmp_path, len(LABELS), TEACHERS).networks
    windows = whole_windows(clips[:1], sounds.training)
    assert not torch.allclose(one(windows), two(windows)), "seeds differ"
    (tmp_path / "teacher_1.safetensors").unlink()
    (tmp_path / "teacher_0" / "log.jsonl").unlink()
    train()
    assert not (tmp_path / "teacher_0" / "log.jsonl").exists()
    again = load_teachers(tmp_path, len(LABELS), TEACHERS).networks[1]
    assert torch.equal(again(windows), two(windows)), "the seed decides everything"


def test_teachers_take_turns_and_give_probabilities() -> None:
    torch.manual_seed(0)
    teachers = Teachers([SoundNet(3, 4), SoundNet(3, 4)])
    windows = torch.randn(2, 512, 64)
    first, second = (teachers.probabilities(windows, turn) for turn in (0, 1))
    assert torch.allclose(first.sum(-1), torch.ones(2))
    assert torch.equal(teachers.probabilities(windows, 2), first)
    assert not torch.allclose(first, second)


def test_colour_changes_bands_smoothly_and_leaves_the_mean_level() -> None:
    curve = frequency_response(64, 8.0, np.random.default_rng(1))
    assert curve.shape == (64,)
    assert 1 < np.ptp(curve) <= 16
    assert abs(curve.mean()) < 1e-5
    assert np.abs(np.diff(curve)).max() <= 16 / (64 / 4) + 1e-5


def test_statistics_are_means_at_first_and_then_move_slowly() -> None:
    norm = SlowNorm(2)
    batches = torch.randn(3, 8, 2, 4, 4) + 5
    for batch in batches:
        norm(batch)
    assert norm.running_mean is not None
    assert torch.allclose(norm.running_mean, batches.mean((0, 1, 3, 4)), atol=1e-4)
    norm.num_batches_tracked.fill_(10_000)  # type: ignore[union-attr]
    norm(batches[0] + 100)
    assert torch.allclose(norm.running_mean, torch.tensor(5.5), atol=0.1)


class Knowing:
    """A teacher that calls everything the last class."""

    def probabilities(self, fbank: torch.Tensor, turn: int) -> torch.Tensor:
        return torch.tensor([0.0, 0.0, 1.0]).expand(len(fbank), 3)


@pytest.mark.usefixtures("small")
def test_the_encoder_learns_from_its_teachers(
    clips: list[Clip], sounds: Sounds, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    settings = InFloat32(
        Schedule(18, ((1.0, 12, 6),), warmup=2, average=0.5), changes=NOTHING, taught=1.0
    )
    teacher: Any = Knowing()
    watched = replace(sounds, valid=clips[:3])
    train_encoder(watched, teacher, settings, tmp_path)
    assert answers(load_classifier(tmp_path, LABELS), watched) == [LABELS[2]] * 3


@pytest.mark.usefixtures("small")
def test_encoder_and_qformer_are_named_as_in_the_model(trained: Path) -> None:
    given = part_tensors(str(trained / ENCODER), "beats.")
    given |= part_tensors(str(trained / ENCODER), *QFORMER)
    config = NatureLMConfig(**architecture.NATURELM, text_config={"model_type": "llama"})
    model = build_on_meta(NatureLM, config, None)
    wanted = [
        ref
        for ref in tensor_refs(model)
        if ref.stored_name.startswith(("beats.", *QFORMER)) and not ref.is_buffer
    ]
    assert wanted
    for ref in wanted:
        held = [given[name] for name in ref.names if name in given]
        assert held, ref.names
        assert tuple(held[0].shape) == ref.shape


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
