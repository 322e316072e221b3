"""What a recorded step holds of the model's state, to tell when it no longer is the model's.

Work of fixed shapes as CUDA graphs: recorded once, then launched as a whole.

Memory at fixed addresses for the keys and values of rows that are decoded.

Shapes: R rows, H heads, L positions, K width of a head.

A decoding step whose shapes and addresses stay, so that a GPU can replay it as one graph.

Shapes: R rows of a bucket, L its columns, H heads, K width of a head, V vocabulary. A batch has as
many rows or fewer.

Keys and values of all rows go to the column that a tensor names, and attention reads all columns
under a mask. Rows that nobody asked for see only what they write themselves.

Static steps by bucket: made when they are needed, recorded when that pays, the oldest dropped.

Shapes: R rows, L columns of the cache, V vocabulary.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from NatureLM.errors import NatureLMError
from NatureLM.generation.cache import Home, PreallocatedCache
from NatureLM.generation.oom import free_unused_memory, is_out_of_memory
from NatureLM.generation.prefill import scaled_forward
from NatureLM.merging.scaling import AlphaScaling, active_scaling


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
        self._layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self._profile = active_scaling()[1]
        self._facts = self._read()
        self.reads_alpha = any(not layer.disable_adapters for layer in self._layers)
        """Whether adapters act at runtime. Those of a folded model do not, and α is checked there
        in a way that cannot be recorded for a tensor."""

    def is_same(self) -> bool:
        """Whether the model is still as it was. Takes a fraction of a step."""
        return active_scaling()[1] is self._profile and self._read() == self._facts

    def _read(self) -> tuple[Any, ...]:
        return (
            self._model.training,
            [_address(holder.get(name)) for holder, name in self._holders],
            [
                (layer.disable_adapters, layer.merged, *layer.active_adapters, *_scales(layer))
                for layer in self._layers
            ],
        )


def _address(parameter: nn.Parameter | None) -> int:
    return 0 if parameter is None else parameter.data_ptr()


def _scales(layer: LoraLayer) -> list[tuple[str, float]]:
    scales = layer.scaling
    if isinstance(scales, AlphaScaling):
        return [(name, scales.stored(name)) for name in scales]
    return list(scales.items())


Work = Callable[[], Tensor]
_WARM_UP = 2  # runs in which libraries set up what may not be set up while recording


class Recorder(Protocol):
    """Makes work that is done again and again cheaper."""

    def record(self, work: Work) -> Work:
        """The same work on the same memory; what it returns is the caller's to keep."""


