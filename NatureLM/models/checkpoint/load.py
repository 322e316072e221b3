"""Loading: build on the meta device, check every tensor's name and shape, then assign.

Nothing is initialised at random and nothing is held twice: tensors are mapped from their files, or
cast one at a time (`tensors.py`). The class to build is given by `modeling`, which calls this.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode
from transformers import AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from NatureLM.config.schema import Quantization
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.merging.lora import linear_shapes
from NatureLM.models.checkpoint.gguf import base_folder
from NatureLM.models.checkpoint.peft_io import configure_adapter, open_adapter
from NatureLM.models.checkpoint.tensors import (
    LANGUAGE_MODEL_PREFIXES,
    Precision,
    StoredTensor,
    TensorRef,
    base_name,
    files_mapped_once,
    fingerprint,
    first_of,
    index_folder,
    is_unused,
    of_language_model,
    precision_of,
    tensor_refs,
)
from NatureLM.models.configuration import (
    PAD_TOKEN,
    REFERENCE_ONLY,
    NatureLMConfig,
    language_model_config,
)
from NatureLM.models.cuda_layers import use_cuda_layers
from NatureLM.models.fit import Outline, Placement, choose, copy_to_run, offloaded_layers
from NatureLM.models.quantized import QuantizedLinear, check_quantization, quantize_layers
from NatureLM.models.registry import (
    NAMES_OF_CODE,
    CheckpointError,
    commit_of,
    find_checkpoint,
    one_line,
    read_config,
    read_json,
    refuse_foreign_parts,
)
from NatureLM.util import format_bytes, shown

if TYPE_CHECKING:
    from NatureLM.models.modeling import NatureLM

logger = logging.getLogger(__name__)
_building = threading.Lock()  # transformers sets the precision of all threads while it builds
_CPU = torch.device("cpu")
_SHOWN = 12
_LEAST_MODULES = 5  # of a layer: any has two norms, an attention and two linear layers
_TOKENIZER_FILES = (".json", ".jinja", ".model", ".txt")
_TOKENIZER_BYTES = 40_000_000  # the largest of today have 35 MB
_BUFFER_BYTES = 100_000_000
_COUNTED = 2**20
_DRAWN = ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_", "trunc_normal_")


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

    @property
    def revisions(self) -> dict[str, str]:
        """Commits of what came from the Hub: `revision` of the model, `base_revision`."""
        folders = {"revision": self.checkpoint, "base_revision": self.base}
        return commits(folders if self.base != self.checkpoint else {"revision": self.checkpoint})

    @property
    def most_modules(self) -> int:
        """Modules that the tensors of the files could fill; PEFT makes up to twelve of a layer."""
        tensors = len(self.stored)
        if self.base != self.checkpoint:
            there = any(self.base.glob("*.safetensors"))
            tensors += len(index_folder(self.base)) if there else 2500
        return 1000 + 20 * tensors

    @property
    def generation_config(self) -> GenerationConfig | None:
        """The settings that lie with the language model's configuration, if there are any."""
        path = self.base / "generation_config.json"
        if not path.is_file():
            return None
        values = read_json(path)
        ends = values.get("eos_token_id")
        if not all(type(one) is int for one in (ends if isinstance(ends, list) else [ends or 0])):
            raise CheckpointError(
                f"{path}: eos_token_id is {shown(ends)}, and it must be a token's number or a list"
            )
        with reading(self.base, path.name):
            return GenerationConfig.from_dict(values)


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
        with reading(checkpoint, "config.json"):
            config = NatureLMConfig.from_dict(values)
        tokenizer = read_tokenizer(base)
    else:
        base = base_folder(llama_path, checkpoint, weights=False)
        config, tokenizer = reference_config(values, base)
    stored = index_folder(checkpoint)
    return CheckpointReader(checkpoint, base, llama_path, config, tokenizer, stored, own_layout)


def commits(folders: Mapping[str, Path]) -> dict[str, str]:
    """The commits of those folders that came from the Hub, by the same names."""
    found = {name: commit_of(folder) for name, folder in folders.items()}
    return {name: commit for name, commit in found.items() if commit is not None}


def check_weights(files: Sequence[Path], wanted: str | None, source: str | Path) -> None:
    """Raise CheckpointError where weights have another fingerprint than they must.

    One of 64 digits is compared with that of every byte.
    """
    if wanted is None:
        return
    found = fingerprint(files, whole=len(wanted.strip()) == 64)
    if found != wanted.strip().lower():
        raise CheckpointError(
            f"the weights of {source} have the hash {found}, and the hash asked for is {wanted}: "
            "they are not those that it was recorded of, and nothing was loaded"
        )


