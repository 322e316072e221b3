"""Made-up data: samples without sound for the plan, and a small BEANS-Zero with synthetic sound."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from NatureLM.data.clip import Clip
from NatureLM.data.dataset import Sample

if TYPE_CHECKING:
    from NatureLM.models import NatureLM

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


@dataclass(frozen=True)
class Nothing:
    """The place of sound that no test reads."""

    name: str

    def read(self, **_: Any) -> Any:
        raise AssertionError(f"{self.name} was read")


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., Sample]:
    """A sample without sound."""

    def make(name: str, label: str = "Wolf", cluster: str = "", dataset: str = "d") -> Sample:
        clip = Clip(f"{dataset}/{name}", Nothing(name))
        return Sample(name, dataset, label, clip, cluster or name)

    return make


def beans_rows() -> list[dict[str, Any]]:
    """Rows in BEANS-Zero's schema; each sound is a tone of its own, 0.2 s, as bare samples."""
    rows = []
    for dataset, labels in LABELS.items():
        for label, count in labels.items():
            for number in range(count):
                index = len(rows)
                pitch = 200 + 10 * index
                wav = 0.5 * np.sin(2 * np.pi * pitch * np.arange(RATE // 5) / RATE)
                rows.append(
                    {
                        "audio": wav.astype(np.float32),
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
        wav = 0.5 * np.sin(2 * np.pi * pitch * np.arange(RATE // 5) / RATE)
        soundfile.write(file, wav, RATE, format="WAV")
        return file.getvalue()

    return make


@pytest.fixture(scope="module")
def model(nano_folder: Path) -> NatureLM:
    """In float64 no rounding decides between tokens."""
    import torch

    from NatureLM.models import NatureLM

    return NatureLM.from_pretrained(nano_folder / "checkpoint", dtype=torch.float64)


@pytest.fixture(scope="module")
def whole(model: NatureLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted run."""
    from experiment_runs import plan_of, run

    folder = tmp_path_factory.mktemp("whole")
    run(model, plan_of(), folder)
    return folder
