"""Prompts as embeddings in, token ids out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from NatureLM.generation.constrained import LabelGrammar
from NatureLM.generation.decoded import Decoded
from NatureLM.generation.decoder import Decoder, Prompt
from NatureLM.generation.options import GenerationOptions
from NatureLM.generation.prefill import SharedStart


def decode(
    language_model: nn.Module,
    prompts_LD: Sequence[Tensor],
    *,
    alphas: Sequence[float],
    eos_ids: Sequence[int],
    options: GenerationOptions,
    row_numbers: Sequence[int] | None = None,
    shared: Sequence[SharedStart] = (),
    grammars: Sequence[LabelGrammar | None] | None = None,
) -> list[Decoded]:
    """Decode each prompt's embeddings (length, width) under its own α.

    A prompt's ids do not depend on the others, their order or their number. `row_numbers` name the
    random streams when sampling (the place in the list by default). `shared` names prompts of one α
    that begin with the same embeddings, which are then run once. `grammars` says what a prompt may
    be answered (None: anything); `options` must leave room for the longest of those answers.
    """
    count = len(prompts_LD)
    numbers = range(count) if row_numbers is None else row_numbers
    rules = [None] * count if grammars is None else grammars
    prompts = [Prompt(*facts) for facts in zip(prompts_LD, alphas, numbers, rules, strict=True)]
    decoder = Decoder(language_model, options, eos_ids)
    decoder.add(prompts, shared)
    found: dict[Prompt, Decoded] = {}
    while len(decoder):
        found.update(decoder.advance())
    return [found[prompt] for prompt in prompts]


def generate_ids(
    language_model: nn.Module, prompts_LD: Sequence[Tensor], **how: Any
) -> list[list[int]]:
    """The token ids that `decode` gives for each prompt, the end included if one came."""
    return [one.ids for one in decode(language_model, prompts_LD, **how)]
