"""Log-likelihoods of labels over a shared prompt: every node of their token tree is run once.

The prompt is run once, as for decoding. Then all nodes go through the model together: node i sees
the prompt, the nodes on its own path, and itself (a tree mask), at the position that it would have
in a string. No keys or values of the prompt are copied for a label. Large trees go in chunks of the
preorder; between two of them the cache keeps the path to the next node only.

Shapes: R rows, C labels, N nodes of a chunk, K nodes that they may see, L positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from NatureLM.errors import UsageError
from NatureLM.generation.labels import LabelChoice, LabelScores, TokenTrie, label_tokens
from NatureLM.generation.prefill import Prefilled, SharedPrefix, merge_prompt_parts, prefill
from NatureLM.generation.request import Answer, EngineModel
from NatureLM.generation.sampling import NonFiniteLogitsError
from NatureLM.generation.scheduler import Batch, Budget, Row, plan_batches
from NatureLM.merging.lora import active_alpha, as_row_scale
from NatureLM.util import oom_backoff

_MAX_LOGITS = {"cpu": 1 << 26}  # numbers: 256 MiB in float32
_ACCELERATOR_MAX_LOGITS = 1 << 29
_MAX_NODES = 2048  # of a chunk: what a node may see grows with their square
_MASKED_ATTENTION = ("sdpa", "eager")  # take a mask of our own
_MAX_PRIORS = 4096


class Scorer:
    """Answers rows with scores; keeps the trees of lists, and labels' scores without audio.

    eos_ids: tokens that end an answer
    budget: how large a batch may be; a row takes its prompt and the nodes of its list
    """

    def __init__(self, model: EngineModel, eos_ids: Sequence[int], budget: Budget) -> None:
        self._model, self._eos_ids = model, list(eos_ids)
        self._budget = replace(budget, num_beams=1)
        self._trie = lru_cache(maxsize=64)(self._make_trie)
        self._prior = lru_cache(maxsize=_MAX_PRIORS)(self._make_prior)

    def __call__(self, rows: Sequence[Row]) -> Iterator[Answer]:
        """An answer for each row, list by list."""
        by_list: dict[LabelChoice, list[Row]] = {}
        for row in rows:
            assert row.request.choice is not None, "rows without a list are not scored"
            by_list.setdefault(row.request.choice, []).append(row)
        for choice, members in by_list.items():
            yield from self._score_all(choice, members)

    def _score_all(self, choice: LabelChoice, rows: Sequence[Row]) -> Iterator[Answer]:
        room = replace(self._budget, new_tokens=len(self._trie(choice.labels)))
        batches = plan_batches(rows, room)
        while batches:
            batch = batches.pop(0)
            with oom_backoff(len(batch.rows), "lists of labels were scored") as backoff:
                likely_RC = self._likelihoods(batch, choice.labels)
            if backoff.retry_size is not None:
                self._budget = self._budget.within(backoff.retry_size)
                room = room.within(backoff.retry_size)
                batches = plan_batches([row for one in (batch, *batches) for row in one.rows], room)
                continue
            for row, likely_C in zip(batch.rows, likely_RC, strict=True):
                yield self._answer(row, choice, likely_C)

    def _answer(self, row: Row, choice: LabelChoice, likely_C: Tensor) -> Answer:
        if not likely_C.max().isfinite():
            return Answer(row.request, None, NonFiniteLogitsError())
        tokens = [length + 1 for length in self._trie(choice.labels).lengths]  # the end is one
        scores_C = likely_C
        if choice.normalize == "mean":
            scores_C = likely_C / likely_C.new_tensor(tokens)
        elif choice.normalize == "prior":
            if not row.audios_QD:
                raise UsageError(
                    'normalize="prior" compares a prompt with the same prompt without audio, and '
                    f"this one has none: {row.request.prompt[:200]!r}"
                )
            scores_C = likely_C - self._prior(row.parts, row.request.alpha, choice.labels)
        found = LabelScores(choice.labels, tuple(likely_C.tolist()), tuple(scores_C.tolist()))
        best = choice.labels.index(found.best)
        return Answer(
            row.request,
            found.best,
            log_probability=found.log_likelihoods[best],
            tokens=tokens[best],
            scores=found,
        )

    def _likelihoods(self, batch: Batch, labels: tuple[str, ...]) -> Tensor:
        """Log-likelihood of each label after each prompt (R, C), float64."""
        return score_trie(
            self._model.language_model,
            [row.embeddings(self._model.llama_embed_tokens) for row in batch.rows],
            [row.request.alpha for row in batch.rows],
            self._trie(labels),
            self._eos_ids,
            shared=batch.shared,
        )

    def _make_prior(self, parts: Any, alpha: float, labels: tuple[str, ...]) -> Tensor:
        """The same (C,) without the audio of the prompt."""
        with torch.inference_mode():
            prompt = merge_prompt_parts(parts, (), self._model.llama_embed_tokens)
        return score_trie(
            self._model.language_model, [prompt], [alpha], self._trie(labels), self._eos_ids
        )[0]

    def _make_trie(self, labels: tuple[str, ...]) -> TokenTrie:
        return TokenTrie.of(label_tokens(labels, self._model.tokenizer, self._eos_ids))


@torch.inference_mode()
def score_trie(
    language_model: nn.Module,
    prompts_LD: Sequence[Tensor],
    alphas: Sequence[float],
    trie: TokenTrie,
    eos_ids: Sequence[int],
    *,
    shared: Sequence[SharedPrefix] = (),
) -> Tensor:
    """Log-likelihood of every label of the tree, followed by an end, after every prompt.

    prompts_LD: embeddings (length, width) of each prompt, run under its own α
    eos_ids: tokens that end an answer; whichever comes, the label was the answer. Without any the
        tokens of the label alone count
    shared: prompts that begin alike (see `prefill`)

    Returns float64 of shape (prompts, labels).
    """
    done = prefill(language_model, prompts_LD, alphas, shared=shared, room=len(trie))
    node_RN, end_RN = _run(language_model, done, alphas, trie, eos_ids)
    for nodes, parents in _levels(trie, node_RN.device):
        node_RN[:, nodes] += node_RN[:, parents]
    ends = torch.tensor(trie.ends, device=node_RN.device)
    return node_RN[:, ends] + end_RN[:, ends]


def _run(
    model: nn.Module,
    done: Prefilled,
    alphas: Sequence[float],
    trie: TokenTrie,
    eos_ids: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Log-probability (R, nodes) of each node after its parent, and of an end after each node."""
    rows, vocabulary = done.logits_RV.shape
    device = done.logits_RV.device
    node_RN = torch.zeros(rows, len(trie), dtype=torch.float64, device=device)
    end_RN = torch.zeros_like(node_RN)
    begins = trie.children[-1]
    node_RN[:, list(begins.values())] = _log_probabilities(
        done.logits_RV[:, None],
        done.logits_RV.logsumexp(dim=-1)[:, None],
        (0,) * len(begins),
        tuple(begins),
    )
    most = _MAX_LOGITS.get(device.type, _ACCELERATOR_MAX_LOGITS) // (rows * vocabulary)
    prompt_columns = done.mask_RL.shape[1]
    lengths_R = done.mask_RL.sum(dim=1)
    for chunk in _chunks(trie, max(1, min(most, _MAX_NODES))):
        for layer in done.cache.kv_layers:
            layer.keep_positions(prompt_columns, chunk.kept)
        nodes = slice(chunk.first, chunk.last)
        logits_RNV = _forward(model, done, alphas, trie, chunk, lengths_R)
        total_RN = logits_RNV.logsumexp(dim=-1)
        node_RN[:, list(chunk.children)] = _log_probabilities(
            logits_RNV, total_RN, chunk.parents, chunk.tokens
        )
        if eos_ids:
            ends = logits_RNV[:, :, list(eos_ids)].logsumexp(dim=-1)
            end_RN[:, nodes] = ends.double() - total_RN.double()
    return node_RN, end_RN


