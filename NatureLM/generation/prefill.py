"""Running the prompts: what several rows begin with once, and rows of like length together.

Shapes: R rows, G shared beginnings, L positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from NatureLM.generation.batch import left_pad
from NatureLM.generation.kvcache import RoomyCache, joined
from NatureLM.merging.scaling import active_alpha, as_row_scale


@dataclass(frozen=True)
class _Pass:
    """What one pass through the model holds and costs beside its positions, in positions."""

    most: int
    overhead: int


_PASSES = {"cpu": _Pass(most=2048, overhead=24)}
_ACCELERATOR_PASS = _Pass(most=32768, overhead=128)


@dataclass(frozen=True)
class SharedStart:
    """Rows of one α whose prompts begin with the same `length` positions."""

    rows: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class Prefilled:
    """Prompts after their run: keys and values, mask (R, L; 1 where real), logits (R, V)."""

    cache: RoomyCache
    mask_RL: Tensor
    logits_RV: Tensor


def prefill(
    language_model: nn.Module,
    prompts_LD: Sequence[Tensor],
    alphas: Sequence[float],
    *,
    shared: Sequence[SharedStart] = (),
    room: int = 64,
) -> Prefilled:
    """Run prompts (length, width), each under its own α; `room`: for how many tokens to come.

    `shared` names rows that begin alike: their keys and values are computed once. A row stands in
    one `SharedStart` at most, and keeps at least one position of its own.
    """
    shared = [one for one in shared if one.length and len(one.rows) > 1]
    if not shared:
        return _run(language_model, prompts_LD, alphas, room, None)
    before = _run(
        language_model,
        [prompts_LD[one.rows[0]][: one.length] for one in shared],
        [alphas[one.rows[0]] for one in shared],
        0,
        None,
        scored=False,
    )
    source, starts = [0] * len(prompts_LD), [0] * len(prompts_LD)
    for place, one in enumerate(shared):
        for row in one.rows:
            source[row], starts[row] = place, one.length
    device = before.mask_RL.device
    source_R = torch.tensor(source, device=device)
    # A row that shares nothing hears nothing of the beginning that stands in its place.
    mask_RL = before.mask_RL[source_R] * (torch.tensor(starts, device=device) > 0)[:, None]
    rests = [row_LD[start:] for row_LD, start in zip(prompts_LD, starts, strict=True)]
    return _run(language_model, rests, alphas, room, _Past(before.cache, source_R, mask_RL))


@dataclass(frozen=True)
class _Past:
    """What rows hold already: row i continues row `source_R[i]` of the cache, under its mask."""

    cache: RoomyCache
    source_R: Tensor
    mask_RL: Tensor


def _run(
    model: nn.Module,
    rows_LD: Sequence[Tensor],
    alphas: Sequence[float],
    room: int,
    past: _Past | None,
    *,
    scored: bool = True,
) -> Prefilled:
    """Run rows in pieces of about one length, and put the pieces together.

    scored: whether logits are wanted; without, they are (R, 0)
    """
    lengths = [row.shape[0] for row in rows_LD]
    limits = _PASSES.get(rows_LD[0].device.type, _ACCELERATOR_PASS)
    places = pieces_of(lengths, limits.most, limits.overhead)
    pieces = [
        _run_piece(
            model,
            [rows_LD[row] for row in rows],
            [alphas[row] for row in rows],
            room,
            None if past is None else _of_rows(past, rows),
            scored,
        )
        for rows in places
    ]
    if len(pieces) == 1 and places[0] == list(range(len(rows_LD))):
        return pieces[0]
    start = 0 if past is None else past.mask_RL.shape[1]
    columns = start + max(lengths)
    mask_RL = pieces[0].mask_RL.new_zeros(len(rows_LD), columns)
    logits_RV = pieces[0].logits_RV.new_empty(len(rows_LD), pieces[0].logits_RV.shape[1])
    for rows, piece in zip(places, pieces, strict=True):
        where = torch.tensor(rows, device=mask_RL.device)
        gap = columns - piece.mask_RL.shape[1]
        mask_RL[where, :start] = piece.mask_RL[:, :start]
        mask_RL[where, start + gap :] = piece.mask_RL[:, start:]
        logits_RV[where] = piece.logits_RV
    caches = [(piece.cache, rows) for rows, piece in zip(places, pieces, strict=True)]
    return Prefilled(joined(caches, start, columns, room), mask_RL, logits_RV)


def pieces_of(lengths: Sequence[int], most: int, overhead: int) -> list[list[int]]:
    """Rows in the cheapest pieces: each runs padded to its longest row and costs `overhead` more.

    A piece has at most `most` positions, but one row at least.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    best: list[tuple[int, int]] = [(0, 0)]  # least cost of the first rows, begin of the last piece
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        first = min(end - 1, max(0, end - most // max(1, longest)))
        best.append(
            min(
                (best[begin][0] + (end - begin) * longest + overhead, begin)
                for begin in range(first, end)
            )
        )
    pieces: list[list[int]] = []
    end = len(order)
    while end:
        begin = best[end][1]
        pieces.append(order[begin:end])
        end = begin
    return pieces[::-1]


def _of_rows(past: _Past, rows: Sequence[int]) -> _Past:
    places = torch.tensor(rows, device=past.source_R.device)
    return _Past(past.cache, past.source_R[places], past.mask_RL[places])


def _run_piece(
    model: nn.Module,
    rows_LD: Sequence[Tensor],
    alphas: Sequence[float],
    room: int,
    past: _Past | None,
    scored: bool,
) -> Prefilled:
    batch = left_pad(rows_LD)
    mask_RL, positions_RL = batch.mask_RL, batch.positions_RL
    cache = RoomyCache(room)
    if past is not None:
        cache = past.cache.copied(past.source_R, mask_RL.shape[1] + room)
        positions_RL = positions_RL + past.mask_RL.sum(dim=1)[:, None]
        mask_RL = torch.cat([past.mask_RL, mask_RL], dim=1)
    logits_RV = forward(
        model,
        cache,
        alphas,
        inputs_embeds=batch.embeds_RLD,
        attention_mask=mask_RL,
        position_ids=positions_RL,
        scored=scored,
    )
    return Prefilled(cache, mask_RL, logits_RV)


def forward(
    model: nn.Module,
    cache: RoomyCache,
    alphas: Sequence[float],
    *,
    scored: bool = True,
    **inputs: Tensor,
) -> Tensor:
    """One pass under the rows' α, which lengthens the cache; logits (R, V) of the last position.

    scored: whether logits are wanted; without, they are (R, 0)
    """
    parameter = next(model.parameters())
    scale = as_row_scale(alphas, device=parameter.device, dtype=parameter.dtype)
    return scaled_forward(model, cache, scale, scored=scored, **inputs)


def scaled_forward(
    model: nn.Module,
    cache: Cache,
    scale: float | Tensor,
    *,
    scored: bool = True,
    **inputs: Tensor,
) -> Tensor:
    """`forward` under what `active_alpha` takes. A scored pass over one position makes no tensor of
    numbers from the host, so that it can be recorded.
    """
    first = inputs["inputs_embeds"] if "inputs_embeds" in inputs else inputs["input_ids"]
    length = first.shape[1]
    kept: int | Tensor = 1
    if not scored or length > 1:
        # Places by a tensor are copied, and the product with the vocabulary is one; a slice of a
        # number of positions would make it one product for each row.
        places = [length - 1] if scored else []
        kept = torch.tensor(places, dtype=torch.long, device=first.device)
    with active_alpha(scale):
        output = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=kept)
    logits: Tensor = output.logits[:, -1] if scored else output.logits[:, :, 0]
    return logits if logits.dtype == torch.float64 else logits.float()
