"""The language model's state while rows are decoded: keys and values, mask, positions, α.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from NatureLM.generation.prefill import SharedStart, forward, prefill


class DecodingSession:
    """Rows that are decoded together, one token at a time; rows may be dropped or repeated.

    prompts_LD: embeddings (length, width) of each prompt
    shared: prompts that begin alike (see `prefill`)
    new_tokens: how many steps there may be

    `logits_RV` (R, V) are those after each prompt's last position.
    """

    def __init__(
        self,
        language_model: nn.Module,
        prompts_LD: Sequence[Tensor],
        alphas: Sequence[float],
        *,
        shared: Sequence[SharedStart] = (),
        new_tokens: int = 64,
    ) -> None:
        self._model = language_model
        self._alphas = list(alphas)
        done = prefill(language_model, prompts_LD, alphas, shared=shared, room=new_tokens)
        self.logits_RV = done.logits_RV
        self._cache = done.cache
        self._mask_RL = done.mask_RL
        self._next_position_R = done.mask_RL.sum(dim=1)
        self._prompt_positions = done.mask_RL.shape[1]
        self._owners = list(range(len(prompts_LD)))  # the prompt that each row continues

    @property
    def rows(self) -> int:
        return self._mask_RL.shape[0]

    def step(self, tokens_R: Tensor) -> Tensor:
        """Append one token to every row; returns the logits (R, V) that follow it."""
        self._mask_RL = torch.cat([self._mask_RL, self._mask_RL.new_ones(self.rows, 1)], dim=1)
        logits = forward(
            self._model,
            self._cache,
            self._alphas,
            input_ids=tokens_R[:, None],
            attention_mask=self._mask_RL,
            position_ids=self._next_position_R[:, None],
        )
        self._next_position_R = self._next_position_R + 1
        return logits

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; a row may be named several times or not at all."""
        if list(rows) == list(range(self.rows)):
            return
        owners = [self._owners[row] for row in rows]
        places = torch.tensor(list(rows), device=self._mask_RL.device)
        if owners == self._owners:  # only what was generated moves, from beam to beam of a prompt
            self._cache.select(places, self._prompt_positions)
            return
        self._cache.select(places)
        self._owners = owners
        self._mask_RL = self._mask_RL[places]
        self._next_position_R = self._next_position_R[places]
        self._alphas = [self._alphas[row] for row in rows]