def _forward(
    model: nn.Module,
    done: Prefilled,
    alphas: Sequence[float],
    trie: TokenTrie,
    chunk: _Chunk,
    lengths_R: Tensor,
) -> Tensor:
    """One pass over the nodes of a chunk; logits (R, N, V)."""
    rows, device = len(alphas), done.mask_RL.device
    nodes = slice(chunk.first, chunk.last)
    ids_N = torch.tensor(trie.tokens[nodes], device=device)
    depths_N = torch.tensor(trie.depths[nodes], device=device)
    seen = chunk.sees_NK.to(device)
    mask = torch.cat(
        [
            done.mask_RL.bool()[:, None].expand(rows, len(ids_N), -1),
            seen[None].expand(rows, -1, -1),
        ],
        dim=2,
    )[:, None]
    parameter = next(model.parameters())
    scale = as_row_scale(alphas, device=parameter.device, dtype=parameter.dtype)
    with active_alpha(scale), _own_mask(model, mask, parameter.dtype) as own_mask:
        logits: Tensor = model(
            input_ids=ids_N.expand(rows, -1),
            attention_mask=own_mask,
            position_ids=lengths_R[:, None] + depths_N,
            past_key_values=done.cache,
            use_cache=True,
        ).logits
    return logits if logits.dtype == torch.float64 else logits.float()


