"""What `naturelm embed` and `naturelm search` share: the model, and what decides its vectors."""

from __future__ import annotations

from collections.abc import Callable

from NatureLM.cli.heavy import import_model
from NatureLM.embeddings.embedder import Embedder
from NatureLM.embeddings.settings import IndexSettings
from NatureLM.errors import UsageError
from NatureLM.infer import pick_device


def load_embedder(
    model: str,
    layer: str,
    device: str,
    dtype: str,
    *,
    batch: int = 16,
    note: Callable[[str], None] = lambda text: None,
) -> Embedder:
    """The model of this name, as what makes vectors of a layer; its language model is not read."""
    import_model()
    from NatureLM.models.checkpoint.load import load_model

    loaded = load_model(
        model,
        device=pick_device(device),
        dtype=None if dtype == "auto" else dtype,
        hears_only=True,
    )
    return Embedder(loaded, layer, batch=batch, note=note)


def settings_of(
    embedder: Embedder,
    model: str,
    *,
    window_seconds: float,
    hop_seconds: float,
    channel: str | int,
    time_expansion: float,
) -> IndexSettings:
    """The settings of an index. Raises UsageError for windows that the model cannot hear."""
    longest = embedder.model.config.window_seconds
    if window_seconds > longest:
        raise UsageError(
            f"--window-length-seconds is {window_seconds:g}, and {model} hears at most "
            f"{longest:g} s at once"
        )
    return IndexSettings(
        model=model,
        fingerprint=embedder.fingerprint,
        layer=embedder.layer,
        width=embedder.width,
        sample_rate=embedder.model.config.sample_rate,
        window_seconds=float(window_seconds),
        hop_seconds=float(hop_seconds),
        channel=channel,
        time_expansion=float(time_expansion),
    )
