"""Running prompts: audio embeddings in their places, shared prefixes once, like lengths together.

A prompt is cut at every `<AudioHere>`; the parts are tokenised separately and without special
tokens, as the reference does (tokens never cross a placeholder), and the i-th audio stands at the
i-th placeholder. The embedding of the beginning-of-text token goes in front. Rows of different
lengths are padded on the left and keep their own positions.

Shapes: R rows, G shared prefixes, L positions, Q audio positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import Cache

from NatureLM.errors import UsageError
from NatureLM.generation.cache import PreallocatedCache, join_rows
from NatureLM.merging.lora import active_alpha, as_row_scale
from NatureLM.prompts import PLACEHOLDER

Fact = TypeVar("Fact")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device.

    From the host to CUDA it goes through pinned memory, so that nobody waits for the copy; torch
    keeps that memory until the copy is done.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class PromptError(UsageError):
    """Placeholders and audio of a prompt do not fit together."""


def part_token_ids(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of the prompt's parts between placeholders (one more part than placeholders)."""
    parts = prompt.split(PLACEHOLDER)
    return [list(tokenizer(part, add_special_tokens=False).input_ids) for part in parts]


def check_placeholders(prompt: str, audios: int) -> None:
    """Refuse a prompt whose placeholders are not as many as its audios."""
    places = prompt.count(PLACEHOLDER)
    if places != audios:
        raise PromptError(
            f"the prompt has {places} {PLACEHOLDER} and {audios} audio clips were given; "
            f"each placeholder takes one clip. Prompt: {prompt[:200]!r}"
        )


def prompt_parts(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """`part_token_ids` with the beginning-of-text token in front."""
    parts = part_token_ids(prompt, tokenizer)
    if tokenizer.bos_token_id is not None:
        parts[0] = [int(tokenizer.bos_token_id), *parts[0]]
    return parts


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


def merge_audio_embeddings(
    prompt: str,
    audios_QD: Sequence[Tensor],
    tokenizer: PreTrainedTokenizerBase,
    embed_tokens: nn.Embedding,
) -> Tensor:
    """Input embeddings (L, D) of one prompt, beginning-of-text token included."""
    check_placeholders(prompt, len(audios_QD))
    return merge_prompt_parts(prompt_parts(prompt, tokenizer), audios_QD, embed_tokens)


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


# Of one pass through the model: positions at most, and what it costs beside them, in positions.
_PASSES = {"cpu": (2048, 24)}
_ACCELERATOR_PASS = (32768, 128)
_ROW_PASS = {"cpu": 2048}  # positions of one row, which bounds the memory of a long text
_ACCELERATOR_ROW_PASS = 8192


@dataclass(frozen=True)
class SharedPrefix:
    """Rows of one α whose prompts begin with the same `length` positions."""

    rows: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class Prefilled:
    """Prompts after their run: keys and values, mask (R, L; 1 where real), logits (R, V)."""

    cache: PreallocatedCache
    mask_RL: Tensor
    logits_RV: Tensor


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
    # A row that shares nothing sees nothing of the prefix that stands in its place.
    mask_RL = before.mask_RL[source_R] * (torch.tensor(starts, device=device) > 0)[:, None]
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


@dataclass(frozen=True)
class PrefixKV:
    """What rows begin with: row i continues row `source_R[i]` of the cache, under its mask."""

    cache: PreallocatedCache
    source_R: Tensor
    mask_RL: Tensor

    def of_rows(self, rows: Sequence[int]) -> PrefixKV:
        """The same for some of the rows."""
        places = torch.tensor(rows, device=self.source_R.device)
        return PrefixKV(self.cache, self.source_R[places], self.mask_RL[places])


def _run(
    model: nn.Module,
    rows_LD: Sequence[Tensor],
    alphas: Sequence[float],
    room: int,
    prefix: PrefixKV | None,
    *,
    scored: bool = True,
) -> Prefilled:
    """Run rows in pieces of about one length, and put the pieces together.

    scored: whether logits are wanted; without, they are (R, 0)
    """
    lengths = [row.shape[0] for row in rows_LD]
    limits = _PASSES.get(rows_LD[0].device.type, _ACCELERATOR_PASS)
    places = split_by_length(lengths, *limits)
    pieces = [
        _run_piece(
            model,
            [rows_LD[row] for row in rows],
            [alphas[row] for row in rows],
            room,
            None if prefix is None else prefix.of_rows(rows),
            scored,
        )
        for rows in places
    ]
    if len(pieces) == 1 and places[0] == list(range(len(rows_LD))):
        return pieces[0]
    start = 0 if prefix is None else prefix.mask_RL.shape[1]
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
    return Prefilled(join_rows(caches, start, columns, room), mask_RL, logits_RV)


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


def _run_piece(
    model: nn.Module,
    rows_LD: Sequence[Tensor],
    alphas: Sequence[float],
    room: int,
    prefix: PrefixKV | None,
    scored: bool,
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
        inputs_embeds=embeds_RLD,
        attention_mask=mask_RL,
        position_ids=positions_RL,
        scored=scored,
    )
    return Prefilled(cache, mask_RL, logits_RV)


def forward(
    model: nn.Module,
    cache: PreallocatedCache,
    alphas: Sequence[float],
    *,
    scored: bool = True,
    **inputs: Tensor,
) -> Tensor:
    """One pass under the rows' α, which extends the cache; logits (R, V) of the last position.

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
