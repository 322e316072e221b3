"""Whether a model fits a device, in which precision: reckoned from shapes before a byte is read.

What a model takes is its weights, the keys and values of rows, what passes between layers, and the
copies that loading makes. It is compared with what is free (`NatureLM.memory`). `choose` takes the
best precision that fits, and refuses what cannot with what would; where a card has too little room
for the layers of the language model, some of them stay in RAM.

Never less than what was measured beside it: docs/how-to/which-machine.md.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from NatureLM.config.schema import QUANTIZATIONS, Quantization
from NatureLM.errors import UsageError
from NatureLM.generation.prefill import position_bytes
from NatureLM.memory import MEMORY_VARIABLE, FreeMemory, free_memory
from NatureLM.merging.lora import linear_of
from NatureLM.models.beats import quick_rows
from NatureLM.models.checkpoint.tensors import Precision, StoredTensor, TensorRef
from NatureLM.models.cuda_layers import MOST_ROWS
from NatureLM.models.quantized import GROUP, kinds_of_layers
from NatureLM.util import format_bytes

logger = logging.getLogger(__name__)

_FLOAT32, _BFLOAT16 = torch.float32, torch.bfloat16
_SPARE = 1.03  # memory that lies between tensors, as a factor
_RESERVE = {"cpu": 150_000_000}  # threads, kernels and their work spaces
_CARD_RESERVE = 600_000_000
_PINNED = 1.2  # memory that a card reads directly comes in powers of two, as a factor
_WINDOWS = 8  # encoded at once
_ROUNDED_ON_A_CARD = 4096 * 4 * 6  # bytes for each input while a matrix is rounded there
COSTS = {
    "bfloat16": "about 1 answer in 100 changes",
    "int8": "about 1 answer in 100 changes",
    "int4": "about 1 answer in 40 changes, and confidences by 0.014",
}
"""What a precision does to answers beside float32, measured with the embedded model."""


@dataclass(frozen=True)
class Work:
    """What runs at once beside the weights: rows (of prompts and beams) of so many positions, of
    prompt, sound and answer. Batches take what is left, so that this is the least."""

    rows: int = 2
    positions: int = 512


@dataclass(frozen=True)
class Outline:
    """A model on the meta device, its tensors, and those of files that fill them, by stored name.

    audio_only: whether the language model is left out
    """

    model: Any
    refs: Sequence[TensorRef]
    chosen: Mapping[str, StoredTensor]
    audio_only: bool = False


@dataclass(frozen=True)
class Need:
    """Bytes that a model takes on a device in one precision.

    layers: those of each layer of the language model, which are among `weights`
    largest_file: that are mapped while one of its tensors is read
    """

    precision: Precision
    device: str
    weights: int
    keys_values: int
    activations: int
    loading: int
    layers: tuple[int, ...] = ()
    largest_file: int = 0

    @property
    def total(self) -> int:
        """All together, with what the libraries take."""
        reserve = _RESERVE.get(self.device, _CARD_RESERVE)
        parts = self.weights + self.keys_values + max(self.activations, self.loading)
        return int(parts * _SPARE) + reserve

    def within(self, free: FreeMemory) -> bool:
        """Whether it fits into what is free."""
        mapped = self.largest_file if free.is_address_space else 0
        return self.total + mapped <= free.bytes

    def layers_to_keep(self, free: FreeMemory) -> int:
        """How many layers of the language model may lie on the device, if the others stay in RAM;
        two of these are there at a time. −1 where not even all that is no layer fits."""
        left = free.bytes - self.total + int(sum(self.layers) * _SPARE)
        left -= 2 * max(self.layers, default=0)
        if left < 0:
            return -1
        kept = 0
        for size in self.layers:
            left -= int(size * _SPARE)
            if left < 0:
                break
            kept += 1
        return kept


@dataclass(frozen=True)
class Placement:
    """What was chosen: the precision, and how many layers of the language model lie on the device
    (None: all)."""

    precision: Precision
    layers: int | None = None


def offloaded_layers(model: Any, placement: Placement) -> Sequence[nn.Module]:
    """The layers of a model's language model that stay in RAM."""
    if placement.layers is None:
        return ()
    return list(layers_of(model.language_model))[placement.layers :]


