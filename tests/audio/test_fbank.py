"""The filter bank against Kaldi's own code and its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.audio import AudioError
from NatureLM.audio.fbank import kaldi_fbank, normalised_fbank
from NatureLM.config.model import FbankConfig

RATE = 16000


def kaldi(samples: np.ndarray, bins: int, rate: int = RATE) -> torch.Tensor:
    """What Kaldi's C++ code gives (kaldi-native-fbank)."""
    import kaldi_native_fbank as knf

    options = knf.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "povey"
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = bins
    options.mel_opts.low_freq = 20.0
    options.mel_opts.high_freq = 0.0
    options.energy_floor = 0.0
    options.use_energy = False
    bank = knf.OnlineFbank(options)
    bank.accept_waveform(rate, (samples * 32768).tolist())
    bank.input_finished()
    return torch.from_numpy(np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)]))


def signal(kind: str, samples: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed)
    t = np.arange(samples) / RATE
    made = {
        "noise": lambda: noise.normal(0, 0.1, samples),
        "quiet": lambda: noise.normal(0, 1e-3, samples),
        "tone": lambda: 0.5 * np.sin(2 * math.pi * 1500 * t),
        "sweep": lambda: 0.5 * np.sin(2 * math.pi * (100 + 3000 * t) * t),
        "clipped": lambda: np.clip(noise.normal(0, 2.0, samples), -1, 1),
        "offset": lambda: 0.4 + noise.normal(0, 0.05, samples),
    }
    return made[kind]().astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["noise", "quiet", "tone", "sweep", "clipped", "offset"]),
    samples=st.integers(400, 6000),
    bins=st.sampled_from([40, 80]),
    seed=st.integers(0, 2**16),
)
def test_equal_to_kaldi(kind: str, samples: int, bins: int, seed: int) -> None:
    wav = signal(kind, samples, seed)
    ours = kaldi_fbank(torch.from_numpy(wav)[None], RATE, FbankConfig(num_mel_bins=bins))[0]
    theirs = kaldi(wav, bins)
    assert ours.shape == theirs.shape
    # Where a band holds next to nothing (beside a pure tone), both are rounding noise.
    heard = theirs > theirs.amax(dim=1, keepdim=True) - 14
    assert (ours - theirs)[heard].abs().max() < 5e-3


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(400, 5000),
    rate=st.sampled_from([8000, 16000, 22050, 32000]),
    length=st.sampled_from([20.0, 25.0, 32.0]),
    shift=st.sampled_from([5.0, 10.0]),
)
def test_frames_are_counted_with_snipped_edges(
    samples: int, rate: int, length: float, shift: float
) -> None:
    config = FbankConfig(num_mel_bins=32, frame_length_ms=length, frame_shift_ms=shift)
    wanted = config.frames(samples, rate)
    wav = torch.zeros(2, samples)
    if wanted == 0:
        with pytest.raises(AudioError, match="one frame of"):
            kaldi_fbank(wav, rate, config)
        return
    assert kaldi_fbank(wav, rate, config).shape == (2, wanted, 32)
    window, hop = config.frame_samples(rate)
    assert (wanted - 1) * hop + window <= samples < wanted * hop + window


def test_ten_seconds_give_998_frames_of_128_bins() -> None:
    assert kaldi_fbank(torch.zeros(1, 160000), RATE, FbankConfig()).shape == (1, 998, 128)


def test_silence_is_the_floor_and_normalised_as_published() -> None:
    floor = math.log(torch.finfo(torch.float32).eps)
    silent = kaldi_fbank(torch.zeros(1, 4000), RATE, FbankConfig())
    assert torch.allclose(silent, torch.full_like(silent, floor))
    normal = normalised_fbank(torch.zeros(1, 4000), RATE, FbankConfig())
    assert normal[0, 0, 0].item() == pytest.approx((floor - 15.41663) / (2 * 6.55582))


@settings(max_examples=20, deadline=None)
@given(offset=st.floats(-0.5, 0.5), seed=st.integers(0, 99))
def test_a_constant_offset_changes_nothing(offset: float, seed: int) -> None:
    wav = torch.from_numpy(signal("noise", 3000, seed))[None].double()
    plain = kaldi_fbank(wav, RATE, FbankConfig())
    assert torch.allclose(plain, kaldi_fbank(wav + offset, RATE, FbankConfig()), atol=1e-5)


def test_a_batch_equals_its_rows() -> None:
    rows = torch.from_numpy(np.stack([signal(k, 4000, 1) for k in ("noise", "sweep", "quiet")]))
    batch = kaldi_fbank(rows, RATE, FbankConfig())
    for row, wav in zip(batch, rows, strict=True):
        assert torch.allclose(row, kaldi_fbank(wav[None], RATE, FbankConfig())[0], atol=1e-5)


def test_a_tone_lies_in_its_band() -> None:
    t = torch.arange(16000) / RATE
    for hertz in (700.0, 1500.0, 5000.0):
        bank = kaldi_fbank(torch.sin(2 * math.pi * hertz * t)[None] * 0.5, RATE, FbankConfig())
        mel = 1127 * math.log(1 + hertz / 700)
        low, high = (1127 * math.log(1 + f / 700) for f in (20.0, 8000.0))
        place = (mel - low) / (high - low) * 129 - 1
        assert abs(bank[0].mean(0).argmax().item() - place) <= 1


def test_other_sample_rates_and_bands() -> None:
    config = FbankConfig(num_mel_bins=64, low_frequency=50.0, high_frequency=14000.0)
    wav = torch.from_numpy(signal("noise", 32000, 3))[None]
    assert kaldi_fbank(wav, 32000, config).shape == (1, 98, 64)


def test_the_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(batch, samples\), got \(4000,\)"):
        kaldi_fbank(torch.zeros(4000), RATE, FbankConfig())
