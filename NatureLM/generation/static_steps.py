"""Static steps by bucket: made when they are needed, recorded when that pays, the oldest dropped.

Shapes: R rows, L columns of the cache, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from NatureLM.errors import NatureLMError
from NatureLM.generation.baked import ModelState
from NatureLM.generation.captured import GraphRecorder, Recorder, Work
from NatureLM.generation.kvcache import RoomyCache
from NatureLM.generation.memory import ran_out, release
from NatureLM.generation.static_memory import Bucket, StaticMemory, column_bucket, row_bucket
from NatureLM.generation.static_step import StaticStep

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
        self._state: ModelState | None = None
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
        cache: RoomyCache,
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
            no_memory = ran_out(error)
        if failure is None:
            return logits_RV
        self.release()  # outside of the handler, which holds tensors
        if no_memory:
            rows, columns = mask_RL.shape
            self._memory.bound(Bucket(row_bucket(rows), column_bucket(columns)).positions // 2)
            release()
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
        cache: RoomyCache,
        tokens_R: Tensor,
        mask_RL: Tensor,
        positions_R: Tensor,
        alphas: Sequence[float],
    ) -> Tensor | None:
        if self._state is None or not self._state.is_same():
            self.release()
            self._state = ModelState(self._model)
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

    def _for(self, bucket: Bucket, alpha: float | None, cache: RoomyCache) -> _Made:
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