# -- what is needed -------------------------------------------------------------------------


def need_of(outline: Outline, precision: Precision, device: str, work: Work | None = None) -> Need:
    """What a model takes in a precision on a kind of device (`cpu`, `cuda`, `mps`)."""
    work = work or Work()
    model = outline.model
    rounded = _rounded(outline, precision)
    sizes = {ref.stored_name: _bytes(ref, precision, rounded) for ref in outline.refs}
    files = {one.path for one in outline.chosen.values()}
    layers: tuple[int, ...] = ()
    keys_values = 0
    if not outline.audio_only:
        layers = _by_layer(model.language_model, outline.refs, sizes)
        size = position_bytes(model.language_model, precision.language.itemsize)
        keys_values = work.rows * work.positions * size
    return Need(
        precision,
        device,
        weights=sum(sizes.values()),
        keys_values=keys_values,
        activations=activations(outline, precision, device, work),
        loading=_copies(outline, device, sizes, rounded),
        layers=layers,
        largest_file=max((one.stat().st_size for one in files), default=0),
    )


def _rounded(outline: Outline, precision: Precision) -> dict[int, Quantization]:
    """The kinds of the matrices that are to be rounded, by the identity of their tensors."""
    if outline.audio_only or precision.kind is None or outline.model.config.quantized is not None:
        return {}
    language_model = outline.model.language_model
    named = kinds_of_layers(language_model, precision.kind)
    return {id(linear_of(language_model, name).weight): kind for name, kind in named.items()}


def _bytes(ref: TensorRef, precision: Precision, rounded: Mapping[int, Quantization]) -> int:
    """Of a tensor; of a matrix to be rounded those of its integers and scales."""
    dtype, numbers = precision.of(ref.stored_name), math.prod(ref.shape)
    if kind := rounded.get(id(ref.tensor)):
        outputs, inputs = ref.shape
        return quantized_bytes(kind, outputs, inputs, dtype.itemsize)
    is_float = ref.tensor.is_floating_point()
    return numbers * (dtype if is_float else ref.tensor.dtype).itemsize


def quantized_bytes(kind: Quantization, outputs: int, inputs: int, scale: int) -> int:
    """Of a matrix as integers with its scales, each of `scale` bytes."""
    if kind == "int8":
        return outputs * inputs + outputs * scale
    return outputs * inputs // 2 + 2 * (inputs // GROUP) * outputs * scale


def _by_layer(
    language_model: nn.Module, refs: Sequence[TensorRef], sizes: Mapping[str, int]
) -> tuple[int, ...]:
    """Bytes of each layer of a language model."""
    layers = layers_of(language_model)
    place = {
        id(module): number for number, layer in enumerate(layers) for module in layer.modules()
    }
    found = [0] * len(layers)
    for ref in refs:
        number = place.get(id(ref.holders[0][0]))
        if number is not None:
            found[number] += sizes[ref.stored_name]
    return tuple(found)


def layers_of(language_model: nn.Module) -> nn.ModuleList:
    """The layers that a language model is a stack of: the list of modules with most weights."""
    lists = [one for one in language_model.modules() if isinstance(one, nn.ModuleList)]
    return max(
        lists,
        key=lambda one: sum(parameter.numel() for parameter in one.parameters()),
        default=nn.ModuleList(),
    )


def activations(outline: Outline, precision: Precision, device: str, work: Work) -> int:
    """The most that lies between layers: of windows that are encoded, or of prompts."""
    model = outline.model
    encoder = _of_encoder(model.config, precision.audio.itemsize, device)
    if outline.audio_only:
        return encoder
    config = model.language_model.config
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    passing: int = work.rows * work.positions * (3 * inner + 6 * config.hidden_size)
    logits: int = 3 * work.rows * config.vocab_size * 4
    widened = 0
    if precision.kind is not None and device != "cpu":  # a matrix that a card makes again
        few = work.rows <= MOST_ROWS  # whose logits come of the integers themselves
        shapes = [one.shape for one in outline.refs if len(one.shape) == 2]
        sizes = [math.prod(one) for one in shapes if not (few and one[0] == config.vocab_size)]
        widened = max(sizes, default=0)
    language = (passing + widened) * precision.language.itemsize + logits
    return max(encoder, language)


