"""Lists of labels: what is chosen from one, its tree of tokens, its grammar, its scores.

Torch is imported where scores are computed only, so that options and configuration files can check
lists at no cost.

The scores of a list after a prompt are computed together: the prompt is run once, as for decoding,
then every node of the tree of the labels' tokens. Node i sees the prompt, the nodes on its own
path, and itself (a tree mask), at the position that it would have in a string. No keys or values of
the prompt are copied for a label. Large trees go in chunks of the preorder; between two of them the
cache keeps the path to the next node only.

Shapes: R rows, C labels, N nodes of a chunk, K nodes that they may see, L positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, get_args

from NatureLM.errors import UsageError
from NatureLM.memory import oom_backoff
from NatureLM.prompts import quoted, token_ids

if TYPE_CHECKING:
    from torch import Tensor, nn

    from NatureLM.generation.prefill import Budget, Prefilled, Row, SharedPrefix

_MAX_LOGITS = {"cpu": 1 << 26, "mps": 1 << 27}  # numbers: 256 and 512 MiB in float32
_ACCELERATOR_MAX_LOGITS = 1 << 29
_MAX_NODES = 2048  # of a chunk: what a node may see grows with their square
_MAX_PRIORS = 4096  # of lists without audio that are kept
_MAX_TOKENS = 1024  # of a label; the work grows with their square
_MASKED_ATTENTION = ("sdpa", "eager")  # take a mask of our own

NOTHING = "None"
"""The answer that no label of the list fits."""

SEPARATOR = ", "
"""Between several labels of one answer."""

Normalize = Literal["sum", "mean", "prior"]
"""How labels of different length and commonness are made comparable.

sum: the log-likelihood of the label and of the end after it
mean: that, divided by the number of tokens, the end included
prior: that, minus the same under the prompt without its audio: what the sound adds
"""


def check_normalize(value: str) -> None:
    """Raise UsageError if it is no way to normalise."""
    if value not in get_args(Normalize):
        raise UsageError(f"normalize is {value!r}, and it must be one of sum, mean, prior")


@dataclass(frozen=True)
class LabelChoice:
    """A list that an answer is chosen from.

    labels: what may be answered
    how: "score" says how likely each label is; "constrained" decodes an answer that can only be
        one of them or `None`
    several: whether a constrained answer may be several labels, separated by ", "
    normalize: how scores are made comparable, see `Normalize`

    Raises UsageError for a list without labels, an empty label, or one that is there twice.
    """

    labels: tuple[str, ...]
    how: Literal["score", "constrained"] = "score"
    several: bool = False
    normalize: Normalize = "sum"

    def __post_init__(self) -> None:
        _refuse_string(self.labels)
        if not self.labels:
            raise UsageError("the list of labels is empty: give at least one")
        seen: set[str] = set()
        for label in self.labels:
            if not label.strip() or label != label.strip():
                raise UsageError(f"the label {label!r} is empty or begins or ends with a space")
            if label in seen:
                raise UsageError(f"the label {label!r} is in the list twice")
            seen.add(label)
        check_normalize(self.normalize)


def label_choices(
    labels: Sequence[str] | Sequence[Sequence[str]], prompts: int, normalize: Normalize
) -> list[LabelChoice]:
    """What each prompt is scored on: one list for all of them, or one list for each."""
    _refuse_string(labels)
    if all(isinstance(label, str) for label in labels):
        return [LabelChoice(tuple(map(str, labels)), normalize=normalize)] * prompts
    if len(labels) != prompts:
        raise UsageError(f"{len(labels)} lists of labels were given for {prompts} prompts")
    return [LabelChoice(tuple(one), normalize=normalize) for one in labels]


def _refuse_string(labels: object) -> None:
    if isinstance(labels, str):
        raise UsageError(f"labels must be a list of texts, got the text {labels!r}")


@dataclass(frozen=True)
class LabelScores:
    """How likely each label of a list is as the answer to one prompt.

    labels: in the order in which they were given
    log_likelihoods: of each label and of the end of the answer after it, natural logarithm
    scores: the same, normalised; equal to them for "sum"
    temperature: what `scores` are divided by before they become probabilities; 1 until calibrated
    """

    labels: tuple[str, ...]
    log_likelihoods: tuple[float, ...]
    scores: tuple[float, ...]
    temperature: float = 1.0

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Of each label, given that one of the list is right; they sum to 1."""
        scaled = [score / self.temperature for score in self.scores]
        highest = max(scaled)
        shares = [math.exp(score - highest) for score in scaled]
        total = sum(shares)
        return tuple(share / total for share in shares)

    @property
    def best(self) -> str:
        """The likeliest label; the first of equal ones."""
        return self.labels[max(range(len(self.labels)), key=self.scores.__getitem__)]

    @property
    def confidence(self) -> float:
        """Probability of the likeliest label, 0 to 1."""
        return max(self.probabilities)

    @property
    def margin(self) -> float:
        """Probability of the likeliest label minus that of the next, 0 to 1; 1 for one label."""
        ordered = sorted(self.probabilities, reverse=True)
        return ordered[0] - (ordered[1] if len(ordered) > 1 else 0.0)

    @property
    def entropy(self) -> float:
        """Of the probabilities, in nats: 0 when sure, log(labels) when nothing is known."""
        return -sum(p * math.log(p) for p in self.probabilities if p > 0)

    def ranked(self, k: int | None = None) -> list[tuple[str, float]]:
        """The `k` likeliest labels (all of them if None) with their probabilities, best first."""
        pairs = list(zip(self.labels, self.probabilities, strict=True))
        return sorted(pairs, key=lambda pair: -pair[1])[:k]

    def at_temperature(self, temperature: float) -> LabelScores:
        """The same scores, calibrated: above 1 makes them less sure, below 1 surer."""
        if not (math.isfinite(temperature) and temperature > 0):
            raise UsageError(f"the temperature is {temperature}, and it must be above 0")
        return replace(self, temperature=temperature)


