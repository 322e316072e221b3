"""Muon in float32."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def muon_in_float32() -> Iterator[None]:
    """Muon makes its updates in bfloat16, for which processors that lack it take minutes."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.float().clone())
        yield
