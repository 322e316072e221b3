"""What stands between a user's data and the model's tensors: tokenizer, audio length, template."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from NatureLM.models.configuration import NatureLMConfig
from NatureLM.prompts import render

PAD_TOKEN = "[PAD]"


class NatureLMProcessor(ProcessorMixin):
    """Tokenizer and the facts of the audio input.

    Calling it gives what `NatureLM.generate` takes:
    `prompts, audios = processor(waveforms, queries)`.
    """

    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sample_rate: int = 16000,
        window_seconds: float = 10.0,
        prompt_template: str = "{}",
        **kwargs: Any,
    ) -> None:
        # Meant for word pieces; on byte-level tokens it would take spaces out of answers.
        tokenizer.clean_up_tokenization_spaces = False
        super().__init__(tokenizer, **kwargs)  # type: ignore[no-untyped-call]
        self.sample_rate = sample_rate
        self.window_seconds = window_seconds
        self.prompt_template = prompt_template

    @classmethod
    def from_config(
        cls, config: NatureLMConfig, tokenizer: PreTrainedTokenizerBase
    ) -> NatureLMProcessor:
        """The processor of a model; gives the tokenizer the `[PAD]` that the reference adds."""
        if tokenizer.pad_token != PAD_TOKEN:
            tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        return cls(tokenizer, config.sample_rate, config.window_seconds, config.prompt_template)

    def render(self, query: str) -> str:
        """The complete prompt of a question."""
        return render(self.prompt_template, query)

    def prepare_audio(self, samples: Any, seconds: float | None = None) -> Tensor:
        """A mono waveform at the model's sample rate, cut or zero-padded to one window.

        seconds: length of the window; the model's, which is the longest, where it is None. A
            shorter one has fewer audio embeddings

        Returns float32 (or float64 as given) of shape (window samples,), clamped to [-1, 1].
        Padding is silence, as in training.
        """
        wav_S = torch.as_tensor(samples)
        if wav_S.ndim != 1:
            raise ValueError(f"a waveform must have shape (samples,), got {tuple(wav_S.shape)}")
        if not wav_S.is_floating_point():
            raise ValueError(
                f"a waveform must hold floating-point samples in [-1, 1], got {wav_S.dtype}; "
                "divide integer samples by their full scale (32768 for 16 bits)"
            )
        if wav_S.dtype != torch.float64:
            wav_S = wav_S.float()
        longest = self.window_seconds
        window = round((longest if seconds is None else min(seconds, longest)) * self.sample_rate)
        wav_S = wav_S[:window].clamp(-1.0, 1.0)
        missing = window - wav_S.shape[0]
        return torch.nn.functional.pad(wav_S, (0, missing)) if missing else wav_S

    def __call__(
        self, audios: list[Any], queries: list[str], **_: Any
    ) -> tuple[list[str], list[list[Tensor]]]:
        """Complete prompts and one prepared clip for each."""
        prompts = [self.render(query) for query in queries]
        return prompts, [[self.prepare_audio(audio)] for audio in audios]
