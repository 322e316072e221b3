"""Decoding prompts together, a token at a time: rows leave when they are finished, others may join.

The one decoding loop, greedy, sampled or with beams: the engine advances many prompts with it, a
conversation one, token by token.

Shapes: R rows (one for each beam of each unfinished prompt), L columns of the cache or positions,
D width, V vocabulary. Rows end at the last column: a row that came later, or has a shorter prompt,
begins further right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from NatureLM.errors import NatureLMError
from NatureLM.generation.prefill import (
    PreallocatedCache,
    SharedPrefix,
    context_length,
    extend,
    forward,
    join_rows,
    prefill,
    to_device,
)
from NatureLM.util import why_not_finite

if TYPE_CHECKING:
    from NatureLM.generation.cuda_graphs import GraphRunner
    from NatureLM.generation.engine import GenerationOptions

_LEAST = -1e9  # what an allowed token counts at least, so that one always can be chosen


class NonFiniteLogitsError(NatureLMError):
    """The model's logits are NaN; `model` is looked through for the reason."""

    def __init__(self, model: Any = None) -> None:
        super().__init__(why_not_finite(model, "answer"))


class Constraint(Protocol):
    """Which answers are allowed; a `LabelGrammar` is one.

    What it raises is the error of its own prompt.
    """

    def allowed(self, ids: Sequence[int], room: int) -> Sequence[int] | Tensor:
        """What may follow the beginning `ids` of an answer: token ids, or a mask (V,) of them.

        room: how many tokens may still come. Where nothing is allowed, the answer ends.
        """


@dataclass(frozen=True)
class TokenLogProbability:
    """How likely the model found a token, natural logarithm, and the likeliest ones, best first."""

    token: int
    value: float
    likeliest: tuple[tuple[int, float], ...] = ()


class DecodingSession:
    """The language model's state while rows are decoded: keys and values, mask, positions, α.

    Rows may be dropped, repeated or joined.

    prompts_LD: embeddings (length, width) of each prompt
    shared: prompts that begin alike (see `prefill`)
    new_tokens: how many steps there may be
    graphs: takes the steps that it can take
    cache: what stands before the one prompt; it grows

    `logits_RV` (R, V) are those after each row's last position.
    """

    def __init__(
        self,
        language_model: nn.Module,
        prompts_LD: Sequence[Tensor],
        alphas: Sequence[float],
        *,
        shared: Sequence[SharedPrefix] = (),
        new_tokens: int = 64,
        graphs: GraphRunner | None = None,
        cache: PreallocatedCache | None = None,
    ) -> None:
        self._model, self._graphs = language_model, graphs
        self._alphas = list(alphas)
        self._room = new_tokens
        if cache is None:
            done = prefill(language_model, prompts_LD, alphas, shared=shared, room=new_tokens)
        else:
            done = extend(language_model, cache, prompts_LD[0], alphas[0])
        self._cache, self._mask_RL, self.logits_RV = done.cache, done.mask_RL, done.logits_RV
        self._next_position_R = done.mask_RL.sum(dim=1)
        self._ends = [done.mask_RL.shape[1]] * len(prompts_LD)  # columns up to each prompt's end
        self._owners = [object() for _ in prompts_LD]  # the prompt that each row continues

    @property
    def rows(self) -> int:
        return self._mask_RL.shape[0]

    def step(self, tokens_R: Tensor) -> Tensor:
        """Append one token to every row; returns the logits (R, V) that follow it."""
        self._mask_RL = torch.cat([self._mask_RL, self._mask_RL.new_ones(self.rows, 1)], dim=1)
        logits_RV = None
        if self._graphs is not None:
            logits_RV = self._graphs.step(
                self._cache, tokens_R, self._mask_RL, self._next_position_R, self._alphas
            )
        if logits_RV is None:
            logits_RV = forward(
                self._model,
                self._cache,
                self._alphas,
                input_ids=tokens_R[:, None],
                attention_mask=self._mask_RL,
                position_ids=self._next_position_R[:, None],
            )
        self.logits_RV = logits_RV
        self._next_position_R = self._next_position_R + 1
        return self.logits_RV

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be named several times or not at all.

        A step must follow: `logits_RV` stays as it was.
        """
        if list(rows) == list(range(self.rows)):
            return
        owners = [self._owners[row] for row in rows]
        places = torch.tensor(list(rows), device=self._mask_RL.device)
        if owners == self._owners:  # only what was generated moves, from beam to beam of a prompt
            self._cache.select(places, min(self._ends))
            return
        self._cache.select(places)
        self._owners = owners
        self._mask_RL = self._mask_RL[places]
        self._next_position_R = self._next_position_R[places]
        self._alphas = [self._alphas[row] for row in rows]
        self._ends = [self._ends[row] for row in rows]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, between two steps; those that are named stand in their order."""
        if len(rows) < self.rows:
            self.select(rows)
            self.logits_RV = self.logits_RV[list(rows)]

    def join(self, other: DecodingSession) -> None:
        """Take the rows of another session, too, behind those of this one."""
        both = (self, other)
        for one in both:
            one._drop_unused_columns()
        columns = max(one._mask_RL.shape[1] for one in both)
        rows = self.rows + other.rows
        places = [range(self.rows), range(self.rows, rows)]
        caches = [(one._cache, where) for one, where in zip(both, places, strict=True)]
        cache = join_rows(caches, 0, columns, self._room)
        mask_RL = self._mask_RL.new_zeros(rows, columns)
        ends: list[int] = []
        for one, where in zip(both, places, strict=True):
            gap = columns - one._mask_RL.shape[1]
            mask_RL[where.start : where.stop, gap:] = one._mask_RL
            ends += [end + gap for end in one._ends]
        next_position_R = torch.cat([self._next_position_R, other._next_position_R])
        logits_RV = torch.cat([self.logits_RV, other.logits_RV])
        # Memory may have run out before here; then these rows are as they were.
        self._cache, self._mask_RL, self._ends = cache, mask_RL, ends
        self._next_position_R, self.logits_RV = next_position_R, logits_RV
        self._alphas += other._alphas
        self._owners += other._owners

    def _drop_unused_columns(self) -> None:
        """Take off the columns in front that no row uses any more."""
        unused = int(self._mask_RL.any(dim=0).int().argmax())
        if unused:
            for layer in self._cache.kv_layers:
                layer.drop_left(unused)
            self._mask_RL = self._mask_RL[:, unused:]
            self._ends = [end - unused for end in self._ends]


