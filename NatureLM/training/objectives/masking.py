"""Masks of spectrograms, as tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from NatureLM.training.augment import Mask


def apply_masks(fbank_BTF: Tensor, masks: Sequence[Sequence[Mask]]) -> Tensor:
    """Set masked bands and stretches of normalised fbanks to 0, the mean of the training data."""
    if not any(masks):
        return fbank_BTF
    masked = fbank_BTF.clone()
    frames, bins = masked.shape[1:]
    for row, row_masks in zip(masked, masks, strict=True):
        for mask in row_masks:
            size = frames if mask.axis == "time" else bins
            start = round(mask.start * size)
            stop = start + round(mask.width * size)
            if mask.axis == "time":
                row[start:stop, :] = 0
            else:
                row[:, start:stop] = 0
    return masked
