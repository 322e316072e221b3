"""The language model's state while rows are decoded: keys and values, mask, positions, α.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from NatureLM.generation.batch import PromptBatch
from NatureLM.merging.scaling import active_alpha, as_row_scale


class DecodingSession:
    """Rows that are decoded together, one token at a time; rows may be dropped or repeated."""

    def __init__(self, language_model: nn.Module, batch: PromptBatch, alphas: list[float]) -> None:
        self._model = language_model
        self._batch: PromptBatch | None = batch
        self._cache = DynamicCache()
        self._mask_RL = batch.mask_RL
        self._next_position_R = batch.mask_RL.sum(dim=1)
        self._alphas = alphas

    @property
    def rows(self) -> int:
        return self._mask_RL.shape[0]

    def prefill(self) -> Tensor:
        """Run the prompts; returns the logits (R, V) after their last position."""
        assert self._batch is not None, "a session is prefilled once"
        batch, self._batch = self._batch, None
        return self._forward(
            inputs_embeds=batch.embeds_RLD,
            attention_mask=batch.mask_RL,
            position_ids=batch.positions_RL,
        )

    def step(self, tokens_R: Tensor) -> Tensor:
        """Append one token to every row; returns the logits (R, V) that follow it."""
        self._mask_RL = torch.cat([self._mask_RL, self._mask_RL.new_ones(self.rows, 1)], dim=1)
        logits = self._forward(
            input_ids=tokens_R[:, None],
            attention_mask=self._mask_RL,
            position_ids=self._next_position_R[:, None],
        )
        self._next_position_R = self._next_position_R + 1
        return logits

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, in this order; a row may be named several times or not at all."""
        self._cache.batch_select_indices(rows)
        self._mask_RL = self._mask_RL[rows]
        self._next_position_R = self._next_position_R[rows]
        self._alphas = [self._alphas[row] for row in rows.tolist()]

    def _forward(self, **inputs: Tensor) -> Tensor:
        parameter = next(self._model.parameters())
        scale = as_row_scale(self._alphas, device=parameter.device, dtype=parameter.dtype)
        with active_alpha(scale):
            output = self._model(
                **inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )
        logits: Tensor = output.logits[:, -1]
        return logits if logits.dtype == torch.float64 else logits.float()
