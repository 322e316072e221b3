"""Linear layers of the language model with weights of 8 or 4 bits, on processors and cards.

`int8` has one scale for each output; `int4` has, for each group of 64 inputs, a scale and a middle
for each output, chosen for the least squared error. Activations stay floating-point, and so do the
embeddings, norms, LoRA matrices and all that encodes audio. What 4 bits do not fit, and the output
head of `int4`, has 8 bits; a head that shares the matrix of the embeddings stays as it is.

A decoding step reads every weight once for a few rows, so it is as fast as weights are read: there
kernels multiply with the small integers as they lie. With many rows (a prompt, a wide batch) the
arithmetic counts, and the weights are widened, a piece at a time, for an ordinary product. The
adapter is never written into quantised weights (that would round it away): it acts beside them.

Shapes: M rows, O outputs and I inputs of a layer, G groups of inputs, N blocks of 64 outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from NatureLM.config.schema import QUANTIZATIONS, Quantization
from NatureLM.errors import UsageError
from NatureLM.merging.lora import linear_of, linear_shapes, lora_layers
from NatureLM.models import cuda_layers as kernels

GROUP = 64  # inputs that share a scale and a middle
BLOCK = 64  # outputs that lie together in a file of 4 bits
_HALF = BLOCK // 2
# For which a processor multiplies with the integers; widening 4 bits takes as long as 130 rows.
_FEW_ROWS = {"int8": 16, "int4": 128}
_ALIGNED = 64  # bytes: torch's products with integers crash on memory that begins elsewhere
_INPUTS = 16  # that they take at a time, and crash where they are not so many
_PIECE = 2**20  # weights of a layer that a processor widens at a time: they stay in its cache
# Outputs quantised at a time: on a processor that they stay in its cache, on a card for its memory.
_ROWS_AT_ONCE, _ROWS_ON_A_CARD = 64, 4096


class QuantizedLinear(nn.Linear, ABC):
    """A linear layer that nothing trains; `weight` is of integers.

    Gradients pass through it to its input, so that what lies before it, and LoRA, can learn.
    """

    kind: Quantization
    scale_name: str

    def __init__(self, outputs: int, inputs: int, bias: nn.Parameter | None = None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = outputs, inputs
        self.register_parameter("bias", bias)

    @property
    def scale(self) -> Tensor:
        """What the integers are multiplied with, in the precision of the activations."""
        return cast(Tensor, getattr(self, self.scale_name))

    def set(self, weight: Tensor, scale: Tensor) -> None:
        """Take these tensors as the layer's own."""
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_parameter(self.scale_name, nn.Parameter(scale, requires_grad=False))

    @torch.no_grad()
    def quantize(self, weight_OI: Tensor, dtype: torch.dtype) -> None:
        """Take the values of a floating-point matrix; those of scales are kept in `dtype`."""
        weight, scale = QUANTIZERS[self.kind](weight_OI)
        self.set(weight, scale.to(dtype))

    def align(self) -> None:
        """Move tensors to where torch's products take them, which places in files need not be."""
        for name in ("weight", self.scale_name):
            parameter = cast(nn.Parameter, getattr(self, name))
            if not parameter.is_meta and parameter.data_ptr() % _ALIGNED:
                parameter.data = parameter.data.clone()

    def _takes_few(self, x_MI: Tensor) -> bool:
        """Whether torch's product of a processor with the integers is for these rows."""
        places = (x_MI, self.weight, self.scale)
        return (
            x_MI.dtype == torch.bfloat16
            and len(x_MI) <= _FEW_ROWS[self.kind]
            and self.in_features % _INPUTS == 0
            and not any(one.data_ptr() % _ALIGNED for one in places)
        )

    @abstractmethod
    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The matrix (O, I) that the integers stand for."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return F.linear(x, self.dequantized(x.dtype), self.bias)
        x_MI = x.reshape(-1, self.in_features).contiguous()
        if x.device.type == "cpu":
            y_MO = self._on_processor(x_MI)
        elif x.device.type == "cuda" and kernels.is_here():
            y_MO = self._on_card(x_MI)
        else:
            y_MO = F.linear(x_MI, self.dequantized(x.dtype))
        if self.bias is not None:
            y_MO = y_MO + self.bias
        return y_MO.view(*x.shape[:-1], self.out_features)

    @abstractmethod
    def _on_processor(self, x_MI: Tensor) -> Tensor:
        """Rows (M, I) times the matrix (M, O)."""

    @abstractmethod
    def _on_card(self, x_MI: Tensor) -> Tensor:
        """The same by kernels for cards."""

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.kind}"


