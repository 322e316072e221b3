"""Checkpoints of a run: safetensors and a small JSON state, whole or not there at all.

A checkpoint is a folder `step_00001234`, written under a temporary name and renamed when all of it
is on the disk. Only what learns is in it; the rest comes from where the run started. Its state says
which settings and data it is of: a run is resumed only with the same.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from NatureLM.config.schema import Config, DatasetsConfig, ModelConfig, RunConfig
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.training.optim import MuonWithAdamW, NamedParameters
from NatureLM.training.parallel import copy_full, distribute_like

_NAME = re.compile(r"^step_(\d{8,})$")
PARTIAL = ".partial-"
WEIGHTS, OPTIMIZER, AVERAGE, STATE = (
    "weights.safetensors",
    "optimizer.safetensors",
    "average.safetensors",
    "state.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk."""

    step: int
    folder: Path

    def state(self) -> dict[str, Any]:
        """The JSON state."""
        state: dict[str, Any] = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        return state

    def tensors(self, file: str) -> dict[str, Tensor]:
        """The tensors of one of its files; empty if it has no such file."""
        path = self.folder / file
        return load_file(path) if path.is_file() else {}


def checkpoints(folder: Path) -> list[Checkpoint]:
    """All whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.match(path.name))]
    return sorted((Checkpoint(int(match[1]), path) for match, path in found), key=lambda c: c.step)


def write_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> Checkpoint:
    """Write file name → tensors and the state; replaces a checkpoint of the same step."""
    final = folder / f"step_{step:08d}"
    partial = folder / f"{PARTIAL}{final.name}"
    remove(partial)
    partial.mkdir(parents=True)
    for file, named in tensors.items():
        save_file({n: t.detach().cpu().contiguous() for n, t in named.items()}, partial / file)
    (partial / STATE).write_text(json.dumps(dict(state), indent=1) + "\n", encoding="utf-8")
    for path in partial.iterdir():
        _to_disk(path)
    if final.exists():
        remove(final)
    os.replace(partial, final)
    _to_disk(folder)
    return Checkpoint(step, final)


def clean(folder: Path, keep: int, also: Sequence[int] = ()) -> None:
    """Remove partial checkpoints and all but the last `keep` and the steps in `also`."""
    if not folder.is_dir():
        return
    for path in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)
    for checkpoint in checkpoints(folder)[:-keep]:
        if checkpoint.step not in also:
            remove(checkpoint.folder)


def remove(folder: Path) -> None:
    """Remove a folder so that a half removed one is not taken for a checkpoint."""
    if not folder.exists():
        return
    doomed = folder
    if not folder.name.startswith(PARTIAL):
        doomed = folder.with_name(f"{PARTIAL}{folder.name}-old")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(folder, doomed)
    shutil.rmtree(doomed)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer | MuonWithAdamW, parameters: NamedParameters
) -> dict[str, Tensor]:
    """The optimiser's state by `<parameter>/<kind>`."""
    return {
        f"{name}/{kind}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in parameters
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer | MuonWithAdamW,
    parameters: NamedParameters,
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back what `optimizer_tensors` gave."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, kind = key.rpartition("/")
        by_name.setdefault(name, {})[kind] = value
    for name, parameter in parameters:
        if name in by_name:
            optimizer.state[parameter] = {
                kind: value if kind == "step" else distribute_like(value, parameter)
                for kind, value in by_name[name].items()
            }


@torch.no_grad()
def load_weights(parameters: NamedParameters, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Put back the weights that learn; all names and shapes must fit."""
    wanted = {name: tuple(p.shape) for name, p in parameters}
    there = {name: tuple(t.shape) for name, t in tensors.items()}
    if wanted != there:
        different = sorted(
            name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name)
        )
        raise NatureLMError(
            f"{source} is of another model or other frozen parts; different: "
            f"{', '.join(different[:5])}{' …' if len(different) > 5 else ''}"
        )
    for name, parameter in parameters:
        copy_full(parameter.detach(), tensors[name])


def _to_disk(path: Path) -> None:
    """Flush a file or folder, so that a rename never outlives what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems cannot flush folders
        if path.is_file():
            raise
    finally:
        os.close(descriptor)


# Settings that may differ when a run is resumed: they change no number.
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


def run_settings(config: Config, *, data: str, processes: int) -> dict[str, Any]:
    """What must be equal for a run to be resumed: settings by dotted name, as JSON keeps them.

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
