"""Windows of whole recordings: what they hold, whatever the format, the rate and the blocks."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_sound import audio_error
from numpy.typing import NDArray

from NatureLM.audio.windows import Resampler, Window, iter_windows, to_fraction
from NatureLM.errors import UsageError

RATE = 16_000
rates = st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])


def quiet(_: str) -> None:
    """Noise is rich in high frequencies; the warning has its own tests."""


def windows(source: Any, **options: Any) -> list[Window]:
    return list(iter_windows(source, **{"warn": quiet, **options}))


def make_noise(frames: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, frames).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    rate=rates,
    seconds=st.integers(25, 4_000).map(lambda ms: ms / 1000),
    window=st.integers(25, 3_000).map(lambda ms: ms / 1000),
    hop=st.integers(20, 3_000).map(lambda ms: ms / 1000),
    block=st.integers(100, 70_000),
    model_rate=st.sampled_from([16_000, 22_050, 32_000]),
)
def test_windows_are_slices_of_the_whole(
    rate: int, seconds: float, window: float, hop: float, block: int, model_rate: int
) -> None:
    frames = max(int(seconds * rate), -(-rate // 40))
    samples = make_noise(frames)
    duration = Fraction(frames, rate)
    found = windows(
        samples,
        input_sample_rate=rate,
        sample_rate=model_rate,
        window_seconds=window,
        hop_seconds=hop,
        block_frames=block,
    )
    # Coverage, exact starts, true ends.
    size = round(to_fraction(window) * model_rate)
    assert [w.index for w in found] == list(range(len(found)))
    assert [w.start for w in found] == [float(to_fraction(hop) * k) for k in range(len(found))]
    assert [w.end for w in found] == [
        float(min(to_fraction(hop) * k + to_fraction(window), duration)) for k in range(len(found))
    ]
    next_new = found[-1].start + hop if hop > window else found[-1].end
    assert float(duration) - next_new < 0.5
    # Content: the same samples as a one-shot resample gives, zeros after the end.
    whole = samples if rate == model_rate else soxr.resample(samples, rate, model_rate, "HQ")
    padded = np.concatenate([np.clip(whole, -1, 1), np.zeros(size, np.float32)])
    for w in found:
        first = round(to_fraction(hop) * w.index * model_rate)
        assert w.samples.dtype == np.float32
        assert w.samples.shape == (size,)
        np.testing.assert_array_equal(w.samples, padded[first : first + size])


@settings(max_examples=40, deadline=None)
@given(
    rate=st.sampled_from([8_000, 22_050, 44_100, 192_000, 500_000, 43_636.3636]),
    frames=st.integers(1, 40_000),
    cuts=st.lists(st.integers(0, 40_000), max_size=6),
)
def test_streamed_resampling_equals_one_shot(rate: float, frames: int, cuts: list[int]) -> None:
    samples = make_noise(frames)
    resampler = Resampler(rate, RATE)
    parts = [resampler.push(p) for p in np.split(samples, sorted(min(c, frames) for c in cuts))]
    streamed = np.concatenate([*parts, resampler.finish()])
    np.testing.assert_array_equal(streamed, soxr.resample(samples, rate, RATE, "HQ"))
    assert abs(len(streamed) - frames * RATE / rate) <= 0.5


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.wav", {"subtype": "PCM_16"}, 1e-4),
        ("a.WAV", {"subtype": "PCM_24"}, 1e-6),
        ("a.wav", {"subtype": "FLOAT"}, 0),
        ("a.wav", {"subtype": "PCM_U8"}, 1e-2),
        ("a.FLAC", {}, 1e-4),
        ("a.aiff", {}, 1e-4),
        ("a.w64", {}, 1e-4),
        ("a.rf64", {}, 1e-4),
        ("a.caf", {}, 1e-4),
        ("a.au", {}, 1e-4),
        ("a.OGG", {}, None),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}, None),
        ("a.mp3", {}, None),
    ],
)
def test_formats(save: Any, name: str, options: dict[str, Any], tolerance: float | None) -> None:
    rate = 48_000
    t = np.arange(3 * rate) / rate
    tone = (0.3 * np.sin(2 * np.pi * 1000 * t)).astype(np.float32)
    (window,) = windows(save(name, tone, rate, **options))
    assert (window.start, window.end) == (0.0, 3.0)
    expected = soxr.resample(tone, rate, RATE, "HQ")
    if tolerance is None:  # lossy: the same tone at the same place
        middle = slice(RATE // 2, -RATE // 2)
        heard = window.samples[: len(expected)][middle]
        assert np.corrcoef(heard, expected[middle])[0, 1] > 0.99
    else:
        error = np.abs(window.samples[: len(expected)] - expected).max()
        assert error <= tolerance
    assert not window.samples[len(expected) :].any()


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3", "a.wav"])
def test_blocks_change_nothing(save: Any, noise: Any, name: str) -> None:
    path = save(name, noise(70_000, 2), 22_050)
    options = {"window_seconds": 1.0, "hop_seconds": 0.7}
    expected = windows(path, **options)
    for block in (333, 4096, 1 << 20):
        for one, other in zip(expected, windows(path, block_frames=block, **options), strict=True):
            np.testing.assert_allclose(one.samples, other.samples, atol=1e-6)
            assert (one.start, one.end) == (other.start, other.end)


def test_channels(save: Any, noise: Any) -> None:
    samples = noise(16_000, 3)
    path = save("three.wav", samples, RATE, subtype="FLOAT")

    def heard(channel: str | int) -> NDArray[np.float32]:
        return windows(path, window_seconds=1, channel=channel)[0].samples

    np.testing.assert_allclose(heard("mean"), samples.mean(axis=1), atol=1e-6)
    for number in (1, 2, 3):
        np.testing.assert_array_equal(heard(number), samples[:, number - 1])
        np.testing.assert_array_equal(heard(str(number)), samples[:, number - 1])
    with audio_error("ChannelError", r"three\.wav.*channel 4.*has channels 1 to 3"):
        heard(4)


@pytest.mark.parametrize("channel", ["left", 0, "0", -1, "1.5", ""])
def test_channels_that_are_none(channel: str | int) -> None:
    with pytest.raises(UsageError, match="give mean, or the number of a channel"):
        iter_windows("any.wav", channel=channel)


def test_time_expansion_slows_and_keeps_true_times(save: Any) -> None:
    rate, factor = 250_000, 10
    t = np.arange(int(2.3 * rate)) / rate
    bat = (0.5 * np.sin(2 * np.pi * 40_000 * t)).astype(np.float32)
    found = windows(save("bat.wav", bat, rate), time_expansion=factor)
    assert [(w.start, w.end) for w in found] == [(0.0, 1.0), (1.0, 2.0), (2.0, 2.3)]
    spectrum = np.abs(np.fft.rfft(found[0].samples))
    assert spectrum.argmax() / 10 == pytest.approx(4_000, abs=1)  # 40 kHz heard as 4 kHz
    odd = windows(save("b.wav", bat, rate), time_expansion=1.1, window_seconds=1, hop_seconds=1)
    assert odd[1].start == pytest.approx(1 / 1.1)
    assert odd[-1].end == 2.3


def test_short_recordings_that_are_long_when_slowed(save: Any, noise: Any) -> None:
    path = save("click.wav", noise(2_500), 250_000)  # 10 ms
    (window,) = windows(path, time_expansion=10)
    assert window.end == 0.01


@pytest.mark.parametrize("expansion", [100.0, 0.001])
def test_time_expansion_beyond_reason(save: Any, noise: Any, expansion: float) -> None:
    path = save("a.wav", noise(48_000), 48_000)
    with audio_error("SampleRateError", r"a\.wav.*48000 Hz with time expansion"):
        windows(path, time_expansion=expansion)


def test_samples_are_clamped(save: Any) -> None:
    loud = np.where(np.arange(RATE) % 64 < 32, 3.0, -3.0).astype(np.float32)
    (window,) = windows(save("loud.wav", loud, RATE, subtype="FLOAT"), window_seconds=1)
    np.testing.assert_array_equal(window.samples, np.clip(loud, -1, 1))
    (other,) = windows(save("loud48.wav", loud, 48_000, subtype="FLOAT"), window_seconds=1)
    assert np.abs(other.samples).max() == 1.0


@pytest.mark.parametrize("rate", [7_999, 500_001])
def test_sample_rates_that_are_not_supported(save: Any, noise: Any, rate: int) -> None:
    path = save("a.wav", noise(50_000), rate)
    with audio_error("SampleRateError", rf"a\.wav.*{rate} Hz, supported are 8000 to 500000"):
        windows(path)


@pytest.mark.parametrize("rate", [8_000, 500_000])
def test_sample_rates_at_the_limits(save: Any, noise: Any, rate: int) -> None:
    (window,) = windows(save("a.flac", noise(rate), rate))
    assert window.end == 1.0


def test_gaps_between_windows(noise: Any) -> None:
    samples = noise(16_000 * 7)[:, 0]
    found = windows(
        samples, input_sample_rate=RATE, window_seconds=0.5, hop_seconds=3, block_frames=1000
    )
    assert [(w.start, w.end) for w in found] == [(0, 0.5), (3, 3.5), (6, 6.5)]
    for w in found:
        first = int(w.start * RATE)
        np.testing.assert_array_equal(w.samples, samples[first : first + 8000])


def test_windows_are_their_own(noise: Any) -> None:
    """Writing to a window changes no other, though they overlap."""
    samples = noise(16_000)[:, 0]
    first, second = iter_windows(
        samples, input_sample_rate=RATE, window_seconds=0.75, hop_seconds=0.25, warn=quiet
    )
    first.samples[:] = 0
    np.testing.assert_array_equal(second.samples, samples[4000:])


class TestArrays:
    @pytest.mark.parametrize("shape", [(32_000,), (1, 32_000), (32_000, 1)])
    def test_mono_shapes(self, noise: Any, shape: tuple[int, ...]) -> None:
        samples = noise(32_000)
        (window,) = windows(samples.reshape(shape), input_sample_rate=RATE, window_seconds=2)
        np.testing.assert_array_equal(window.samples, samples[:, 0])

    def test_the_shorter_axis_is_the_channels(self, noise: Any) -> None:
        samples = noise(32_000, 2)
        for array in (samples, samples.T, np.ascontiguousarray(samples.T)):
            (window,) = windows(array, input_sample_rate=RATE, window_seconds=2, channel=2)
            np.testing.assert_array_equal(window.samples, samples[:, 1])

    @pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32"])
    def test_integers_are_scaled(self, dtype: str) -> None:
        limits = np.iinfo(dtype)
        middle = 0 if limits.min else (limits.max + 1) // 2
        values = np.array([limits.min, middle, limits.max], dtype=dtype)
        (window,) = windows(np.repeat(values, 400), input_sample_rate=RATE, window_seconds=1)
        assert window.samples[0] == -1.0
        assert window.samples[400] == 0.0
        assert window.samples[800] == pytest.approx(1.0, abs=0.01)

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
    def test_floats_are_taken_as_they_are(self, noise: Any, dtype: str) -> None:
        samples = noise(RATE)[:, 0].astype(dtype)
        (window,) = windows(samples, input_sample_rate=RATE, window_seconds=1)
        np.testing.assert_allclose(window.samples, samples.astype(np.float32))

    def test_tensors(self, noise: Any) -> None:
        torch = pytest.importorskip("torch")
        samples = noise(RATE)[:, 0]
        tensor = torch.from_numpy(samples).requires_grad_()
        (window,) = windows(tensor, input_sample_rate=RATE, window_seconds=1)
        np.testing.assert_array_equal(window.samples, samples)
        (coarse,) = windows(tensor.bfloat16(), input_sample_rate=RATE, window_seconds=1)
        np.testing.assert_allclose(coarse.samples, samples, atol=0.01)

    @pytest.mark.parametrize(
        ("array", "match"),
        [
            (np.zeros(16_000, np.int64), "int64, whose full scale is not clear"),
            (np.zeros(16_000, np.complex64), "complex64"),
            (np.zeros((2, 2, 16_000), np.float32), r"shape \(2, 2, 16000\)"),
            ([0.0, 0.1], "not list"),
        ],
    )
    def test_what_is_not_audio(self, array: Any, match: str) -> None:
        with pytest.raises(UsageError, match=match):
            windows(array, input_sample_rate=RATE)

    def test_the_rate_is_needed(self) -> None:
        with pytest.raises(UsageError, match="input_sample_rate is needed"):
            windows(np.zeros(16_000, np.float32))


MEMORY_RATE = 22_050

# On Linux ru_maxrss of a new process starts at its parent's peak, so that it shows nothing here.
MEASURE = """
import resource, sys
from NatureLM.audio.windows import iter_windows

def peak_mb():
    if sys.platform == "linux":
        with open("/proc/self/status") as status:
            (line,) = (line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

for path in sys.argv[1:]:
    end = 0.0
    for window in iter_windows(path, window_seconds=10.0, hop_seconds=5.0, warn=print):
        end = window.end
    print(end, peak_mb())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read through POSIX")
def test_an_hour_takes_no_more_than_a_minute(tmp_path: Path, noise: Any) -> None:
    minute, hour = tmp_path / "minute.flac", tmp_path / "hour.flac"
    second = noise(MEMORY_RATE)[:, 0] * 0.1
    for path, seconds in ((minute, 60), (hour, 3600)):
        with soundfile.SoundFile(path, "w", MEMORY_RATE, 1) as file:
            for _ in range(seconds):
                file.write(second)
    # One process, short file first: the peak may rise by what the long file needs more.
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, minute, hour], capture_output=True, text=True, check=True
    )
    (end, short_mb), (long_end, long_mb) = (map(float, x.split()) for x in done.stdout.splitlines())
    assert (end, long_end) == (60, 3600)
    print(f"peak memory: {short_mb:.1f} MB for a minute, {long_mb:.1f} MB for an hour")
    assert long_mb - short_mb < 50