class Int8Linear(QuantizedLinear):
    """`weight` (O, I) of 8 bits, `weight_scale` (O,)."""

    kind = "int8"
    scale_name = "weight_scale"

    def __init__(self, outputs: int, inputs: int, bias: nn.Parameter | None = None) -> None:
        super().__init__(outputs, inputs, bias)
        self.set(torch.empty(outputs, inputs, dtype=torch.int8), torch.empty(outputs))

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return self.weight * self.scale.to(dtype)[:, None]

    def _on_processor(self, x_MI: Tensor) -> Tensor:
        scale_O = self.scale.to(x_MI.dtype)
        if self._takes_few(x_MI):
            return torch._weight_int8pack_mm(x_MI, self.weight, scale_O)
        y_MO = x_MI.new_empty(len(x_MI), self.out_features)
        for piece in pieces(self.out_features, self.in_features):
            # by way of 16 bits: torch widens 8 bits to bfloat16 ten times more slowly
            wide = self.weight[piece].to(torch.int16).to(x_MI.dtype)
            torch.mm(x_MI, wide.T, out=y_MO[:, piece])
        return y_MO.mul_(scale_O)

    def _on_card(self, x_MI: Tensor) -> Tensor:
        if kernels.takes(x_MI):
            return kernels.multiply(x_MI, self.weight, self.scale)
        outputs, inputs = self.weight.shape
        # No fast kernel takes an odd number of outputs; what the rows beyond them hold is left out.
        wide = x_MI.new_empty(outputs + -outputs % BLOCK, inputs)
        torch.mul(self.weight, self.scale.to(x_MI.dtype)[:, None], out=wide[:outputs])
        return F.linear(x_MI, wide)[:, :outputs]


