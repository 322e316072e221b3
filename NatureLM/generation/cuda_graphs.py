"""Decoding steps as CUDA graphs: static shapes and addresses by bucket, captured once, replayed.

A bucket is a number of rows and of cache columns; a batch has as many rows or fewer. Keys and
values of all rows go to the column that a tensor names, and attention reads all columns of the
bucket under a mask. Rows beyond the batch's see only what they write themselves. All buckets share
the memory for keys and values, in which one cache at a time lies. What no row has written there is
zero, because a mask does not hide NaN.

Shapes: R rows, H heads, L columns of the cache, K width of a head, V vocabulary.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from NatureLM.errors import NatureLMError
from NatureLM.generation.prefill import PreallocatedCache, forward
from NatureLM.memory import free_unused_memory, is_out_of_memory
from NatureLM.merging.lora import LoraLinear, active_scaling

logger = logging.getLogger(__name__)

Work = Callable[[], Tensor]
Capture = Callable[[Work], Work]
"""Makes work that is repeated on the same memory cheaper; what it returns is the caller's."""

_COLUMNS = 64  # columns come in multiples of so many
_DOUBLED_ROWS = 64  # up to here rows come in powers of two, from here on in multiples
_WARM_UP = 1  # runs in which libraries set up for another stream what capturing may not
_MAX_STEPS = 32  # buckets that are kept
_PATIENCE = 4  # steps of a bucket before it is captured, which takes about as long as they do
_CHECKED = 3  # replays of a bucket that are compared with the step itself
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of a row's logits, as a share of them
_HALF_TOLERANCE = 0.1  # products are added up in another order there, which changes a percent


def make_graph_runner(
    language_model: Any, *, max_positions: int | None = None
) -> GraphRunner | None:
    """What sessions take decoding steps with, captured on CUDA; None for a model without fixed
    shapes. max_positions: that of `GraphRunner`
    """
    config = language_model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    # A mask over all columns must be all that the model's attention asks for.
    if not (
        getattr(config, "_attn_implementation", None) == "sdpa"
        and kinds == {"full_attention"}
        and getattr(language_model, "_can_compile_fullgraph", False)
    ):
        logger.warning("this language model has no fixed shapes to record; decoding step by step")
        return None
    device = next(language_model.parameters()).device
    capture = GraphCapture(device) if device.type == "cuda" else None
    return GraphRunner(language_model, capture, max_positions=max_positions)


