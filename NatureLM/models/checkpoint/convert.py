"""Training checkpoints of the reference (`.pth`, pickles) into safetensors, on request only."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from NatureLM.config import load_config
from NatureLM.models.checkpoint.tensors import write_tensors
from NatureLM.models.registry import (
    PICKLE_SUFFIXES,
    CheckpointError,
    first_line,
    one_line,
    pickle_refusal,
    read_json,
)
from NatureLM.util import format_bytes, shown, writing


def convert_checkpoint(
    source: Path, output: Path, *, allow_pickle: bool = False, config: Path | None = None
) -> list[str]:
    """Write the tensors of a pickled training checkpoint to `output/model.safetensors`.

    The checkpoint holds the tensors under `model` (or is the mapping itself), named as the
    published ones; optimiser state is left behind. PyTorch's restricted reader is used, which
    builds tensors and plain containers only. `config` holds the sizes: a config.json of constructor
    arguments or a YAML file with a `model` section. Without it a config.json beside `source` is
    taken, else the published settings, which loading then checks against the tensors' shapes.
    Returns the stored names.
    """
    source, output = Path(source), Path(output)
    if not source.is_file():
        raise CheckpointError(f"{source} is not a file; give the .pth or .pt checkpoint itself")
    if source.suffix.lower() not in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{source} is no pickle checkpoint (one of {', '.join(PICKLE_SUFFIXES)})"
        )
    if not allow_pickle:
        raise CheckpointError(pickle_refusal(source))
    tensors = _tensors(_read_pickle(source), source)
    settings = _settings(config, source)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        write_tensors(tensors, output)
        (output / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return sorted(tensors)


_PICKLE_BYTES = 16 << 20  # of what is no tensor; that of the published checkpoint has 200 kB


def _read_pickle(source: Path) -> Any:
    _check_archive(source)
    try:
        try:
            return torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the old, unzipped format cannot be mapped
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint ends in any way
        raise CheckpointError(
            f"{source} cannot be read as tensors and plain containers ({first_line(error)}); files "
            "that hold other objects are not opened"
        ) from None


def _check_archive(source: Path) -> None:
    """Refuse compressed parts, which may be a thousand times as long, and a long pickle."""
    members = []
    try:
        if zipfile.is_zipfile(source):  # before PyTorch 1.6 there was none
            with zipfile.ZipFile(source) as archive:
                members = archive.infolist()
    except Exception as error:
        raise CheckpointError(f"{source} cannot be read: {one_line(error)}") from None
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{source}: {member.filename} is compressed, as PyTorch has none")
        if member.filename.endswith(".pkl") and member.file_size > _PICKLE_BYTES:
            raise CheckpointError(
                f"{source}: {member.filename} has {format_bytes(member.file_size)} beside the "
                f"tensors, and at most {format_bytes(_PICKLE_BYTES)} are read"
            )


def _tensors(loaded: Any, source: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, each shared one once, under the first of its names."""
    model = loaded.get("model", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(model, Mapping):
        raise CheckpointError(f"{source} holds no mapping of tensors, nor one under 'model'")
    tensors = {
        str(name).removeprefix("module."): value
        for name, value in model.items()
        if isinstance(value, Tensor)
    }
    for name, value in tensors.items():
        if not (value.layout == torch.strided and value.device.type == "cpu"):
            raise CheckpointError(f"{source}: tensor {shown(name)} has no plain numbers")
        if value.nbytes > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{source}: tensor {shown(name)} is of shape {tuple(value.shape)}, which is more "
                "than the file holds"
            )
    if not tensors:
        raise CheckpointError(f"{source} holds no tensors under 'model'")
    kept: dict[tuple[int, torch.Size], str] = {}
    for name in sorted(tensors):
        kept.setdefault((tensors[name].data_ptr(), tensors[name].shape), name)
    size, room = sum(tensors[name].nbytes for name in kept.values()), source.stat().st_size
    if size > 2 * room:  # parts of one another may be tied
        raise CheckpointError(
            f"{source}: its tensors would take {format_bytes(size)}, and the file has "
            f"{format_bytes(room)}"
        )
    return {name: tensors[name] for name in kept.values()}


def _settings(config: Path | None, source: Path) -> dict[str, Any]:
    """Constructor arguments to put beside the weights."""
    beside = source.parent / "config.json"
    path = config if config is not None else (beside if beside.is_file() else None)
    if path is None or path.suffix.lower() in (".yml", ".yaml"):
        return load_config(path).model.model_dump(mode="json", exclude_none=True)
    return read_json(path)
