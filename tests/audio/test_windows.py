"""Windows and clips of whole recordings: where they lie and what they hold, whatever the file."""

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
from hypothesis import example, given, settings
from hypothesis import strategies as st
from labelled_sound import audio_error
from numpy.typing import NDArray

from NatureLM.audio import find_recordings
from NatureLM.audio.decode import probe
from NatureLM.audio.windows import (
    Resampler,
    Window,
    WindowPlan,
    count_windows,
    iter_windows,
    read_clip,
    to_fraction,
)
from NatureLM.errors import UsageError

TAIL = Fraction(1, 2)

lengths = st.integers(1, 30_000).map(lambda ms: Fraction(ms, 1000))
steps = st.integers(25, 15_000).map(lambda ms: Fraction(ms, 1000))


def starts(length: Fraction, window: Fraction, hop: Fraction) -> list[Fraction]:
    plan = WindowPlan(16_000, window, hop, Fraction(1))
    return [hop * index for index in range(plan.count(length))]


@pytest.mark.parametrize(
    ("length", "window", "hop", "expected"),
    [
        (60, 10, 10, [0, 10, 20, 30, 40, 50]),
        (10, 10, 10, [0]),
        (10.499, 10, 10, [0]),  # a remainder under half a second is left out
        (10.5, 10, 10, [0, 10]),
        (3, 10, 10, [0]),
        (0.4, 10, 10, [0]),  # a short file is one window
        (0.025, 10, 10, [0]),
        (0.0249, 10, 10, []),
        (12, 10, 5, [0, 5]),  # the second one reaches the end
        (15, 10, 5, [0, 5]),
        (15.4, 10, 5, [0, 5]),
        (15.6, 10, 5, [0, 5, 10]),
        (21, 2, 10, [0, 10, 20]),  # gaps by request
        (20.4, 2, 10, [0, 10]),
        (19, 2, 10, [0, 10]),
        (1, 0.25, 0.25, [0, 0.25, 0.5, 0.75]),  # short windows cover the file as well
        (1.1, 0.25, 0.25, [0, 0.25, 0.5, 0.75]),
        (0.3, 0.1, 0.1, [0, 0.1, 0.2]),  # exact, where floats would give 0.30000000000000004
    ],
)
def test_examples(length: float, window: float, hop: float, expected: list[float]) -> None:
    found = starts(to_fraction(length), to_fraction(window), to_fraction(hop))
    assert [float(start) for start in found] == expected
    assert count_windows(length, window, hop) == len(expected)


@settings(deadline=None)
@given(length=lengths, window=steps, hop=steps)
@example(length=Fraction(21, 2), window=Fraction(10), hop=Fraction(10))
@example(length=Fraction(21, 2), window=Fraction(10), hop=Fraction(1, 4))
@example(length=Fraction(20), window=Fraction(2), hop=Fraction(10))
def test_windows_cover_all_but_a_remainder(
    length: Fraction, window: Fraction, hop: Fraction
) -> None:
    found = starts(length, window, hop)
    if length < Fraction(25, 1000):
        assert found == []
        return
    ends = [start + window for start in found]
    # None starts once the end of the file is reached.
    assert all(end < length for end in ends[:-1])
    if hop <= window:
        assert length - ends[-1] < TAIL
    else:
        assert length - (found[-1] + hop) < TAIL
    # No window is there for a crumb: it fits whole, or brings half a second, or is the only one.
    if len(found) > 1 and ends[-1] > length:
        assert length - max(found[-1], ends[-2]) >= TAIL


def test_window_k_does_not_drift() -> None:
    plan = WindowPlan.of(22_050, 0.1, 0.1, 1.0)
    assert plan.samples == 2205
    odd = WindowPlan.of(22_050, 0.0333, 0.0333, 1.0)  # 734.265 samples
    assert odd.first_sample(1) == 734
    assert odd.first_sample(100_000) == 73_426_500


def test_count_windows() -> None:
    assert count_windows(86_400.0, 1.0, 0.1) == 863_991
    assert count_windows(60.0, 10.0, 10.0) == 6
    assert count_windows(6.7, 10.0, 10.0, time_expansion=10) == 7
    assert count_windows(0.01, 10.0, 10.0) == 0
    assert count_windows(0.01, 10.0, 10.0, time_expansion=10) == 1


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["window length", "hop length", "time expansion"])
def test_values_that_make_no_windows(which: str, value: float) -> None:
    values = {"window length": 10.0, "hop length": 10.0, "time expansion": 1.0, which: value}
    with pytest.raises(UsageError, match=f"the {which} is .*; it must be above 0"):
        WindowPlan.of(16_000, *values.values())