class GraphRunner:
    """Takes steps for sessions of one model, whose keys and values move into its memory.

    capture: makes a step cheaper; None runs it as it is
    max_positions: rows times columns that there may be memory for; larger batches are declined

    Where memory runs out, batches half as large are tried again; after other errors none are. The
    first replays of each bucket must give what the step itself gives. That steps cannot be captured
    is logged once.
    """

    def __init__(
        self,
        model: nn.Module,
        capture: Capture | None = None,
        *,
        max_positions: int | None = None,
    ) -> None:
        self._model, self._capture, self._max = model, capture, max_positions
        self._steps: OrderedDict[tuple[Bucket, float | None], StaticStep] = OrderedDict()
        self._gave_up = self._has_said_so = False
        self.release()

    def __len__(self) -> int:
        """Buckets that are kept."""
        return len(self._steps)

    def release(self) -> None:
        """Give all memory back; steps to come ask for it again.

        A cache that lies in it keeps it until it moves.
        """
        self._steps.clear()
        self._signature: GraphSignature | None = None
        self._positions = self._columns = 0
        self._memory: list[Tensor] = []  # keys and values (2, positions x H x K) of each layer
        self._bound: Callable[[], PreallocatedCache | None] = lambda: None

    def step(
        self,
        cache: PreallocatedCache,
        tokens_R: Tensor,
        mask_RL: Tensor,
        positions_R: Tensor,
        alphas: Sequence[float],
    ) -> Tensor | None:
        """Extend the cache by one token of each row, at its position, under its α; logits (R, V).

        mask_RL: with the new column at its end

        None: the step was not taken, and the cache is as long as it was.
        """
        if self._gave_up:
            return None
        bucket = Bucket.of(*mask_RL.shape)
        try:
            step = self._static_step(cache, bucket, mask_RL.shape[1], alphas)
            if step is None:
                return None
            step.fill(tokens_R, mask_RL, positions_R, alphas)
            logits_RV = self._run(step)[: len(tokens_R)]
        except NatureLMError:
            raise
        except Exception as error:  # an error that is not capturing's comes back in a plain step
            failure = f"{type(error).__name__}: {error}"
            no_memory = is_out_of_memory(error)
        else:
            for layer in cache.kv_layers:
                layer.set_length(mask_RL.shape[1])
            return logits_RV
        self.release()  # outside of the handler, which holds tensors
        if no_memory:
            most = bucket.positions // 2
            self._max = most if self._max is None else min(self._max, most)
            free_unused_memory()
        else:
            self._gave_up = True
        if not self._has_said_so:
            which = "of large batches " if no_memory else ""
            logger.warning(
                f"decoding {which}is not captured, and goes on step by step: {failure[:300]}"
            )
        self._has_said_so = True
        return None

    def _static_step(
        self, cache: PreallocatedCache, bucket: Bucket, length: int, alphas: Sequence[float]
    ) -> StaticStep | None:
        """The step of the bucket that the cache lies in then; None where there can be none."""
        if self._signature is None or not self._signature.is_current():
            self.release()
            self._signature = GraphSignature(self._model)
        alpha = None
        if not self._signature.reads_alpha:
            if len(set(alphas)) > 1:
                return None
            alpha = alphas[0]
        is_bound = self._bound() is cache and all(layer.owner is self for layer in cache.kv_layers)
        columns = self._columns if is_bound else 0  # from one row to the next
        if columns >= length:
            bucket = bucket._replace(columns=columns)
        if self._max is not None and bucket.positions > self._max:
            return None
        if columns != bucket.columns:
            self._bind(cache, bucket)
        key = (bucket, alpha)
        if key not in self._steps:
            while len(self._steps) >= _MAX_STEPS:
                self._steps.popitem(last=False)
            views = self._views(cache, bucket)
            self._steps[key] = StaticStep(self._model, bucket, views, alpha)
        self._steps.move_to_end(key)
        return self._steps[key]

    def _bind(self, cache: PreallocatedCache, bucket: Bucket) -> None:
        """Move a cache into the memory, which grows where it must."""
        bound, needed = self._bound(), bucket.positions
        if bound is not None and bound is not cache:
            for layer in bound.kv_layers:  # into memory of its own
                layer.allocate(layer.kv, bound.room)
        if needed > self._positions:
            positions = max(needed, min(2 * self._positions, self._max or needed))
            self._steps.clear()
            self._memory, self._positions = [], positions
            for layer in cache.kv_layers:
                _, _, heads, _, width = layer.kv.shape
                self._memory.append(layer.kv.new_zeros(2, positions * heads * width))
        self._bound, self._columns = weakref.ref(cache), bucket.columns
        for layer, view in zip(cache.kv_layers, self._views(cache, bucket), strict=True):
            layer.bind(view, self)

    def _views(self, cache: PreallocatedCache, bucket: Bucket) -> list[Tensor]:
        """Keys and values (2, R, H, L, K) of each layer, all rows and columns of the bucket."""
        views = []
        for layer, memory in zip(cache.kv_layers, self._memory, strict=True):
            _, _, heads, _, width = layer.kv.shape
            size = bucket.positions * heads * width
            views.append(memory[:, :size].view(2, bucket.rows, heads, bucket.columns, width))
        return views

    def _run(self, step: StaticStep) -> Tensor:
        step.uses += 1
        if self._capture is None or step.uses <= _PATIENCE:
            return step.run()
        if step.replay is None:
            step.replay = self._capture(step.run)
        logits_RV = step.replay()
        if step.uses <= _PATIENCE + _CHECKED:  # both write the same column
            most = _TOLERANCE.get(next(self._model.parameters()).dtype, _HALF_TOLERANCE)
            error = difference(logits_RV, step.run())
            if not error <= most:  # nor NaN, which is what infinities differ by
                raise RuntimeError(
                    f"a recorded step gave other logits than the step itself (they differ by "
                    f"{error:.2g} of their size)"
                )
        return logits_RV


def difference(logits_RV: Tensor, others_RV: Tensor) -> float:
    """The largest distance of two rows as a share of their size; rows of NaN are alike.

    Of single logits the largest difference says little: there are millions of them.
    """
    one_RV, other_RV = (torch.nan_to_num(each.double()) for each in (logits_RV, others_RV))
    size_R = other_RV.norm(dim=1).clamp_min(1e-12)
    return float(((one_RV - other_RV).norm(dim=1) / size_R).max())


class Bucket(NamedTuple):
    """What a static step is made for: so many rows, over so many columns."""

    rows: int
    columns: int

    @classmethod
    def of(cls, rows: int, columns: int) -> Bucket:
        """So many or a few more: rows 1, 2, 4, ... 64, 128, 192 ..., columns 64, 128, 192 ..."""
        if rows <= _DOUBLED_ROWS:
            rows = 1 << (rows - 1).bit_length()
        else:
            rows += -rows % _DOUBLED_ROWS
        return cls(rows, columns + -columns % _COLUMNS)

    @property
    def positions(self) -> int:
        return self.rows * self.columns


