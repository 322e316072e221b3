"""From prompts to keys and values: which run together, what they share, the cache that they fill.

A prompt is cut at every `<AudioHere>`; the parts are tokenised separately and without special
tokens, as the reference does (tokens never cross a placeholder), and the i-th audio stands at the
i-th placeholder. The embedding of the beginning-of-text token goes in front. Rows of different
lengths are padded on the left and keep their own positions.

Shapes: R rows, L positions, Q audio positions, D width, H heads, K width of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, groupby, pairwise, takewhile
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from NatureLM.generation.audio_cache import EncodedClip
from NatureLM.merging.lora import active_alpha, as_row_scale

Fact = TypeVar("Fact")
Logits = Literal["last", "all", "none"]
"""Of which positions of a pass logits are wanted."""

_MAX_GROUP = 64  # rows that are looked at together for a shared prefix
_MIN_PREFIX = 8  # positions below which sharing is not worth a pass of its own
_MAX_ROOM = 64  # positions; buffers of longer answers grow again by as many

# Of one pass through the model: positions at most, and what it costs beside them, in positions.
_PASSES = {"cpu": (2048, 24)}
_ACCELERATOR_PASS = (32768, 128)
_ROW_PASS = {"cpu": 2048}  # positions of one row, which bounds the memory of a long text
_ACCELERATOR_ROW_PASS = 8192


# -- prompts ----------------------------------------------------------------------------------


def context_length(language_model: Any) -> int | None:
    """Positions that a language model takes, prompt and answer; None where it does not say.

    Scaled rotary positions are counted as transformers does: `linear` and `dynamic` stretch
    `max_position_embeddings` by their factor; of the other kinds it is what there is after
    stretching, unless `yarn` comes with the length from before.
    """
    config = getattr(language_model, "config", None)
    length = getattr(config, "max_position_embeddings", None)
    if length is None:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    kind, factor = rope.get("rope_type"), rope.get("factor") or 1.0
    if kind in ("linear", "dynamic"):
        length *= factor
    elif kind == "yarn":
        length = max(length, factor * (rope.get("original_max_position_embeddings") or 0))
    return int(length)


def position_bytes(language_model: Any, size: int) -> int:
    """Of the keys and values of one position, as numbers of `size` bytes."""
    config = language_model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * size)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device.

    From the host to CUDA it goes through pinned memory, so that nobody waits for the copy; torch
    keeps that memory until the copy is done.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def merge_prompt_parts(
    parts: Sequence[Sequence[int]], audios_QD: Sequence[Tensor], embed_tokens: nn.Embedding
) -> Tensor:
    """Input embeddings (L, D): the i-th audio between part i and part i + 1."""
    weight = embed_tokens.weight
    pieces: list[Tensor] = []
    for index, ids in enumerate(parts):
        ids_L = to_device(torch.tensor(ids, dtype=torch.long), weight.device)
        pieces.append(embed_tokens(ids_L))
        if index < len(audios_QD):
            pieces.append(audios_QD[index].to(weight))
    return torch.cat(pieces)


def pieces_of(
    parts: Sequence[Sequence[int]], clips: Sequence[EncodedClip]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A prompt in pieces, and the positions up to the end of each; see `Row`.

    A clip is one piece, below zero, that its content decides.
    """
    pieces: list[int] = []
    widths: list[int] = []
    for index, part in enumerate(parts):
        pieces += part
        widths += [1] * len(part)
        if index < len(clips):
            pieces.append(-1 - int(clips[index].digest, 16))
            widths.append(clips[index].audio_QD.shape[0])
    return tuple(pieces), tuple(accumulate(widths))