@contextmanager
def _own_mask(model: nn.Module, mask: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """The mask (R, 1, N, L; True where seen) as the model's attention takes it.

    Attention that takes no mask of ours (flash) gives way to torch's own within the block.
    """
    config: Any = getattr(model, "config", None)
    before = getattr(config, "_attn_implementation", "sdpa")
    if before == "eager":
        yield torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(dtype).min
        )
    elif before in _MASKED_ATTENTION:
        yield mask
    else:
        config._attn_implementation = "sdpa"
        try:
            yield mask
        finally:
            config._attn_implementation = before


def _log_probabilities(
    logits_RNV: Tensor, total_RN: Tensor, places: Sequence[int], tokens: Sequence[int]
) -> Tensor:
    """Log-probability (R, pairs) of the i-th token at the i-th place, float64.

    total_RN: logarithm of the sum of the exponentials of the logits
    """
    where = torch.tensor(places, device=logits_RNV.device, dtype=torch.long)
    what = torch.tensor(tokens, device=logits_RNV.device, dtype=torch.long)
    return logits_RNV[:, where, what].double() - total_RN[:, where].double()


def _levels(trie: TokenTrie, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Nodes of each depth from 1 on, with their parents."""
    by_depth: dict[int, list[int]] = {}
    for node, depth in enumerate(trie.depths):
        by_depth.setdefault(depth, []).append(node)
    for depth in range(1, len(by_depth)):
        nodes = by_depth[depth]
        yield (
            torch.tensor(nodes, device=device),
            torch.tensor([trie.parents[node] for node in nodes], device=device),
        )


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Nodes first to last - 1 of a tree, which are run together.

    kept: where the nodes on the path to `first` are in the cache, behind the prompt
    sees_NK: what each node sees of that path and of the chunk (N, K)
    parents, tokens, children: for every node that follows one of the chunk: where the latter
        stands in it, the token of the former, and the former itself
    """

    first: int
    last: int
    kept: tuple[int, ...]
    sees_NK: Tensor
    parents: tuple[int, ...]
    tokens: tuple[int, ...]
    children: tuple[int, ...]


@lru_cache(maxsize=16)
def _chunks(trie: TokenTrie, size: int) -> tuple[_Chunk, ...]:
    """The tree in chunks of at most `size` nodes."""
    made: list[_Chunk] = []
    held: list[int] = []  # nodes in the cache, in the order of their columns
    for first in range(0, len(trie), size):
        last = min(first + size, len(trie))
        path = trie.ancestors(first)
        places = {node: place for place, node in enumerate([*path, *range(first, last)])}
        sees = torch.zeros(last - first, len(places), dtype=torch.bool)
        for node in range(first, last):
            row = sees[node - first]
            parent = trie.parents[node]
            if parent >= first:
                row |= sees[parent - first]
            elif parent >= 0:  # the path to it is a beginning of the path to `first`
                row[: places[parent] + 1] = True
            row[places[node]] = True
        following = [
            (node - first, token, child)
            for node in range(first, last)
            for token, child in trie.children[node].items()
        ]
        parents, tokens, children = zip(*following, strict=True) if following else ((), (), ())
        kept = tuple(held.index(node) for node in path)
        made.append(_Chunk(first, last, kept, sees, parents, tokens, children))
        held = [*path, *range(first, last)]
    return tuple(made)
