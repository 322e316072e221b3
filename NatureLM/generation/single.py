"""One sequence per prompt: greedy and sampled decoding.

Shapes: R rows (one for each prompt), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from NatureLM.generation.constrained import LabelGrammar, only_allowed
from NatureLM.generation.decoded import Choice, Decoded
from NatureLM.generation.logits import process_scores, random_stream, sample
from NatureLM.generation.options import GenerationOptions


@dataclass(eq=False)
class Continuation:
    """What one prompt has been answered so far."""

    prompt_length: int
    max_new_tokens: int
    grammar: LabelGrammar | None
    generator: torch.Generator | None
    ids: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    done: bool = False

    def result(self) -> Decoded:
        """The answer."""
        return Decoded(self.ids, self.log_probability)


class SingleDecoding:
    """The likeliest token of every row, or one that is drawn from the row's own random stream."""

    def __init__(self, options: GenerationOptions, eos_ids: Sequence[int]) -> None:
        self._options, self._eos_ids = options, list(eos_ids)

    def begin(
        self, prompt_length: int, stream: int, grammar: LabelGrammar | None = None
    ) -> Continuation:
        """The state of a prompt of which nothing was decoded yet."""
        options = self._options
        generator = random_stream(options, stream) if options.do_sample else None
        most = options.max_new_tokens if grammar is None else grammar.max_new_tokens
        return Continuation(prompt_length, most, grammar, generator)

    def choose(self, logits_RV: Tensor, states: Sequence[Continuation]) -> Choice:
        """Give every prompt its next token."""
        before = [state.ids for state in states]
        lengths = [state.prompt_length for state in states]
        scores_RV = process_scores(logits_RV, before, lengths, self._eos_ids, self._options)
        scores_RV = only_allowed(scores_RV, before, [state.grammar for state in states])
        generators = [state.generator for state in states if state.generator is not None]
        if generators:
            tokens_R = sample(scores_RV, self._options, generators)
        else:
            tokens_R = scores_RV.argmax(dim=-1)
        chosen_R = logits_RV.gather(1, tokens_R[:, None])[:, 0] - logits_RV.logsumexp(dim=-1)
        rows: list[int] = []
        going_on: list[int] = []
        for row, (state, token, likely) in enumerate(
            zip(states, tokens_R.tolist(), chosen_R.tolist(), strict=True)
        ):
            state.ids.append(token)
            state.log_probability += likely
            state.done = (
                token in self._eos_ids
                or len(state.ids) >= state.max_new_tokens
                or math.isnan(likely)  # what was chosen means nothing
            )
            if not state.done:
                rows.append(row)
                going_on.append(token)
        return Choice(rows, going_on)