@dataclass(frozen=True, eq=False)
class Prompt:
    """Something to decode.

    embeds_LD: embeddings (length, width)
    alpha: share of the adapter
    stream: number of the random stream when sampling
    constraint: which answers are allowed (None: any)
    source: whatever the caller made it from
    options: how it is decoded; the decoder's options where it is None
    ends: whether an answer's ids are complete, such as with a stop string
    """

    embeds_LD: Tensor
    alpha: float = 1.0
    stream: int = 0
    constraint: Constraint | None = None
    source: Any = None
    options: GenerationOptions | None = None
    ends: Callable[[Sequence[int]], bool] | None = None


@dataclass(eq=False)
class RowState:
    """What a prompt has been answered so far: its beams, one of them where there is no search.

    positions: of the prompt and of what stands before it
    eos_ids: tokens that end it
    sums: log-probability of each beam, natural logarithm, summed over its tokens. Of several beams
        it is what they are ranked by, so a repetition penalty counts; of greedy and sampled tokens
        it is the model's own. NaN where the logits overflowed; the ids mean nothing then
    hypotheses: score, tokens and sum of the beams that came to an end
    options: how it is decoded
    log_probabilities: of each token, if the options ask for them
    error: what the constraint raised

    Once it is done, the answer is its only beam, the end of the text included if one came.
    """

    prompt: Prompt
    positions: int
    max_new_tokens: int
    options: GenerationOptions
    eos_ids: Sequence[int]
    generator: torch.Generator | None = None
    beams: list[list[int]] = field(default_factory=lambda: [[]])
    sums: list[float] = field(default_factory=lambda: [0.0])
    hypotheses: list[tuple[float, list[int], float]] = field(default_factory=list)
    done: bool = False
    log_probabilities: list[TokenLogProbability] = field(default_factory=list)
    error: Exception | None = None

    @property
    def ids(self) -> list[int]:
        """Tokens of the first beam."""
        return self.beams[0]

    @property
    def log_probability(self) -> float:
        """Of the first beam."""
        return self.sums[0]

    def ends_with(self, ids: Sequence[int]) -> bool:
        """Whether an answer is complete with its last token."""
        return ids[-1] in self.eos_ids or (self.prompt.ends is not None and self.prompt.ends(ids))

    def is_too_short(self, ids: Sequence[int]) -> bool:
        """Whether an answer may not end yet."""
        own = self.options
        return self.positions + len(ids) < own.min_length or len(ids) < own.min_new_tokens

    def allowed(self, ids: Sequence[int]) -> Sequence[int] | Tensor:
        """What its constraint lets follow; an end where that is nothing, or it fails."""
        assert self.prompt.constraint is not None
        try:
            found = self.prompt.constraint.allowed(ids, self.max_new_tokens - len(ids))
        except Exception as error:  # of one prompt, which must not stop the others
            self.error = error
            return self.eos_ids
        is_some = bool(found.any()) if isinstance(found, Tensor) else len(found) > 0
        return found if is_some else self.eos_ids

    def finish(self, ids: list[int], log_probability: float) -> None:
        """This is the answer."""
        self.beams, self.sums, self.done = [ids], [log_probability], True