Tokens = tuple[int, ...]


@dataclass(frozen=True)
class TokenTrie:
    """A tree whose nodes are tokens, in preorder: a node comes before all that follow it.

    tokens: of each node
    parents: of each node, -1 where it begins a label
    depths: of each node; those that begin a label have 0
    ends: the last node of each label, in the order of the labels
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, sequences: Sequence[Tokens]) -> TokenTrie:
        """The tree of token sequences, which are all different and not empty."""
        tokens: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        ends = [0] * len(sequences)
        path: list[int] = []  # nodes of the sequence before
        before: Tokens = ()
        for place in sorted(range(len(sequences)), key=lambda place: sequences[place]):
            sequence = sequences[place]
            pairs = zip(before, sequence, strict=False)
            shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            del path[shared:]
            for depth in range(shared, len(sequence)):
                parents.append(path[-1] if path else -1)
                path.append(len(tokens))
                tokens.append(sequence[depth])
                depths.append(depth)
            ends[place], before = path[-1], sequence
        return cls(tuple(tokens), tuple(parents), tuple(depths), tuple(ends))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each label."""
        return [self.depths[end] + 1 for end in self.ends]

    @cached_property
    def children(self) -> tuple[dict[int, int], ...]:
        """From token to node for what may follow each node; the last entry is for the beginning."""
        found: list[dict[int, int]] = [{} for _ in range(len(self) + 1)]
        for node, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True)):
            found[parent][token] = node
        return tuple(found)

    @cached_property
    def label_at(self) -> dict[int, int]:
        """From the last node of a label to the label's place."""
        return {node: label for label, node in enumerate(self.ends)}

    @cached_property
    def below(self) -> tuple[int, ...]:
        """The labels that end at each node or further down, as a set of bits."""
        bits = [0] * len(self)
        for label, node in enumerate(self.ends):
            bits[node] |= 1 << label
        for node in range(len(self) - 1, -1, -1):
            if self.parents[node] >= 0:
                bits[self.parents[node]] |= bits[node]
        return tuple(bits)

    def ancestors(self, node: int) -> list[int]:
        """The nodes from the beginning of a label to before this one."""
        path: list[int] = []
        node = self.parents[node]
        while node >= 0:
            path.append(node)
            node = self.parents[node]
        return path[::-1]


