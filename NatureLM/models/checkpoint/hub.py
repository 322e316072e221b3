"""Where a checkpoint lies, and what its config.json says: a folder, one of our names, or a
repository of the Hugging Face hub. With folders nothing touches the network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from NatureLM.models.checkpoint.tensors import (
    PICKLE_SUFFIXES,
    CheckpointError,
    first_line,
    pickle_refusal,
)
from NatureLM.models.registry import LLAMA_BASE, MODEL_TYPE, MODELS, NATURELM_AUDIO, find

_CONFIG_FILES = ["*.json", "*.jinja"]
_WEIGHT_FILES = ["*.safetensors"]


def find_checkpoint(path_or_id: str | Path, *, revision: str | None = None) -> Path:
    """Folder of a checkpoint named by alias, folder, hub id; downloads only what is needed."""
    entry = find(str(path_or_id))
    if entry is not None and entry.folder is not None:
        return entry.folder
    if entry is not None and entry.embedded:
        raise CheckpointError(
            f"the weights of {entry.name} are not in this installation; install NatureLM again"
        )
    path = Path(entry.source if entry is not None else path_or_id)
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix.lower() in PICKLE_SUFFIXES:
            raise CheckpointError(pickle_refusal(path))
        raise CheckpointError(
            f"{path} is a file; give the folder that holds config.json and model.safetensors"
        )
    name = entry.source if entry is not None else str(path_or_id)
    if not is_hub_id(name):
        known = ", ".join(entry.name for entry in MODELS)
        raise CheckpointError(
            f"no model {name!r}: it is neither a folder, nor a Hugging Face id, nor one of {known}"
        )
    return download(name, revision, [*_CONFIG_FILES, *_WEIGHT_FILES])


def find_base(named: str | Path | None, checkpoint: Path, *, weights: bool) -> Path:
    """Folder of the base language model: absolute, beside the checkpoint, from here, or a hub id.

    Without `weights` only its configuration and tokenizer are fetched.
    """
    if not named:
        raise CheckpointError(
            f"{checkpoint / 'config.json'} names no base language model; give llama_path"
        )
    for candidate in (checkpoint / named, Path(named)):
        if candidate.is_dir():
            return candidate
    if not is_hub_id(str(named)):
        raise CheckpointError(
            f"the base language model {str(named)!r} is neither a folder (looked in {checkpoint} "
            "and the working folder) nor a Hugging Face id; give llama_path"
        )
    patterns = [*_CONFIG_FILES, *(_WEIGHT_FILES if weights else [])]
    return download(str(named), None, patterns)


def read_config(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's config.json; our own layout or the reference's constructor arguments."""
    path = checkpoint / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{checkpoint} holds no config.json: it is not a NatureLM checkpoint"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    kind = values.get("model_type", MODEL_TYPE)
    if kind != MODEL_TYPE or not ("llama_path" in values or "text_config" in values):
        raise CheckpointError(
            f"{path} describes a model of type {kind!r}, not a NatureLM checkpoint"
        )
    return dict(values)


def is_hub_id(name: str) -> bool:
    """Whether a name looks like owner/name."""
    parts = name.split("/")
    return len(parts) == 2 and all(
        part and part.strip(".") and not part.startswith("~") for part in parts
    )


def download(repository: str, revision: str | None, patterns: list[str]) -> Path:
    """Files of a hub repository in its local cache; errors say what a person has to do."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        raise CheckpointError(access_help(repository)) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{repository} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"Hugging Face has no model {repository!r}, or it is private and you are not logged "
            "in (hf auth login)"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(
            f"{repository} is not on this machine and could not be fetched: {first_line(error)}\n"
            f"{access_help(repository)}\n"
            "Without it, the embedded model answers offline: naturelm-tiny"
        ) from None


def access_help(repository: str) -> str:
    """The steps to get a gated model, and the base it needs."""
    lines = [f"To use {repository}:"]
    if repository == NATURELM_AUDIO or repository.startswith("meta-llama/"):
        lines += [
            f"  1. Accept the Llama 3.1 license on https://huggingface.co/{LLAMA_BASE}",
            "     (once; approval can take a while).",
            "  2. Log in on this machine: hf auth login",
            "  3. Run the command again with the network on; about 16 GB are fetched once.",
        ]
    else:
        lines += [
            f"  1. Ask for access on https://huggingface.co/{repository}",
            "  2. Log in on this machine: hf auth login",
        ]
    return "\n".join(lines)
