"""A decoding step whose shapes and addresses stay, so that a GPU can replay it as one graph.

Shapes: R rows of a bucket, L its columns, H heads, K width of a head, V vocabulary. A batch has as
many rows or fewer.

Keys and values of all rows go to the column that a tensor names, and attention reads all columns
under a mask. Rows that nobody asked for see only what they write themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from NatureLM.generation.prefill import scaled_forward
from NatureLM.generation.static_memory import Bucket


class _FixedLayer(DynamicLayer):
    """Keys and values (R, H, L, K) of a layer, of which one column is written."""

    def __init__(self, views: tuple[Tensor, Tensor], column_1: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values = views
        self.dtype, self.device, self.is_initialized = views[0].dtype, views[0].device, True
        self._views, self._column_1 = views, column_1

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values (R, H, 1, K) of the new position; returns all columns."""
        for view, new in zip(self._views, (key_states, value_states), strict=True):
            view.index_copy_(2, self._column_1, new)
        return self._views


class StaticStep:
    """The step of one bucket: `fill` says what to do, `run` does it.

    views: memory for the keys and values of each layer
    alpha: α of all rows, for a model that reads none; else each step brings its own
    """

    def __init__(
        self,
        model: nn.Module,
        bucket: Bucket,
        views: Sequence[tuple[Tensor, Tensor]],
        alpha: float | None = None,
    ) -> None:
        parameter = next(model.parameters())
        device = parameter.device
        rows, columns = bucket
        self._model = model
        self._ids_R1 = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._positions_R1 = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._mask_R11L = torch.zeros(rows, 1, 1, columns, dtype=torch.bool, device=device)
        self._column_1 = torch.zeros(1, dtype=torch.long, device=device)
        self._alpha = alpha
        self._scale_R = torch.zeros(rows, dtype=parameter.dtype, device=device)
        self._alphas: list[float] = []
        self._cache = Cache(layers=[_FixedLayer(one, self._column_1) for one in views])

    def fill(
        self, tokens_R: Tensor, mask_RL: Tensor, positions_R: Tensor, alphas: Sequence[float]
    ) -> None:
        """Tokens, the mask with their column at its end, and their positions, of the batch's rows.

        In rows beyond them, what an earlier batch left cannot disturb.
        """
        rows, length = mask_RL.shape
        self._ids_R1[:rows, 0] = tokens_R
        self._positions_R1[:rows, 0] = positions_R
        self._mask_R11L.zero_()
        self._mask_R11L[:rows, 0, 0, :length] = mask_RL
        self._mask_R11L[rows:, 0, 0, length - 1] = True  # a row that sees nothing is no number
        self._column_1.fill_(length - 1)
        if self._alphas != list(alphas):
            self._alphas = list(alphas)
            self._scale_R[:rows] = self._scale_R.new_tensor(self._alphas)

    def run(self) -> Tensor:
        """Logits (R, V), those of rows beyond the batch's too."""
        return scaled_forward(
            self._model,
            self._cache,
            self._scale_R if self._alpha is None else self._alpha,
            input_ids=self._ids_R1,
            attention_mask=self._mask_R11L,
            position_ids=self._positions_R1,
        )