def label_tokens(
    labels: Sequence[str], tokenizer: Any, eos_ids: Sequence[int], most: int | None = None
) -> list[Tokens]:
    """Token ids of each label as an answer begins with it.

    most: tokens that the language model takes

    Raises UsageError for labels that are too long, cannot be told apart, or are no text for this
    tokenizer.
    """
    found: list[Tokens] = []
    most = _MAX_TOKENS if most is None else min(most, _MAX_TOKENS)
    forbidden = {*eos_ids, *tokenizer.all_special_ids}
    owner: dict[Tokens, str] = {}
    for label in labels:
        tokens = tuple(token_ids(label, tokenizer, most))
        found.append(tokens)
        if len(tokens) > most:
            raise UsageError(
                f"the label {quoted(label)} has {len(label)} characters, which are more than the "
                f"{most} tokens that a label may have: shorten it"
            )
        if not tokens or forbidden.intersection(tokens):
            raise UsageError(
                f"the label {label!r} is no plain text for this model's tokenizer: it holds a "
                "special token or a character that the tokenizer does not know"
            )
        if tokens in owner:
            raise UsageError(
                f"the labels {owner[tokens]!r} and {label!r} are the same tokens for this model"
            )
        owner[tokens] = label
    return found


def continued_tokens(label: str, tokenizer: Any) -> Tokens:
    """Token ids of a separator and a label that follow another label.

    They are looked up behind a letter, because some tokenizers mark the beginning of a string.
    """
    anchor = tuple(token_ids("a", tokenizer))
    whole = tuple(token_ids(f"a{SEPARATOR}{label}", tokenizer))
    if whole[: len(anchor)] == anchor:
        return whole[len(anchor) :]
    return tuple(token_ids(f"{SEPARATOR}{label}", tokenizer))


