"""Keys and values in buffers with room at the end, so that a step copies only what is new.

Shapes: R rows, H heads, L positions, K width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

_MAX_ROOM = 64  # positions; buffers of longer answers grow again by as many


class PreallocatedLayer(DynamicLayer):
    """The keys and values of one layer, views into buffers that are longer than they are."""

    def __init__(self, room: int = _MAX_ROOM) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room = room
        self._buffers: tuple[Tensor, ...] = ()
        self.owner: object | None = None
        """Whose memory the buffers are, from their first column on; None where they are its own."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the keys and values (R, H, L, K) of new positions; returns all of them."""
        before = self.get_seq_length()
        length = before + key_states.shape[-2]
        if not self._buffers or length > self._buffers[0].shape[-2]:
            old = self.kv if before else (key_states[:, :, :0], value_states[:, :, :0])
            self.allocate(old, length - before + self._room)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, before:length] = new
        self._set_length(length)
        return self.kv

    @property
    def kv(self) -> tuple[Tensor, Tensor]:
        """Keys and values (R, H, L, K) of the positions so far."""
        assert self.keys is not None, "nothing was run yet"
        assert self.values is not None
        return self.keys, self.values

    def allocate(self, tensors: Sequence[Tensor], room: int) -> None:
        """Hold a copy of these keys and values, with room for so many positions more."""
        first = tensors[0]
        self.dtype, self.device, self.is_initialized = first.dtype, first.device, True
        self.owner = None
        rows, heads, length, width = first.shape
        self._buffers = tuple(first.new_empty(rows, heads, length + room, width) for _ in range(2))
        for buffer, old in zip(self._buffers, tensors, strict=True):
            buffer[:, :, :length] = old
        self._set_length(length)

    def select(self, rows: Tensor, fixed: int, room: int) -> None:
        """Keep these rows, of which the first `fixed` positions are in place already."""
        length = self.get_seq_length()
        keys, values = self.kv
        if fixed:
            for buffer in self._buffers:
                buffer[:, :, fixed:length] = buffer[rows, :, fixed:length]
        elif self.owner is not None and len(rows) <= len(keys):
            for buffer in self._buffers:
                buffer[: len(rows), :, :length] = buffer[rows, :, :length]
            self._buffers = tuple(buffer[: len(rows)] for buffer in self._buffers)
            self._set_length(length)
        else:
            self.allocate((keys[rows], values[rows]), room)

    def bind(self, buffers: Sequence[Tensor], owner: object) -> None:
        """Move into buffers of an owner (as many rows or more, H, longer, K), zero elsewhere.

        They may overlap with those of now.
        """
        keys, values = self.kv
        rows, _, length, _ = keys.shape
        for buffer, old in zip(buffers, (keys.clone(), values.clone()), strict=True):
            buffer.zero_()
            buffer[:rows, :, :length] = old
        self._buffers = tuple(buffer[:rows] for buffer in buffers)
        self.owner = owner
        self._set_length(length)

    def count_position(self) -> None:
        """Count one position more, which was written to the buffers already."""
        self._set_length(self.get_seq_length() + 1)

    def drop_left(self, columns: int) -> None:
        """Forget the first columns; nothing is copied."""
        length = self.get_seq_length() - columns
        self.owner = None
        self._buffers = tuple(buffer[:, :, columns:] for buffer in self._buffers)
        self._set_length(length)

    def keep_positions(self, fixed: int, places: Sequence[int]) -> None:
        """Keep the first `fixed` positions, and of those behind them the ones at `places`."""
        length = fixed + len(places)
        for buffer in self._buffers:
            if places:
                where = torch.tensor([fixed + place for place in places], device=buffer.device)
                buffer[:, :, fixed:length] = buffer[:, :, where]
        self._set_length(length)

    def _set_length(self, length: int) -> None:
        keys, values = self._buffers
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]


class PreallocatedCache(Cache):
    """The keys and values of all layers; `room`: for how many positions more at a time."""

    def __init__(self, room: int = _MAX_ROOM) -> None:
        self.room = min(room, _MAX_ROOM)
        layer: Any = partial(PreallocatedLayer, self.room)
        super().__init__(layer_class_to_replicate=layer)

    @property
    def kv_layers(self) -> list[PreallocatedLayer]:
        """The layers, by their true type."""
        return cast("list[PreallocatedLayer]", self.layers)

    def select(self, rows: Tensor, fixed: int = 0) -> None:
        """Keep these rows; a row may be named several times or not at all.

        fixed: positions in front that each row shares with the one whose place it takes
        """
        for layer in self.kv_layers:
            layer.select(rows, fixed, self.room)

    def drop_left(self, columns: int) -> None:
        """Forget the first columns, which no row uses."""
        for layer in self.kv_layers:
            layer.drop_left(columns)

    def unbind(self) -> None:
        """Move into memory of its own."""
        for layer in self.kv_layers:
            layer.allocate(layer.kv, self.room)

    def copy_rows(self, rows: Tensor, room: int) -> PreallocatedCache:
        """A cache of these rows with room for `room` positions; this one stays as it is."""
        new = PreallocatedCache(room)
        for layer in self.kv_layers:
            keys, values = layer.kv
            copy = PreallocatedLayer(new.room)
            copy.allocate((keys[rows], values[rows]), room)
            new.layers.append(copy)
        return new


def join_rows(
    pieces: Sequence[tuple[PreallocatedCache, Sequence[int]]], start: int, columns: int, room: int
) -> PreallocatedCache:
    """One cache of pieces that hold different rows.

    pieces: with the places of their rows in the whole
    start: positions in front that all pieces have; what follows goes to the right end
    columns: positions of the longest piece; what is between is zero, for the mask to hide
    """
    whole = PreallocatedCache(room)
    rows = sum(len(places) for _, places in pieces)
    for number, first in enumerate(pieces[0][0].kv_layers):
        layer = PreallocatedLayer(whole.room)
        _, heads, _, width = first.kv[0].shape
        empty = first.kv[0].new_zeros(rows, heads, columns, width)
        layer.allocate((empty, empty), whole.room)
        for cache, places in pieces:
            where = torch.tensor(list(places), device=empty.device)
            for to, source in zip(layer.kv, cache.kv_layers[number].kv, strict=True):
                gap = columns - source.shape[-2]
                to[where, :, :start] = source[:, :, :start]
                to[where, :, start + gap :] = source[:, :, start:]
        whole.layers.append(layer)
    return whole
