"""One sequence per row: greedy and sampled decoding. Finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from NatureLM.generation.logits import RowSampler, process_scores
from NatureLM.generation.options import GenerationOptions
from NatureLM.generation.session import DecodingSession


def decode_single(
    session: DecodingSession,
    prompt_lengths: Sequence[int],
    eos_ids: Sequence[int],
    options: GenerationOptions,
    row_numbers: Sequence[int],
) -> list[list[int]]:
    """Token ids of each row, its end-of-text token included if one came."""
    generated: list[list[int]] = [[] for _ in prompt_lengths]
    sampler = RowSampler(options, row_numbers) if options.do_sample else None
    active = list(range(len(generated)))
    scores_RV = session.logits_RV
    while True:
        scores_RV = process_scores(
            scores_RV,
            [generated[row] for row in active],
            [prompt_lengths[row] for row in active],
            eos_ids,
            options,
        )
        tokens_R = sampler.draw(scores_RV, active) if sampler else scores_RV.argmax(dim=-1)
        going_on: list[int] = []
        for place, (row, token) in enumerate(zip(active, tokens_R.tolist(), strict=True)):
            generated[row].append(token)
            if token not in eos_ids and len(generated[row]) < options.max_new_tokens:
                going_on.append(place)
        if not going_on:
            return generated
        if len(going_on) < len(active):
            session.select(going_on)
            tokens_R = tokens_R[torch.tensor(going_on, device=tokens_R.device)]
            active = [active[place] for place in going_on]
        scores_RV = session.step(tokens_R)
