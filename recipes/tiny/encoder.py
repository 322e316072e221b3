"""The encoder stage: BEATs and the Q-Former learn to name the sounds, before any language.

They learn together, from teachers (`classifiers.py`). A linear classifier reads the
attention-pooled audio vectors over all classes of both datasets; it is thrown away afterwards.
Windows are short at first (most calls are), then as long as the model's. Hidden matrices are
trained by Muon, which needs about half the steps of Adam here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from NatureLM.config.model import QFormerConfig
from NatureLM.models.audio_side import QFormer, patch_groups
from NatureLM.models.beats import BEATs
from NatureLM.util import generator
from recipes.tiny.architecture import GROUP, NATURELM, new_encoder
from recipes.tiny.classifiers import (
    ClassifierSettings,
    Schedule,
    Sounds,
    Teachers,
    train_classifier,
)
from recipes.tiny.spectrograms import Augmentation

ENCODER = "listener.safetensors"


@dataclass(frozen=True)
class EncoderSettings(ClassifierSettings):
    """Training of the encoder; `taught` is the teachers' part of its targets."""

    schedule: Schedule = field(
        default_factory=lambda: Schedule(2600, ((0.65, 18, 96), (0.2, 36, 48), (0.15, 62, 32)))
    )
    changes: Augmentation = field(default_factory=lambda: Augmentation(colour_db=8.0))
    matrix_learning_rate: float | None = 0.02
    taught: float = 0.9
    seed: int = 0


class AudioClassifier(nn.Module):
    """The audio encoder and the Q-Former with a classifier on top: spectrograms → logits.

    Parts are named as in `NatureLM`.
    """

    def __init__(self, encoder: BEATs, classes: int, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        config = QFormerConfig.model_validate(NATURELM["qformer_cfg"])
        self.beats = encoder
        self.ln_audio = nn.LayerNorm(encoder.width)
        self.audio_Qformer = QFormer(config, encoder.width)
        for module in self.audio_Qformer.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        self.audio_query_tokens = nn.Parameter(torch.randn(1, 1, config.hidden_size))
        self.head = Head(config.hidden_size, classes, heads, dropout)

    def forward(self, fbank_BTF: Tensor) -> Tensor:
        patches_BPE = self.ln_audio(self.beats(fbank_BTF))
        groups = patch_groups(patches_BPE, GROUP, GROUP)
        queries = self.audio_query_tokens.expand(groups.shape[0], -1, -1)
        audio = self.audio_Qformer(queries, groups)
        logits: Tensor = self.head(audio.reshape(fbank_BTF.shape[0], -1, audio.shape[-1]))
        return logits


class Head(nn.Module):
    """Attention pooling and a linear layer: vectors (B, N, D) → logits (B, classes)."""

    def __init__(self, width: int, classes: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        # Muon trains hidden matrices, and leaves out what is called a predictor.
        self.weight_predictor = nn.Linear(width, heads)
        self.value = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.class_predictor = nn.Linear(width, classes)

    def forward(self, vectors_BND: Tensor) -> Tensor:
        weights_BNH = self.weight_predictor(vectors_BND).float().softmax(dim=1)
        values_BNHK = self.value(vectors_BND).unflatten(-1, (self.heads, -1))
        pooled = torch.einsum("bnh,bnhk->bhk", weights_BNH.to(values_BNHK.dtype), values_BNHK)
        logits: Tensor = self.class_predictor(self.dropout(self.norm(pooled.flatten(1))))
        return logits


def train_encoder(
    sounds: Sounds, teachers: Teachers | None, settings: EncoderSettings, folder: Path
) -> None:
    """Train an `AudioClassifier`, and write its averaged weights to `folder`.

    Without teachers it learns from the labels alone.
    """
    patches = sounds.training.patches(6, generator(settings.seed, "patches"))
    torch.manual_seed(settings.seed)
    model = AudioClassifier(new_encoder(patches, settings.seed), len(sounds.labels))

    def target(step: int, fbank_BTM: Tensor, target_BC: Tensor) -> Tensor:
        labels = settings.smoothed(step, fbank_BTM, target_BC)
        if teachers is None:
            return labels
        given = teachers.probabilities(fbank_BTM, step)
        return (1 - settings.taught) * labels + settings.taught * given

    folder.mkdir(parents=True, exist_ok=True)
    train_classifier(model, sounds, settings, target, folder / ENCODER, settings.seed)


def load_classifier(folder: Path, labels: Sequence[str]) -> AudioClassifier:
    """What `train_encoder` wrote."""
    blank = np.random.default_rng(0).standard_normal((4, 64, 64)).astype(np.float32)
    model = AudioClassifier(new_encoder(blank, 0), len(labels))
    model.load_state_dict(load_file(folder / ENCODER), strict=False)  # shared tensors once
    return model.eval()