def load_model(
    model_class: type[NatureLM],
    reader: CheckpointReader,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    adapter: str | Path | None = None,
    audio_only: bool = False,
    weights_hash: str | None = None,
    quantize: str | None = None,
    check: Callable[[Outline, Precision], None] | None = None,
) -> NatureLM:
    """See `NatureLM.from_pretrained`."""
    on_device = torch.device(device or "cpu")
    as_dtype = None if dtype == "auto" else _dtype(dtype)
    kind = kind_to_make(reader, quantize)
    outline, adapter_files = outline_of(model_class, reader, adapter, audio_only=audio_only)
    model: NatureLM = outline.model
    refs, chosen = outline.refs, outline.chosen
    # With the audio side alone, too, the files are those of the whole model.
    used = {tensor.path for tensor in (reader.stored if audio_only else chosen).values()}
    files = [reader.checkpoint / "config.json", *used, *adapter_files]
    check_weights(files, weights_hash, reader.checkpoint)
    asked = None
    if dtype != "auto" or quantize is not None:
        has = cast("Quantization | None", kind or model.config.quantized)
        asked = precision_of(as_dtype, on_device, has)
    if check is not None and asked is not None:
        check(outline, asked)
        placement = Placement(asked)
    else:
        placement = choose(outline, on_device, asked)
    precision = placement.precision
    if precision.kind != model.config.quantized and not audio_only:
        quantize_layers(model.language_model, cast(Quantization, precision.kind))
        model.config.quantized = precision.kind
        refs = tensor_refs(model)
    away = offloaded_layers(model, placement)
    in_ram = {id(module) for layer in away for module in layer.modules()}
    with files_mapped_once():
        for ref in refs:
            place = _CPU if id(ref.holders[0][0]) in in_ram else on_device
            target = precision.of(ref.stored_name)
            fill_tensor(ref, chosen.get(ref.stored_name), target, place)
    if on_device.type == "cpu":
        for module in model.modules():
            if isinstance(module, QuantizedLinear):
                module.align()
    restore_computed_buffers(model, on_device, audio_only=audio_only)
    if generation := reader.generation_config:
        model.language_model.generation_config = generation
    model.fingerprint = fingerprint(files)
    folders = [("adapter_revision", file.parent) for file in adapter_files[:1]]
    model.revisions = reader.revisions | commits(dict(folders))
    model.eval()  # type: ignore[no-untyped-call]
    if on_device.type == "cuda" and not audio_only:
        use_cuda_layers(model.language_model)
    model.offloaded = copy_to_run(away, on_device)
    return model


def outline_of(
    model_class: type[NatureLM],
    reader: CheckpointReader,
    adapter: str | Path | None = None,
    *,
    audio_only: bool = False,
) -> tuple[Outline, tuple[Path, ...]]:
    """A model before its tensors are read, and the files of an adapter of another folder.

    Raises CheckpointError with one report of everything that does not fit.
    """
    stored: Mapping[str, StoredTensor] = reader.stored
    adapter_files: tuple[Path, ...] = ()
    if adapter is None:
        model = build_on_meta(model_class, reader.config, reader.tokenizer, reader.most_modules)
    else:
        model, stored, adapter_files = _with_adapter(model_class, reader, adapter)
    refs = tensor_refs(model)
    if audio_only:
        refs = [ref for ref in refs if not of_language_model(ref.stored_name)]
        stored = {name: one for name, one in stored.items() if not of_language_model(name)}
    chosen = choose_tensors(reader, refs, stored)
    return Outline(model, refs, chosen, audio_only), adapter_files


def kind_to_make(reader: CheckpointReader, quantize: str | None) -> Quantization | None:
    """How the weights are to be quantised that are read: None where they stay as they are.

    Raises UsageError for a kind that is not known, or another than that of a quantised model.
    """
    if quantize is None:
        return None
    kind, has = check_quantization(quantize), reader.config.quantized
    if has not in (None, kind):
        raise UsageError(
            f"the weights of {reader.checkpoint} are {has}, and {kind} cannot be made of them; "
            "leave quantize out, or name the model that they were quantised from"
        )
    return kind if has is None else None


def _dtype(named: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, named, None) if isinstance(named, str) else named
    known = isinstance(found, torch.dtype) and found.is_floating_point
    if named is not None and not known:
        raise UsageError(
            f"dtype {named!r} is not one of auto, float32, bfloat16, float16, float64 for weights"
        )
    return found


# -- configuration and modules --------------------------------------------------------------


