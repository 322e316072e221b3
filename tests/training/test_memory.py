"""What training takes, and refusing it before weights are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from NatureLM.config.schema import Config, ModelConfig, RunConfig
from NatureLM.errors import ConfigError
from NatureLM.memory import MEMORY_VARIABLE
from NatureLM.models import NatureLM, NatureLMConfig
from NatureLM.models.checkpoint.load import build_on_meta
from NatureLM.models.checkpoint.tensors import precision_of, tensor_refs
from NatureLM.models.fit import Outline
from NatureLM.training.build import batch_bytes, check_memory, learnt_bytes, make_objective

from .conftest import LLAMA_8B

CARD = torch.device("cuda")
GB = 10**9


@pytest.fixture(scope="module")
def published() -> Outline:
    """The sizes of the published model."""
    config = NatureLMConfig(text_config=LLAMA_8B.to_dict())
    model = build_on_meta(NatureLM, config, None)
    return Outline(model, tensor_refs(model), {})


def settings(batch: int = 8, **run: object) -> tuple[ModelConfig, RunConfig]:
    return ModelConfig(), RunConfig(batch_size_train=batch, amp=True, **run)  # type: ignore[arg-type]


def test_clips_take_what_was_measured_on_a_card(published: Outline) -> None:
    """An H200: 23.2 GB with 8 clips, 32.2 GB with 32 (docs/explanation/performance)."""
    (model, few), (_, many) = settings(8), settings(32)
    each = (batch_bytes(published, model, many) - batch_bytes(published, model, few)) / 24
    assert each == pytest.approx((32.2 - 23.2) / 24 * GB, rel=0.4)


def test_what_learns_counts(published: Outline) -> None:
    half = precision_of(None, CARD)
    model, run = settings()
    adapter = learnt_bytes(published, half, ModelConfig(freeze_audio_QFormer=True), run)
    more = learnt_bytes(published, half, model, run)
    everything = learnt_bytes(published, half, ModelConfig(freeze_llama=False), run)
    assert 0.5 * GB < adapter < more < 1.5 * GB
    assert everything > 150 * GB


@pytest.mark.parametrize(
    ("gigabytes", "said"),
    [(27, "run.batch_size_train: "), (19, "run.gradient_checkpointing: true")],
)
def test_what_is_too_large_is_refused_with_what_fits(
    published: Outline, monkeypatch: pytest.MonkeyPatch, gigabytes: int, said: str
) -> None:
    half, (model, run) = precision_of(None, CARD), settings(64)
    monkeypatch.setenv(MEMORY_VARIABLE, "80GB")
    check_memory(published, half, CARD, model, run)
    monkeypatch.setenv(MEMORY_VARIABLE, f"{gigabytes}GB")
    with pytest.raises(ConfigError, match=said):
        check_memory(published, half, CARD, model, run)


@pytest.mark.parametrize("from_checkpoint", [True, False])
def test_a_run_is_refused_before_it_loads(
    nano_folder: Path, monkeypatch: pytest.MonkeyPatch, from_checkpoint: bool
) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, "50MB")
    base = str(nano_folder / "llama")
    named = {"ckpt": str(nano_folder / "checkpoint")} if from_checkpoint else {"llama_path": base}
    config = Config.model_validate({"model": named, "run": {"output_dir": "unused"}})
    with pytest.raises(ConfigError, match=r"training needs .* of what NATURELM_MEMORY allows"):
        make_objective(config, [])