class GraphRecorder:
    """Records CUDA graphs, which share their memory for what lies between."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        self._graphs: WeakSet[Any] = WeakSet()

    def record(self, work: Work) -> Work:
        """Warm up on a stream of its own, then record; both run `work` as it is."""
        with torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            if self._stream is None:
                self._stream = torch.cuda.Stream()
            try:
                graph, out = self._record(work, here)
            finally:
                torch.cuda.set_stream(here)  # a recording that fails may leave its own behind
        self._graphs.add(graph)

        def replay() -> Tensor:
            graph.replay()
            return out.clone()  # another graph may use the memory next

        return replay

    def _record(self, work: Work, here: Any) -> tuple[Any, Tensor]:
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP):
                work()
        here.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # A pool lives as long as a graph that uses it, so it is asked for where one is left.
        pool = next((one.pool() for one in self._graphs), None)
        # Threads that read audio go on meanwhile, and must not break the recording.
        with torch.cuda.graph(
            graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            out = work()
        return graph, out


_COLUMNS = 64  # columns come in multiples of so many
_DOUBLED_ROWS = 64  # up to here rows come in powers of two, from here on in multiples


class Bucket(NamedTuple):
    """What a static step is made for: so many rows, over so many columns."""

    rows: int
    columns: int

    @property
    def positions(self) -> int:
        return self.rows * self.columns


def row_bucket(rows: int) -> int:
    """So many rows or a few more: 1, 2, 4, ... 64, 128, 192 ..."""
    if rows <= _DOUBLED_ROWS:
        return 1 << (rows - 1).bit_length()
    return -(-rows // _DOUBLED_ROWS) * _DOUBLED_ROWS


def column_bucket(columns: int) -> int:
    """So many columns or a few more: 64, 128, 192 ..."""
    return -(-columns // _COLUMNS) * _COLUMNS


@dataclass(eq=False)
class _Layout(Home):
    columns: int


class StaticMemory:
    """One stretch of memory for each layer, shared by all buckets; one cache at a time lies in it.

    most: positions that it may have, rows times columns (None: as many as asked for)

    What no row has written is zero: no mask hides what is no number.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self.release()

    def release(self) -> None:
        """Give the memory back; a cache that lies in it keeps it until it moves."""
        self._positions = 0
        self._stretches: list[tuple[Tensor, Tensor]] = []
        self._layouts: dict[int, _Layout] = {}
        self._tenant: weakref.ref[PreallocatedCache] | None = None

    def bound(self, positions: int) -> None:
        """Have so many positions at most from now on."""
        self._most = positions if self._most is None else min(self._most, positions)

    def has_room(self, bucket: Bucket) -> bool:
        """Whether a bucket may be housed."""
        return self._most is None or bucket.positions <= self._most

    def columns_of(self, cache: PreallocatedCache) -> int:
        """Columns from one row of the cache to the next, if it lies here; else 0."""
        homes = {layer.home for layer in cache.roomy}
        home = homes.pop()
        if homes or not isinstance(home, _Layout) or self._layouts.get(home.columns) is not home:
            return 0
        return home.columns

    def views(self, bucket: Bucket, cache: PreallocatedCache) -> list[tuple[Tensor, Tensor]]:
        """Keys and values (R, H, L, K) of each layer, all rows and columns of the bucket."""
        made = []
        for layer, (keys, values) in zip(cache.roomy, self._stretches, strict=True):
            _, heads, _, width = layer.held[0].shape
            shape = (bucket.rows, heads, bucket.columns, width)
            size = bucket.positions * heads * width
            made.append((keys[:size].view(shape), values[:size].view(shape)))
        return made

    def house(self, cache: PreallocatedCache, bucket: Bucket) -> bool:
        """Move a cache here, unless it is; whether the memory is new and earlier views are void."""
        if self.columns_of(cache) == bucket.columns:
            return False
        tenant = None if self._tenant is None else self._tenant()
        if tenant is not None and tenant is not cache:
            tenant.move_out()
        is_new = bucket.positions > self._positions
        if is_new:
            self._grow(cache, bucket.positions)
        layout = self._layouts.setdefault(bucket.columns, _Layout(bucket.columns))
        self._tenant = weakref.ref(cache)
        for layer, views in zip(cache.roomy, self.views(bucket, cache), strict=True):
            layer.move_in(views, layout)
        return is_new

    def _grow(self, cache: PreallocatedCache, positions: int) -> None:
        positions = max(positions, min(2 * self._positions, self._most or positions))
        self.release()
        stretches = []
        for layer in cache.roomy:
            like = layer.held[0]
            size = positions * like.shape[1] * like.shape[3]
            stretches.append((like.new_zeros(size), like.new_zeros(size)))
        self._positions, self._stretches = positions, stretches


