"""Sound in the cells of datasets is heard as it would be from a file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from labelled_sound import audio_error

from NatureLM.audio import AudioError
from NatureLM.audio.windows import read_clip
from NatureLM.data.dataset import read_embedded

RATE = 8000
WAV = (0.5 * np.sin(np.arange(RATE) / 5)).astype(np.float32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.wav"
    soundfile.write(path, WAV, RATE, subtype="FLOAT")
    return path


def encoded(kind: str) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, WAV, RATE, format=kind)
    return data.getvalue()


@pytest.mark.parametrize("part", [{}, {"start": 0.25, "duration": 0.5}, {"duration": 5.0}])
def test_every_form_is_one_sound(file: Path, part: dict[str, float]) -> None:
    wanted = read_clip(file, **part)
    data = file.read_bytes()
    forms: list[tuple[Any, dict[str, Any]]] = [
        (data, {}),
        (memoryview(data), {}),
        (str(file), {}),
        (file.name, {"folder": file.parent}),
        ({"bytes": data, "path": "elsewhere.wav"}, {}),
        ({"bytes": None, "path": str(file)}, {}),
        ({"array": WAV, "sampling_rate": RATE, "path": None}, {}),
        ({"array": WAV.tolist(), "sampling_rate": RATE}, {}),
        (WAV, {"array_rate": RATE}),
        (WAV.tolist(), {"array_rate": float(RATE)}),
        (np.stack([WAV, WAV]), {"array_rate": RATE}),
    ]
    for value, more in forms:
        heard = read_embedded(value, name="sample 1", **part, **more)
        assert heard.dtype == np.float32
        np.testing.assert_allclose(heard, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3"])
def test_encoded_bytes(kind: str) -> None:
    heard = read_embedded({"bytes": encoded(kind), "path": f"x.{kind.lower()}"}, name="sample 1")
    assert abs(len(heard) - 16000) < 200


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [
        (None, "EmptyAudio", "there is no sound in the data"),
        ({"bytes": None, "path": None}, "EmptyAudio", "there is no sound in the data"),
        (b"", "EmptyAudio", "0 bytes"),
        (b"no sound at all", "NotAudio", "not an audio file"),
        ([], "EmptyAudio", "holds no samples"),
        (WAV[:10], "TooShortAudio", "0.025 s"),
        (np.full(RATE, np.nan, np.float32), "NonFiniteAudio", "NaN"),
        ([1, 2, 3] * RATE, "NotAudio", "full scale"),
        ("not/there.wav", "UnreadableAudio", "no such file"),
        ({"array": WAV, "sampling_rate": 3}, "SampleRateError", "3 Hz"),
    ],
)
def test_errors_name_the_sample_or_the_file(value: Any, kind: str, reason: str) -> None:
    with pytest.raises(AudioError, match=reason) as error:
        read_embedded(value, name="sample 1", array_rate=RATE)
    assert error.value.kind == kind
    name = "not/there.wav" if isinstance(value, str) else "sample 1"
    assert str(error.value).startswith(f"{name}: ")
    assert "naturelm-" not in str(error.value)


def test_samples_need_a_rate() -> None:
    with audio_error("NotAudio", r"sample 1: .*sample rate"):
        read_embedded(WAV, name="sample 1")


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    read_embedded(encoded("WAV"), name="sample 1")
    with pytest.raises(AudioError):
        read_embedded(b"no sound at all", name="sample 1")
    assert list(tmp_path.iterdir()) == []
