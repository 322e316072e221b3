"""What a run learns: the whole model, the audio encoder alone, or the language model alone.

An objective is a network with its loss, its batches and its files; the loop is the same for all.

Shapes: B windows or rows, S samples, T frames, M mel bins, C classes, L positions, N of them where
something is to be predicted, V vocabulary.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from NatureLM.audio.fbank import normalised_fbank
from NatureLM.config.model import FbankConfig
from NatureLM.config.schema import EncoderTaskConfig, RunConfig
from NatureLM.data.sample import Example
from NatureLM.errors import UsageError
from NatureLM.models import NatureLM
from NatureLM.models.beats import BEATs
from NatureLM.models.checkpoint.tensors import state_of, write_tensors
from NatureLM.models.modeling import IGNORE
from NatureLM.prompts import token_ids
from NatureLM.training.data import NONE_LABEL
from NatureLM.training.samples import Mask, Sample


class StepOutput(NamedTuple):
    """Sums over a micro-batch, so that parts of a batch add up to the batch.

    loss: summed over answer tokens (or clips, for the encoder)
    total: number of these tokens or clips
    correct: how many were predicted right
    """

    loss: Tensor
    total: Tensor
    correct: Tensor


class Objective(nn.Module, ABC):
    """A network with its loss, its batches and its files; give `Trainer` one of your own.

    `objective(batch)` gives a `StepOutput`; what is trainable in it learns.

    template: that questions are put into
    sample_rate: of the clips, in Hz
    window_samples: samples that a clip is cut or padded to
    revisions: commits of what it started from, as far as that was the Hub
    """

    template: str = "{}"
    sample_rate: int = 16000
    window_samples: int = 0
    revisions: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def forward(self, batch: Any) -> StepOutput:
        """The sums of a batch."""

    @abstractmethod
    def collate(self, samples: Sequence[Sample]) -> Any:
        """The batch of a list of samples."""

    @abstractmethod
    def answers(self, samples: Sequence[Sample]) -> list[str]:
        """Answers that the network gives to samples, for the accuracy."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the result."""

    def length(self, example: Example) -> int | None:
        """How long a row is, for batches that pad little; None where all are padded alike."""
        return None


def apply_masks(fbank_BTF: Tensor, masks: Sequence[Sequence[Mask]]) -> Tensor:
    """Set masked bands and stretches of normalised fbanks to 0, the mean of the training data."""
    if not any(masks):
        return fbank_BTF
    masked = fbank_BTF.clone()
    for row, row_masks in zip(masked, masks, strict=True):
        for mask in row_masks:
            axis = row if mask.axis == "time" else row.T
            start = round(mask.start * len(axis))
            axis[start : start + round(mask.width * len(axis))] = 0
    return masked


@dataclass(frozen=True)
class DistillationTargets:
    """What a classifier would answer, with its probabilities, for the whole model to learn.

    A classifier that sees the same changed window is unsure where the window is hard to tell.
    Learning how sure it is says more than the one right answer (Hinton et al., arXiv 1503.02531).

    classifier: spectrograms (B, T, M) → probabilities (B, C), without gradients
    texts: for each task, the answer that stands for each class; other tasks keep their answers
    share: what part of the target is the classifier's; the rest is the right answer
    """

    classifier: Callable[[Tensor], Tensor]
    texts: Mapping[str, Sequence[str]]
    share: float = 0.9

    def of(self, task: str, answer: str, probabilities_C: Sequence[float]) -> dict[str, float]:
        """Answers and their shares; empty where the classifier has no say."""
        texts = self.texts.get(task, ())
        if answer not in texts:
            return {}
        shares: dict[str, float] = defaultdict(float)
        shares[answer] = 1 - self.share
        for text, probability in zip(texts, probabilities_C, strict=True):
            shares[text] += self.share * probability
        return dict(shares)


_ENCODED_PATCHES = 8192  # of windows encoded at once; bounds the memory of the attention scores


