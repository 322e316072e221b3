"""The language model alone, on text: for the small base model, from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from NatureLM.training.examples import Example
from NatureLM.training.objectives.base import StepOutput
from NatureLM.training.samples import Sample

IGNORE = -100


class LanguageModel:
    """Next-token loss on answers, or on all text, in the form that the whole model is asked in.

    A row is BOS, the complete prompt, the answer and `end_symbol`; prompt and answer are tokenised
    apart, as in `NatureLM.loss`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: str,
        end_symbol: str,
        max_answer_tokens: int,
        all_tokens: bool = False,
        max_new_tokens: int = 60,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.module: nn.Module = _Step(model)
        self.template = template
        self.sample_rate = 16000
        self.window_samples = 0
        self._end_symbol = end_symbol
        self._max_answer_tokens = max_answer_tokens
        self._all_tokens = all_tokens
        self._max_new_tokens = max_new_tokens

    def collate(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Token ids padded on the right, their mask, and labels (IGNORE where nothing is asked)."""
        rows, labels = [], []
        for sample in samples:
            prompt = self._prompt_ids(sample.prompt)
            answer = self._ids(sample.answer + self._end_symbol)[: self._max_answer_tokens]
            rows.append(torch.tensor(prompt + answer))
            asked = prompt if self._all_tokens else [IGNORE] * len(prompt)
            labels.append(torch.tensor(asked + answer))
        lengths = torch.tensor([len(row) for row in rows])
        return {
            "input_ids": pad_sequence(rows, batch_first=True),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE),
        }

    def length(self, example: Example) -> int | None:
        """Letters stand for tokens well enough to sort by."""
        return max(len(prompt) for prompt in example.prompts) + len(example.answer)

    def train_mode(self) -> None:
        """All of it learns."""
        self.module.train()

    @torch.no_grad()
    def answers(self, samples: Sequence[Sample]) -> list[str]:
        """Greedy answers, one at a time grouped by prompt length, so that nothing is padded."""
        by_length: dict[int, list[tuple[int, list[int]]]] = {}
        for i, sample in enumerate(samples):
            ids = self._prompt_ids(sample.prompt)
            by_length.setdefault(len(ids), []).append((i, ids))
        end = self._ids(self._end_symbol)[0]
        texts = [""] * len(samples)
        for group in by_length.values():
            prompts = torch.tensor([row for _, row in group], device=self.model.device)
            generate: Any = self.model.generate
            out = generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=self._max_new_tokens,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=end,
            )
            for (i, row), tokens in zip(group, out.tolist(), strict=True):
                answer = tokens[len(row) :]
                answer = answer[: answer.index(end)] if end in answer else answer
                texts[i] = self._text(answer)
        return texts

    def save(self, folder: Path) -> None:
        """A folder that transformers reads, and that `model.llama_path` can name."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _text(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text).strip()

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _prompt_ids(self, prompt: str) -> list[int]:
        start = self.tokenizer.bos_token_id
        return ([] if start is None else [start]) + self._ids(prompt)


class _Step(nn.Module):
    """Loss, with logits computed only where something is to be predicted."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> StepOutput:
        wanted_BL = batch["labels"][:, 1:]
        asked_BL = wanted_BL != IGNORE
        logits_NV = self._logits(batch, asked_BL).float()
        wanted_N = wanted_BL[asked_BL]
        loss = F.cross_entropy(logits_NV, wanted_N, reduction="sum")
        correct = (logits_NV.argmax(-1) == wanted_N).sum()
        return StepOutput(loss, asked_BL.sum(), correct)

    def _logits(self, batch: dict[str, Any], asked_BL: Tensor) -> Tensor:
        inputs = {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "use_cache": False,
        }
        if type(self.model).__name__ == "LlamaForCausalLM":  # its head is applied to states as is
            hidden = self.model.model(**inputs).last_hidden_state[:, :-1][asked_BL]
            logits: Tensor = self.model.lm_head(hidden)
            return logits
        all_logits: Tensor = self.model(**inputs).logits
        return all_logits[:, :-1][asked_BL]
