"""The whole model: audio and prompt in, answer out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from NatureLM.models import NatureLM
from NatureLM.training.examples import Example
from NatureLM.training.objectives.base import StepOutput
from NatureLM.training.objectives.masking import apply_masks
from NatureLM.training.objectives.soft import SoftAnswers
from NatureLM.training.samples import Sample

_TOGETHER = 24  # rows that pass the language model at a time


class AudioText:
    """Loss of the answer tokens under the model; see `NatureLM.loss`."""

    def __init__(
        self, model: NatureLM, *, max_new_tokens: int = 60, soft: SoftAnswers | None = None
    ) -> None:
        if model.processor is None:
            raise ValueError("training needs a model with its tokenizer")
        self.model = model
        self.module: nn.Module = _Step(model, soft)
        self.template = model.processor.prompt_template
        self.sample_rate = model.config.sample_rate
        self.window_samples = model.config.window_samples
        self._max_new_tokens = max_new_tokens

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """A batch of `NatureLM.loss`, and the masks of its windows in order.

        Further questions about a sample's windows are rows with the same tensors, which the model
        encodes once.
        """
        names = ("prompts", "audios", "answers", "tasks", "masks")
        batch: dict[str, Any] = {name: [] for name in names}
        for sample in samples:
            windows = [torch.from_numpy(wav) for wav in sample.audios]
            batch["masks"] += sample.masks
            for asked in sample.asked:
                batch["prompts"].append(asked.prompt)
                batch["audios"].append(windows)
                batch["answers"].append(asked.answer)
                batch["tasks"].append(asked.task)
        return batch

    def length(self, example: Example) -> int | None:
        """Windows are equally long, so only the number of clips matters."""
        return None

    def train_mode(self) -> None:
        """Frozen parts stay in evaluation mode: their dropout would only be noise."""
        self.module.train()
        for part in self.model.children():
            if not any(p.requires_grad for p in part.parameters()):
                part.eval()

    def answers(self, samples: Sequence[Sample]) -> list[str]:
        """Greedy answers."""
        batch = self.collate(samples)
        return self.model.generate(
            batch["prompts"],
            batch["audios"],
            num_beams=1,
            max_new_tokens=self._max_new_tokens,
        )

    def save(self, folder: Path) -> None:
        """A folder that `NatureLM.from_pretrained` reads."""
        self.model.save_pretrained(folder)


class _Step(nn.Module):
    """`forward` for wrappers of distributed training; masks the encoder's spectrograms."""

    def __init__(self, model: NatureLM, soft: SoftAnswers | None = None) -> None:
        super().__init__()
        self.model = model
        self._soft = soft
        self._masks: deque[Any] = deque()
        self._judged: list[list[float]] = []  # the classifier's probabilities for each window
        model.beats.register_forward_pre_hook(self._seen)

    def forward(self, batch: dict[str, Any]) -> StepOutput:
        self._masks.clear()
        self._judged.clear()
        if any(batch["masks"]):
            self._masks.extend(batch["masks"])
        audios = self.model.encode_clips(batch["audios"])
        soft = self._soft_answers(batch)
        outs = [self._loss(batch, audios, soft, rows) for rows in _alike(batch)]
        return StepOutput(*(torch.stack(parts).sum() for parts in zip(*outs, strict=True)))

    def _loss(
        self,
        batch: dict[str, Any],
        audios: list[list[Tensor]],
        soft: list[dict[str, float]],
        rows: list[int],
    ) -> Any:
        out = self.model.loss(
            {
                "prompts": [batch["prompts"][row] for row in rows],
                "audios": [audios[row] for row in rows],
                "answers": [batch["answers"][row] for row in rows],
                "soft": [soft[row] for row in rows] if soft else [],
            }
        )
        assert out.loss is not None
        assert out.total is not None
        assert out.correct is not None
        return StepOutput(out.loss * out.total, out.total, out.correct)

    def _soft_answers(self, batch: dict[str, Any]) -> list[dict[str, float]]:
        """What the classifier would answer to each row about one clip; windows as encoded."""
        if self._soft is None or not self.training:
            return []
        places: dict[int, int] = {}
        for clip in (clip for row in batch["audios"] for clip in row):
            places.setdefault(id(clip), len(places))
        rows = zip(batch["tasks"], batch["answers"], batch["audios"], strict=True)
        return [
            self._soft.of(task, answer, self._judged[places[id(clips[0])]])
            if len(clips) == 1
            else {}
            for task, answer, clips in rows
        ]

    def _seen(self, beats: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The model encodes windows in the order of the batch, some at a time."""
        fbank_BTF, *rest = inputs
        if self._masks:
            masks = [self._masks.popleft() for _ in range(fbank_BTF.shape[0])]
            fbank_BTF = apply_masks(fbank_BTF, masks)
        if self._soft is not None and self.training:
            self._judged += self._soft.classifier(fbank_BTF).tolist()
        return (fbank_BTF, *rest)


def _alike(batch: dict[str, Any]) -> list[list[int]]:
    """The rows in groups of alike length, so that a list of names does not pad short questions."""
    texts = [p + a for p, a in zip(batch["prompts"], batch["answers"], strict=True)]
    order = sorted(range(len(texts)), key=lambda row: (len(batch["audios"][row]), len(texts[row])))
    return [order[first : first + _TOGETHER] for first in range(0, len(order), _TOGETHER)]
