"""Memory at fixed addresses for the keys and values of rows that are decoded.

Shapes: R rows, H heads, L positions, K width of a head.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from NatureLM.generation.kvcache import Home, RoomyCache

_COLUMNS = 64  # columns come in multiples of so many
_DOUBLED_ROWS = 64  # up to here rows come in powers of two, from here on in multiples


class Bucket(NamedTuple):
    """What a static step is made for: so many rows, over so many columns."""

    rows: int
    columns: int

    @property
    def positions(self) -> int:
        return self.rows * self.columns


def row_bucket(rows: int) -> int:
    """So many rows or a few more: 1, 2, 4, ... 64, 128, 192 ..."""
    if rows <= _DOUBLED_ROWS:
        return 1 << (rows - 1).bit_length()
    return -(-rows // _DOUBLED_ROWS) * _DOUBLED_ROWS


def column_bucket(columns: int) -> int:
    """So many columns or a few more: 64, 128, 192 ..."""
    return -(-columns // _COLUMNS) * _COLUMNS


@dataclass(eq=False)
class _Layout(Home):
    columns: int


class StaticMemory:
    """One stretch of memory for each layer, shared by all buckets; one cache at a time lies in it.

    most: positions that it may have, rows times columns (None: as many as asked for)

    What no row has written is zero: no mask hides what is no number.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self.release()

    def release(self) -> None:
        """Give the memory back; a cache that lies in it keeps it until it moves."""
        self._positions = 0
        self._stretches: list[tuple[Tensor, Tensor]] = []
        self._layouts: dict[int, _Layout] = {}
        self._tenant: weakref.ref[RoomyCache] | None = None

    def bound(self, positions: int) -> None:
        """Have so many positions at most from now on."""
        self._most = positions if self._most is None else min(self._most, positions)

    def has_room(self, bucket: Bucket) -> bool:
        """Whether a bucket may be housed."""
        return self._most is None or bucket.positions <= self._most

    def columns_of(self, cache: RoomyCache) -> int:
        """Columns from one row of the cache to the next, if it lies here; else 0."""
        homes = {layer.home for layer in cache.roomy}
        home = homes.pop()
        if homes or not isinstance(home, _Layout) or self._layouts.get(home.columns) is not home:
            return 0
        return home.columns

    def views(self, bucket: Bucket, cache: RoomyCache) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (R, H, L, K) of each layer, all rows and columns of the bucket."""
        made = []
        for layer, (keys, values) in zip(cache.roomy, self._stretches, strict=True):
            _, heads, _, width = layer.held[0].shape
            shape = (bucket.rows, heads, bucket.columns, width)
            size = bucket.positions * heads * width
            made.append((keys[:size].view(shape), values[:size].view(shape)))
        return made

    def house(self, cache: RoomyCache, bucket: Bucket) -> bool:
        """Move a cache here, unless it is; whether the memory is new and earlier views are void."""
        if self.columns_of(cache) == bucket.columns:
            return False
        tenant = None if self._tenant is None else self._tenant()
        if tenant is not None and tenant is not cache:
            tenant.move_out()
        is_new = bucket.positions > self._positions
        if is_new:
            self._grow(cache, bucket.positions)
        layout = self._layouts.setdefault(bucket.columns, _Layout(bucket.columns))
        self._tenant = weakref.ref(cache)
        for layer, views in zip(cache.roomy, self.views(bucket, cache), strict=True):
            layer.move_in(views, layout)
        return is_new

    def _grow(self, cache: RoomyCache, positions: int) -> None:
        positions = max(positions, min(2 * self._positions, self._most or positions))
        self.release()
        stretches = []
        for layer in cache.roomy:
            like = layer.held[0]
            size = positions * like.shape[1] * like.shape[3]
            stretches.append((like.new_zeros(size), like.new_zeros(size)))
        self._positions, self._stretches = positions, stretches