class _FixedLayer(DynamicLayer):
    """Keys and values (R, H, L, K) of a layer, of which one column is written."""

    def __init__(self, views: tuple[Tensor, Tensor], column_1: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values = views
        self.dtype, self.device, self.is_initialized = views[0].dtype, views[0].device, True
        self._views, self._column_1 = views, column_1

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values (R, H, 1, K) of the new position; returns all columns."""
        for view, new in zip(self._views, (key_states, value_states), strict=True):
            view.index_copy_(2, self._column_1, new)
        return self._views


class StaticStep:
    """The step of one bucket: `fill` says what to do, `run` does it.

    views: memory for the keys and values of each layer
    alpha: α of all rows, for a model that reads none; else each step brings its own
    """

    def __init__(
        self,
        model: nn.Module,
        bucket: Bucket,
        views: Sequence[tuple[Tensor, Tensor]],
        alpha: float | None = None,
    ) -> None:
        parameter = next(model.parameters())
        device = parameter.device
        rows, columns = bucket
        self._model = model
        self._ids_R1 = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._positions_R1 = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._mask_R11L = torch.zeros(rows, 1, 1, columns, dtype=torch.bool, device=device)
        self._column_1 = torch.zeros(1, dtype=torch.long, device=device)
        self._alpha = alpha
        self._scale_R = torch.zeros(rows, dtype=parameter.dtype, device=device)
        self._alphas: list[float] = []
        self._cache = Cache(layers=[_FixedLayer(one, self._column_1) for one in views])

    def fill(
        self, tokens_R: Tensor, mask_RL: Tensor, positions_R: Tensor, alphas: Sequence[float]
    ) -> None:
        """Tokens, the mask with their column at its end, and their positions, of the batch's rows.

        In rows beyond them, what an earlier batch left cannot disturb.
        """
        rows, length = mask_RL.shape
        self._ids_R1[:rows, 0] = tokens_R
        self._positions_R1[:rows, 0] = positions_R
        self._mask_R11L.zero_()
        self._mask_R11L[:rows, 0, 0, :length] = mask_RL
        self._mask_R11L[rows:, 0, 0, length - 1] = True  # a row that sees nothing is no number
        self._column_1.fill_(length - 1)
        if self._alphas != list(alphas):
            self._alphas = list(alphas)
            self._scale_R[:rows] = self._scale_R.new_tensor(self._alphas)

    def run(self) -> Tensor:
        """Logits (R, V), those of rows beyond the batch's too."""
        return scaled_forward(
            self._model,
            self._cache,
            self._scale_R if self._alpha is None else self._alpha,
            input_ids=self._ids_R1,
            attention_mask=self._mask_R11L,
            position_ids=self._positions_R1,
        )


_MOST_STEPS = 32
_PATIENCE = 4  # steps of a bucket before it is recorded, which takes about as long as they do
_CHECKED = 3  # replays of a bucket that are compared with the step itself
_CLOSE = {torch.float64: 1e-9, torch.float32: 1e-3}
_CLOSE_IN_HALF = 0.05


def static_steps(
    language_model: Any,
    capture: bool | None = None,
    *,
    most_positions: int | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> StaticSteps | None:
    """Static steps for sessions to decode with, or None where plain ones are taken.

    capture: None takes them on CUDA, recorded as graphs, where the model allows it; True elsewhere,
        too, where nothing is recorded and nothing gained
    most_positions, note: those of `StaticSteps`
    """
    if capture is False:
        return None
    device = next(language_model.parameters()).device
    is_cuda = device.type == "cuda"
    if not is_cuda and capture is None:
        return None
    if not _can_be_static(language_model):
        note("this language model has no fixed shapes to record; decoding step by step")
        return None
    recorder = GraphRecorder(device) if is_cuda else None
    return StaticSteps(language_model, recorder, most_positions=most_positions, note=note)


def _can_be_static(language_model: Any) -> bool:
    """Whether a mask over all columns is all that the model's attention asks for."""
    config = language_model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        getattr(config, "_attn_implementation", None) == "sdpa"
        and kinds == {"full_attention"}
        and getattr(language_model, "_can_compile_fullgraph", False)
    )


@dataclass
class _Made:
    step: StaticStep
    uses: int = 0
    replay: Work | None = None


class StaticSteps:
    """Takes steps for sessions of one model, whose keys and values move into memory of its own.

    recorder: makes a step cheaper; None runs it as it is
    most_positions: rows times columns that there may be memory for; larger batches are declined
    note: told, once, that steps cannot be taken here

    Where memory runs out, batches half as large are tried again; after other errors none are. The
    first replays of each bucket must give what the step itself gives.
    """

    def __init__(
        self,
        model: nn.Module,
        recorder: Recorder | None = None,
        *,
        most_positions: int | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._model, self._recorder, self._note = model, recorder, note
        self._memory = StaticMemory(most_positions)
        self._made: OrderedDict[tuple[Bucket, float | None], _Made] = OrderedDict()
        self._state: GraphSignature | None = None
        self._gave_up = self._has_said_so = False

    def __len__(self) -> int:
        """Buckets that are kept."""
        return len(self._made)

    def release(self) -> None:
        """Give all memory back; steps to come ask for it again."""
        self._made.clear()
        self._memory.release()
        self._state = None

    def step(
        self,
        cache: PreallocatedCache,
        tokens_R: Tensor,
        mask_RL: Tensor,
        positions_R: Tensor,
        alphas: Sequence[float],
    ) -> Tensor | None:
        """Lengthen the cache by one token in every row; logits (R, V).

        mask_RL: with the new column at its end

        None: the step was not taken, and the cache is as long as it was.
        """
        if self._gave_up:
            return None
        failure = None
        try:
            logits_RV = self._step(cache, tokens_R, mask_RL, positions_R, alphas)
        except NatureLMError:
            raise
        except Exception as error:  # what is wrong beyond the static step comes back in a plain one
            failure = f"{type(error).__name__}: {error}"
            no_memory = is_out_of_memory(error)
        if failure is None:
            return logits_RV
        self.release()  # outside of the handler, which holds tensors
        if no_memory:
            rows, columns = mask_RL.shape
            self._memory.bound(Bucket(row_bucket(rows), column_bucket(columns)).positions // 2)
            free_unused_memory()
        else:
            self._gave_up = True
        if not self._has_said_so:
            which = "of large batches " if no_memory else ""
            self._note(
                f"decoding {which}is not captured, and goes on step by step: {failure[:300]}"
            )
        self._has_said_so = True
        return None

    def _step(
        self,
        cache: PreallocatedCache,
        tokens_R: Tensor,
        mask_RL: Tensor,
        positions_R: Tensor,
        alphas: Sequence[float],
    ) -> Tensor | None:
        if self._state is None or not self._state.is_same():
            self.release()
            self._state = GraphSignature(self._model)
        alpha = None
        if not self._state.reads_alpha:
            if len(set(alphas)) > 1:
                return None
            alpha = alphas[0]
        rows, length = mask_RL.shape
        columns = self._memory.columns_of(cache)
        if columns < length:
            columns = column_bucket(length)
        bucket = Bucket(row_bucket(rows), columns)
        if not self._memory.has_room(bucket):
            return None
        if self._memory.house(cache, bucket):
            self._made.clear()
        made = self._for(bucket, alpha, cache)
        made.step.fill(tokens_R, mask_RL, positions_R, alphas)
        logits_RV = self._run(made)[:rows]
        for layer in cache.roomy:
            layer.lengthen()
        return logits_RV

    def _for(self, bucket: Bucket, alpha: float | None, cache: PreallocatedCache) -> _Made:
        key = (bucket, alpha)
        if key not in self._made:
            while len(self._made) >= _MOST_STEPS:
                self._made.popitem(last=False)
            views = self._memory.views(bucket, cache)
            self._made[key] = _Made(StaticStep(self._model, bucket, views, alpha))
        self._made.move_to_end(key)
        return self._made[key]

    def _run(self, made: _Made) -> Tensor:
        made.uses += 1
        if self._recorder is None or made.uses <= _PATIENCE:
            return made.step.run()
        if made.replay is None:
            made.replay = self._recorder.record(made.step.run)
        logits_RV = made.replay()
        if made.uses <= _PATIENCE + _CHECKED:
            self._check(logits_RV, made.step.run())
        return logits_RV

    def _check(self, found_RV: Tensor, wanted_RV: Tensor) -> None:
        """Raise RuntimeError where a replay went another way; both write the same column."""
        close = _CLOSE.get(next(self._model.parameters()).dtype, _CLOSE_IN_HALF)
        if not torch.allclose(found_RV, wanted_RV, rtol=close, atol=close, equal_nan=True):
            raise RuntimeError("a recorded step gave other logits than the step itself")
