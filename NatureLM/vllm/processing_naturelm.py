"""From conversations with sound to what the model takes; it is copied into the folder.

Shapes: R rows, L positions, N clips, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from NatureLM.models.audio_side import fit_window


class NatureLMFeatureExtractor(SequenceFeatureExtractor):
    """Waveforms cut or padded with silence to the model's window; the model does the rest.

    sampling_rate: Hz, of the model
    chunk_length: seconds of a window
    """

    model_input_names = ["input_values"]  # noqa: RUF012 (as transformers declares it)

    def __init__(
        self, sampling_rate: int = 16000, chunk_length: float = 10.0, **kwargs: Any
    ) -> None:
        self.chunk_length = chunk_length
        kwargs = {"feature_size": 1, "padding_value": 0.0, **kwargs}
        super().__init__(sampling_rate=sampling_rate, **kwargs)

    def __call__(self, audio: Any, sampling_rate: int | None = None, **_: Any) -> BatchFeature:
        """One waveform (samples,) or several → `input_values` (N, S), float32 in [-1, 1]."""
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(
                f"the sound has {sampling_rate} samples a second, and the model takes "
                f"{self.sampling_rate}: resample it first"
            )
        clips = list(audio) if isinstance(audio, (list, tuple)) else [audio]
        if clips and isinstance(clips[0], (int, float)):
            clips = [np.asarray(clips, np.float32)]
        window = round(self.chunk_length * self.sampling_rate)
        windows = [fit_window(_as_float(clip), window).float() for clip in clips]
        return BatchFeature({"input_values": torch.stack(windows)})


def _as_float(clip: Any) -> Any:
    """float32, as decoders give it; float64 would be kept and cost twice."""
    is_double = isinstance(clip, np.ndarray) and clip.dtype == np.float64
    return clip.astype(np.float32) if is_double else clip


class NatureLMAudioProcessor(ProcessorMixin):
    """Tokenizer and feature extractor in one, with a chat template that places the clips.

    audio_token: stands for a clip in a prompt, and in `input_ids` at each of its positions
    audio_positions: how many these are
    """

    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sampling_rate: int = 16000,
        chunk_length: float = 10.0,
        audio_token: str = "<AudioHere>",
        audio_positions: int = 1,
        chat_template: str | None = None,
        **_: Any,
    ) -> None:
        # Meant for word pieces; on byte-level tokens it would take spaces out of answers.
        tokenizer.clean_up_tokenization_spaces = False
        super().__init__(tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]
        self.sampling_rate, self.chunk_length = sampling_rate, chunk_length
        self.audio_token, self.audio_positions = audio_token, audio_positions
        self.audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)
        self.feature_extractor = NatureLMFeatureExtractor(sampling_rate, chunk_length)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "input_values"]

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: Any = None,
        *,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Complete prompts and their clips in order → `input_ids`, `attention_mask` (R, L), padded
        on the left, and `input_values` (N, S).

        A prompt begins with the beginning-of-text token, which is put there where it is not.
        Raises ValueError where there are not as many audio tokens as clips.
        """
        found: dict[str, Any] = {}
        if audio is not None and len(audio):
            found.update(self.feature_extractor(audio, sampling_rate))
        if text is not None:
            prompts = [text] if isinstance(text, str) else list(text)
            places, clips = (
                sum(one.count(self.audio_token) for one in prompts),
                len(found.get("input_values", ())),
            )
            if places != clips:
                raise ValueError(
                    f"the prompts have {places} {self.audio_token}, and there are {clips} clips"
                )
            found.update(self._tokenized(prompts))
        return BatchFeature(found, tensor_type=return_tensors)

    def _tokenized(self, prompts: Sequence[str]) -> dict[str, Any]:
        tokenizer: Any = self.tokenizer
        bos = tokenizer.bos_token or ""
        repeated = self.audio_token * self.audio_positions
        whole = [
            (one if one.startswith(bos) else bos + one).replace(self.audio_token, repeated)
            for one in prompts
        ]
        made = tokenizer(
            whole, add_special_tokens=False, padding=len(whole) > 1, padding_side="left"
        )
        return {name: made[name] for name in ("input_ids", "attention_mask")}