class Int4Linear(QuantizedLinear):
    """`weight` (N, I, 32): a byte holds the outputs d and, in its upper half, 32 + d of a block.

    `weight_scale_and_middle` (G, O, 2): an integer q from 0 to 15 stands for
    (q − 8) · scale + middle. It is the layout of torch's kernel for processors with AVX-512.
    """

    kind = "int4"
    scale_name = "weight_scale_and_middle"

    def __init__(self, outputs: int, inputs: int, bias: nn.Parameter | None = None) -> None:
        super().__init__(outputs, inputs, bias)
        weight = torch.empty(outputs // BLOCK, inputs, _HALF, dtype=torch.uint8)
        self.set(weight, torch.empty(inputs // GROUP, outputs, 2))

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return self._blocks(slice(None), dtype).transpose(1, 2).reshape(self.out_features, -1)

    def _blocks(self, which: slice, dtype: torch.dtype) -> Tensor:
        """Blocks of the matrix (N, I, 64), transposed."""
        q = unpack_int4(self.weight[which]).to(torch.int16).to(dtype).sub_(8)
        q_NGI = q.unflatten(1, (-1, GROUP))
        scales_GNO2 = self.scale.to(dtype).unflatten(1, (-1, BLOCK))[:, which]
        scale, middle = scales_GNO2.transpose(0, 1)[:, :, None].unbind(-1)
        return torch.addcmul(middle, q_NGI, scale).flatten(1, 2)

    def _on_processor(self, x_MI: Tensor) -> Tensor:
        if self._takes_few(x_MI) and _is_layout_of_processor():
            packed = self.weight.view(self.out_features, self.in_features // 2)
            scales = self.scale.to(x_MI.dtype)
            return torch._weight_int4pack_mm_for_cpu(x_MI, packed, GROUP, scales)
        y_MNO = x_MI.new_empty(len(x_MI), len(self.weight), BLOCK)
        for piece in pieces(len(self.weight), self.in_features * BLOCK):
            blocks_NIO = self._blocks(piece, x_MI.dtype)
            y_NMO = torch.bmm(x_MI.expand(len(blocks_NIO), -1, -1), blocks_NIO)
            y_MNO[:, piece] = y_NMO.transpose(0, 1)
        return y_MNO.flatten(1)

    def _on_card(self, x_MI: Tensor) -> Tensor:
        return F.linear(x_MI, self.dequantized(x_MI.dtype))

    def lie_for_cards(self) -> None:
        """Move the numbers to where kernels of cards read them in long runs."""
        weight, scales = cards_from_files(self.weight, self.scale)
        self.__class__ = CardInt4Linear
        self.set(weight, scales)


class CardInt4Linear(Int4Linear):
    """`weight` (O, I / 2): byte j of the 32 of a group holds input j and, above it, input 32 + j.

    `weight_scale_and_middle` (O, G, 2). Files have the other layout; see `as_stored`.
    """

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        if self.weight.device.type == "cuda" and kernels.is_here():
            return kernels.int4_matrix(self.weight, self.scale, dtype)
        pairs_OGJ = self.weight.unflatten(1, (-1, GROUP // 2))
        q_OGI = unpack_int4(pairs_OGJ).to(torch.int16).to(dtype).sub_(8)
        scale, middle = self.scale.to(dtype)[..., None, :].unbind(-1)
        return torch.addcmul(middle, q_OGI, scale).flatten(1)

    def _on_processor(self, x_MI: Tensor) -> Tensor:
        return F.linear(x_MI, self.dequantized(x_MI.dtype))

    def _on_card(self, x_MI: Tensor) -> Tensor:
        if kernels.takes(x_MI):
            return kernels.multiply(x_MI, self.weight, self.scale)
        return F.linear(x_MI, self.dequantized(x_MI.dtype))

    def lie_for_cards(self) -> None:
        """They do."""

    def as_stored(self, name: str) -> Tensor:
        """One of the two tensors in the layout of files."""
        if name == self.scale_name:
            return self.scale.detach().transpose(0, 1).contiguous()
        pairs_OGJ = self.weight.detach().unflatten(1, (-1, GROUP // 2))
        return pack_int4(unpack_int4(pairs_OGJ).flatten(1))


def cards_from_files(weight_NIO: Tensor, scales_GO2: Tensor) -> tuple[Tensor, Tensor]:
    """The tensors of `CardInt4Linear` from those of `Int4Linear`, some outputs at a time."""
    pieces_OJ = []
    for blocks_NIO in weight_NIO.detach().split(_ROWS_ON_A_CARD // BLOCK):
        q_OI = unpack_int4(blocks_NIO).transpose(1, 2).flatten(0, 1)
        low_OGJ, high_OGJ = q_OI.unflatten(1, (-1, GROUP)).chunk(2, dim=-1)
        pieces_OJ.append((low_OGJ | (high_OGJ << 4)).flatten(1))
    return torch.cat(pieces_OJ), scales_GO2.detach().transpose(0, 1).contiguous()


KINDS: dict[str, type[QuantizedLinear]] = {"int8": Int8Linear, "int4": Int4Linear}


def pieces(count: int, size: int) -> Iterator[slice]:
    """Slices of `count` things of `size` numbers each, of about a million numbers."""
    step = max(1, _PIECE // size)
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))


@lru_cache(1)
def _is_layout_of_processor() -> bool:
    """Whether torch's kernel on this processor reads 4 bits as they lie here."""
    q_OI = torch.arange(BLOCK * BLOCK, dtype=torch.int32).mul_(7).remainder_(16).view(BLOCK, BLOCK)
    theirs = torch._convert_weight_to_int4pack_for_cpu(q_OI, 2)
    return torch.equal(theirs.flatten(), pack_int4(q_OI.to(torch.uint8)).flatten())


# -- rounding -------------------------------------------------------------------------------


def quantize_int8(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Integers (O, I) from −127 to 127 and scales (O,) that bfloat16 holds exactly."""

    def part(w_OI: Tensor) -> tuple[Tensor, Tensor]:
        scale_O1 = _positive(w_OI.abs().amax(dim=1, keepdim=True) / 127)
        q_OI = (w_OI / scale_O1).round_().clamp_(-127, 127)
        return q_OI.to(torch.int8), scale_O1[:, 0]

    return _by_rows(weight_OI, part, dim=0)


def quantize_int4(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """The two tensors of `Int4Linear`, scales and middles such as bfloat16 holds exactly."""

    def part(w_OI: Tensor) -> tuple[Tensor, Tensor]:
        q_OGI, scale_OG, middle_OG = round_groups(w_OI.unflatten(1, (-1, GROUP)))
        scales_GO2 = torch.stack((scale_OG.T, middle_OG.T), dim=-1)
        return pack_int4(q_OGI.flatten(1).to(torch.uint8)), scales_GO2

    return _by_rows(weight_OI, part, dim=1)


QUANTIZERS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "int8": quantize_int8,
    "int4": quantize_int4,
}

_FIRST_RANGES = (1.0, 0.9, 0.8)  # of a group's own, from which the search for the best begins
_REFITS = 4


def round_groups(w_OGI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integers from 0 to 15 and, for each group, the scale and middle of the least squared error.

    In turn integers are rounded for a scale and a middle, and these are fitted to the integers (a
    regression of two numbers). It begins at several ranges, because outliers cost less when they
    are cut off than when all others are rounded more coarsely.
    """
    low, high = w_OGI.amin(-1, keepdim=True), w_OGI.amax(-1, keepdim=True)
    mean = w_OGI.mean(-1, keepdim=True)
    centred_OGI, spare_OGI = w_OGI - mean, torch.empty_like(w_OGI)
    best: list[Tensor] = []
    least = torch.full_like(low, torch.inf)
    for share in _FIRST_RANGES:
        scale = _positive((high - low) * (share / 15))
        middle = _exact((high + low) / 2 + scale / 2)
        for _ in range(_REFITS):
            q_OGI = _round(w_OGI, scale, middle)
            mean_q = q_OGI.mean(-1, keepdim=True)
            apart = q_OGI.sub_(mean_q)
            spread = torch.mul(apart, apart, out=spare_OGI).sum(-1, keepdim=True)
            fitted = torch.mul(apart, centred_OGI, out=spare_OGI).sum(-1, keepdim=True) / spread
            scale = torch.where((spread > 0) & (fitted > 0), _positive(fitted), scale)
            middle = _exact(mean - (mean_q - 8) * scale)
        q_OGI = _round(w_OGI, scale, middle)
        torch.sub(q_OGI, 8, out=spare_OGI).mul_(scale).add_(middle).sub_(w_OGI)
        error = spare_OGI.square_().sum(-1, keepdim=True)
        is_better = error < least
        found = (q_OGI, scale, middle)
        best = [
            torch.where(is_better, one, other)
            for one, other in zip(found, best or found, strict=True)
        ]
        least = torch.minimum(least, error)
    q_OGI, scale, middle = best
    return q_OGI, scale[..., 0], middle[..., 0]


def _round(w: Tensor, scale: Tensor, middle: Tensor) -> Tensor:
    return (w - middle).div_(scale).round_().add_(8).clamp_(0, 15)


def _exact(values: Tensor) -> Tensor:
    """Numbers that bfloat16 holds exactly: rounding to them comes before that of weights."""
    return values.to(torch.bfloat16).float()


def _positive(scale: Tensor) -> Tensor:
    """Scales as above; 1 where all weights are equal, and any would do."""
    exact = _exact(scale)
    return torch.where(exact > 0, exact, 1.0)


def _by_rows(
    weight_OI: Tensor, part: Callable[[Tensor], tuple[Tensor, Tensor]], dim: int
) -> tuple[Tensor, Tensor]:
    """What `part` makes of some rows at a time (float32), put together; scales along `dim`."""
    count = _ROWS_AT_ONCE if weight_OI.device.type == "cpu" else _ROWS_ON_A_CARD
    made = [part(rows.float()) for rows in weight_OI.split(count)]
    return torch.cat([one for one, _ in made]), torch.cat([scale for _, scale in made], dim)


def pack_int4(q_OI: Tensor) -> Tensor:
    """Integers from 0 to 15 (O, I) as bytes (N, I, 32)."""
    q_NOI = q_OI.unflatten(0, (-1, BLOCK))
    pairs_NOI: Tensor = q_NOI[:, :_HALF] | (q_NOI[:, _HALF:] << 4)
    return pairs_NOI.transpose(1, 2).contiguous()


def unpack_int4(weight_NIO: Tensor) -> Tensor:
    """Bytes (N, I, 32) as integers from 0 to 15 (N, I, 64), transposed."""
    return torch.cat((weight_NIO & 15, weight_NIO >> 4), dim=-1)


# -- a model's layers -----------------------------------------------------------------------


def kinds_of_layers(language_model: nn.Module, kind: Quantization) -> dict[str, Quantization]:
    """How the linear layers of a language model are quantised, by name."""
    head = cast(Any, language_model).get_output_embeddings()
    shared = cast(Any, language_model).get_input_embeddings().weight
    kinds: dict[str, Quantization] = {}
    for name, (outputs, inputs) in linear_shapes(language_model).items():
        linear = linear_of(language_model, name)
        if linear.weight is shared:
            continue
        fits = outputs % BLOCK == 0 and inputs % GROUP == 0 and linear is not head
        kinds[name] = kind if fits else "int8"
    return kinds


def quantize_layers(language_model: nn.Module, kind: Quantization) -> None:
    """Put quantised layers in the place of linear ones; with values where there are values."""
    wrapped = lora_layers(language_model)
    for name, its_kind in kinds_of_layers(language_model, kind).items():
        linear = linear_of(language_model, name)
        weight = linear.weight
        with weight.device:
            made = KINDS[its_kind](linear.out_features, linear.in_features, linear.bias)
        if weight.is_meta:
            made.set(made.weight, made.scale.to(weight.dtype))
        else:
            made.quantize(weight.detach(), weight.dtype)
        path = f"{name}.base_layer" if name in wrapped else name
        language_model.set_submodule(path, made.train(linear.training))


def check_quantization(name: str) -> Quantization:
    """The name of a kind; raises UsageError for others."""
    if name not in QUANTIZATIONS:
        raise UsageError(f"quantize is {name!r}, and it must be one of {', '.join(QUANTIZATIONS)}")
    return cast(Quantization, name)