class AudioText(Objective):
    """Loss of the answer tokens under the model; see `NatureLM.loss`.

    rows: questions that pass the language model at a time
    """

    def __init__(
        self,
        model: NatureLM,
        *,
        max_new_tokens: int = 60,
        soft: DistillationTargets | None = None,
        rows: int = RunConfig().rows_per_pass,
    ) -> None:
        super().__init__()
        if model.processor is None:
            raise ValueError("training needs a model with its tokenizer")
        self.model = model
        self.revisions = model.revisions
        self.template = model.processor.prompt_template
        self.sample_rate = model.config.sample_rate
        self.window_samples = model.config.window_samples
        self._max_new_tokens = max_new_tokens
        self._soft, self._rows = soft, rows
        self._masks: deque[Any] = deque()  # of the windows that are still to be encoded
        self._probabilities: list[list[float]] = []  # the classifier's, for each window
        model.beats.register_forward_pre_hook(self._before_beats)

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Prompts with their answers, the windows of all of them, and the windows' masks.

        `audios` says for each prompt which of the windows are its clips: several questions about
        one sample have the same, which is carried to the device and encoded once.
        """
        names = ("prompts", "audios", "answers", "tasks", "masks")
        batch: dict[str, Any] = {name: [] for name in names}
        windows: list[Any] = []
        for sample in samples:
            places = range(len(windows), len(windows) + len(sample.audios))
            windows += sample.audios
            batch["masks"] += sample.masks
            for question in sample.questions:
                batch["prompts"].append(question.prompt)
                batch["audios"].append(list(places))
                batch["answers"].append(question.answer)
                batch["tasks"].append(question.task)
        if windows:
            batch["windows"] = torch.from_numpy(np.stack(windows))
        return batch

    def forward(self, batch: dict[str, Any]) -> StepOutput:
        """The loss of all rows, some at a time."""
        self._probabilities.clear()
        self._masks = deque(batch["masks"] if any(batch["masks"]) else ())
        encoded = self._encode(batch)
        soft = self._soft_targets(batch)
        outs = []
        for rows in _by_length(batch, self._rows):
            part = {
                "prompts": [batch["prompts"][row] for row in rows],
                "audios": [[encoded[place] for place in batch["audios"][row]] for row in rows],
                "answers": [batch["answers"][row] for row in rows],
                "soft": [soft[row] for row in rows] if soft else [],
            }
            out: Any = self.model.loss(part)
            outs.append((out.loss * out.total, out.total, out.correct))
        return StepOutput(*(torch.stack(parts).sum() for parts in zip(*outs, strict=True)))

    def _encode(self, batch: dict[str, Any]) -> list[Tensor]:
        """Audio embeddings (Q, D) of all windows, some at a time."""
        if "windows" not in batch:
            return []
        sizes = self.model.config
        at_once = max(1, _ENCODED_PATCHES // sizes.patches(sizes.window_samples))
        parts = [self.model.encode_audio(part) for part in batch["windows"].split(at_once)]
        return [audio_QD for part in parts for audio_QD in part]

    def train(self, mode: bool = True) -> AudioText:
        """Frozen parts stay in evaluation mode: their dropout would only be noise."""
        super().train(mode)
        for part in self.model.children():
            if not any(p.requires_grad for p in part.parameters()):
                part.eval()
        return self

    def answers(self, samples: Sequence[Sample]) -> list[str]:
        """Greedy answers."""
        questions = [(one.prompt, sample.audios) for sample in samples for one in sample.questions]
        prompts, audios = zip(*questions, strict=True)
        return self.model.generate(
            prompts, audios, num_beams=1, max_new_tokens=self._max_new_tokens
        )

    def save(self, folder: Path) -> None:
        """A folder that `NatureLM.from_pretrained` reads."""
        self.model.save_pretrained(folder)

    def _soft_targets(self, batch: dict[str, Any]) -> list[dict[str, float]]:
        """What the classifier would answer to each row about one clip; windows as encoded."""
        if self._soft is None or not self.training:
            return []
        rows = zip(batch["tasks"], batch["answers"], batch["audios"], strict=True)
        return [
            self._soft.of(task, answer, self._probabilities[places[0]]) if len(places) == 1 else {}
            for task, answer, places in rows
        ]

    def _before_beats(self, beats: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Mask what BEATs is given: windows in the order of the batch, some at a time."""
        fbank_BTF, *rest = inputs
        if self._masks:
            masks = [self._masks.popleft() for _ in range(fbank_BTF.shape[0])]
            fbank_BTF = apply_masks(fbank_BTF, masks)
        if self._soft is not None and self.training:
            self._probabilities += self._soft.classifier(fbank_BTF).tolist()
        return (fbank_BTF, *rest)


