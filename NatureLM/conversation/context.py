"""The one row of a conversation in the language model: what it has run stays, what changes runs.

Shapes: L positions, Q audio positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from NatureLM.generation.kvcache import RoomyCache
from NatureLM.generation.prefill import forward
from NatureLM.generation.splice import prompt_parts

_PASS = {"cpu": 2048}  # positions of one pass, which bounds the memory of a long first question
_ACCELERATOR_PASS = 8192


_MOST = 1 << 20  # positions of a clip


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip as the language model hears it: audio embeddings (Q, D), and a number of its own."""

    number: int
    audio_QD: Tensor


class Pieces:
    """A text with clips in it as numbers: token ids, and below zero the positions of clips.

    text: complete text with placeholders, one for each of the clips
    """

    def __init__(self, text: str, clips: Sequence[Clip], tokenizer: Any) -> None:
        self._clips = {clip.number: clip for clip in clips}
        self.ids: list[int] = []
        for index, part in enumerate(prompt_parts(text, tokenizer)):
            self.ids += part
            if index < len(clips):
                first = clips[index].number * _MOST
                self.ids += [-1 - first - q for q in range(clips[index].audio_QD.shape[0])]

    def __len__(self) -> int:
        return len(self.ids)

    def embeddings(self, start: int, stop: int, embed_tokens: torch.nn.Embedding) -> Tensor:
        """Input embeddings (stop - start, D)."""
        weight = embed_tokens.weight
        ids = torch.tensor(self.ids[start:stop], dtype=torch.long, device=weight.device)
        embeds_LD: Tensor = embed_tokens(ids.clamp_min(0))
        for place, number in enumerate(self.ids[start:stop]):
            if number < 0:
                clip, position = divmod(-1 - number, _MOST)
                embeds_LD[place] = self._clips[clip].audio_QD[position].to(weight)
        return embeds_LD


class Context:
    """Keys and values of one growing text under one α.

    model: see `NatureLM.generation.engine.EngineModel`
    """

    def __init__(self, model: Any, alpha: float) -> None:
        self._model = model
        self._alphas = [alpha]
        self._cache = RoomyCache()
        self._ids: list[int] = []  # what the cache holds

    @property
    def held(self) -> int:
        """Positions whose keys and values are there."""
        return len(self._ids)

    def read(self, pieces: Pieces) -> Tensor:
        """Run what is not held yet of a text; logits (1, V) after its last position."""
        both = zip(self._ids, pieces.ids, strict=False)
        alike = sum(1 for _ in takewhile(lambda two: two[0] == two[1], both))
        self._keep(min(alike, len(pieces) - 1))
        size = _PASS.get(self._model.device.type, _ACCELERATOR_PASS)
        logits_RV = torch.empty(0)
        for start in range(self.held, len(pieces), size):
            stop = min(start + size, len(pieces))
            embeds_LD = pieces.embeddings(start, stop, self._model.llama_embed_tokens)
            logits_RV = self._forward(pieces.ids[start:stop], inputs_embeds=embeds_LD[None])
        return logits_RV

    def step(self, token: int) -> Tensor:
        """Append a token; logits (1, V) after it."""
        ids = torch.tensor([[token]], device=self._model.llama_embed_tokens.weight.device)
        return self._forward([token], input_ids=ids)

    def _forward(self, new: Sequence[int], **inputs: Any) -> Tensor:
        device = self._model.llama_embed_tokens.weight.device
        before, total = self.held, self.held + len(new)
        try:
            logits = forward(
                self._model.language_model,
                self._cache,
                self._alphas,
                attention_mask=torch.ones(1, total, dtype=torch.long, device=device),
                position_ids=torch.arange(before, total, device=device)[None],
                **inputs,
            )
        except BaseException:
            # Some layers may have taken the new positions, others not.
            self._cache, self._ids = RoomyCache(), []
            raise
        self._ids += new
        return logits

    def _keep(self, positions: int) -> None:
        """Forget all but the first positions."""
        if positions == 0:
            self._cache = RoomyCache()
        elif positions < self.held:
            self._cache.crop(positions - self.held)
        self._ids = self._ids[:positions]
