"""What must be equal for a run to be continued: settings that change numbers, and the data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from NatureLM.config.schema import Config, ModelConfig
from NatureLM.config.training import DatasetsConfig, RunConfig
from NatureLM.errors import UsageError

# Settings that may differ between a run and its continuation: they change no number.
_FREE_RUN = {
    "log_freq",
    "num_workers",
    "device",
    "output_dir",
    "evaluate",
    "save_every",
    "keep_checkpoints",
    "trackers",
    "use_best",
    "save_adapter",
}
_FREE_DATASETS = {"max_bad_share", "audio_cache_mb", "test", "test_ann_path"}


def identity(config: Config, *, data: str, processes: int) -> dict[str, Any]:
    """Settings by dotted name, as JSON keeps them.

    data: fingerprint of the training data
    """
    found = _settings(config.run or RunConfig(), config.datasets or DatasetsConfig(), config.model)
    return {**found, "training data": data, "processes": processes}


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], source: Path) -> None:
    """Raise UsageError with what differs.

    A setting that was not known when `before` was written had its default then.
    """
    defaults = _settings(RunConfig(), DatasetsConfig(), ModelConfig())
    then = {**defaults, **before}
    changed = sorted(
        key
        for key in then.keys() | now.keys()
        if _filled(then.get(key), defaults.get(key)) != _filled(now.get(key), defaults.get(key))
    )
    if changed:
        shown = "; ".join(f"{k}: {then.get(k)!r} then, {now.get(k)!r} now" for k in changed)
        raise UsageError(
            f"{source} is of a run with other settings, so it cannot be continued ({shown}); "
            "to start a new run from its weights, finish it and name it as model.ckpt"
        )


def _settings(run: RunConfig, datasets: DatasetsConfig, model: ModelConfig) -> dict[str, Any]:
    sections = {
        "datasets": datasets.model_dump(mode="json", exclude=_FREE_DATASETS),
        "run": run.model_dump(mode="json", exclude=_FREE_RUN),
        "model": model.model_dump(mode="json"),
    }
    flat = {f"{name}.{k}": v for name, section in sections.items() for k, v in section.items()}
    settings: dict[str, Any] = json.loads(json.dumps(flat))
    return settings


def _filled(value: Any, default: Any) -> Any:
    """Without what says nothing, so that keys inside a section may have come since."""
    if isinstance(value, Mapping):
        inner = default if isinstance(default, Mapping) else {}
        known = {**inner, **value}
        return {k: _filled(v, inner.get(k)) for k, v in known.items() if v is not None}
    if isinstance(value, list):
        return [_filled(item, None) for item in value]
    return value
