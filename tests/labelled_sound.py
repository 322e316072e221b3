"""Sound for tests: tones in files by class, a small BEANS-Zero of tones, and what is no sound."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from NatureLM.audio import AudioError
from NatureLM.data.sample import Clip, FileSource

SOUNDS = {"Cuckoo": 600.0, "Rain": 0.0, "Wolf": 250.0}
LABELS = {
    "cbi": {"Short-eared Owl": 3, "Golden Eagle": 2},
    "watkins": {"Narwhal": 2, "Harp Seal": 2},
    "unseen-family-cmn": {
        "Spotted Elachura": 8,
        "Dall's Porpoise": 7,
        "Aardvark": 3,
        "Beluga": 3,
    },
    "zf-indiv": {"One": 2, "More": 2},
}
RATE = 8000


@contextmanager
def audio_error(kind: str, match: str) -> Iterator[None]:
    """The block raises an `AudioError` of this kind, with these words."""
    with pytest.raises(AudioError, match=match) as caught:
        yield
    assert caught.value.kind == kind


def tone(hertz: float, seconds: float, rate: int, level: float) -> NDArray[np.float32]:
    """A sine wave."""
    wave = level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return wave.astype(np.float32)  # type: ignore[no-any-return]


def file_clip(path: Path | str, start: float = 0.0, end: float | None = None) -> Clip:
    """A stretch of a file, as the rows of training data name it."""
    return Clip.of(FileSource(Path(path)), start, end)


@pytest.fixture(scope="session")
def clips_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<class>/<number>.wav`: four short clips of each class, 16 kHz."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for name, pitch in SOUNDS.items():
        (folder / name).mkdir()
        for number in range(4):
            times = np.arange(int(16000 * (0.3 + 0.2 * number))) / 16000
            noise = rng.standard_normal(len(times))
            tone = np.sin(2 * np.pi * (pitch + 5 * number) * times) + 0.05 * noise
            wav = 0.3 * (tone if pitch else noise)
            soundfile.write(folder / name / f"{number}.wav", wav.astype(np.float32), 16000)
    return folder


def beans_rows() -> list[dict[str, Any]]:
    """Rows in BEANS-Zero's schema; each sound is a tone of its own, 0.2 s, as bare samples."""
    rows = []
    for dataset, labels in LABELS.items():
        for label, count in labels.items():
            for number in range(count):
                index = len(rows)
                pitch = 200 + 10 * index
                rows.append(
                    {
                        "audio": tone(pitch, 0.2, RATE, 0.5),
                        "id": f"{dataset}-{index:03}",
                        "source_dataset": "made up",
                        "dataset_name": dataset,
                        "task": "classification",
                        "output": label,
                        "instruction_text": "<Audio><AudioHere></Audio> What is it?",
                        "metadata": json.dumps({"sample_rate": RATE, "recording": f"r{index}"}),
                        "file_name": f"{label}_{number}.wav",
                    }
                )
    return rows


@pytest.fixture(scope="session")
def beans_zero(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `save_to_disk` folder in BEANS-Zero's schema."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("beans-zero")
    rows = beans_rows()
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(columns)}).save_to_disk(folder)
    return folder


@pytest.fixture(scope="session")
def wav_bytes() -> Callable[[float], bytes]:
    """A wav file in memory: a tone of that pitch, 0.2 s."""

    def make(pitch: float) -> bytes:
        file = io.BytesIO()
        soundfile.write(file, tone(pitch, 0.2, RATE, 0.5), RATE, format="WAV")
        return file.getvalue()

    return make
