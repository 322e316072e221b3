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
from NatureLM.training.samples import Sample

_TOGETHER = 24  # rows that pass the language model at a time


class AudioText:
    """Loss of the answer tokens under the model; see `NatureLM.loss`."""

    def __init__(self, model: NatureLM, *, max_new_tokens: int = 60) -> None:
        if model.processor is None:
            raise ValueError("training needs a model with its tokenizer")
        self.model = model
        self.module: nn.Module = _Step(model)
        self.template = model.processor.prompt_template
        self.sample_rate = model.config.sample_rate
        self.window_samples = model.config.window_samples
        self._max_new_tokens = max_new_tokens

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """A batch of `NatureLM.loss`, and the masks of its windows in order.

        Further questions about a sample's windows are rows with the same tensors, which the model
        encodes once.
        """
        batch: dict[str, Any] = {"prompts": [], "audios": [], "answers": [], "masks": []}
        for sample in samples:
            windows = [torch.from_numpy(wav) for wav in sample.audios]
            batch["masks"] += sample.masks
            for prompt, answer in ((sample.prompt, sample.answer), *sample.further):
                batch["prompts"].append(prompt)
                batch["audios"].append(windows)
                batch["answers"].append(answer)
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

    def __init__(self, model: NatureLM) -> None:
        super().__init__()
        self.model = model
        self._masks: deque[Any] = deque()
        model.beats.register_forward_pre_hook(self._mask)

    def forward(self, batch: dict[str, Any]) -> StepOutput:
        self._masks.clear()
        if any(batch["masks"]):
            self._masks.extend(batch["masks"])
        audios = self.model.encode_clips(batch["audios"])
        outs = [self._loss(batch, audios, rows) for rows in _alike(batch)]
        return StepOutput(*(torch.stack(parts).sum() for parts in zip(*outs, strict=True)))

    def _loss(self, batch: dict[str, Any], audios: list[list[Tensor]], rows: list[int]) -> Any:
        out = self.model.loss(
            {
                "prompts": [batch["prompts"][row] for row in rows],
                "audios": [audios[row] for row in rows],
                "answers": [batch["answers"][row] for row in rows],
            }
        )
        assert out.loss is not None
        assert out.total is not None
        assert out.correct is not None
        return StepOutput(out.loss * out.total, out.total, out.correct)

    def _mask(self, beats: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The model encodes windows in the order of the batch, some at a time."""
        if not self._masks:
            return None
        fbank_BTF, *rest = inputs
        masks = [self._masks.popleft() for _ in range(fbank_BTF.shape[0])]
        return (apply_masks(fbank_BTF, masks), *rest)


def _alike(batch: dict[str, Any]) -> list[list[int]]:
    """The rows in groups of alike length, so that a list of names does not pad short questions."""
    texts = [p + a for p, a in zip(batch["prompts"], batch["answers"], strict=True)]
    order = sorted(range(len(texts)), key=lambda row: (len(batch["audios"][row]), len(texts[row])))
    return [order[first : first + _TOGETHER] for first in range(0, len(order), _TOGETHER)]