class Decoder:
    """Decodes prompts a token at a time. What a prompt gives does not depend on the others.

    An answer ends where the language model takes no more positions.

    eos_ids: tokens that end an answer
    graphs: takes the steps that it can take
    """

    def __init__(
        self,
        language_model: nn.Module,
        options: GenerationOptions,
        eos_ids: Sequence[int],
        graphs: GraphRunner | None = None,
    ) -> None:
        self._model, self._graphs = language_model, graphs
        self._options, self._eos_ids = options, list(eos_ids)
        self._session: DecodingSession | None = None
        self._active: list[RowState] = []
        self._next: tuple[list[int], list[int]] = ([], [])  # rows that go on, each with a token

    def __len__(self) -> int:
        """Prompts that are not finished."""
        return len(self._active)

    @property
    def states(self) -> tuple[RowState, ...]:
        """Those that are not finished, as far as they have come."""
        return tuple(self._active)

    @property
    def rows(self) -> int:
        """Rows of the next steps: a prompt has as many as beams."""
        return sum(state.options.num_beams for state in self._active)

    @property
    def prompts(self) -> list[Prompt]:
        """Those that are not finished."""
        return [state.prompt for state in self._active]

    @property
    def longest(self) -> int:
        """Positions of the longest prompt that is not finished."""
        return max((state.prompt.embeds_LD.shape[0] for state in self._active), default=0)

    def clear(self) -> None:
        """Forget all that was decoded."""
        self._session, self._active = None, []

    @torch.inference_mode()
    def remove(self, prompts: Sequence[Prompt]) -> None:
        """Decode these no further; the others go on as if they had never been there."""
        gone = set(map(id, prompts))
        rows: list[int] = []
        first_row = 0
        for state in self._active:
            if id(state.prompt) not in gone:
                rows.extend(range(first_row, first_row + len(state.beams)))
            first_row += len(state.beams)
        self._active = [state for state in self._active if id(state.prompt) not in gone]
        if not self._active:
            self._session = None
        elif self._session is not None:
            self._session.keep(rows)

    @torch.inference_mode()
    def add(
        self,
        prompts: Sequence[Prompt],
        shared: Sequence[SharedPrefix] = (),
        cache: PreallocatedCache | None = None,
    ) -> None:
        """Run prompts, and decode them from now on.

        shared: prompts of one α that begin with the same embeddings, which are then run once
        cache: keys and values of what stands before the only prompt; it grows
        """
        if not prompts:
            return
        before, limit = 0 if cache is None else cache.get_seq_length(), context_length(self._model)
        own = [prompt.options or self._options for prompt in prompts]
        session = DecodingSession(
            self._model,
            [prompt.embeds_LD for prompt in prompts],
            [prompt.alpha for prompt in prompts],
            shared=shared,
            new_tokens=max(one.max_new_tokens for one in own),
            graphs=self._graphs,
            cache=cache,
        )
        if self._session is None:
            self._session = session
        else:
            self._session.join(session)
        for one, options in zip(prompts, own, strict=True):
            positions = before + one.embeds_LD.shape[0]
            most = max(options.max_new_tokens, getattr(one.constraint, "needed", 1))
            self._active.append(
                RowState(
                    one,
                    positions,
                    most if limit is None else max(1, min(most, limit - positions)),
                    options,
                    self._eos_ids,
                    random_stream(options, one.stream) if options.do_sample else None,
                )
            )

    def advance(self) -> list[RowState]:
        """Take every prompt a token further; those that are finished leave."""
        finished = self._choose()
        self._step()
        return finished

    def stream(self, prompt: Prompt, cache: PreallocatedCache) -> Iterator[int]:
        """The tokens of one prompt's answer as they are chosen, the one that ends it included.

        cache: keys and values of what stands before the prompt; all that is run is added to it

        Greedy or sampled. A token is run when the next one is asked for. Raises
        NonFiniteLogitsError where the logits are NaN.
        """
        self.add([prompt], cache=cache)
        (state,) = self._active
        while not state.done:
            self._choose()
            if math.isnan(state.log_probability):
                raise NonFiniteLogitsError(self._model)
            yield state.ids[-1]
            self._step()

    @torch.inference_mode()
    def _choose(self) -> list[RowState]:
        """Choose the next tokens; prompts that are finished with them leave."""
        if self._session is None:
            return []
        self._next = choose(self._session.logits_RV, self._active)
        finished = [state for state in self._active if state.done]
        self._active = [state for state in self._active if not state.done]
        if not self._active:
            self._session = None
        return finished

    @torch.inference_mode()
    def _step(self) -> None:
        """Run the tokens that were chosen."""
        if self._session is not None:
            rows, tokens = self._next
            self._session.select(rows)
            self._session.step(to_device(torch.tensor(tokens), self._session.logits_RV.device))