class LabelGrammar:
    """All answers that a choice allows: one label, `None`, or with `several` more of them.

    max_new_tokens: how long an answer may be; it is raised where one label needs more
    most: tokens that the language model takes

    Raises UsageError for a label that is too long or no plain text for the tokenizer; with
    `several` also for one with a comma in it. `labels` are those of the choice, and `None` behind
    them; `needed` is how many tokens the longest of them has, its end included.
    """

    def __init__(
        self,
        choice: LabelChoice,
        tokenizer: Any,
        eos_ids: Sequence[int],
        max_new_tokens: int = 64,
        most: int | None = None,
    ) -> None:
        if not eos_ids:
            raise UsageError("the model has no token that ends an answer, so none can be closed")
        self._eos_ids = tuple(eos_ids)
        given = choice.labels if NOTHING in choice.labels else (*choice.labels, NOTHING)
        tokens = dict(zip(given, label_tokens(given, tokenizer, eos_ids, most), strict=True))
        self.labels = (*(label for label in given if label != NOTHING), NOTHING)
        self._first = TokenTrie.of([tokens[label] for label in self.labels])
        self._next: TokenTrie | None = None
        if choice.several and len(self.labels) > 1:
            self._next = self._further_labels(tokenizer)
            self._longest_further = max(self._next.lengths)
        self.needed = max(self._first.lengths) + 1
        self.max_new_tokens = max(max_new_tokens, self.needed)

    def _further_labels(self, tokenizer: Any) -> TokenTrie:
        """The tree of what may follow a label: a separator and another label."""
        for label in self.labels:
            if "," in label:
                raise UsageError(
                    f"the label {label!r} has a comma in it, and several labels are separated by "
                    "commas: rename it, or allow one label at a time"
                )
        further = [continued_tokens(label, tokenizer) for label in self.labels[:-1]]
        within = {*self._first.tokens, *(token for one in further for token in one[1:])}
        # A token that begins a further label must not stand within one, too.
        if within.intersection(one[0] for one in further) or len(set(further)) < len(further):
            raise UsageError(
                f"this model's tokenizer does not keep the separator {SEPARATOR!r} apart from the "
                "labels: allow one label at a time"
            )
        return TokenTrie.of(further)

    def allowed(self, ids: Sequence[int], room: int | None = None) -> Tokens:
        """Tokens that may follow the beginning `ids` of an answer; always one at least.

        room: how many may still come, `max_new_tokens` less those that did if it is None
        """
        trie, node, before = self._walk(ids)
        used = sum(1 << label for label in before)
        allowed = [
            token
            for token, child in trie.children[node].items()
            if trie is self._first or trie.below[child] & ~used
        ]
        label = trie.label_at.get(node)
        if label is None or label in before:
            return tuple(allowed)
        allowed += self._eos_ids
        room = self.max_new_tokens - len(ids) if room is None else room
        further = self._next
        if further and self.labels[label] != NOTHING and room > self._longest_further:
            used |= 1 << label
            begins = further.children[-1].items()
            allowed += [token for token, child in begins if further.below[child] & ~used]
        return tuple(allowed)

    def text(self, ids: Sequence[int]) -> str:
        """The answer that a whole sequence spells, its end included or not."""
        end = next((place for place, one in enumerate(ids) if one in self._eos_ids), len(ids))
        trie, node, before = self._walk(ids[:end])
        return SEPARATOR.join(self.labels[label] for label in [*before, trie.label_at[node]])

    def _walk(self, ids: Sequence[int]) -> tuple[TokenTrie, int, list[int]]:
        """The tree and node where `ids` lead, and the places of the labels before."""
        trie, node = self._first, -1
        before: list[int] = []
        for token in ids:
            child = trie.children[node].get(token)
            if child is None:  # a separator: the label is complete, and another one begins
                before.append(trie.label_at[node])
                assert self._next is not None, "only a list of several labels goes on"
                trie = self._next
                child = trie.children[-1][token]
            node = child
        return trie, node, before


# -- scores -----------------------------------------------------------------------------------


