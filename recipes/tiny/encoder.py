"""The encoder stage: what hears learns to name the sounds, before any language.

BEATs and the Q-Former learn together, from teachers (`teachers.py`). A linear classifier reads the
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from NatureLM.config.model import QFormerConfig
from NatureLM.models.beats import BEATs
from NatureLM.models.qformer import QFormer, patch_groups
from NatureLM.training.sampler import generator
from recipes.tiny.architecture import GROUP, NATURELM, new_encoder
from recipes.tiny.fitting import Log, Schedule, Sounds, TargetFn, fit, smoothed
from recipes.tiny.spectrograms import Augmentation
from recipes.tiny.teachers import Teachers

LISTENER = "listener.safetensors"


@dataclass(frozen=True)
class EncoderSettings:
    """Training of the encoder; `taught` is the teachers' part of what it aims at."""

    schedule: Schedule = field(
        default_factory=lambda: Schedule(2600, ((0.65, 18, 96), (0.2, 36, 48), (0.15, 62, 32)))
    )
    learning_rate: float = 1e-3
    matrix_learning_rate: float = 0.02
    weight_decay: float = 0.05
    smoothing: float = 0.05
    taught: float = 0.9
    seed: int = 0
    changes: Augmentation = field(default_factory=lambda: Augmentation(colour_db=8.0))


class AudioClassifier(nn.Module):
    """All that hears, with a classifier on top: spectrograms → logits.

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
        self.attention = nn.Linear(width, heads)
        self.value = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, classes)

    def forward(self, vectors_BND: Tensor) -> Tensor:
        weights_BNH = self.attention(vectors_BND).float().softmax(dim=1)
        values_BNHK = self.value(vectors_BND).unflatten(-1, (self.heads, -1))
        pooled = torch.einsum("bnh,bnhk->bhk", weights_BNH.to(values_BNHK.dtype), values_BNHK)
        logits: Tensor = self.out(self.dropout(self.norm(pooled.flatten(1))))
        return logits


def train_encoder(
    sounds: Sounds, teachers: Teachers | None, settings: EncoderSettings, folder: Path, log: Log
) -> AudioClassifier:
    """Train; returns the listener with averaged weights, and writes it to `folder`.

    Without teachers it learns from the labels alone.
    """
    patches = sounds.training.patches(6, generator(settings.seed, "patches"))
    torch.manual_seed(settings.seed)
    model = AudioClassifier(new_encoder(patches, settings.seed), len(sounds.labels))
    average = fit(
        model,
        _optimizers(model, settings),
        sounds,
        settings.changes,
        settings.schedule,
        _aim(teachers, settings),
        seed=settings.seed,
        log=log,
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_tensors(average), folder / LISTENER)
    return average


def _aim(teachers: Teachers | None, settings: EncoderSettings) -> TargetFn:
    """The teachers' probabilities with a part of the labels, or the labels without teachers."""
    labels = smoothed(settings.smoothing)
    if teachers is None:
        return labels
    taught = settings.taught

    def aim(step: int, fbank: Tensor, target: Tensor) -> Tensor:
        given = teachers.probabilities(fbank, step)
        return (1 - taught) * labels(step, fbank, target) + taught * given

    return aim


def load_listener(folder: Path, labels: Sequence[str]) -> AudioClassifier:
    """What `train_encoder` wrote."""
    blank = np.random.default_rng(0).standard_normal((4, 64, 64)).astype(np.float32)
    model = AudioClassifier(new_encoder(blank, 0), len(labels))
    model.load_state_dict(load_file(folder / LISTENER), strict=False)  # shared tensors once
    return model.eval()


def _optimizers(model: AudioClassifier, settings: EncoderSettings) -> list[torch.optim.Optimizer]:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        hidden = parameter.ndim == 2 and "relative_attention_bias" not in name
        first_or_last = name.startswith(("head.out.", "head.attention."))
        (matrices if hidden and not first_or_last else others).append(parameter)
    return [
        torch.optim.AdamW(
            others,
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
        ),
        torch.optim.Muon(
            matrices, lr=settings.matrix_learning_rate, weight_decay=settings.weight_decay
        ),
    ]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors of the model, shared ones once."""
    names: dict[int, str] = {}
    for name, tensor in sorted(model.state_dict().items()):
        names.setdefault(tensor.data_ptr(), name)
    state = model.state_dict()
    return {name: state[name].contiguous() for name in names.values()}