def reference_config(
    values: dict[str, Any], base: Path
) -> tuple[NatureLMConfig, PreTrainedTokenizerBase]:
    """Configuration from the reference's constructor arguments and its base language model.

    The tokenizer gets the `[PAD]` token and the vocabulary grows by it.
    """
    known = NatureLMConfig().to_dict()
    unknown = sorted(set(values) - set(known) - REFERENCE_ONLY)
    if unknown:
        # Who loads the file did not write it and cannot fix it, so this is no error; a key that
        # changes the network shows in the names or shapes of its tensors.
        logger.warning(
            "config.json has keys that this version does not know and leaves out: %s",
            ", ".join(unknown),
        )
    text_config = read_base_config(base)
    tokenizer = read_tokenizer(base)
    tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    text_config.vocab_size = len(tokenizer)
    kept = {name: value for name, value in values.items() if name in known}
    kept["llama_path"] = str(values["llama_path"])
    with reading(base, "config.json"):
        return NatureLMConfig(**{**kept, "text_config": text_config.to_dict()}), tokenizer


@contextmanager
def reading(folder: str | Path, what: str) -> Iterator[None]:
    """Around calls of transformers: what it refuses is a CheckpointError of one sentence."""
    try:
        yield
    except NatureLMError:
        raise
    except Exception as error:  # of a file of others: each kind has its own
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{folder} holds no usable {what}: its auto_map names Python code of its own, "
                "which is never run; take one of a kind that transformers itself has"
            ) from None
        raise CheckpointError(f"{folder} holds no usable {what}: {one_line(error)}") from error


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder; no code of others is run. Raises CheckpointError."""
    for path in folder.iterdir():
        if path.suffix in _TOKENIZER_FILES and path.stat().st_size > _TOKENIZER_BYTES:
            raise CheckpointError(
                f"{path} has {format_bytes(path.stat().st_size)}, and at most "
                f"{format_bytes(_TOKENIZER_BYTES)} are read"
            )
    with reading(folder, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    for name in NAMES_OF_CODE:  # which would stand in every folder that is made of this one
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def read_base_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a base language model; no code of others is run.

    Raises CheckpointError, for one that asks for code or an adapter from elsewhere, too.
    """
    values = read_json(folder / "config.json")
    refuse_foreign_parts(values, folder / "config.json")
    return language_model_config(values, folder / "config.json")


def build_on_meta(
    model_class: type[NatureLM],
    config: NatureLMConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    most: int = 50_000,
) -> NatureLM:
    """The model's modules without storage; raises CheckpointError where they were more than `most`,
    and where their sizes do not go together."""
    processor = None
    if tokenizer is not None:
        processor = model_class.processor_class.from_config(config, tokenizer)
    with (
        _building,
        _at_most(most, getattr(config.text_config, "num_hidden_layers", 0)),
        reading("the model configuration", "sizes"),
        torch.device("meta"),
        _WithoutCompiler(),
    ):
        return model_class(config, processor)


class _WithoutCompiler(TorchFunctionMode):
    """Builds without storage what torch would do with code of its compiler, whose import takes as
    long as all the rest: weights are not drawn, and tables of positions are numbers at once."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _DRAWN:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func is torch.arange and max(map(abs, args), default=0) <= _COUNTED:
            return torch.arange(*args, **kwargs | {"device": "cpu"})
        if len({one.is_meta for one in args if isinstance(one, Tensor)}) == 2:
            args = [one.to("meta") if isinstance(one, Tensor) else one for one in args]
        return func(*args, **kwargs)


@contextmanager
def _at_most(most: int, layers: int) -> Iterator[None]:
    """Raise CheckpointError within the block where this thread makes more modules than so many.

    layers: of the language model; so many of them are refused before any is made
    """
    least, thread = layers * _LEAST_MODULES, threading.get_ident()
    made = least if least > most else 0

    def count(*_: object) -> None:
        nonlocal made
        made += threading.get_ident() == thread
        if made > most:
            raise CheckpointError(
                f"config.json describes more than {most:,} modules, which is more than the tensors "
                "beside it could fill: its numbers of layers (num_hidden_layers, encoder_layers) "
                "must be those of the files"
            )

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def without_lora(config: NatureLMConfig) -> NatureLMConfig:
    """The configuration of the same model with its adapter merged, or left out."""
    plain = copy.deepcopy(config)
    plain.lora = False
    return plain


def _with_adapter(
    model_class: type[NatureLM], reader: CheckpointReader, adapter: str | Path
) -> tuple[NatureLM, dict[str, StoredTensor], tuple[Path, ...]]:
    """A model on the meta device with the adapter of another folder in place of its own, the
    tensors by the names that it knows them by, and the adapter's files."""
    most = reader.most_modules
    plain = build_on_meta(model_class, without_lora(reader.config), None, most)
    linears = linear_shapes(plain.language_model)
    found = open_adapter(adapter, linears)
    config = configure_adapter(reader.config, found, linears)
    model = build_on_meta(model_class, config, reader.tokenizer, most)
    stored = {name: one for name, one in reader.stored.items() if ".lora_" not in name}
    for target, layer in found.layers.items():
        for part, tensor in (("A", layer.a), ("B", layer.b)):
            stored[f"{LANGUAGE_MODEL_PREFIXES[0]}{target}.lora_{part}.default.weight"] = tensor
    return model, stored, found.files


