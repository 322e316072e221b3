"""Loading: build on the meta device, check every tensor's name and shape, then assign.

Nothing is initialised at random and nothing is held twice: tensors are mapped from their files, or
cast block by block (`tensors.py`).
"""

from __future__ import annotations

import copy
import json
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from NatureLM.errors import UsageError
from NatureLM.models.checkpoint.hub import find_base, find_checkpoint
from NatureLM.models.checkpoint.tensors import (
    LANGUAGE_MODEL_PREFIXES,
    CheckpointError,
    FitReport,
    StoredTensor,
    TensorRef,
    base_name,
    fingerprint,
    index_folder,
    is_unused,
    of_language_model,
    part_dtype,
    slots,
)
from NatureLM.models.configuration import REFERENCE_ONLY, NatureLMConfig
from NatureLM.models.processing import PAD_TOKEN, NatureLMProcessor

if TYPE_CHECKING:
    from NatureLM.models.modeling import NatureLM

_building = threading.Lock()  # torch's meta device context is per thread, peft's build is not


@dataclass(frozen=True)
class CheckpointReader:
    """A checkpoint before its tensors are read: where it lies, what it says, what it holds."""

    checkpoint: Path
    base: Path
    llama_path: str | Path | None
    config: NatureLMConfig
    tokenizer: PreTrainedTokenizerBase
    stored: dict[str, StoredTensor]
    own_layout: bool


def open_checkpoint(
    path_or_id: str | Path, *, llama_path: str | Path | None = None, revision: str | None = None
) -> CheckpointReader:
    """Find a checkpoint of any layout and read its configuration, tokenizer and headers."""
    checkpoint = find_checkpoint(path_or_id, revision=revision)
    values = read_config(checkpoint)
    own_layout = values.get("model_type") == NatureLMConfig.model_type
    llama_path = llama_path or values.get("llama_path")
    if own_layout:
        base = checkpoint
        config = NatureLMConfig.from_dict(values)
        tokenizer = _tokenizer(base)
    else:
        base = find_base(llama_path, checkpoint, weights=False)
        config, tokenizer = reference_config(values, base)
    stored = index_folder(checkpoint)
    return CheckpointReader(checkpoint, base, llama_path, config, tokenizer, stored, own_layout)


