"""Windows without sound, channels that cancel, clipping, the scale of floats, slowed recordings,
and sound that is too high for the model.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from field_files import guano_chunk
from hypothesis import example, given, settings
from hypothesis import strategies as st
from labelled_sound import tone as sine
from numpy.typing import NDArray

from NatureLM.audio.decode import probe
from NatureLM.audio.windows import Window, iter_windows, read_clip, read_noted_clip, to_fraction
from NatureLM.data.sample import FileSource

RATE = 16_000
STEP = 2.0**-15
Wave = NDArray[Any]


def heard(source: Any, rate: float = RATE, **options: Any) -> tuple[list[Window], list[str]]:
    """Windows and what is said of the recording."""
    told: list[str] = []
    rates = {} if isinstance(source, Path) else {"input_sample_rate": rate}
    found = list(iter_windows(source, **rates, **{"warn": told.append, **options}))
    return found, [one for one in told if "cannot hear" not in one]


def tone(seconds: float = 2.0, level: float = 0.5, hertz: float = 440) -> Wave:
    return sine(hertz, seconds, RATE, level)


def opposite(wave: Wave, share: float = 1.0) -> Wave:
    return np.stack([wave, -share * wave])


DITHER = np.resize([0.0, STEP], 2 * RATE).astype(np.float32)


@pytest.mark.parametrize(
    ("wave", "note"),
    [
        (tone(), ""),
        (tone(level=2 * STEP), ""),
        (tone() * 0, "silent"),
        (DITHER, "silent"),
        (-DITHER, "silent"),
        (DITHER + 0.25, "constant"),
        (tone() * 0 - 1, "constant"),
        (np.full(RATE, 128, np.uint8), "silent"),
        (np.full(RATE, 77, np.uint8), "constant"),
        (np.full(RATE, 1, np.int16), "silent"),
        (opposite(tone()), "cancelled"),
        (opposite(tone()) + 0.1, "cancelled"),
        (opposite(tone(), 0.9995), "cancelled"),
        (opposite(tone(), 0.99), ""),
        (np.stack([tone(), tone() * 0]), ""),
        # A mean of two that is silent because each is: nothing is lost by mixing.
        (np.stack([DITHER, DITHER * 0]), "silent"),
        (np.stack([DITHER, DITHER * 0, DITHER]), "silent"),
        (np.stack([tone() * 0 + 0.3] * 3), "constant"),
        (np.stack([tone(), -tone() / 2, -tone() / 2]), "cancelled"),
    ],
)
def test_notes_of_windows_and_clips(wave: Wave, note: str) -> None:
    (window,), _ = heard(wave)
    assert window.note == note
    assert read_noted_clip(wave, input_sample_rate=RATE)[1] == note
    (alone,), _ = heard(wave, channel=1)
    assert alone.note == ("" if note == "cancelled" else note)


KINDS: dict[str, Callable[[int], Wave]] = {
    "sound": lambda n: np.stack([0.2 + 0.2 * np.cos(np.arange(n) * 2.0)] * 2),
    "silent": lambda n: np.zeros((2, n)),
    "constant": lambda n: np.full((2, n), 0.25),
    "opposite": lambda n: np.stack([np.cos(np.arange(n) * 2.0), -np.cos(np.arange(n) * 2.0)]) / 2,
}


def expected(mean: Wave, channels: Wave) -> str:
    """The note of a stretch, from its samples."""
    if np.ptp(mean) > STEP:
        return ""
    if np.ptp(channels, axis=1).max() > STEP:
        return "cancelled"
    return "silent" if np.abs(mean).max() <= STEP else "constant"


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.integers(2, 30_000)), min_size=1),
    rate=st.sampled_from([8_000, 11_025, 22_050, 44_100, 47_999, 96_000]),
    window=st.integers(25, 900).map(lambda ms: ms / 1000),
    hop=st.integers(20, 900).map(lambda ms: ms / 1000),
    expansion=st.sampled_from([1.0, 3.0, 0.7]),
    block=st.integers(50, 70_000),
)
@example([("silent", 8_001), ("sound", 2), ("silent", 8_000)], 8_000, 0.5, 0.5, 1.0, 4_000)
def test_marked_are_exactly_the_windows_without_sound(
    parts: list[tuple[str, int]], rate: int, window: float, hop: float, expansion: float, block: int
) -> None:
    wave = np.concatenate([KINDS[kind](n) for kind, n in parts], axis=1).astype(np.float32)
    if wave.shape[1] * expansion < 0.025 * rate or rate * 0.7 < 1_000:
        return
    cut = {"window_seconds": window, "hop_seconds": hop, "time_expansion": expansion}
    found, _ = heard(wave, rate, block_frames=block, **cut)
    assert found
    for one in found:
        start = to_fraction(hop) * one.index / to_fraction(expansion)
        end = start + to_fraction(window) / to_fraction(expansion)
        here = wave[:, math.ceil(start * rate) : math.ceil(end * rate)]
        assert one.note == expected(here.mean(axis=0), here), one.index


def test_what_is_said_of_channels_that_cancel(save: Any) -> None:
    path = save("inverted.wav", opposite(tone(), 0.9).T, RATE)
    (window,), (said,) = heard(path)
    assert window.note == ""
    assert said.startswith(f"{path}: the channels cancel each other: their mean is 26 dB below")
    assert "--channel 1" in said
    assert heard(path, channel=2)[1] == []
    _, (whole,) = heard(opposite(tone()))
    assert "more than 100 dB below" in whole
    # Only a part of the recording.
    partly = np.concatenate([np.stack([tone(30)] * 2), opposite(tone(10, level=0.1))], axis=1)
    found, (said,) = heard(partly)
    assert [one.note for one in found] == ["", "", "", "cancelled"]
    assert "cancel each other from 30 s on" in said


@pytest.mark.parametrize("channels", [2, 3, 8])
def test_unrelated_channels_do_not_cancel(channels: int) -> None:
    rng = np.random.default_rng(channels)
    assert heard(rng.normal(0, 0.1, (channels, 3 * RATE)).astype(np.float32))[1] == []
    one = np.zeros((channels, 3 * RATE), np.float32)
    one[0] = rng.normal(0, 0.1, 3 * RATE)
    assert heard(one)[1] == []


def clipped(level: float) -> Wave:
    return np.clip(tone(25, level=level), -1, 1)


@pytest.mark.parametrize(
    ("wave", "share"),
    [
        (clipped(1.5), "53.5%"),
        (np.stack([clipped(1.5), tone(25)]), "53.5%"),
        (np.round(clipped(1.5) * 32767).astype(np.int16), "53.5%"),
        (np.round(clipped(1.5) * 127).astype(np.int8), "53.5%"),
        (tone(25, level=1.5), "53.5%"),  # floats that are clipped here
        (tone(25, level=0.999), None),
        (np.round(tone(25, level=1) * 32767).astype(np.int16), None),  # a wave that just fits
        (np.where(np.arange(25 * RATE) % RATE < 12, 1.0, tone(25)), None),  # bumps
        (tone(25, level=1.0), None),
    ],
)
@pytest.mark.parametrize("block", [777, 1 << 16])
def test_clipping(wave: Wave, share: str | None, block: int) -> None:
    said = heard(wave, block_frames=block)[1]
    if share is None:
        assert said == []
        return
    (note,) = said
    assert f"clipped: {share} of the samples from 0 s on are at full scale" in note
    assert "in 2 other stretches of 10 s" in note
    assert heard(wave[..., : 3 * RATE])[1][0].endswith(
        "of the samples are at full scale. Answers may be wrong; record with less gain."
    )


def test_a_clipped_minute_in_a_long_recording() -> None:
    wave = tone(60)
    wave[30 * RATE : 31 * RATE] = np.clip(tone(1, level=3), -1, 1)
    (note,) = heard(wave)[1]
    assert "of the samples from 30 s on are at full scale. " in note


gains = st.one_of(st.integers(2, 100).map(lambda n: 2.0**n), st.floats(2.5, 1e30))


@settings(max_examples=30, deadline=None)
@given(gain=gains, kind=st.sampled_from(["array", "double", "file"]), channels=st.integers(1, 3))
def test_floats_of_any_scale_are_heard_alike(
    gain: float, kind: str, channels: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(1)
    wave = rng.uniform(-0.9, 0.9, (channels, 70_000)).astype(np.float32)
    wave[0, 5] = 1.0
    loud = wave * np.float32(gain)
    source: Any = loud.astype(np.float64) if kind == "double" else loud
    if kind == "file":
        source = tmp_path_factory.mktemp("scale") / "loud.wav"
        soundfile.write(source, loud.T, RATE, subtype="FLOAT")
    (window,), (note, *_) = heard(source)
    (plain,), _ = heard(wave)
    if channels == 1 and gain == 2.0 ** round(math.log2(gain)):
        np.testing.assert_array_equal(window.samples, plain.samples)
    np.testing.assert_allclose(window.samples, plain.samples, atol=1e-6)
    assert f"up to {float(np.float32(gain)):.6g}" in note


@pytest.mark.parametrize(("bits", "subtype"), [(16, "FLOAT"), (24, "DOUBLE"), (32, "DOUBLE")])
def test_integers_that_were_saved_as_floats(bits: int, subtype: str, save: Any) -> None:
    full = 2.0 ** (bits - 1)
    whole = np.round(tone(level=0.7).astype(np.float64) * full)
    (plain,), said = heard(whole / full)
    assert said == []
    path = save("whole.wav", whole, RATE, subtype=subtype)
    for source in (path, whole, whole.astype(np.float32)):
        (window,), (note,) = heard(source)
        np.testing.assert_allclose(window.samples, plain.samples, atol=2**-24)
        assert f"divided by {full:.0f}, full scale of {bits} bits" in note
    # A clip is scaled as the whole is, also where it is quiet itself.
    quiet = np.concatenate([tone() * 0 + 1, whole])
    path = save("quiet.wav", quiet, RATE, subtype=subtype)
    clip = read_clip(path, duration=1.0, name="sample 7")
    np.testing.assert_allclose(clip, 1 / full, rtol=1e-6)
    assert probe(path).duration == 4.0


@pytest.mark.parametrize("level", [0.3, 1.0, 1.1, 2.0])
def test_floats_a_little_above_1_stay(level: float, save: Any) -> None:
    wave = tone(level=level, hertz=1_000)
    (window,), said = heard(save("a.wav", wave, RATE, subtype="FLOAT"))
    np.testing.assert_array_equal(window.samples[: len(wave)], np.clip(wave, -1, 1))
    assert len(said) == (level > 1)
    assert all("clipped" in one for one in said)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_no_number_have_no_scale(bad: float) -> None:
    wave = 100 * tone()
    wave[20_000] = bad
    found = []
    with pytest.raises(Exception, match=r"1\.250 s is NaN or infinite"):
        found.extend(
            iter_windows(wave, input_sample_rate=RATE, window_seconds=1, warn=found.append)
        )
    assert max(abs(one.samples).max() for one in found if isinstance(one, Window)) == 1.0


def with_guano(path: Path, text: str) -> Path:
    content = path.read_bytes() + guano_chunk(text)
    path.write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    return path


@pytest.mark.parametrize(
    ("text", "factor"),
    [
        ("GUANO|Version: 1.0\nTE: 10\nNote: bats", "10"),
        ("TE:8.0\r\nMake: x", "8"),
        ("TE: 1\n", None),
        ("TE: ten\n", None),
        ("Note: TE: 10\n", None),
        ("TE: 0\n", None),
    ],
)
def test_recordings_that_are_slowed_already(text: str, factor: str | None, save: Any) -> None:
    path = with_guano(save("bat.wav", tone(), RATE), text)
    found, said = heard(path)
    assert [(one.start, one.end) for one in found] == [(0.0, 2.0)]
    assert len(said) == (factor is not None)
    if factor is not None:
        assert said[0].startswith(f"{path}: its GUANO data say TE: {factor}, ")
        assert f"as with --time-expansion {factor}. It is heard and timed as it stands" in said[0]
        assert f"--time-expansion {1 / float(factor):g} gives the speed" in said[0]
    assert heard(path, time_expansion=0.5)[1] == []


def test_a_clip_without_sound_is_noted_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        read_clip(tone() * 0, input_sample_rate=RATE, name="row 3 of birds", start=0.5)
    assert caplog.messages == ["row 3 of birds: there is no sound from 0.5 s on (silent)"]


@pytest.mark.parametrize(
    ("wave", "decibels"),
    [
        (tone(level=1.1e-3), None),
        (tone(level=5e-4), 66),
        (tone(level=1e-5) + 0.4, 100),
        ((tone(level=1) * 32767).astype(np.int32), 96),  # 16 bits in a type of 32
        ((tone(level=5e-4) * 32767).astype(np.int16), None),  # their scale is certain
        (tone() * 0, None),
        (tone() * 0 + 0.5, None),
    ],
)
def test_what_is_quiet_may_have_another_scale(wave: Wave, decibels: int | None) -> None:
    said = heard(wave)[1]
    assert len(said) == (decibels is not None)
    assert all(f"its loudest sound is {decibels} dB below full scale" in one for one in said)


def test_a_sample_of_a_data_set_is_scaled_and_noted_by_its_name(
    save: Any, caplog: pytest.LogCaptureFixture
) -> None:
    loud, silent = save("l.wav", 100.5 * tone(), RATE, subtype="FLOAT"), save("s.wav", DITHER, RATE)
    for _ in range(2):
        wave = FileSource(loud).read(start=0.5, duration=1.0, sample_rate=RATE)
        np.testing.assert_allclose(wave, 2 * tone()[RATE // 2 : 3 * RATE // 2], atol=1e-3)
        FileSource(silent).read(start=0.0, duration=None, sample_rate=RATE)
    first, second = caplog.messages
    assert first.startswith(f"{loud}: the samples are floats up to ")
    assert second == f"{silent}: there is no sound (silent)"


# Sound that is too high for the model


def pitch(frequency: float, rate: int, seconds: float = 2.0, level: float = 0.3) -> NDArray[Any]:
    return sine(frequency, seconds, rate, level)


def white(rate: int, seconds: float = 2.0, level: float = 0.1) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    return (level * rng.standard_normal(int(seconds * rate))).astype(np.float32)


def warnings_of(samples: NDArray[Any], rate: int, **options: Any) -> list[str]:
    told: list[str] = []
    for _ in iter_windows(samples, input_sample_rate=rate, warn=told.append, **options):
        pass
    return told


@pytest.mark.parametrize(
    ("samples", "rate"),
    [
        (pitch(40_000, 250_000), 250_000),
        (pitch(12_000, 48_000), 48_000),
        # Calls in wind, hum and an offset that are stronger than they.
        (pitch(40_000, 250_000) + pitch(60, 250_000, level=0.6) + 0.2, 250_000),
        (pitch(45_000, 384_000, level=0.1) + pitch(2_000, 384_000, level=0.05), 384_000),
        (pitch(30_000, 96_000), 96_000),
        (white(250_000), 250_000),  # an ultrasonic recorder that heard nothing but itself
    ],
    ids=["bat", "insect", "bat in wind", "bat and bird", "at 96 kHz", "noise floor"],
)
def test_warns_once(samples: NDArray[Any], rate: int) -> None:
    told = warnings_of(samples, rate, window_seconds=0.5, hop_seconds=0.5)
    (message,) = [one for one in told if "clipped" not in one]
    assert message.startswith("the audio array: ")
    assert "above 8 kHz" in message
    assert "--time-expansion 10" in message


@pytest.mark.parametrize(
    ("samples", "rate"),
    [
        (pitch(3_000, 48_000), 48_000),
        (pitch(3_000, 48_000) + pitch(15_000, 48_000, level=0.2), 48_000),
        (white(48_000), 48_000),
        (white(44_100), 44_100),
        (pitch(4_000, 250_000) + white(250_000, level=0.02), 250_000),  # a bird, well recorded
        (pitch(5_000, 16_000), 16_000),
        (pitch(3_000, 8_000), 8_000),
        (np.zeros(96_000, np.float32), 96_000),
        (np.full(96_000, 0.5, np.float32), 96_000),
    ],
    ids=["bird", "overtones", "noise48", "noise44", "bird250", "16k", "8k", "zeros", "offset"],
)
def test_does_not_warn(samples: NDArray[Any], rate: int) -> None:
    assert warnings_of(samples, rate) == []


def test_slowed_sound_is_heard() -> None:
    bat = pitch(40_000, 250_000)
    assert len(warnings_of(bat, 250_000, time_expansion=2)) == 1
    assert warnings_of(bat, 250_000, time_expansion=10) == []
    (message,) = warnings_of(pitch(110_000, 250_000), 250_000, time_expansion=10)
    assert "above 80 kHz" in message
    assert "a --time-expansion above 10" in message


def test_sound_that_is_sped_up_on_purpose() -> None:
    assert warnings_of(pitch(1_500, 8_000), 8_000, time_expansion=0.1) == []


def test_a_model_that_hears_higher() -> None:
    insect = pitch(12_000, 48_000)
    assert warnings_of(insect, 48_000, sample_rate=32_000) == []


@pytest.mark.parametrize("block", [100, 5_000, 1 << 20])
def test_blocks_do_not_matter(block: int) -> None:
    assert len(warnings_of(pitch(40_000, 250_000), 250_000, block_frames=block)) == 1
    assert warnings_of(pitch(4_000, 250_000), 250_000, block_frames=block) == []


def test_a_minute_of_bats_in_a_long_recording() -> None:
    rate = 96_000
    day = pitch(3_000, rate, seconds=65)
    night = pitch(30_000, rate, seconds=62, level=0.2)
    assert len(warnings_of(np.concatenate([day, night, day[: 20 * rate]]), rate)) == 1
    # A few seconds at the end of a long recording are too little to judge by.
    assert warnings_of(np.concatenate([day, night[: 5 * rate]]), rate) == []


def test_the_file_is_named(save: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = save("bat.WAV", pitch(40_000, 250_000), 250_000)
    list(iter_windows(path))
    (warning,) = caplog.messages
    assert warning.startswith(f"{path}: ")