# -- which stored tensor goes where ---------------------------------------------------------


def choose_tensors(
    reader: CheckpointReader, refs: Sequence[TensorRef], stored: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The file tensor for every tensor by its stored name, from the checkpoint or its base.

    Those of the language model go by the names of the base, because PEFT gives others to what it
    wraps. Unused ones may be absent. Raises CheckpointError with one report of all that does not
    fit; nothing is ever loaded short.
    """
    own = {base_name(name) or name: tensor for name, tensor in stored.items()}
    names = {ref: [base_name(name) or name for name in ref.names] for ref in refs}
    of_base: dict[str, StoredTensor] = {}
    if not reader.own_layout and any(
        ref.base_names and first_of(own, names[ref]) is None for ref in refs
    ):
        of_base = index_folder(base_folder(reader.llama_path, reader.checkpoint, weights=True))
    chosen: dict[str, StoredTensor] = {}
    missing: list[str] = []
    misshapen: list[str] = []
    for ref in refs:
        mine = first_of(own, names[ref])
        tensor = mine or first_of(of_base, ref.base_names)
        if tensor is None:
            if not is_unused(ref.stored_name):
                missing.append(ref.stored_name)
            continue
        # [PAD] changes the number of rows of the base's vocabulary (padded ones shrink)
        grows = mine is None and any(
            name.endswith(("embed_tokens.weight", "lm_head.weight")) for name in ref.names
        )
        if tensor.dtype.is_floating_point != ref.tensor.is_floating_point():
            misshapen.append(f"{tensor.name} {tensor.dtype} (needed {ref.tensor.dtype})")
        elif tensor.shape != ref.shape and not (grows and tensor.shape[1:] == ref.shape[1:]):
            misshapen.append(f"{tensor.name} {tensor.shape} (needed {ref.shape})")
        chosen[ref.stored_name] = tensor
    expected = {name for known in names.values() for name in known}
    unexpected = [
        tensor.name for name, tensor in own.items() if name not in expected and not is_unused(name)
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(problems.values()):
        lines = [f"{reader.checkpoint} does not fit its configuration; nothing was loaded."]
        lines += [
            f"  {len(names)} tensors {title}: {_listed(names)}"
            for title, names in problems.items()
            if names
        ]
        raise CheckpointError("\n".join(lines))
    return chosen


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    more = len(names) - _SHOWN
    return shown + (f", and {more} more" if more > 0 else "")


# -- values ---------------------------------------------------------------------------------


def fill_tensor(
    ref: TensorRef, stored: StoredTensor | None, dtype: torch.dtype, device: torch.device
) -> None:
    """Read a tensor of the model from its file; one that nothing computes with has a default."""
    layer, attribute = ref.holders[0]
    if isinstance(layer, QuantizedLinear) and attribute == layer.scale_name and stored is None:
        return  # comes with the weight, from a file that is not quantised
    is_exact = stored is not None and stored.dtype.is_floating_point
    if isinstance(layer, QuantizedLinear) and is_exact and not ref.tensor.is_floating_point():
        assert stored is not None
        value = stored.read(stored.dtype, device, to_keep=False)
        layer.quantize(fit_rows(value, (layer.out_features, layer.in_features)), dtype)
    elif stored is not None:
        ref.fill(fit_rows(stored.read(dtype, device), ref.shape))
    elif ref.is_buffer:
        ref.fill(torch.arange(ref.shape[-1], device=device)[None])
    else:
        ref.fill(torch.zeros(ref.shape, dtype=dtype, device=device))


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
    model: NatureLM, device: torch.device, *, audio_only: bool = False
) -> None:
    """Buffers that no file holds (rotary frequencies) are computed by the language model's code."""
    buffers = [
        module._buffers[name]
        for module in model.modules()
        for name in module._non_persistent_buffers_set
    ]
    size = sum(buffer.nbytes for buffer in buffers if buffer is not None)
    if size > _BUFFER_BYTES:
        raise CheckpointError(
            f"config.json describes tables of {format_bytes(size)} that no file holds; the number "
            "of positions of the language model must be smaller"
        )
    for module in model.modules():
        absent = {
            name: torch.empty_like(buffer, device=device)
            for name in module._non_persistent_buffers_set
            if (buffer := module._buffers.get(name)) is not None
        }
        module._buffers.update(absent)
        if absent:
            model.language_model._init_weights(module)
    left = [
        name
        for name, tensor in model.state_dict(keep_vars=True).items()
        if tensor.is_meta and not (audio_only and of_language_model(name))
    ]
    assert not left, f"tensors without storage after loading: {left[:5]}"
