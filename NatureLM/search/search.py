"""The rows of an index that are most like a clip, by exact cosine, shard by shard.

Shapes: Q query vectors, N rows of a shard, E width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio.decode import probe
from NatureLM.audio.windows import Window, iter_windows, read_clip
from NatureLM.errors import UsageError
from NatureLM.search.build import Embedder
from NatureLM.search.index import (
    IndexRow,
    IndexSettings,
    VectorIndex,
    rows_of_a_shard,
)

_MOST_WINDOWS = 32


def query_windows(
    clip: Path,
    settings: IndexSettings,
    *,
    start: float = 0.0,
    end: float | None = None,
) -> list[Window]:
    """A clip, or the part of it from `start` to `end` seconds, in windows like those of an index.

    Times of the windows are those of the sound as the model hears it, slowed down. Raises
    UsageError for times that make no clip and for clips of more than 32 windows, AudioError for one
    that cannot be read.
    """
    if end is not None and not end > start:
        raise UsageError(f"--end is {end:g} and must be after --start, {start:g}")
    until = probe(clip).duration if end is None else end
    seconds = max(0.0, until - start) * settings.time_expansion
    if seconds > _MOST_WINDOWS * settings.window_seconds:
        raise UsageError(
            f"{clip}: the query lasts {seconds:.0f} s, and at most "
            f"{_MOST_WINDOWS * settings.window_seconds:g} s can be looked for at once; name a "
            "part of it with --start and --end"
        )
    rate = settings.sample_rate
    # Slowed down by a factor, the sound has so many times the samples.
    samples = read_clip(
        clip,
        start=start,
        duration=None if end is None else end - start,
        sample_rate=round(rate * settings.time_expansion),
        channel=settings.channel,
    )
    return list(
        iter_windows(
            samples,
            input_sample_rate=rate,
            sample_rate=rate,
            window_seconds=settings.window_seconds,
            hop_seconds=settings.window_seconds,
            warn=lambda text: None,
        )
    )


def refuse_other_model(index: VectorIndex, embedder: Embedder) -> None:
    """Raise UsageError where an index was not made with this model."""
    settings = index.settings
    if embedder.fingerprint != settings.fingerprint:
        raise UsageError(
            f"{index.path}: was made with another model than this one: {settings.model_id} there, "
            f"{embedder.fingerprint} here. Vectors of different models (or of one in another "
            "precision, see --dtype) cannot be compared: name the index's model with --model, or "
            "make the index anew with `naturelm embed`"
        )


@dataclass(frozen=True)
class Match:
    """A row that is like the query: cosine from -1 to 1."""

    similarity: float
    row: IndexRow


def nearest(
    index: VectorIndex,
    queries_QE: NDArray[np.float32],
    top_k: int = 20,
    *,
    is_wanted: Callable[[str], bool] | None = None,
) -> list[Match]:
    """The most similar rows, best first; of equal ones the earlier. Memory does not grow with rows.

    queries_QE: vectors (Q, E) of the query's windows; a row is as similar as to the nearest of them
    is_wanted: takes the file of a row; rows of other files are left out

    Raises UsageError for an impossible `top_k` or queries of another width.
    """
    if top_k < 1:
        raise UsageError(f"--top-k is {top_k}, and it must be at least 1")
    width = index.settings.width
    if queries_QE.ndim != 2 or queries_QE.shape[1] != width:
        raise UsageError(
            f"{index.path}: its vectors have {width} numbers, those of the query "
            f"{queries_QE.shape[-1]}"
        )
    unit_QE = _unit(queries_QE.astype(np.float32))
    best, places = np.empty(0, np.float32), np.empty(0, np.int64)
    for numbers, vectors_NE in _wanted_rows(index, rows_of_a_shard(width), is_wanted):
        best = np.concatenate([best, (_unit(vectors_NE) @ unit_QE.T).max(axis=1)])
        places = np.concatenate([places, numbers])
        chosen = _largest(best, top_k)
        best, places = best[chosen], places[chosen]
    rows = index.rows_at(places.tolist())
    return [Match(float(one), row) for one, row in zip(best, rows, strict=True)]


def same_recording(path: Path) -> Callable[[str], bool]:
    """Whether a file of an index is this recording."""
    real = path.resolve()
    return lambda file: Path(file).resolve() == real


def _wanted_rows(
    index: VectorIndex, rows: int, is_wanted: Callable[[str], bool] | None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Numbers and vectors of rows of wanted files, so many at a time."""
    first = 0
    if is_wanted is None:
        for vectors in index.vectors(rows):
            yield np.arange(first, first + len(vectors)), vectors
            first += len(vectors)
        return
    remembered = cache(is_wanted)
    for shard in index.shards(rows):
        wanted = np.flatnonzero([remembered(file) for file in shard.files])
        yield first + wanted, shard.vectors[wanted]
        first += len(shard.files)


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Places of the largest values in order; of equal ones those in front."""
    if len(values) > count:
        # All that may be among them, ties at the edge included.
        least = np.partition(values, len(values) - count)[len(values) - count]
        chosen = np.flatnonzero(values >= least)
    else:
        chosen = np.arange(len(values))
    return chosen[np.argsort(-values[chosen], kind="stable")][:count]


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of length 1; those of length 0, or with NaN or infinity, become zero."""
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.sqrt(np.einsum("ne,ne->n", vectors, vectors))
        usable = np.isfinite(norms) & (norms > 0)
        lengths = np.where(usable, norms, 1.0).astype(np.float32)
        unit: NDArray[np.float32] = vectors / lengths[:, None]
    unit[~usable] = 0.0
    return unit