class StaticStep:
    """The step of one bucket: `fill` sets its static inputs, `run` takes it.

    views: memory for the keys and values (2, R, H, L, K) of each layer
    alpha: α of all rows, for a model that reads none; else each step brings its own
    """

    def __init__(
        self, model: nn.Module, bucket: Bucket, views: Sequence[Tensor], alpha: float | None = None
    ) -> None:
        parameter = next(model.parameters())
        rows, columns = bucket
        self._model = model
        self._ids_R1 = torch.zeros(rows, 1, dtype=torch.long, device=parameter.device)
        self._positions_R1 = torch.zeros_like(self._ids_R1)
        self._mask_R11L = self._ids_R1.new_zeros(rows, 1, 1, columns, dtype=torch.bool)
        self._column_1 = self._ids_R1.new_zeros(1)
        self._scale_R = parameter.new_zeros(rows)
        self._alpha, self._alphas = alpha, list[float]()
        self._cache = Cache(layers=[_StaticLayer(one, self._column_1) for one in views])
        self.uses = 0
        self.replay: Work | None = None

    def fill(
        self, tokens_R: Tensor, mask_RL: Tensor, positions_R: Tensor, alphas: Sequence[float]
    ) -> None:
        """Set the inputs of the batch's rows.

        What an earlier batch left in rows beyond them has no effect.
        """
        rows, length = mask_RL.shape
        self._ids_R1[:rows, 0] = tokens_R
        self._positions_R1[:rows, 0] = positions_R
        self._mask_R11L.zero_()
        self._mask_R11L[:rows, 0, 0, :length] = mask_RL
        self._mask_R11L[rows:, 0, 0, length - 1] = True  # a row that sees nothing becomes NaN
        self._column_1.fill_(length - 1)
        if self._alphas != list(alphas):
            self._alphas = list(alphas)
            self._scale_R[:rows] = self._scale_R.new_tensor(self._alphas)

    def run(self) -> Tensor:
        """Logits (R, V), those of rows beyond the batch's too."""
        return forward(
            self._model,
            self._cache,
            self._scale_R if self._alpha is None else self._alpha,
            input_ids=self._ids_R1,
            attention_mask=self._mask_R11L,
            position_ids=self._positions_R1,
        )


class _StaticLayer(DynamicLayer):
    """Keys and values (2, R, H, L, K) of a layer, of which one column is written."""

    def __init__(self, kv: Tensor, column_1: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._static = kv[0], kv[1]
        self.keys, self.values = self._static
        self.dtype, self.device, self.is_initialized = kv.dtype, kv.device, True
        self._column_1 = column_1

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values (R, H, 1, K) of the new position; returns all columns."""
        for view, new in zip(self._static, (key_states, value_states), strict=True):
            view.index_copy_(2, self._column_1, new)
        return self._static


class GraphSignature:
    """Where the weights lie, and which adapters act how strongly.

    A graph reads weights at their addresses, so weights that change in place are no change; other
    addresses are (folding, moving), and so is every number and branch of the adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._holders = [
            (module._parameters, name)
            for module in model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]
        self._layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
        self._profile = active_scaling()[1]
        self._facts = self._read()
        self.reads_alpha = any(not layer.is_folded for layer in self._layers)
        """Whether adapters act at runtime. Those of a folded model do not, and α is checked there
        in a way that cannot be captured for a tensor."""

    def is_current(self) -> bool:
        """Whether the model is still as it was. Takes a fraction of a step."""
        return active_scaling()[1] is self._profile and self._read() == self._facts

    def _read(self) -> tuple[Any, ...]:
        parameters = (holder.get(name) for holder, name in self._holders)
        return (
            self._model.training,
            [0 if one is None else one.data_ptr() for one in parameters],
            [
                (layer.is_folded, *((name, layer.scaling.stored(name)) for name in layer.scaling))
                for layer in self._layers
            ],
        )


class GraphCapture:
    """Captures CUDA graphs, which share their memory for what lies between."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        self._graphs: WeakSet[Any] = WeakSet()

    def __call__(self, work: Work) -> Work:
        """Warm up on a stream of its own, then capture; both run `work` as it is."""
        with torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            if self._stream is None:
                self._stream = torch.cuda.Stream()
            try:
                graph, out = self._capture(work, here)
            finally:
                torch.cuda.set_stream(here)  # a capture that fails may leave its own behind
        self._graphs.add(graph)

        def replay() -> Tensor:
            graph.replay()
            return out.clone()  # another graph may use the memory next

        return replay

    def _capture(self, work: Work, here: Any) -> tuple[Any, Tensor]:
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP):
                work()
        here.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # A pool lives as long as a graph that uses it, so it is asked for where one is left.
        pool = next((one.pool() for one in self._graphs), None)
        # Threads that read audio run meanwhile, and must not break the capture.
        with torch.cuda.graph(
            graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            out = work()
        return graph, out
