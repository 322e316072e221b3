"""The audio encoder alone, as a classifier: to pretrain a small BEATs.

The head is BEATs' own predictor; the model that is built on the encoder later leaves it out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from NatureLM.audio.fbank import normalised_fbank
from NatureLM.config.architecture import FbankConfig
from NatureLM.config.training import EncoderTaskConfig
from NatureLM.errors import UsageError
from NatureLM.models.beats import BEATs
from NatureLM.models.checkpoint.save import state_of, write_tensors
from NatureLM.training.examples import Example
from NatureLM.training.objectives.base import StepOutput
from NatureLM.training.objectives.masking import apply_masks
from NatureLM.training.samples import Sample

ENCODER_FILE = "encoder.json"


class EncoderClassifier:
    """Softmax over one label (mixes share it out), or a yes or no for each label.

    classes: label of each output of the head
    """

    def __init__(
        self,
        beats: BEATs,
        classes: Sequence[str],
        config: EncoderTaskConfig,
        *,
        fbank: FbankConfig,
        sample_rate: int,
        window_samples: int,
    ) -> None:
        if beats.predictor is None or beats.predictor.out_features != len(classes):
            raise ValueError(f"the encoder needs a head of {len(classes)} classes")
        self.beats = beats
        self.classes = list(classes)
        self.module: nn.Module = _Step(beats, config, fbank, sample_rate)
        self.template = "{}"
        self.sample_rate = sample_rate
        self.window_samples = window_samples
        self._fbank = fbank
        self._places = {label: i for i, label in enumerate(self.classes)}
        self._multi_label = config.loss == "multi-label"

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Windows (B, S), targets (B, classes) and masks; "None" is the empty set of labels."""
        target_BC = torch.zeros(len(samples), len(self.classes))
        for row, sample in zip(target_BC, samples, strict=True):
            for label in sample.labels:
                if label in self._places:
                    row[self._places[label]] = 1.0
                elif label != "None" or not self._multi_label:
                    raise UsageError(
                        f"{sample.id}: the label {label!r} is not among the "
                        f"{len(self.classes)} classes of the training data"
                    )
        return {
            "wav": torch.stack([torch.from_numpy(sample.audios[0]) for sample in samples]),
            "target": target_BC,
            "masks": [sample.masks[0] for sample in samples],
        }

    def length(self, example: Example) -> int | None:
        """Windows are equally long."""
        return None

    def train_mode(self) -> None:
        """All of it learns."""
        self.module.train()

    @torch.no_grad()
    def answers(self, samples: Sequence[Sample]) -> list[str]:
        """The likeliest label, or all that are likelier than not."""
        device = next(self.module.parameters()).device
        batch = self.collate(samples)
        logits_BC = self.module.logits(batch["wav"].to(device), [()] * len(samples))  # type: ignore[operator]
        if not self._multi_label:
            return [self.classes[i] for i in logits_BC.argmax(-1).tolist()]
        return [
            ", ".join(sorted(self.classes[i] for i in (row > 0).nonzero().flatten().tolist()))
            or "None"
            for row in logits_BC
        ]

    def save(self, folder: Path) -> None:
        """`model.safetensors` (BEATs' own names) and `encoder.json` with sizes and classes."""
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(state_of(self.beats), folder)
        described = {
            "beats_cfg": self.beats.cfg.model_dump(),
            "fbank_cfg": self._fbank.model_dump(),
            "sample_rate": self.sample_rate,
            "window_samples": self.window_samples,
            "classes": self.classes,
        }
        (folder / ENCODER_FILE).write_text(json.dumps(described, indent=1) + "\n")


class _Step(nn.Module):
    def __init__(
        self, beats: BEATs, config: EncoderTaskConfig, fbank: FbankConfig, sample_rate: int
    ) -> None:
        super().__init__()
        self.beats = beats
        self._config = config
        self._fbank = fbank
        self._sample_rate = sample_rate

    def logits(self, wav_BS: Tensor, masks: Sequence[Any]) -> Tensor:
        """Class logits (B, classes)."""
        fbank_BTF = normalised_fbank(wav_BS, self._sample_rate, self._fbank)
        return self.beats.classify(apply_masks(fbank_BTF, masks))

    def forward(self, batch: dict[str, Any]) -> StepOutput:
        target_BC = batch["target"]
        logits_BC = self.logits(batch["wav"], batch["masks"]).float()
        count = torch.tensor(len(target_BC), device=logits_BC.device)
        if self._config.loss == "multi-label":
            weight = torch.full_like(logits_BC[0], self._config.positive_weight)
            smooth = self._config.label_smoothing
            aimed = target_BC * (1 - smooth) + smooth / 2
            losses = F.binary_cross_entropy_with_logits(
                logits_BC, aimed, reduction="none", pos_weight=weight
            ).sum(-1)
            right = ((logits_BC > 0) == (target_BC > 0.5)).all(-1)
        else:
            shares = target_BC / target_BC.sum(-1, keepdim=True).clamp_min(1)
            losses = F.cross_entropy(
                logits_BC, shares, reduction="none", label_smoothing=self._config.label_smoothing
            )
            right = target_BC.gather(1, logits_BC.argmax(-1, keepdim=True))[:, 0] > 0
        return StepOutput(losses.sum(), count, right.sum())
