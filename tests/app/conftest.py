"""Sounds of all kinds, and files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from web_app import ASSETS

from NatureLM.app.settings import Limits


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of the synthesised recordings."""
    return ASSETS


@pytest.fixture
def limits() -> Limits:
    return Limits()


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Recordings that are unusual, and files that are none."""
    folder = tmp_path_factory.mktemp("sounds")

    def tone(name: str, seconds: float, rate: int = 16_000, hertz: float = 1000.0) -> Path:
        wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
        soundfile.write(folder / name, wave, rate)
        return folder / name

    made = {
        "tone": tone("tone.wav", 3.0),
        "short": tone("short.wav", 0.1),
        "tiny": tone("tiny.wav", 0.01),
        "bat": tone("bat.wav", 0.5, rate=500_000, hertz=45_000),
        "long": tone("long.wav", 25.0),
    }
    both = np.stack([np.sin(np.arange(32_000) / 9), np.sin(np.arange(32_000) / 5)], axis=1)
    made["stereo"] = folder / "stereo.flac"
    soundfile.write(made["stereo"], 0.3 * both, 16_000)
    made["silent"] = folder / "silent.wav"
    soundfile.write(made["silent"], np.zeros(32_000), 16_000)
    made["hour"] = folder / "hour.flac"
    soundfile.write(made["hour"], np.zeros(3600 * 8_000, dtype=np.int16), 8_000)
    made["empty"] = folder / "empty.wav"
    made["empty"].write_bytes(b"")
    made["text"] = folder / "notes.txt"
    made["text"].write_text("Heard a cuckoo at five.\n")
    made["corrupt"] = folder / "corrupt.flac"
    whole = (ASSETS / "synthetic_cow.flac").read_bytes()
    made["corrupt"].write_bytes(whole[:200] + bytes(len(whole) - 200))
    return made