# -- greedy and sampled -----------------------------------------------------------------------


def choose(logits_RV: Tensor, states: Sequence[RowState]) -> tuple[list[int], list[int]]:
    """Take every prompt a token further, with beams or without.

    Returns the rows that go on, each with its token.
    """
    has_beams = [state.options.num_beams > 1 for state in states]
    if len(set(has_beams)) == 1:
        way = choose_beams if has_beams[0] else choose_tokens
        return way(logits_RV, states)
    owners = [place for place, state in enumerate(states) for _ in state.beams]
    chosen: list[tuple[int, int, int]] = []  # place of the prompt, row, token
    for kind, way in ((False, choose_tokens), (True, choose_beams)):
        rows = [row for row, place in enumerate(owners) if has_beams[place] == kind]
        some = [state for state, one in zip(states, has_beams, strict=True) if one == kind]
        where = torch.tensor(rows, device=logits_RV.device)
        for row, token in zip(*way(logits_RV[where], some), strict=True):
            chosen.append((owners[rows[row]], rows[row], token))
    chosen.sort(key=lambda one: one[0])  # a prompt's beams stay in their order
    return [row for _, row, _ in chosen], [token for _, _, token in chosen]


def choose_tokens(logits_RV: Tensor, states: Sequence[RowState]) -> tuple[list[int], list[int]]:
    """Give every prompt its likeliest token, or one that is drawn from its own random stream.

    Returns the rows that go on, each with its token.
    """
    scores_RV = process_scores(logits_RV, states)
    tokens_R = scores_RV.argmax(dim=-1)
    for rows, streams in _drawn_alike(states):
        where = torch.tensor(rows, device=scores_RV.device)
        tokens_R[where] = sample(scores_RV[where], states[rows[0]].options, streams)
    total_R = logits_RV.logsumexp(dim=-1)
    chosen_R = logits_RV.gather(1, tokens_R[:, None])[:, 0] - total_R
    rows = []
    tokens: list[int] = []
    for row, (state, token, log_probability) in enumerate(
        zip(states, tokens_R.tolist(), chosen_R.tolist(), strict=True)
    ):
        state.ids.append(token)
        state.sums[0] += log_probability
        most = state.options.logprobs
        if most is not None:
            best = (logits_RV[row] - total_R[row]).topk(min(most, logits_RV.shape[1]))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            state.log_probabilities.append(
                TokenLogProbability(token, log_probability, tuple(pairs))
            )
        state.done = (
            state.ends_with(state.ids)
            or state.error is not None
            or len(state.ids) >= state.max_new_tokens
            or math.isnan(log_probability)  # what was chosen means nothing
        )
        if not state.done:
            rows.append(row)
            tokens.append(token)
    return rows, tokens