def _of_encoder(config: Any, size: int, device: str) -> int:
    """Of windows that the audio encoder takes at once; a processor takes them in pieces."""
    beats, patches = config.beats, config.patches(config.window_samples)
    scores: int = beats.encoder_attention_heads * patches**2
    inner: int = patches * beats.encoder_ffn_embed_dim
    window: int = 3 * scores + 3 * inner + 8 * patches * beats.encoder_embed_dim
    at_once = min(_WINDOWS, quick_rows(beats, patches)) if device == "cpu" else _WINDOWS
    return at_once * window * size + scores * size


def _copies(
    outline: Outline, device: str, sizes: Mapping[str, int], rounded: Mapping[int, Quantization]
) -> int:
    """The largest copy that is made while a tensor is read; what is mapped from files is none."""
    most = 0
    for ref in outline.refs:
        stored = outline.chosen.get(ref.stored_name)
        if stored is None:
            continue
        numbers, made = math.prod(ref.shape), sizes[ref.stored_name]
        if id(ref.tensor) in rounded:
            on_card = numbers * stored.dtype.itemsize + ref.shape[1] * _ROUNDED_ON_A_CARD
            most = max(most, made if device == "cpu" else made + on_card)
        if stored.shape[:1] < ref.shape[:1]:  # the mean row that [PAD] gets
            most = max(most, 4 * numbers + made)
    return most


# -- what is taken --------------------------------------------------------------------------


def precisions(outline: Outline, device: torch.device) -> list[Precision]:
    """Those that `auto` chooses among, the best first."""
    has = outline.model.config.quantized
    if outline.audio_only:
        return [Precision(_FLOAT32, _FLOAT32), Precision(_BFLOAT16, _BFLOAT16)]
    half = Precision(_BFLOAT16, _FLOAT32)
    if has is not None:
        return [replace(half, kind=has)]
    best = [Precision(_FLOAT32, _FLOAT32)] if device.type == "cpu" else []
    return [*best, half, *(replace(half, kind=cast(Quantization, kind)) for kind in QUANTIZATIONS)]


def choose(
    outline: Outline,
    device: torch.device,
    asked: Precision | None = None,
    free: FreeMemory | None = None,
) -> Placement:
    """The precision that was asked for, or the best that fits what is free.

    On a card layers stay in RAM where no other precision fits, or the one that was asked for does
    not. Logs where it is not the best. Raises UsageError, with what would fit, where none does.
    """
    free = free or free_memory(device)
    allowed = precisions(outline, device) if asked is None else [asked]
    needs: list[Need] = []

    def reckoned() -> Iterator[Need]:
        """The best first: of the others, most loads need none."""
        for one in allowed:
            needs.append(need_of(outline, one, device.type))
            yield needs[-1]

    if need := best_within(reckoned(), free):
        if need is not needs[0]:
            logger.warning(_why(needs[0], need, free))
        return Placement(need.precision)
    if device.type == "cuda" and (found := _offloaded(needs[-1], free)):
        return found
    raise UsageError(_refusal(outline, device, needs, free, asked is not None))


def best_within(needs: Iterable[Need], free: FreeMemory) -> Need | None:
    """The first that fits; none after it is asked for."""
    return next((need for need in needs if need.within(free)), None)


def _offloaded(need: Need, free: FreeMemory) -> Placement | None:
    """Some layers in RAM, if that has room for them; logged."""
    kept = need.layers_to_keep(free)
    ram = free_memory("cpu")
    if kept < 0 or not need.layers or sum(need.layers[kept:]) * _PINNED > ram.bytes:
        return None
    logger.warning(
        "the model needs %s in %s, and %s of %s are free: %d of the %d layers of its language "
        "model stay in RAM and are copied to the card each time, which is slower",
        format_bytes(need.total),
        need.precision.name,
        format_bytes(free.bytes),
        free.what,
        len(need.layers) - kept,
        len(need.layers),
    )
    return Placement(need.precision, kept)


