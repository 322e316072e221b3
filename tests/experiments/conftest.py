"""Made-up data: samples without sound for the plan, and a small BEANS-Zero with synthetic sound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from NatureLM.data.sample import Clip, Sample

if TYPE_CHECKING:
    from NatureLM.models import NatureLM


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