class LabelScorer:
    """Scores the labels of rows; keeps the trees of lists, and the scores without audio.

    model: an `EngineModel`
    eos_ids: tokens that end an answer
    budget: how large a batch may be; a row takes its prompt and the nodes of its list
    """

    def __init__(self, model: Any, eos_ids: Sequence[int], budget: Budget) -> None:
        from NatureLM.generation.prefill import context_length

        self._model, self._eos_ids, self._budget = model, eos_ids, budget
        self._language_model = model.language_model
        most = context_length(self._language_model)
        self._trie = lru_cache(maxsize=64)(
            lambda labels: TokenTrie.of(label_tokens(labels, model.tokenizer, eos_ids, most))
        )
        self._prior = lru_cache(maxsize=_MAX_PRIORS)(self._make_prior)

    def tokens(self, labels: tuple[str, ...]) -> list[int]:
        """Of each label, and of the end after it."""
        return [length + 1 for length in self._trie(labels).lengths]

    def __call__(self, rows: Sequence[Row]) -> Iterator[tuple[Row, LabelScores | Exception]]:
        """Each row with the scores of its list, or what kept it from them; list by list."""
        by_list: dict[LabelChoice, list[Row]] = {}
        for row in rows:
            by_list.setdefault(row.request.choice, []).append(row)
        for choice, members in by_list.items():
            yield from self._score_list(choice, members)

    def _score_list(
        self, choice: LabelChoice, rows: Sequence[Row]
    ) -> Iterator[tuple[Row, LabelScores | Exception]]:
        from NatureLM.generation.audio_cache import for_steps
        from NatureLM.generation.prefill import plan_batches

        trie = self._trie(choice.labels)
        batches = plan_batches(rows, replace(self._budget, new_tokens=len(trie)))
        while batches:
            batch = batches[0]
            steps = for_steps(self._language_model)
            with oom_backoff(len(batch.rows), "lists of labels were scored") as backoff, steps:
                likely_RC = score_trie(
                    self._language_model,
                    [row.embeddings(self._model.llama_embed_tokens) for row in batch.rows],
                    [row.request.alpha for row in batch.rows],
                    trie,
                    self._eos_ids,
                    shared=batch.shared,
                )
            if backoff.retry_size is not None:
                self._budget = self._budget.within(backoff.retry_size)
                left = [row for one in batches for row in one.rows]
                batches = plan_batches(left, replace(self._budget, new_tokens=len(trie)))
                continue
            batches = batches[1:]
            for row, likely_C in zip(batch.rows, likely_RC, strict=True):
                yield row, self._scores(row, choice, likely_C)

    def _scores(self, row: Row, choice: LabelChoice, likely_C: Tensor) -> LabelScores | Exception:
        from NatureLM.generation.decoding import NonFiniteLogitsError

        if not likely_C.max().isfinite():
            return NonFiniteLogitsError(self._model)
        scores_C = likely_C
        if choice.normalize == "mean":
            scores_C = likely_C / likely_C.new_tensor(self.tokens(choice.labels))
        elif choice.normalize == "prior":
            if not row.audios_QD:
                return UsageError(
                    'normalize="prior" compares a prompt with the same prompt without audio, and '
                    f"this one has none: {row.request.prompt[:200]!r}"
                )
            scores_C = likely_C - self._prior(row.parts, row.request.alpha, choice.labels)
        return LabelScores(choice.labels, tuple(likely_C.tolist()), tuple(scores_C.tolist()))

    def _make_prior(self, parts: Any, alpha: float, labels: tuple[str, ...]) -> Tensor:
        """Log-likelihood of each label (C,) without the audio of the prompt."""
        import torch

        from NatureLM.generation.prefill import merge_prompt_parts

        with torch.inference_mode():
            prompt_LD = merge_prompt_parts(parts, (), self._model.llama_embed_tokens)
        trie = self._trie(labels)
        return score_trie(self._language_model, [prompt_LD], [alpha], trie, self._eos_ids)[0]


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

    Returns float64 of shape (prompts, labels); it lies on the processor where mps computes.
    """
    import torch

    from NatureLM.generation.prefill import prefill

    by_depth: dict[int, list[int]] = {}
    for node, depth in enumerate(trie.depths):
        by_depth.setdefault(depth, []).append(node)
    with torch.inference_mode():
        done = prefill(language_model, prompts_LD, alphas, shared=shared, room=len(trie))
        node_RN, end_RN = _run_trie(language_model, done, alphas, trie, eos_ids)
        for depth in range(1, len(by_depth)):
            nodes = by_depth[depth]
            node_RN[:, nodes] += node_RN[:, [trie.parents[node] for node in nodes]]
        ends = list(trie.ends)
        return node_RN[:, ends] + end_RN[:, ends]


def _run_trie(
    model: nn.Module,
    done: Prefilled,
    alphas: Sequence[float],
    trie: TokenTrie,
    eos_ids: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Log-probability (R, nodes) of each node after its parent, and of an end after each node."""
    rows, vocabulary = done.logits_RV.shape
    node_RN = _as_float64(done.logits_RV.new_zeros(rows, len(trie)))
    end_RN = node_RN.clone()
    begins, total_R1 = trie.children[-1], done.logits_RV.logsumexp(dim=-1, keepdim=True)
    first_RN = _as_float64(done.logits_RV[:, list(begins)])
    node_RN[:, list(begins.values())] = first_RN - _as_float64(total_R1)
    kind = done.logits_RV.device.type
    most = _MAX_LOGITS.get(kind, _ACCELERATOR_MAX_LOGITS) // (rows * vocabulary)
    for chunk in _chunks(trie, max(1, min(most, _MAX_NODES))):
        for layer in done.cache.kv_layers:
            layer.keep_positions(done.mask_RL.shape[1], chunk.kept)
        logits_RNV = _run_chunk(model, done, alphas, trie, chunk)
        total_RN = _as_float64(logits_RNV.logsumexp(dim=-1))
        node_RN[:, chunk.children] = (
            _as_float64(logits_RNV[:, chunk.parents, chunk.tokens]) - total_RN[:, chunk.parents]
        )
        if eos_ids:
            ends = logits_RNV[:, :, list(eos_ids)].logsumexp(dim=-1)
            end_RN[:, chunk.first : chunk.last] = _as_float64(ends) - total_RN
    return node_RN, end_RN