def _by_length(batch: dict[str, Any], size: int) -> list[list[int]]:
    """Rows in groups of similar length, so that a list of names does not pad short questions."""
    texts = [p + a for p, a in zip(batch["prompts"], batch["answers"], strict=True)]
    order = sorted(range(len(texts)), key=lambda row: (len(batch["audios"][row]), len(texts[row])))
    return [order[i : i + size] for i in range(0, len(order), size)]


class EncoderClassifier(Objective):
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
        super().__init__()
        if beats.predictor is None or beats.predictor.out_features != len(classes):
            raise ValueError(f"the encoder needs a head of {len(classes)} classes")
        self.beats = beats
        self.classes = list(classes)
        self.sample_rate = sample_rate
        self.window_samples = window_samples
        self._config, self._fbank = config, fbank
        self._places = {label: i for i, label in enumerate(self.classes)}
        self._multi_label = config.loss == "multi-label"

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Windows (B, S), targets (B, classes) and masks; "None" is the empty set of labels."""
        target_BC = torch.zeros(len(samples), len(self.classes))
        for row, sample in zip(target_BC, samples, strict=True):
            for label in sample.labels:
                if label in self._places:
                    row[self._places[label]] = 1.0
                elif label != NONE_LABEL or not self._multi_label:
                    raise UsageError(
                        f"{sample.id}: the label {label!r} is not among the "
                        f"{len(self.classes)} classes of the training data"
                    )
        return {
            "wav": torch.stack([torch.from_numpy(sample.audios[0]) for sample in samples]),
            "target": target_BC,
            "masks": [sample.masks[0] for sample in samples],
        }

    def _logits(self, wav_BS: Tensor, masks: Sequence[Any]) -> Tensor:
        fbank_BTF = normalised_fbank(wav_BS, self.sample_rate, self._fbank)
        return self.beats.classify(apply_masks(fbank_BTF, masks))

    def forward(self, batch: dict[str, Any]) -> StepOutput:
        """Cross-entropy of each window."""
        target_BC = batch["target"]
        logits_BC = self._logits(batch["wav"], batch["masks"]).float()
        smooth = self._config.label_smoothing
        if self._multi_label:
            weight = torch.full_like(logits_BC[0], self._config.positive_weight)
            smoothed_BC = target_BC * (1 - smooth) + smooth / 2
            loss = F.binary_cross_entropy_with_logits(
                logits_BC, smoothed_BC, reduction="none", pos_weight=weight
            ).sum(-1)
            right = ((logits_BC > 0) == (target_BC > 0.5)).all(-1)
        else:
            shares = target_BC / target_BC.sum(-1, keepdim=True).clamp_min(1)
            loss = F.cross_entropy(logits_BC, shares, reduction="none", label_smoothing=smooth)
            right = target_BC.gather(1, logits_BC.argmax(-1, keepdim=True))[:, 0] > 0
        count = torch.tensor(len(target_BC), device=logits_BC.device)
        return StepOutput(loss.sum(), count, right.sum())

    @torch.no_grad()
    def answers(self, samples: Sequence[Sample]) -> list[str]:
        """The likeliest label, or all that are likelier than not."""
        wav_BS = self.collate(samples)["wav"].to(next(self.parameters()).device)
        logits_BC = self._logits(wav_BS, [()] * len(samples))
        if not self._multi_label:
            return [self.classes[i] for i in logits_BC.argmax(-1).tolist()]
        return [
            ", ".join(sorted(self.classes[i] for i in (row > 0).nonzero().flatten().tolist()))
            or NONE_LABEL
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
        (folder / "encoder.json").write_text(json.dumps(described, indent=1) + "\n")


class LanguageModel(Objective):
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
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self._end_symbol = end_symbol
        self._max_answer_tokens = max_answer_tokens
        self._all_tokens = all_tokens
        self._max_new_tokens = max_new_tokens

    def collate(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Token ids (B, L) padded on the right, their mask, labels (IGNORE is not predicted)."""
        rows, labels = [], []
        for sample in samples:
            prompt = self._prompt_ids(sample.prompt)
            answer = self._ids(sample.answer + self._end_symbol)[: self._max_answer_tokens]
            rows.append(torch.tensor(prompt + answer))
            prompt_labels = prompt if self._all_tokens else [IGNORE] * len(prompt)
            labels.append(torch.tensor(prompt_labels + answer))
        lengths = torch.tensor([len(row) for row in rows])
        return {
            "input_ids": pad_sequence(rows, batch_first=True),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE),
        }

    def forward(self, batch: dict[str, Any]) -> StepOutput:
        """The loss, with logits computed only where something is to be predicted, if possible."""
        labels_BL = batch["labels"][:, 1:]
        predicted_BL = labels_BL != IGNORE
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        if type(self.model).__name__ == "LlamaForCausalLM":  # its head is applied to states as is
            states_BLD = self.model.model(**inputs, use_cache=False).last_hidden_state
            logits_NV = self.model.lm_head(states_BLD[:, :-1][predicted_BL]).float()
        else:
            logits_BLV = self.model(**inputs, use_cache=False).logits
            logits_NV = logits_BLV[:, :-1][predicted_BL].float()
        labels_N = labels_BL[predicted_BL]
        loss = F.cross_entropy(logits_NV, labels_N, reduction="sum")
        correct = (logits_NV.argmax(-1) == labels_N).sum()
        return StepOutput(loss, predicted_BL.sum(), correct)

    def length(self, example: Example) -> int | None:
        """Letters stand for tokens well enough to sort by."""
        return max(len(prompt) for prompt in example.prompts) + len(example.answer)

    @torch.no_grad()
    def answers(self, samples: Sequence[Sample]) -> list[str]:
        """Greedy answers, one at a time grouped by prompt length, so that nothing is padded."""
        by_length: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
        for i, sample in enumerate(samples):
            ids = self._prompt_ids(sample.prompt)
            by_length[len(ids)].append((i, ids))
        end = self._ids(self._end_symbol)[0]
        texts = [""] * len(samples)
        generate: Any = self.model.generate
        for length, group in by_length.items():
            prompts = torch.tensor([ids for _, ids in group], device=self.model.device)
            out = generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=self._max_new_tokens,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=end,
            )
            for (i, _), tokens in zip(group, out[:, length:].tolist(), strict=True):
                answer = tokens[: tokens.index(end)] if end in tokens else tokens
                text = self.tokenizer.decode(
                    answer, skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
                texts[i] = str(text).strip()
        return texts

    def save(self, folder: Path) -> None:
        """A folder that transformers reads, and that `model.llama_path` can name."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _ids(self, text: str) -> list[int]:
        return token_ids(text, self.tokenizer)

    def _prompt_ids(self, prompt: str) -> list[int]:
        start = self.tokenizer.bos_token_id
        return ([] if start is None else [start]) + self._ids(prompt)
