"""Prompts as embeddings in, token ids out, without the engine's scheduling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
from torch import Tensor, nn

from NatureLM.generation.decoding import Decoder, DecodingSession, Prompt, RowState
from NatureLM.generation.engine import Engine, GenerationOptions, Request
from NatureLM.generation.labels import LabelGrammar
from NatureLM.generation.prefill import SharedPrefix
from NatureLM.models import NatureLM

ENDS = [604, 402, 69, 11]  # common tokens, so that rows finish at their own step
QUERIES = ("What is it?", "Caption the audio.", "Say at length what is to be heard in this sound.")


def requests_about_clips(model: NatureLM, alphas: Sequence[float] = (0.0, 1.0)) -> list[Request]:
    """Every query about each of the golden clips at every α."""
    return [
        Request((clip, query, alpha), model.processor.render(query), (clip,), alpha)
        for clip in ("chirps", "trill", "howl")
        for query in QUERIES
        for alpha in alphas
    ]


def tell_of_sessions(patch: pytest.MonkeyPatch, check: Callable[[int], object]) -> None:
    """How many prompts each session is to begin with; what `check` raises keeps it from it."""
    init = DecodingSession.__init__

    def begin(session: DecodingSession, model: Any, prompts: Any, *args: Any, **how: Any) -> None:
        check(len(prompts))
        init(session, model, prompts, *args, **how)

    patch.setattr(DecodingSession, "__init__", begin)


def texts(
    engine: Engine, requests: Iterable[Request], clips: Mapping[str, Any]
) -> dict[Any, str | None]:
    """What the engine answers, by the keys of the requests."""
    return {one.key: one.text for one in engine.run(requests, clips.__getitem__)}


def finish(decoder: Decoder) -> list[RowState]:
    """All that is decoded, to its end."""
    found: list[RowState] = []
    while decoder:
        found += decoder.advance()
    return found


def decode(
    language_model: nn.Module,
    prompts_LD: Sequence[Tensor],
    *,
    alphas: Sequence[float],
    eos_ids: Sequence[int],
    options: GenerationOptions,
    row_numbers: Sequence[int] | None = None,
    shared: Sequence[SharedPrefix] = (),
    grammars: Sequence[LabelGrammar | None] | None = None,
) -> list[RowState]:
    """All prompts in one batch; `row_numbers` name the random streams."""
    count = len(prompts_LD)
    numbers = range(count) if row_numbers is None else row_numbers
    rules = grammars or [None] * count
    prompts = [Prompt(*facts) for facts in zip(prompts_LD, alphas, numbers, rules, strict=True)]
    decoder = Decoder(language_model, options, eos_ids)
    decoder.add(prompts, shared)
    found = {state.prompt: state for state in finish(decoder)}
    return [found[prompt] for prompt in prompts]