def _drawn_alike(
    states: Sequence[RowState],
) -> Iterable[tuple[list[int], list[torch.Generator]]]:
    """The prompts that are sampled with one temperature, top_k and top_p, and their streams."""
    groups: dict[Any, tuple[list[int], list[torch.Generator]]] = {}
    for place, state in enumerate(states):
        if state.generator is not None:
            own = state.options
            alike = groups.setdefault((own.temperature, own.top_k, own.top_p), ([], []))
            alike[0].append(place)
            alike[1].append(state.generator)
    return groups.values()


def process_scores(scores_RV: Tensor, states: Sequence[RowState]) -> Tensor:
    """Scores after the penalties, and the constraints of their prompts (a copy if changed)."""
    rows = [(state, ids) for state in states for ids in state.beams]
    if any(state.options.repetition_penalty != 1.0 for state in states):
        scores_RV = scores_RV.clone()
        for row, (state, ids) in enumerate(rows):
            penalty = state.options.repetition_penalty
            if ids and penalty != 1.0:
                seen = torch.tensor(sorted(set(ids)), device=scores_RV.device)
                old = scores_RV[row, seen]
                scores_RV[row, seen] = torch.where(old < 0, old * penalty, old / penalty)
    too_short = [row for row, one in enumerate(rows) if one[0].is_too_short(one[1])]
    if too_short:
        scores_RV = scores_RV.clone()
        for row in too_short:
            scores_RV[row, list(rows[row][0].eos_ids)] = -torch.inf
    if any(state.prompt.constraint is not None for state in states):
        masked_RV = scores_RV.clone()
        for row, (state, ids) in enumerate(rows):
            if state.prompt.constraint is not None:
                allowed = torch.as_tensor(state.allowed(ids), device=scores_RV.device)
                masked_RV[row] = -torch.inf
                masked_RV[row, allowed] = scores_RV[row, allowed].clamp_min(_LEAST)
        return masked_RV
    return scores_RV


def random_stream(options: GenerationOptions, number: int) -> torch.Generator:
    """A row's own random stream, so that batch mates change nothing."""
    return torch.Generator().manual_seed(options.seed * 1_000_003 + number)


def sample(
    scores_RV: Tensor, options: GenerationOptions, streams: Sequence[torch.Generator]
) -> Tensor:
    """One token for each row, drawn from the row's stream; any token where scores are NaN.

    Of the `top_k` best tokens, and of them the fewest that hold `top_p` of the mass.
    """
    scores_RV = scores_RV / options.temperature
    if options.top_k and options.top_k < scores_RV.shape[-1]:
        worst = scores_RV.topk(options.top_k, dim=-1).values[:, -1:]
        scores_RV = scores_RV.masked_fill(scores_RV < worst, -torch.inf)
    if options.top_p < 1.0:
        ordered, order = scores_RV.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        dropped = (before >= options.top_p).scatter(-1, order, before >= options.top_p)
        scores_RV = scores_RV.masked_fill(dropped, -torch.inf)
    shares_RV = scores_RV.softmax(-1).cpu()
    shares_RV[shares_RV.isnan().any(dim=-1)] = 1.0
    drawn = [
        torch.multinomial(row_V, 1, generator=stream)
        for row_V, stream in zip(shares_RV, streams, strict=True)
    ]
    return torch.cat(drawn).to(scores_RV.device)


# -- beams ------------------------------------------------------------------------------------


