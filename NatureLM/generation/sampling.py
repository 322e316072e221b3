"""The next token of every prompt: greedy or sampled, after the penalties that beams share.

Shapes: R rows (one for each prompt, or for each beam), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from NatureLM.errors import NatureLMError
from NatureLM.generation.labels import LabelGrammar
from NatureLM.generation.request import GenerationOptions

_LEAST = -1e9  # what an allowed token counts at least, so that one always can be chosen


class GenerationOutput(NamedTuple):
    """Token ids, the end of the text included if one came, and how likely the model found them.

    log_probability: sum over the tokens, natural logarithm. Of beams it is what they were ranked
        by, so a repetition penalty counts; of greedy and sampled tokens it is the model's own. NaN
        where the logits overflowed; the ids mean nothing then
    """

    ids: list[int]
    log_probability: float


class BeamStep(NamedTuple):
    """How a batch continues after a step: these of its rows, in this order, each with a token."""

    rows: list[int]
    tokens: list[int]


class NonFiniteLogitsError(NatureLMError):
    """The model's logits are NaN."""

    def __init__(self) -> None:
        super().__init__(
            "the model's numbers became too large for its precision, so there is no answer: "
            "choose another one with --dtype (bfloat16 or float32)"
        )


def process_scores(
    scores_RV: Tensor,
    generated: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    eos_ids: Sequence[int],
    options: GenerationOptions,
    grammars: Sequence[LabelGrammar | None] = (),
) -> Tensor:
    """Scores after the penalties and grammars of their rows (a copy if changed).

    generated: tokens of each row since its prompt
    grammars: of each row (None: any answer is allowed); empty where there are none
    """
    if options.repetition_penalty != 1.0:
        scores_RV = _penalise_repetition(scores_RV, generated, options.repetition_penalty)
    too_short = [
        row
        for row, (prompt, ids) in enumerate(zip(prompt_lengths, generated, strict=True))
        if prompt + len(ids) < options.min_length
    ]
    if too_short:
        scores_RV = scores_RV.clone()
        for row in too_short:
            scores_RV[row, list(eos_ids)] = -torch.inf
    if any(grammar is not None for grammar in grammars):
        scores_RV = _only_allowed(scores_RV, generated, grammars)
    return scores_RV


def _penalise_repetition(
    scores_RV: Tensor, generated: Sequence[Sequence[int]], penalty: float
) -> Tensor:
    scores_RV = scores_RV.clone()
    for row, ids in enumerate(generated):
        if ids:
            seen = torch.tensor(sorted(set(ids)), device=scores_RV.device)
            old = scores_RV[row, seen]
            scores_RV[row, seen] = torch.where(old < 0, old * penalty, old / penalty)
    return scores_RV


def _only_allowed(
    scores_RV: Tensor,
    generated: Sequence[Sequence[int]],
    grammars: Sequence[LabelGrammar | None],
) -> Tensor:
    """Scores with -inf for every token that a row's grammar does not allow."""
    masked_RV = scores_RV.clone()
    for row, (ids, grammar) in enumerate(zip(generated, grammars, strict=True)):
        if grammar is not None:
            allowed = torch.tensor(grammar.allowed(ids), device=scores_RV.device)
            masked_RV[row] = -torch.inf
            masked_RV[row, allowed] = scores_RV[row, allowed].clamp_min(_LEAST)
    return masked_RV


def random_stream(options: GenerationOptions, number: int) -> torch.Generator:
    """A row's own random stream, so that batch mates change nothing."""
    return torch.Generator().manual_seed(options.seed * 1_000_003 + number)


def sample(
    scores_RV: Tensor, options: GenerationOptions, streams: Sequence[torch.Generator]
) -> Tensor:
    """One token for each row, drawn from the row's stream; any token where scores are NaN."""
    shares_RV = _filter(scores_RV / options.temperature, options).softmax(-1).cpu()
    shares_RV[shares_RV.isnan().any(dim=-1)] = 1.0
    drawn = [
        torch.multinomial(row_V, 1, generator=stream)
        for row_V, stream in zip(shares_RV, streams, strict=True)
    ]
    return torch.cat(drawn).to(scores_RV.device)


def _filter(scores_RV: Tensor, options: GenerationOptions) -> Tensor:
    """Keep the `top_k` best tokens, and of them the fewest that hold `top_p` of the mass."""
    if options.top_k and options.top_k < scores_RV.shape[-1]:
        worst = scores_RV.topk(options.top_k, dim=-1).values[:, -1:]
        scores_RV = scores_RV.masked_fill(scores_RV < worst, -torch.inf)
    if options.top_p < 1.0:
        ordered, order = scores_RV.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        dropped = (before >= options.top_p).scatter(-1, order, before >= options.top_p)
        scores_RV = scores_RV.masked_fill(dropped, -torch.inf)
    return scores_RV


@dataclass(eq=False)
class RowState:
    """What one prompt has been answered so far."""

    prompt_length: int
    max_new_tokens: int
    grammar: LabelGrammar | None
    generator: torch.Generator | None
    ids: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    done: bool = False

    def result(self) -> GenerationOutput:
        """The answer."""
        return GenerationOutput(self.ids, self.log_probability)


class GreedyOrSampling:
    """The likeliest token of every row, or one that is drawn from the row's own random stream."""

    def __init__(self, options: GenerationOptions, eos_ids: Sequence[int]) -> None:
        self._options, self._eos_ids = options, list(eos_ids)

    def begin(
        self, prompt_length: int, stream: int, grammar: LabelGrammar | None = None
    ) -> RowState:
        """The state of a prompt of which nothing was decoded yet."""
        options = self._options
        generator = random_stream(options, stream) if options.do_sample else None
        longest = options.max_new_tokens if grammar is None else grammar.max_new_tokens
        return RowState(prompt_length, longest, grammar, generator)

    def choose(self, logits_RV: Tensor, states: Sequence[RowState]) -> BeamStep:
        """Give every prompt its next token."""
        scores_RV = process_scores(
            logits_RV,
            [state.ids for state in states],
            [state.prompt_length for state in states],
            self._eos_ids,
            self._options,
            [state.grammar for state in states],
        )
        generators = [state.generator for state in states if state.generator is not None]
        if generators:
            tokens_R = sample(scores_RV, self._options, generators)
        else:
            tokens_R = scores_RV.argmax(dim=-1)
        chosen_R = logits_RV.gather(1, tokens_R[:, None])[:, 0] - logits_RV.logsumexp(dim=-1)
        step = BeamStep([], [])
        for row, (state, token, log_probability) in enumerate(
            zip(states, tokens_R.tolist(), chosen_R.tolist(), strict=True)
        ):
            state.ids.append(token)
            state.log_probability += log_probability
            state.done = (
                token in self._eos_ids
                or len(state.ids) >= state.max_new_tokens
                or math.isnan(log_probability)  # what was chosen means nothing
            )
            if not state.done:
                step.rows.append(row)
                step.tokens.append(token)
        return step
