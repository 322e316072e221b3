"""Small data and settings: three kinds of tones, the golden language model, windows of a second."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import write_lines
from transformers import LlamaConfig

from NatureLM.config.schema import Config

BEATS: dict[str, Any] = {
    "embed_dim": 16,
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 2,
    "conv_pos": 8,
    "conv_pos_groups": 4,
    "num_buckets": 16,
    "max_distance": 60,
    "layer_wise_gradient_decay_ratio": 1.0,
}
QFORMER: dict[str, Any] = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
LLAMA_8B = LlamaConfig(
    vocab_size=128257,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)
"""Of the published model."""
MakeConfig = Callable[..., Config]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors are faster on one thread, and sums always come in one order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def table(clips_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL table over `clips_folder`, two questions for each clip."""
    path = tmp_path_factory.mktemp("table") / "table.jsonl"
    rows = [
        {
            "path": os.path.relpath(wav, path.parent),
            "prompt": ["What is it?", "Name the sound."],
            "answer": wav.parent.name,
            "task": "name",
        }
        for wav in sorted(clips_folder.glob("*/*.wav"))
    ]
    rows += [
        {**row, "prompt": "Is it rain?", "answer": str(row["answer"] == "Rain"), "task": "yes-no"}
        for row in rows
    ]
    return write_lines(path, rows)


@pytest.fixture
def make_config(fixtures_dir: Path, table: Path, tmp_path: Path) -> MakeConfig:
    """A configuration of a small run on the CPU; keyword arguments change `run`.

    `model` changes the model; its `beats_cfg` and `qformer_cfg` name what differs from small ones.
    """

    def make(
        *,
        model: dict[str, Any] | None = None,
        datasets: dict[str, Any] | None = None,
        optims: dict[str, Any] | None = None,
        **run: Any,
    ) -> Config:
        model = {
            **(model or {}),
            "beats_cfg": {**BEATS, **(model or {}).get("beats_cfg", {})},
            "qformer_cfg": {**QFORMER, **(model or {}).get("qformer_cfg", {})},
        }
        return Config.model_validate(
            {
                "model": {
                    "llama_path": str(fixtures_dir / "goldens" / "nano" / "llama"),
                    "lora_rank": 4,
                    "freeze_beats": False,
                    **model,
                },
                "datasets": {
                    "train": [{"path": str(table)}],
                    "audio_max_length_seconds": 1.0,
                    **(datasets or {}),
                },
                "run": {
                    "output_dir": str(tmp_path / "run"),
                    "device": "cpu",
                    "amp": False,
                    "batch_size_train": 4,
                    "max_steps": 4,
                    "num_workers": 0,
                    "log_freq": 1,
                    "decode_ratio": 0.0,
                    "optims": {"init_lr": 3e-3, "min_lr": 0.0, "warmup_steps": 1, **(optims or {})},
                    **run,
                },
            }
        )

    return make


@pytest.fixture(scope="session")
def quiet_environment() -> dict[str, str]:
    """The environment of commands that tests start: one thread, no colours."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