def _as_float64(values: Tensor) -> Tensor:
    """On the processor if they lie on mps, which has no such numbers."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _run_chunk(
    model: nn.Module, done: Prefilled, alphas: Sequence[float], trie: TokenTrie, chunk: _Chunk
) -> Tensor:
    """One pass over the nodes of a chunk; logits (R, N, V)."""
    import torch

    from NatureLM.generation.prefill import forward

    nodes = slice(chunk.first, chunk.last)
    ids_N, depths_N = done.mask_RL.new_tensor([trie.tokens[nodes], trie.depths[nodes]])
    before_RNL = done.mask_RL.bool()[:, None].expand(-1, len(ids_N), -1)
    sees_RNK = chunk.sees_NK.to(ids_N.device).expand(len(alphas), -1, -1)
    with _own_mask(model, torch.cat([before_RNL, sees_RNK], dim=2)[:, None]) as mask:
        return forward(
            model,
            done.cache,
            alphas,
            logits="all",
            input_ids=ids_N.expand(len(alphas), -1),
            attention_mask=mask,
            position_ids=done.mask_RL.sum(dim=1)[:, None] + depths_N,
        )


@contextmanager
def _own_mask(model: nn.Module, mask: Tensor) -> Iterator[Tensor]:
    """The mask (R, 1, N, L; True where seen) as the model's attention takes it.

    Attention that takes no mask of ours (flash) gives way to torch's own within the block.
    """
    import torch

    config: Any = getattr(model, "config", None)
    before = getattr(config, "_attn_implementation", "sdpa")
    if before == "eager":
        dtype = next(model.parameters()).dtype
        yield torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
    elif before in _MASKED_ATTENTION:
        yield mask
    else:
        config._attn_implementation = "sdpa"
        try:
            yield mask
        finally:
            config._attn_implementation = before


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
    kept: list[int]
    sees_NK: Tensor
    parents: list[int]
    tokens: list[int]
    children: list[int]


@lru_cache(maxsize=16)
def _chunks(trie: TokenTrie, size: int) -> list[_Chunk]:
    """The tree in chunks of at most `size` nodes."""
    import torch

    made: list[_Chunk] = []
    held: list[int] = []  # nodes in the cache, in the order of their columns
    for first in range(0, len(trie), size):
        last = min(first + size, len(trie))
        path = trie.ancestors(first)
        kept = [held.index(node) for node in path]
        held = [*path, *range(first, last)]
        places = {node: place for place, node in enumerate(held)}
        sees = torch.zeros(last - first, len(places), dtype=torch.bool)
        parents: list[int] = []
        tokens: list[int] = []
        children: list[int] = []
        for node in range(first, last):
            row, parent = sees[node - first], trie.parents[node]
            if parent >= first:
                row |= sees[parent - first]
            elif parent >= 0:  # the path to it is a beginning of the path to `first`
                row[: places[parent] + 1] = True
            row[places[node]] = True
            parents += [node - first] * len(trie.children[node])
            tokens += trie.children[node].keys()
            children += trie.children[node].values()
        made.append(_Chunk(first, last, kept, sees, parents, tokens, children))
    return made