def test_window_shorter_than_a_frame() -> None:
    with pytest.raises(UsageError, match=r"window length is 0\.02 s; .* at least 0\.025 s"):
        WindowPlan.of(16_000, 0.02, 1.0, 1.0)


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
    loud = np.where(np.arange(RATE) % 64 < 32, 1.5, -1.5).astype(np.float32)
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


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3", "a.aiff"])
@settings(max_examples=15, deadline=None)
@given(start=st.integers(0, 6_900), duration=st.integers(25, 5_000))
def test_a_part_is_that_part(
    tmp_path_factory: pytest.TempPathFactory, name: str, start: int, duration: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"clip_{name}"
    if not path.exists():
        # Half loud, half silent: variable bitrates make seeking hard.
        samples = np.random.default_rng(0).uniform(-0.5, 0.5, 7 * RATE).astype(np.float32)
        samples[3 * RATE :] *= 0.01
        options = {"format": "OGG", "subtype": "OPUS"} if name.endswith("opus") else {}
        soundfile.write(path, samples, RATE, **options)
    whole = read_clip(path)
    first, count = start * RATE // 1000, duration * RATE // 1000
    part = read_clip(path, start=start / 1000, duration=duration / 1000)
    np.testing.assert_allclose(part, whole[first : first + count], atol=1e-5)
    assert part.dtype == np.float32
    assert part.flags.writeable


def test_far_into_an_mp3(save: Any, noise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """There it seeks, and decodes what the frames need of those before them."""
    monkeypatch.setattr("NatureLM.audio.decode._MP3_SEEK_SECONDS", 3)
    samples = noise(8 * RATE)
    samples[3 * RATE :] *= 0.01
    path = save("a.mp3", samples, RATE, compression_level=0.9, bitrate_mode="VARIABLE")
    whole = read_clip(path)
    for first in range(3 * RATE, 7 * RATE, 7_777):
        part = read_clip(path, start=first / RATE, duration=0.5)
        np.testing.assert_allclose(part, whole[first : first + RATE // 2], atol=1e-5)


def test_resampled_and_mixed(save: Any, noise: Any) -> None:
    samples = noise(48_000 * 4, 2)
    path = save("a.wav", samples, 48_000, subtype="FLOAT")
    part = read_clip(path, start=1.5, duration=1.25)
    expected = soxr.resample(samples[72_000:132_000].mean(axis=1), 48_000, RATE, "HQ")
    np.testing.assert_allclose(part, expected, atol=1e-6)
    right = read_clip(path, start=1, channel=2, sample_rate=48_000)
    np.testing.assert_array_equal(right, samples[48_000:, 1])


def test_only_what_is_needed_is_decoded(
    save: Any, noise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from NatureLM.audio.decode import Recording

    decoded: list[int] = []
    read = Recording._read

    def counting(self: Recording, frames: int) -> Any:
        block = read(self, frames)
        decoded.append(len(block))
        return block

    monkeypatch.setattr(Recording, "_read", counting)
    path = save("a.flac", noise(60 * RATE), RATE)
    assert len(read_clip(path, start=50, duration=0.5)) == RATE // 2
    assert sum(decoded) == RATE // 2


def test_length_is_exact_where_the_file_has_it(save: Any, noise: Any) -> None:
    path = save("a.wav", noise(44_100 * 3), 44_100)
    for duration in (0.1, 0.3333, 1.0, 2.9999):
        assert len(read_clip(path, duration=duration)) == round(duration * RATE)


def test_the_end_of_the_file_is_the_end(save: Any, noise: Any) -> None:
    path = save("a.flac", noise(RATE * 2), RATE)
    assert len(read_clip(path, start=1.5, duration=10)) == RATE // 2
    with audio_error("TooShortAudio", r"a\.flac: the clip starts at 2 s, at or after"):
        read_clip(path, start=2.0)
    with audio_error("TooShortAudio", r"a\.flac: the clip starts at 9 s"):
        read_clip(path, start=9.0, duration=1)
    with audio_error("TooShortAudio", r"0\.0200 s"):
        read_clip(path, start=1.98)


def test_bad_files(save: Any, noise: Any) -> None:
    path = save("a.flac", noise(RATE * 10), RATE)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert len(read_clip(path, start=1, duration=2)) == 2 * RATE  # this part is sound
    for start in (0.0, 4.0, 8.0):
        with audio_error("UnreadableAudio", "damaged or cut off"):
            read_clip(path, start=start, duration=5)
    holed = noise(RATE)
    holed[8000] = np.nan
    nan = save("nan.wav", holed, RATE, subtype="FLOAT")
    with audio_error("NonFiniteAudio", r"nan\.wav: the sample at 0\.500 s"):
        read_clip(nan, start=0.25)
    with audio_error("ChannelError", r"nan\.wav.*has one channel"):
        read_clip(nan, channel=2)


@pytest.mark.parametrize(
    "times",
    [{"start": -1.0}, {"start": float("nan")}, {"duration": 0.0}, {"duration": float("inf")}],
)
def test_impossible_times(times: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="a clip cannot"):
        read_clip("any.wav", **times)  # type: ignore[arg-type]


# Name: duration in seconds, windows of 10 s. Durations of mp3 are those of the decoded sound:
# libsndfile's guess from the size counts the tags as sound.
FILES = {
    "Lazuli_Bunting_yell-YELLLAZB20160625SM303143.mp3": (12.936, 2),
    "audiomoth_header.WAV": (1.99998, 1),
    "bat_MYOMYS_20170701_213954.wav": (0.5, 1),
    "bats_audiomoth.WAV": (6.725248, 1),
    "bats_audiomoth_triggered_empty.WAV": (0.105088, 1),
    "birdnet_soundscape_120s.flac": (120.0, 12),
    "great_plains_toad.wav": (44.57134, 5),
    "nri-GreenTreeFrogEvergladesNP.mp3": (9.97878, 1),
    "nri-StreamMUWO.mp3": (5.06776, 1),
    "nri-battlesounds.mp3": (5.32898, 1),
    "one_minute.wav": (60.0, 6),
    "yell-YELLAMRO20160506SM3.mp3": (36.936, 4),
    "yell-YELLWolfvCar20160111T22ms2.mp3": (24.99918, 3),
}


@pytest.fixture(scope="module")
def field(shared_dir: Path) -> Path:
    return shared_dir / "data" / "field"


@pytest.mark.shared
def test_all_are_found(field: Path) -> None:
    assert [p.name for p in find_recordings([field])] == sorted(FILES)


@pytest.mark.shared
@pytest.mark.parametrize("name", FILES)
def test_windows_ends_and_warnings(field: Path, name: str, warned: list[str]) -> None:
    duration, count = FILES[name]
    found = list(iter_windows(field / name, warn=warned.append))
    assert [w.start for w in found] == [10.0 * k for k in range(count)]
    assert found[-1].end == pytest.approx(duration, abs=1e-5)
    assert [w.end for w in found[:-1]] == [10.0 * (k + 1) for k in range(count - 1)]
    assert all(w.samples.shape == (160_000,) for w in found)
    assert all(np.abs(w.samples).max() <= 1 for w in found)
    assert probe(field / name).duration == found[-1].end
    assert count_windows(duration, 10, 10) == count
    is_bat = name.startswith("bat")
    assert len(warned) == is_bat
    assert all(name in message and "--time-expansion 10" in message for message in warned)


@pytest.mark.shared
@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("bat")])
def test_slowed_bats(field: Path, name: str, warned: list[str]) -> None:
    duration, _ = FILES[name]
    found = list(iter_windows(field / name, time_expansion=10, warn=warned.append))
    assert [w.start for w in found] == [float(k) for k in range(len(found))]
    assert found[-1].end == pytest.approx(duration, abs=1e-5)
    assert warned == []


@pytest.mark.shared
def test_parts_of_vorbis_clips(shared_dir: Path) -> None:
    """libsndfile seeks to a wrong sample in some of these; parts are right nevertheless."""
    for path in find_recordings([shared_dir / "data" / "esc10" / "clips"])[:20]:
        rate = probe(path).sample_rate
        whole = read_clip(path, sample_rate=rate)
        part = read_clip(path, start=4.5, duration=0.4, sample_rate=rate)
        first = round(4.5 * rate)
        np.testing.assert_array_equal(part, whole[first : first + len(part)])
