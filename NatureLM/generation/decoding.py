"""Decoding prompts together, a token at a time: rows leave when they are finished, others may join.

The one decoding loop: the engine advances many prompts with it, a conversation one, token by token.

Shapes: R rows, L columns of the cache or positions, D width, V vocabulary. Rows end at the last
column: a row that came later, or has a shorter prompt, begins further right.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from NatureLM.generation.beams import BeamSearch
from NatureLM.generation.cache import PreallocatedCache, join_rows
from NatureLM.generation.cuda_graphs import GraphRunner, StepInputs
from NatureLM.generation.labels import LabelGrammar
from NatureLM.generation.prefill import SharedPrefix, extend, forward, prefill, to_device
from NatureLM.generation.request import GenerationOptions
from NatureLM.generation.sampling import (
    BeamStep,
    GenerationOutput,
    GreedyOrSampling,
    NonFiniteLogitsError,
)


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
        self._model = language_model
        self._graphs = graphs
        self._alphas = list(alphas)
        self._room = new_tokens
        if cache is None:
            done = prefill(language_model, prompts_LD, alphas, shared=shared, room=new_tokens)
        else:
            done = extend(language_model, cache, prompts_LD[0], alphas[0])
        self.logits_RV = done.logits_RV
        self._cache = done.cache
        self._mask_RL = done.mask_RL
        self._next_position_R = done.mask_RL.sum(dim=1)
        self._steps = [0] * len(prompts_LD)  # of each row since its prompt
        self._owners = [object() for _ in prompts_LD]  # the prompt that each row continues

    @property
    def rows(self) -> int:
        return self._mask_RL.shape[0]

    def step(self, tokens_R: Tensor) -> Tensor:
        """Append one token to every row; returns the logits (R, V) that follow it."""
        self._mask_RL = torch.cat([self._mask_RL, self._mask_RL.new_ones(self.rows, 1)], dim=1)
        logits_RV = None
        if self._graphs is not None:
            inputs = StepInputs(tokens_R, self._mask_RL, self._next_position_R, self._alphas)
            logits_RV = self._graphs.step(self._cache, inputs)
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
        self._steps = [steps + 1 for steps in self._steps]
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
            self._cache.select(places, self._mask_RL.shape[1] - max(self._steps))
            return
        self._cache.select(places)
        self._owners = owners
        self._mask_RL = self._mask_RL[places]
        self._next_position_R = self._next_position_R[places]
        self._alphas = [self._alphas[row] for row in rows]
        self._steps = [self._steps[row] for row in rows]

    def join(self, other: DecodingSession) -> None:
        """Take the rows of another session, too, behind those of this one."""
        rows = self.rows + other.rows
        for one in (self, other):
            one._drop_unused_columns()
        columns = max(one._mask_RL.shape[1] for one in (self, other))
        places = [range(self.rows), range(self.rows, rows)]
        caches = [(one._cache, where) for one, where in zip((self, other), places, strict=True)]
        cache = join_rows(caches, 0, columns, self._room)
        mask_RL = self._mask_RL.new_zeros(rows, columns)
        for one, where in zip((self, other), places, strict=True):
            mask_RL[where.start : where.stop, columns - one._mask_RL.shape[1] :] = one._mask_RL
        next_position_R = torch.cat([self._next_position_R, other._next_position_R])
        logits_RV = torch.cat([self.logits_RV, other.logits_RV])
        # Memory may have run out before here; then these rows are as they were.
        self._cache, self._mask_RL = cache, mask_RL
        self._next_position_R, self.logits_RV = next_position_R, logits_RV
        self._alphas += other._alphas
        self._steps += other._steps
        self._owners += other._owners

    def _drop_unused_columns(self) -> None:
        """Take off the columns in front that no row uses any more."""
        unused = int(self._mask_RL.any(dim=0).int().argmax())
        if unused:
            self._cache.drop_left(unused)
            self._mask_RL = self._mask_RL[:, unused:]


@dataclass(frozen=True, eq=False)
class Prompt:
    """Something to decode.

    embeds_LD: embeddings (length, width)
    alpha: share of the adapter
    stream: number of the random stream when sampling
    grammar: which answers are allowed (None: any)
    source: whatever the caller made it from
    """

    embeds_LD: Tensor
    alpha: float = 1.0
    stream: int = 0
    grammar: LabelGrammar | None = None
    source: Any = None


class Decoder:
    """Decodes prompts a token at a time. What a prompt gives does not depend on the others.

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
        self._options = options
        kind: Any = BeamSearch if options.num_beams > 1 else GreedyOrSampling
        self._rule = kind(options, eos_ids)
        self._session: DecodingSession | None = None
        self._active: list[tuple[Prompt, Any]] = []
        self._next = BeamStep([], [])

    def __len__(self) -> int:
        """Prompts that are not finished."""
        return len(self._active)

    @property
    def prompts(self) -> list[Prompt]:
        """Those that are not finished."""
        return [prompt for prompt, _ in self._active]

    @property
    def longest(self) -> int:
        """Positions of the longest prompt that is not finished."""
        return max((prompt.embeds_LD.shape[0] for prompt, _ in self._active), default=0)

    def clear(self) -> None:
        """Forget all that was decoded."""
        self._session, self._active = None, []

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
        before = 0 if cache is None else cache.get_seq_length()
        session = DecodingSession(
            self._model,
            [prompt.embeds_LD for prompt in prompts],
            [prompt.alpha for prompt in prompts],
            shared=shared,
            new_tokens=self._options.max_new_tokens,
            graphs=self._graphs,
            cache=cache,
        )
        if self._session is None:
            self._session = session
        else:
            self._session.join(session)
        self._active += [
            (one, self._rule.begin(before + one.embeds_LD.shape[0], one.stream, one.grammar))
            for one in prompts
        ]

    def advance(self) -> list[tuple[Prompt, GenerationOutput]]:
        """Take every prompt a token further; those that are finished leave."""
        finished = self._choose()
        self._step()
        return finished

    def run(
        self, prompts: Sequence[Prompt], shared: Sequence[SharedPrefix] = ()
    ) -> list[GenerationOutput]:
        """What each of these prompts, and no others, is answered."""
        self.add(prompts, shared)
        found: dict[Prompt, GenerationOutput] = {}
        while len(self):
            found.update(self.advance())
        return [found[prompt] for prompt in prompts]

    def stream(self, prompt: Prompt, cache: PreallocatedCache) -> Iterator[int]:
        """The tokens of one prompt's answer as they are chosen, the one that ends it included.

        cache: keys and values of what stands before the prompt; all that is run is added to it

        Greedy or sampled. A token is run when the next one is asked for. Raises
        NonFiniteLogitsError where the logits are NaN.
        """
        self.add([prompt], cache=cache)
        (state,) = [state for _, state in self._active]
        while not state.done:
            self._choose()
            if math.isnan(state.log_probability):
                raise NonFiniteLogitsError
            yield state.ids[-1]
            self._step()

    @torch.inference_mode()
    def _choose(self) -> list[tuple[Prompt, GenerationOutput]]:
        """Choose the next tokens; prompts that are finished with them leave."""
        if self._session is None:
            return []
        self._next = self._rule.choose(
            self._session.logits_RV, [state for _, state in self._active]
        )
        finished = [(prompt, state.result()) for prompt, state in self._active if state.done]
        self._active = [(prompt, state) for prompt, state in self._active if not state.done]
        if not self._active:
            self._session = None
        return finished

    @torch.inference_mode()
    def _step(self) -> None:
        """Run the tokens that were chosen."""
        if self._session is not None:
            self._session.select(self._next.rows)
            device = self._session.logits_RV.device
            self._session.step(to_device(torch.tensor(self._next.tokens), device))