def choose_tensors(
    opened: CheckpointReader, model_slots: list[TensorRef], stored: dict[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The file tensor for every slot by its stored name, from the checkpoint or its base.

    Unused ones may be absent. Raises CheckpointError with one report of all that does not fit.
    """
    base_stored: dict[str, StoredTensor] = {}
    if not opened.own_layout and any(needs_base(slot, stored) for slot in model_slots):
        base_stored = index_folder(find_base(opened.llama_path, opened.checkpoint, weights=True))
    return _match(model_slots, stored, base_stored, source=str(opened.checkpoint))


def load_model(
    path_or_id: str | Path,
    *,
    llama_path: str | Path | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    adapter: str | Path | None = None,
    hears_only: bool = False,
) -> NatureLM:
    """See `NatureLM.from_pretrained`.

    hears_only: the language model's tensors are not read and have no storage: all that the model
        can do then is to encode audio
    """
    where = torch.device(device or "cpu")
    as_dtype = _dtype(dtype)
    opened = open_checkpoint(path_or_id, llama_path=llama_path, revision=revision)
    stored = opened.stored
    adapter_files: tuple[Path, ...] = ()
    if adapter is None:
        model = build_on_meta(opened.config, opened.tokenizer)
    else:
        model, stored, adapter_files = with_adapter(opened, adapter)
    model_slots = slots(model)
    if hears_only:
        model_slots = [one for one in model_slots if not of_language_model(one.stored_name)]
        stored = {name: one for name, one in stored.items() if not of_language_model(name)}
    chosen = choose_tensors(opened, model_slots, stored)
    for slot in model_slots:
        target = part_dtype(slot.stored_name, as_dtype, where)
        fill_slot(slot, chosen.get(slot.stored_name), target, where)
    restore_computed_buffers(model, where, hears_only=hears_only)
    if (opened.base / "generation_config.json").is_file():
        model.language_model.generation_config = GenerationConfig.from_pretrained(opened.base)
    model.name_or_path = str(path_or_id)
    used = {tensor.path for tensor in chosen.values()}
    model.fingerprint = fingerprint([opened.checkpoint / "config.json", *used, *adapter_files])
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _dtype(named: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, named, None) if isinstance(named, str) else named
    known = isinstance(found, torch.dtype) and found.is_floating_point
    if named is not None and not known:
        raise UsageError(
            f"dtype {named!r} is not one of float32, bfloat16, float16, float64 for weights"
        )
    return found


def with_adapter(
    opened: CheckpointReader, adapter: str | Path
) -> tuple[NatureLM, dict[str, StoredTensor], tuple[Path, ...]]:
    """A model on the meta device with the adapter of another folder in place of its own, the
    tensors by the names that it knows them by, and the adapter's files."""
    from NatureLM.merging.lora import linear_shapes
    from NatureLM.models.checkpoint.peft_io import configure_adapter, open_adapter

    plain = build_on_meta(without_lora(opened.config), None)
    found = open_adapter(adapter, linear_shapes(plain.language_model))
    config = configure_adapter(opened.config, found, linear_shapes(plain.language_model))
    model = build_on_meta(config, opened.tokenizer)
    stored = rename_language_model(opened.stored, slots(model))
    for target, layer in found.layers.items():
        for part, tensor in (("A", layer.a), ("B", layer.b)):
            stored[f"{LANGUAGE_MODEL_PREFIXES[0]}{target}.lora_{part}.default.weight"] = tensor
    return model, stored, found.files


def without_lora(config: NatureLMConfig) -> NatureLMConfig:
    """The configuration of the same model with its adapter merged, or left out."""
    plain = copy.deepcopy(config)
    plain.lora = False
    return plain


def rename_language_model(
    stored: dict[str, StoredTensor], model_slots: list[TensorRef]
) -> dict[str, StoredTensor]:
    """Stored tensors under the names of a model with another adapter, or none; without LoRA's.

    What PEFT wraps goes by other names than what it does not.
    """
    wanted = {base_name(name): slot.stored_name for slot in model_slots for name in slot.names}
    return {
        wanted.get(base_name(name), name) if base_name(name) else name: tensor
        for name, tensor in stored.items()
        if ".lora_" not in name
    }


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
    kind = values.get("model_type", NatureLMConfig.model_type)
    if kind != NatureLMConfig.model_type or not ("llama_path" in values or "text_config" in values):
        raise CheckpointError(
            f"{path} describes a model of type {kind!r}, not a NatureLM checkpoint"
        )
    return dict(values)


def reference_config(
    values: dict[str, Any], base: Path
) -> tuple[NatureLMConfig, PreTrainedTokenizerBase]:
    """Configuration from the reference's constructor arguments and its base language model.

    The tokenizer gets the `[PAD]` token and the vocabulary grows by it.
    """
    known = NatureLMConfig().to_dict()
    unknown = sorted(set(values) - set(known) - REFERENCE_ONLY)
    if unknown:
        # The file is somebody else's and cannot be mended by who loads it, so this is no error;
        # a key that changes the network shows in the names or shapes of its tensors.
        warnings.warn(
            f"config.json has keys that this version does not know and leaves out: "
            f"{', '.join(unknown)}",
            stacklevel=2,
        )
    text_config = AutoConfig.from_pretrained(base, local_files_only=True)
    tokenizer = _tokenizer(base)
    tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    text_config.vocab_size = len(tokenizer)
    kept = {name: value for name, value in values.items() if name in known}
    kept["llama_path"] = str(values["llama_path"])
    return NatureLMConfig(**{**kept, "text_config": text_config.to_dict()}), tokenizer


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no usable tokenizer: {error}") from None
    return tokenizer


def build_on_meta(config: NatureLMConfig, tokenizer: PreTrainedTokenizerBase | None) -> NatureLM:
    """The model's modules without storage."""
    from NatureLM.models.modeling import NatureLM

    processor = NatureLMProcessor.from_config(config, tokenizer) if tokenizer is not None else None
    with _building, torch.device("meta"):
        return NatureLM(config, processor)


def needs_base(slot: TensorRef, stored: dict[str, StoredTensor]) -> bool:
    if any(name in stored for name in slot.names):
        return False
    return any(base_name(name) is not None for name in slot.names)


def _match(
    model_slots: list[TensorRef],
    stored: dict[str, StoredTensor],
    base_stored: dict[str, StoredTensor],
    source: str,
) -> dict[str, StoredTensor]:
    """The file tensor for every slot, or one report of all that does not fit."""
    report = FitReport(source)
    chosen: dict[str, StoredTensor] = {}
    for slot in model_slots:
        tensor = find_stored(slot, stored, base_stored)
        if tensor is None:
            if not is_unused(slot.stored_name):
                report.missing.append(slot.stored_name)
            continue
        grows = tensor.name not in stored and _is_vocabulary(slot)
        if tensor.shape != slot.shape and not (grows and _fits_but_rows(tensor, slot)):
            report.misshapen.append(f"{tensor.name} {tensor.shape} (needed {slot.shape})")
        chosen[slot.stored_name] = tensor
    expected = {name for slot in model_slots for name in slot.names}
    report.unexpected = [n for n in stored if n not in expected and not is_unused(n)]
    report.raise_if_bad()
    return chosen


def find_stored(
    slot: TensorRef, stored: dict[str, StoredTensor], base_stored: dict[str, StoredTensor]
) -> StoredTensor | None:
    for name in slot.names:
        if name in stored:
            return stored[name]
    for name in slot.names:
        own = base_name(name)
        if own is not None and own in base_stored:
            return base_stored[own]
    return None


def _is_vocabulary(slot: TensorRef) -> bool:
    return any(name.endswith(("embed_tokens.weight", "lm_head.weight")) for name in slot.names)


def _fits_but_rows(tensor: StoredTensor, slot: TensorRef) -> bool:
    """Equal but for the number of rows, which `[PAD]` changes (padded vocabularies shrink)."""
    return tensor.shape[1:] == slot.shape[1:]


def fill_slot(
    slot: TensorRef, tensor: StoredTensor | None, dtype: torch.dtype, device: torch.device
) -> None:
    if tensor is None:  # unused by the computation; present so that names and shapes are whole
        if slot.is_buffer:
            slot.fill(torch.arange(slot.shape[-1], device=device)[None])
        else:
            slot.fill(torch.zeros(slot.shape, dtype=dtype, device=device))
        return
    slot.fill(fit_rows(tensor.read(dtype, device), slot.shape))


def fit_rows(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of the base with as many rows as the model has, which `[PAD]` changes."""
    rows = shape[0] if shape else 0
    if value.ndim and value.shape[0] > rows:
        return value[:rows].clone()
    if value.ndim and value.shape[0] < rows:
        # A mean row's logit never exceeds the best one, so that [PAD] is not generated.
        mean = value.float().mean(dim=0, keepdim=True).to(value)
        return torch.cat([value, mean.expand(rows - value.shape[0], -1)])
    return value


def restore_computed_buffers(
    model: NatureLM, device: torch.device, *, hears_only: bool = False
) -> None:
    """Buffers that no file holds (rotary frequencies) are computed by the language model's code."""
    for module in model.modules():
        absent = [
            n for n in module._non_persistent_buffers_set if module._buffers.get(n) is not None
        ]
        for name in absent:
            buffer = module._buffers[name]
            assert buffer is not None
            module._buffers[name] = torch.empty_like(buffer, device=device)
        if absent:
            model.language_model._init_weights(module)
    left = [
        name
        for name, tensor in model.state_dict(keep_vars=True).items()
        if tensor.is_meta and not (hears_only and of_language_model(name))
    ]
    assert not left, f"tensors without storage after loading: {left[:5]}"