def choose_beams(logits_RV: Tensor, states: Sequence[RowState]) -> tuple[list[int], list[int]]:
    """Take every prompt's beams one token further, as transformers 4.44 did for the reference.

    The best continuations are looked at in order of their summed log-probability; an end-of-text
    among the first `num_beams` of them completes a hypothesis, whose score is the sum divided by
    (number of generated tokens, the end included) ** length_penalty; others stay beams. A prompt
    is done when it has `num_beams` hypotheses and the best continuation, scored at its present
    length, is no better than the worst of them.

    Returns the rows that go on, each with its token.
    """
    scores_RV = process_scores(logits_RV.log_softmax(dim=-1), states)
    sums = [total for state in states for total in state.sums]
    scores_RV = scores_RV + scores_RV.new_tensor(sums)[:, None]
    widths = [len(state.beams) for state in states]
    most = [max(2, 1 + len(state.eos_ids)) * state.options.num_beams for state in states]
    candidates = _candidates(scores_RV, widths, most)
    rows: list[int] = []
    tokens: list[int] = []
    first_row = 0
    for state, width, best in zip(states, widths, candidates, strict=True):
        parents = _advance(state, best)
        if not state.done:
            rows.extend(first_row + parent for parent in parents)
            tokens.extend(ids[-1] for ids in state.beams)
        first_row += width
    return rows, tokens


def _candidates(
    scores_RV: Tensor, widths: Sequence[int], most: Sequence[int]
) -> list[list[tuple[float, int, int]]]:
    """The best (sum, beam, token) over the beams of each prompt, best first.

    widths: how many rows each prompt has; those with as many are one `topk`
    most: of each prompt: enough that beams stay even if every beam's end-of-text tokens come first
    """
    vocabulary = scores_RV.shape[-1]
    first_rows = [0, *accumulate(widths)]
    found: list[list[tuple[float, int, int]]] = [[] for _ in widths]
    for beams, wanted in set(zip(widths, most, strict=True)):
        kinds = zip(widths, most, strict=True)
        prompts = [place for place, one in enumerate(kinds) if one == (beams, wanted)]
        block_RV = scores_RV
        if len(prompts) < len(widths):
            rows = [first_rows[prompt] + beam for prompt in prompts for beam in range(beams)]
            block_RV = scores_RV[torch.tensor(rows, device=scores_RV.device)]
        best = block_RV.view(len(prompts), -1).topk(min(wanted, beams * vocabulary))
        for prompt, totals, places in zip(
            prompts, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            found[prompt] = [
                (total, *divmod(place, vocabulary))
                for total, place in zip(totals, places, strict=True)
            ]
    return found


def _advance(state: RowState, candidates: Sequence[tuple[float, int, int]]) -> list[int]:
    """Take (sum, beam, token) from best to worst; returns the parents of the new beams."""
    options, hypotheses = state.options, state.hypotheses
    width = options.num_beams

    def complete(total: float, ids: list[int]) -> None:
        score = total / len(ids) ** options.length_penalty
        if len(hypotheses) == width:
            worst = min(hypotheses, key=itemgetter(0))
            if score <= worst[0]:
                return
            hypotheses.remove(worst)
        hypotheses.append((score, ids, total))

    beams: list[list[int]] = []
    sums: list[float] = []
    parents: list[int] = []
    # NaN is sorted before all numbers, and nothing can be compared with it.
    if state.error is not None or math.isnan(candidates[0][0]):
        state.finish(state.ids, math.nan)
        return parents
    for rank, (total, parent, token) in enumerate(candidates):
        if total == -math.inf:  # neither it nor what comes after it is allowed
            break
        # whichever end came, the reference writes its first id
        ends = token in state.eos_ids
        ids = [*state.beams[parent], state.eos_ids[0] if ends else token]
        if state.ends_with(ids):
            if rank < width:
                complete(total, ids)
            continue
        beams.append(ids)
        sums.append(total)
        parents.append(parent)
        if len(beams) == width:
            break
    state.beams, state.sums = beams, sums
    done = not beams
    if beams and len(hypotheses) == width:
        attainable = candidates[0][0] / len(beams[0]) ** options.length_penalty
        done = min(score for score, _, _ in hypotheses) >= attainable
    if not done and len(beams[0]) >= state.max_new_tokens:
        for total, ids in zip(sums, beams, strict=True):  # they count at their present length
            complete(total, ids)
        done = True
    if done:
        _, ids, total = max(hypotheses, key=itemgetter(0))
        state.finish(ids, total)
    return parents
