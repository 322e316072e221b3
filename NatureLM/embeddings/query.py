"""A clip to look for, heard as the windows of an index were."""

from __future__ import annotations

from pathlib import Path

from NatureLM.audio import Window, iter_windows, probe, read_clip
from NatureLM.embeddings.embedder import Embedder
from NatureLM.embeddings.errors import VectorIndexError
from NatureLM.embeddings.index import VectorIndex
from NatureLM.embeddings.settings import IndexSettings
from NatureLM.errors import UsageError

_MOST_WINDOWS = 32


def query_windows(
    clip: Path,
    settings: IndexSettings,
    *,
    start: float = 0.0,
    end: float | None = None,
) -> list[Window]:
    """A clip, or the part of it from `start` to `end` seconds, in windows like those of an index.

    Times of the windows are in heard time. Raises UsageError for times that make no clip and for
    clips of more than 32 windows, AudioError for one that cannot be read.
    """
    if end is not None and not end > start:
        raise UsageError(f"--end is {end:g} and must be after --start, {start:g}")
    until = probe(clip).duration if end is None else end
    heard = max(0.0, until - start) * settings.time_expansion
    if heard > _MOST_WINDOWS * settings.window_seconds:
        raise UsageError(
            f"{clip}: the query lasts {heard:.0f} s, and at most "
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
    """Raise VectorIndexError where an index was not made with this model."""
    settings = index.settings
    if embedder.fingerprint != settings.fingerprint:
        raise VectorIndexError(
            f"{index.path}: was made with another model than this one: {settings.model_id} there, "
            f"{embedder.fingerprint} here. Vectors of different models (or of one in another "
            "precision, see --dtype) cannot be compared: name the index's model with --model, or "
            "make the index anew with `naturelm embed`"
        )