# -- batches ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A request (see `engine`) that is ready to run.

    parts: token ids between the audios; audios_QD: the audio embeddings between them
    pieces: the prompt in pieces: token ids, and -1 - n for audio with number n
    ends: positions up to the end of each piece
    """

    request: Any
    parts: tuple[tuple[int, ...], ...]
    audios_QD: tuple[Tensor, ...]
    pieces: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def length(self) -> int:
        """Positions of the prompt."""
        return self.ends[-1]

    @torch.inference_mode()
    def embeddings(self, embed_tokens: nn.Embedding) -> Tensor:
        """Input embeddings (length, D)."""
        return merge_prompt_parts(self.parts, self.audios_QD, embed_tokens)


@dataclass(frozen=True)
class SharedPrefix:
    """Rows of one α whose prompts begin with the same `length` positions."""

    rows: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class Batch:
    """Rows that run together; `shared` are those that begin alike."""

    rows: list[Row]
    shared: list[SharedPrefix]


@dataclass(frozen=True)
class Budget:
    """How large a batch may be: rows x beams x (prompt + new tokens) up to `tokens`.

    most_rows: how many rows it may have, however short they are; None for any number
    """

    tokens: int
    num_beams: int
    new_tokens: int
    most_rows: int | None = None

    def rows(self, length: int) -> int:
        """How many rows with prompts of `length` positions fit; at least one."""
        rows = max(1, self.tokens // (self.num_beams * (length + self.new_tokens)))
        return rows if self.most_rows is None else min(rows, self.most_rows)

    def within(self, rows: int) -> Budget:
        """The same for batches of at most so many rows."""
        return replace(self, most_rows=min(rows, self.most_rows or rows))


def plan_batches(rows: Sequence[Row], budget: Budget) -> list[Batch]:
    """Put rows into batches, the shortest prompts first. The order of the rows does not matter."""
    parts: list[tuple[int, int, Sequence[Row]]] = []  # longest prompt, shared positions, rows
    ordered = sorted(rows, key=lambda row: (*_may_share(row), row.pieces))
    for _, sharing in groupby(ordered, key=_may_share):
        for group, start in _prefix_groups(list(sharing)):
            size = budget.rows(max(row.length for row in group))
            for part in (group[first : first + size] for first in range(0, len(group), size)):
                longest = max(row.length for row in part)
                parts.append((longest, start if len(part) > 1 else 0, part))
    batches: list[Batch] = []
    for longest, start, part in sorted(parts, key=lambda part: part[:2]):
        if not batches or len(batches[-1].rows) + len(part) > budget.rows(longest):
            batches.append(Batch([], []))
        batch = batches[-1]
        if start:
            places = range(len(batch.rows), len(batch.rows) + len(part))
            batch.shared.append(SharedPrefix(tuple(places), start))
        batch.rows.extend(part)
    return batches


def _may_share(row: Row) -> tuple[float, str]:
    """Keys and values are shared at one α, and within one tenant."""
    return row.request.alpha, row.request.tenant


def _prefix_groups(rows: Sequence[Row]) -> Iterator[tuple[Sequence[Row], int]]:
    """Cut a sorted list of rows of one α into the groups that leave the fewest positions to run.

    With each group come the positions that its rows share.
    """
    common = [0, *(common_positions(a.pieces, b.pieces, a.ends) for a, b in pairwise(rows))]

    def groups(end: int) -> Iterator[tuple[int, int, int]]:
        """(positions to run, first row, shared positions) of the groups that end at a row."""
        start, total = rows[end - 1].length, 0
        for first in range(end - 1, max(-1, end - 1 - _MAX_GROUP), -1):
            total += rows[first].length
            size = end - first
            start = start if size == 1 else min(start, common[first + 1])
            if size > 1 and start < _MIN_PREFIX:
                break
            yield total - (size - 1) * start, first, start if size > 1 else 0

    for first, end, start in reversed(cheapest_cuts(len(rows), groups)):
        yield rows[first:end], start


def common_positions(a: Sequence[int], b: Sequence[int], ends: Sequence[int]) -> int:
    """Positions that two prompts in pieces share in front, leaving each at least its last piece.

    ends: positions up to the end of each piece of the shared ones
    """
    pairs = zip(a[:-1], b[:-1], strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return ends[shared - 1] if shared else 0


def split_by_length(lengths: Sequence[int], most: int, overhead: int) -> list[list[int]]:
    """Rows in the cheapest pieces: each runs padded to its longest row and costs `overhead` more.

    A piece has at most `most` positions, but one row at least.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])

    def pieces(end: int) -> Iterator[tuple[int, int, None]]:
        longest = lengths[order[end - 1]]
        first = min(end - 1, max(0, end - most // max(1, longest)))
        for begin in range(first, end):
            yield (end - begin) * longest + overhead, begin, None

    return [order[begin:end] for begin, end, _ in cheapest_cuts(len(order), pieces)]


def cheapest_cuts(
    count: int, pieces: Callable[[int], Iterable[tuple[int, int, Fact]]]
) -> list[tuple[int, int, Fact]]:
    """Cut a list of `count` things where the pieces cost least in all.

    pieces: (cost, begin, some fact) of the pieces that may end at a place

    Returns (begin, end, fact) of each piece, in order.
    """
    best: list[Any] = [(0, 0, None)]  # of the first things: least cost, begin of the last piece
    for end in range(1, count + 1):
        best.append(min((best[begin][0] + cost, begin, fact) for cost, begin, fact in pieces(end)))
    cuts: list[tuple[int, int, Fact]] = []
    end = count
    while end:
        _, begin, fact = best[end]
        cuts.append((begin, end, fact))
        end = begin
    return cuts[::-1]


# -- keys and values --------------------------------------------------------------------------


class PreallocatedLayer(DynamicLayer):
    """The keys and values of one layer, views into a buffer that is longer than they are.

    So a step copies only what is new. The buffer is (2, R, H, longer than L, K): keys, values.
    """

    def __init__(self, room: int = _MAX_ROOM) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room = room
        self._buffer = torch.empty(2, 0, 0, 0, 0)
        self.owner: object | None = None
        """Whose memory the buffer is, from its first column on; None where it is its own."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the keys and values (R, H, L, K) of new positions; returns all of them."""
        before = self.get_seq_length()
        length = before + key_states.shape[-2]
        if length > self._buffer.shape[-2]:
            old = self.kv if before else key_states.new_empty(2, *key_states[:, :, :0].shape)
            self.allocate(old, length - before + self._room)
        self._buffer[0, :, :, before:length] = key_states
        self._buffer[1, :, :, before:length] = value_states
        return self.set_length(length)

    @property
    def kv(self) -> Tensor:
        """Keys and values (2, R, H, L, K) of the positions so far."""
        return self._buffer[..., : self.get_seq_length(), :]

    def allocate(self, kv: Tensor, room: int) -> None:
        """Hold a copy of these keys and values, with room for so many positions more."""
        self.dtype, self.device, self.is_initialized = kv.dtype, kv.device, True
        self.owner = None
        *outer, length, width = kv.shape
        self._buffer = kv.new_empty(*outer, length + room, width)
        self._buffer[..., :length, :] = kv
        self.set_length(length)

    def select(self, rows: Tensor, fixed: int, room: int) -> None:
        """Keep these rows, of which the first `fixed` positions are in place already."""
        length, buffer = self.get_seq_length(), self._buffer
        if fixed:
            buffer[..., fixed:length, :] = buffer[:, rows, :, fixed:length]
        elif self.owner is not None and len(rows) <= buffer.shape[1]:
            buffer[:, : len(rows), :, :length] = buffer[:, rows, :, :length]
            self._buffer = buffer[:, : len(rows)]
            self.set_length(length)
        else:
            self.allocate(self.kv[:, rows], room)

    def bind(self, buffer: Tensor, owner: object) -> None:
        """Move into the buffer of an owner (2, as many rows or more, H, longer, K), zero elsewhere.

        It may overlap with that of now.
        """
        old = self.kv.clone()
        rows, length = old.shape[1], old.shape[-2]
        buffer.zero_()
        buffer[:, :rows, :, :length] = old
        self._buffer, self.owner = buffer[:, :rows], owner
        self.set_length(length)

    def drop_left(self, columns: int) -> None:
        """Forget the first columns; nothing is copied."""
        length = self.get_seq_length() - columns
        self._buffer, self.owner = self._buffer[..., columns:, :], None
        self.set_length(length)

    def keep_positions(self, fixed: int, places: Sequence[int]) -> None:
        """Keep the first `fixed` positions, and of those behind them the ones at `places`."""
        length = fixed + len(places)
        if places:
            where = torch.tensor(places, device=self._buffer.device) + fixed
            self._buffer[..., fixed:length, :] = self._buffer[..., where, :]
        self.set_length(length)

    def set_length(self, length: int) -> tuple[Tensor, Tensor]:
        """Count so many positions, which were written to the buffer already; returns them."""
        self.keys, self.values = self._buffer[..., :length, :]
        return self.keys, self.values


class PreallocatedCache(Cache):
    """The keys and values of all layers; `room`: for how many positions more at a time."""

    def __init__(self, room: int = _MAX_ROOM) -> None:
        self.room = min(room, _MAX_ROOM)
        layer: Any = partial(PreallocatedLayer, self.room)
        super().__init__(layer_class_to_replicate=layer)

    @property
    def kv_layers(self) -> list[PreallocatedLayer]:
        """The layers, by their true type."""
        return cast("list[PreallocatedLayer]", self.layers)

    def select(self, rows: Tensor, fixed: int = 0) -> None:
        """Keep these rows; a row may be named several times or not at all.

        fixed: positions in front that each row shares with the one whose place it takes
        """
        for layer in self.kv_layers:
            layer.select(rows, fixed, self.room)

    def copy_rows(self, rows: Tensor, room: int) -> PreallocatedCache:
        """A cache of these rows with room for `room` positions; this one stays as it is."""
        new = PreallocatedCache(room)
        for layer in self.kv_layers:
            copy = PreallocatedLayer(new.room)
            copy.allocate(layer.kv[:, rows], room)
            new.layers.append(copy)
        return new


def join_rows(
    pieces: Sequence[tuple[PreallocatedCache, Sequence[int]]], start: int, columns: int, room: int
) -> PreallocatedCache:
    """One cache of pieces that hold different rows.

    pieces: with the places of their rows in the whole
    start: positions in front that all pieces have; what follows goes to the right end
    columns: positions of the longest piece; what is between is zero, for the mask to hide
    """
    whole = PreallocatedCache(room)
    rows = sum(len(places) for _, places in pieces)
    for number, first in enumerate(pieces[0][0].kv_layers):
        layer = PreallocatedLayer(whole.room)
        _, _, heads, _, width = first.kv.shape
        layer.allocate(first.kv.new_zeros(2, rows, heads, columns, width), whole.room)
        for cache, places in pieces:
            source = cache.kv_layers[number].kv
            where = torch.tensor(list(places), device=source.device)
            gap = columns - source.shape[-2]
            layer.kv[:, where, :, :start] = source[..., :start, :]
            layer.kv[:, where, :, start + gap :] = source[..., start:, :]
        whole.layers.append(layer)
    return whole


# -- passes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prefilled:
    """Prompts after their run: keys and values, mask (R, L; 1 where real), logits (R, V)."""

    cache: PreallocatedCache
    mask_RL: Tensor
    logits_RV: Tensor


@dataclass(frozen=True)
class PrefixKV:
    """What rows begin with: row i continues row `source_R[i]` of the cache, under its mask."""

    cache: PreallocatedCache
    source_R: Tensor
    mask_RL: Tensor


def prefill(
    language_model: nn.Module,
    prompts_LD: Sequence[Tensor],
    alphas: Sequence[float],
    *,
    shared: Sequence[SharedPrefix] = (),
    room: int = 64,
) -> Prefilled:
    """Run prompts (length, width), each under its own α; `room`: for how many tokens to come.

    `shared` names rows that begin alike: their keys and values are computed once. A row stands in
    one `SharedPrefix` at most, and keeps at least one position of its own.
    """
    shared = [one for one in shared if one.length and len(one.rows) > 1]
    if not shared:
        return _run(language_model, prompts_LD, alphas, room)
    firsts = [one.rows[0] for one in shared]
    prefixes = [prompts_LD[row][: one.length] for row, one in zip(firsts, shared, strict=True)]
    before = _run(language_model, prefixes, [alphas[row] for row in firsts], 0, logits="none")
    source, starts = [0] * len(prompts_LD), [0] * len(prompts_LD)
    for place, one in enumerate(shared):
        for row in one.rows:
            source[row], starts[row] = place, one.length
    source_R, starts_R = before.mask_RL.new_tensor([source, starts])
    # A row that shares nothing sees nothing of the prefix that stands in its place.
    mask_RL = before.mask_RL[source_R] * (starts_R > 0)[:, None]
    rests = [row_LD[start:] for row_LD, start in zip(prompts_LD, starts, strict=True)]
    return _run(language_model, rests, alphas, room, PrefixKV(before.cache, source_R, mask_RL))


def extend(
    language_model: nn.Module, cache: PreallocatedCache, text_LD: Tensor, alpha: float
) -> Prefilled:
    """Run embeddings (length, width) behind what the cache of one row holds; the cache grows."""
    device = text_LD.device
    size = _ROW_PASS.get(device.type, _ACCELERATOR_ROW_PASS)
    logits_RV, mask_RL = torch.empty(0), torch.empty(0)
    for part_LD in text_LD.split(size):
        before = cache.get_seq_length()
        total = before + part_LD.shape[0]
        mask_RL = torch.ones(1, total, dtype=torch.long, device=device)
        logits_RV = forward(
            language_model,
            cache,
            [alpha],
            inputs_embeds=part_LD[None],
            attention_mask=mask_RL,
            position_ids=torch.arange(before, total, device=device)[None],
        )
    return Prefilled(cache, mask_RL, logits_RV)


def _run(
    model: nn.Module,
    rows_LD: Sequence[Tensor],
    alphas: Sequence[float],
    room: int,
    prefix: PrefixKV | None = None,
    logits: Logits = "last",
) -> Prefilled:
    """Run rows in pieces of about one length, and put the pieces together."""
    lengths = [row.shape[0] for row in rows_LD]
    limits = _PASSES.get(rows_LD[0].device.type, _ACCELERATOR_PASS)
    places = split_by_length(lengths, *limits)
    pieces: list[Prefilled] = []
    for rows in places:
        some = None
        if prefix is not None:
            where = prefix.source_R.new_tensor(rows)
            some = PrefixKV(prefix.cache, prefix.source_R[where], prefix.mask_RL[where])
        embeds, scales = [rows_LD[row] for row in rows], [alphas[row] for row in rows]
        pieces.append(_run_piece(model, embeds, scales, room, some, logits))
    if len(pieces) == 1 and places[0] == list(range(len(rows_LD))):
        return pieces[0]
    start = 0 if prefix is None else prefix.mask_RL.shape[1]
    columns = start + max(lengths)
    mask_RL = pieces[0].mask_RL.new_zeros(len(rows_LD), columns)
    logits_RV = pieces[0].logits_RV.new_empty(len(rows_LD), pieces[0].logits_RV.shape[1])
    for rows, piece in zip(places, pieces, strict=True):
        where = mask_RL.new_tensor(rows)
        gap = columns - piece.mask_RL.shape[1]
        mask_RL[where, :start] = piece.mask_RL[:, :start]
        mask_RL[where, start + gap :] = piece.mask_RL[:, start:]
        logits_RV[where] = piece.logits_RV
    caches = [(piece.cache, rows) for rows, piece in zip(places, pieces, strict=True)]
    return Prefilled(join_rows(caches, start, columns, room), mask_RL, logits_RV)


def _run_piece(
    model: nn.Module,
    rows_LD: Sequence[Tensor],
    alphas: Sequence[float],
    room: int,
    prefix: PrefixKV | None,
    logits: Logits,
) -> Prefilled:
    embeds_RLD, mask_RL, positions_RL = left_pad(rows_LD)
    cache = PreallocatedCache(room)
    if prefix is not None:
        cache = prefix.cache.copy_rows(prefix.source_R, mask_RL.shape[1] + room)
        positions_RL = positions_RL + prefix.mask_RL.sum(dim=1)[:, None]
        mask_RL = torch.cat([prefix.mask_RL, mask_RL], dim=1)
    logits_RV = forward(
        model,
        cache,
        alphas,
        logits=logits,
        inputs_embeds=embeds_RLD,
        attention_mask=mask_RL,
        position_ids=positions_RL,
    )
    return Prefilled(cache, mask_RL, logits_RV)


def left_pad(rows_LD: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad rows on the left, so that every row's last position is its prompt's last.

    Returns embeddings (R, L, D), mask (R, L; 1 where real) and positions (R, L).
    """
    longest = max(row.shape[0] for row in rows_LD)
    first = rows_LD[0]
    embeds = first.new_zeros(len(rows_LD), longest, first.shape[1])
    mask = torch.zeros(len(rows_LD), longest, dtype=torch.long, device=first.device)
    for index, row in enumerate(rows_LD):
        embeds[index, longest - row.shape[0] :] = row
        mask[index, longest - row.shape[0] :] = 1
    return embeds, mask, (mask.cumsum(dim=1) - 1).clamp_min(0)


def forward(
    model: nn.Module,
    cache: Cache,
    alphas: Sequence[float] | float | Tensor,
    *,
    logits: Logits = "last",
    **inputs: Tensor,
) -> Tensor:
    """One pass, which extends the cache; logits (R, V), of all positions (R, L, V), or (R, 0).

    alphas: of each row, or what `active_alpha` takes; then a pass over one position for its logits
        makes no tensor of numbers from the host, so that it can be recorded
    """
    if isinstance(alphas, Sequence):
        parameter = next(model.parameters())
        alphas = as_row_scale(alphas, device=parameter.device, dtype=parameter.dtype)
    first = inputs["inputs_embeds"] if "inputs_embeds" in inputs else inputs["input_ids"]
    length = first.shape[1]
    kept: int | Tensor = 0 if logits == "all" else 1
    if logits == "none" or (logits == "last" and length > 1):
        # Places by a tensor are copied, and the product with the vocabulary is one; a slice of a
        # number of positions would make it one product for each row.
        places = [length - 1] if logits == "last" else []
        kept = torch.tensor(places, dtype=torch.long, device=first.device)
    with active_alpha(alphas):
        output = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=kept)
    found: Tensor = output.logits
    if logits != "all":
        found = found[:, -1] if logits == "last" else found[:, :, 0]
    return found if found.dtype == torch.float64 else found.float()