def _why(best: Need, taken: Need, free: FreeMemory) -> str:
    """The note on a precision that is not the best."""
    name = taken.precision.name
    return (
        f"{best.precision.name} needs {format_bytes(best.total)}, and {format_bytes(free.bytes)} "
        f"of {free.what} are free: the language model is loaded in {name} "
        f"({format_bytes(taken.total)}); beside float32 {COSTS[name]}"
    )


def _refusal(
    outline: Outline,
    device: torch.device,
    needs: Sequence[Need],
    free: FreeMemory,
    is_asked: bool,
) -> str:
    """The sentence on what does not fit, and what would."""
    least = needs[-1]
    others = [need_of(outline, one, device.type) for one in precisions(outline, device)]
    fitting = [one for one in others if is_asked and one.within(free)]
    if fitting:
        advice = "take " + ", ".join(f"{flag(o)} ({format_bytes(o.total)})" for o in fitting)
    else:
        smallest = min([*others, least], key=lambda one: one.total)
        advice = "no precision fits"
        if smallest.total < least.total:
            advice += f", {smallest.precision.name} needs {format_bytes(smallest.total)}"
        advice += "; free some of it, or take a smaller model or a machine with more"
    return (
        f"the model in {least.precision.name} needs {format_bytes(least.total)} (weights "
        f"{format_bytes(least.weights)}), and {format_bytes(free.bytes)} of {free.what} are free: "
        f"{advice} (the environment variable {MEMORY_VARIABLE} says what is free, if this is wrong)"
    )


def flag(need: Need) -> str:
    """The option that asks for a precision."""
    precision = need.precision
    return f"--quantize {precision.kind}" if precision.kind else f"--dtype {precision.name}"


# -- layers in RAM --------------------------------------------------------------------------

# A layer is copied to the card before it runs and is gone after it, so that α, adapters and rounded
# weights act as ever and answers are the same; what it costs is the copy, each time. (Hooks of
# accelerate do so, too, but empty the card's cache at every tensor.) Nothing is folded into such
# weights, and no steps are captured.


def copy_to_run(layers: Iterable[nn.Module], device: torch.device) -> int:
    """Let layers whose tensors stay where they are run on a device; returns how many there are."""
    count = 0
    for layer in layers:
        if device.type == "cuda":
            _pin(layer)
        _Copies(layer, device)
        count += 1
    return count


def _pin(layer: nn.Module) -> None:
    """Move its tensors to memory that a card reads directly, at several times the rate."""
    with suppress(RuntimeError):  # the system gives no more of it
        for parameter in layer.parameters():
            parameter.data = parameter.data.pin_memory()


class _Copies:
    """The tensors of one layer, which are copies on a device while it runs."""

    def __init__(self, layer: nn.Module, device: torch.device) -> None:
        self._device = device
        self._homes: list[tuple[Any, str, Tensor]] = []
        layer.register_forward_pre_hook(self._bring)
        layer.register_forward_hook(self._take_back, always_call=True)

    def _bring(self, layer: nn.Module, *_: Any) -> None:
        for module in layer.modules():
            for held in cast(Any, (module._parameters, module._buffers)):
                for name, tensor in held.items():
                    if tensor is not None:
                        self._homes.append((held, name, tensor))
                        held[name] = self._copy(tensor)

    def _copy(self, tensor: Tensor) -> Tensor:
        """A parameter of the same values, since layers look at `requires_grad`."""
        copied = tensor.detach().to(self._device, non_blocking=True, copy=True)
        return nn.Parameter(copied, requires_grad=False)

    def _take_back(self, *_: Any) -> None:
        while self._homes:
            held, name, tensor = self._homes.pop()
            held[name] = tensor
