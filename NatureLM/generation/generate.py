"""Prompts as embeddings in, token ids out: the one door to decoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from NatureLM.generation.beams import decode_beams
from NatureLM.generation.options import GenerationOptions
from NatureLM.generation.prefill import SharedStart
from NatureLM.generation.session import DecodingSession
from NatureLM.generation.single import decode_single


@torch.inference_mode()
def generate_ids(
    language_model: nn.Module,
    prompts_LD: Sequence[Tensor],
    *,
    alphas: Sequence[float],
    eos_ids: Sequence[int],
    options: GenerationOptions,
    row_numbers: Sequence[int] | None = None,
    shared: Sequence[SharedStart] = (),
) -> list[list[int]]:
    """Decode each prompt's embeddings (length, width) under its own α.

    Returns the generated ids of each prompt, the end-of-text id included if one came. A prompt's
    ids do not depend on the others, their order or their number. `row_numbers` name the random
    streams when sampling (the place in the list by default). `shared` names prompts of one α that
    begin with the same embeddings, which are then run once.
    """
    if not prompts_LD:
        return []
    lengths = [prompt.shape[0] for prompt in prompts_LD]
    session = DecodingSession(
        language_model, prompts_LD, alphas, shared=shared, new_tokens=options.max_new_tokens
    )
    if options.num_beams > 1:
        return decode_beams(session, lengths, eos_ids, options)
    numbers = list(row_numbers) if row_numbers is not None else list(range(len(prompts_LD)))
    return decode_single(session, lengths, eos_ids, options, numbers)
