"""Audio embeddings spliced into the embeddings of a prompt.

Shapes: L positions, Q audio positions, D width of the language model.

A prompt is cut at every `<AudioHere>`; the parts are tokenised separately and without special
tokens, as the reference does (tokens never cross a placeholder), and the i-th audio stands at the
i-th placeholder. The embedding of the beginning-of-text token goes in front.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from NatureLM.errors import UsageError
from NatureLM.generation.transfer import to_device
from NatureLM.prompts import PLACEHOLDER


class PromptError(UsageError):
    """Placeholders and audio of a prompt do not fit together."""


def part_token_ids(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of the prompt's parts between placeholders (one more part than placeholders)."""
    parts = prompt.split(PLACEHOLDER)
    return [list(tokenizer(part, add_special_tokens=False).input_ids) for part in parts]


def check_placeholders(prompt: str, audios: int) -> None:
    """Refuse a prompt whose placeholders are not as many as its audios."""
    places = prompt.count(PLACEHOLDER)
    if places != audios:
        raise PromptError(
            f"the prompt has {places} {PLACEHOLDER} and {audios} audio clips were given; "
            f"each placeholder takes one clip. Prompt: {prompt[:200]!r}"
        )


def prompt_parts(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """`part_token_ids` with the beginning-of-text token in front."""
    parts = part_token_ids(prompt, tokenizer)
    if tokenizer.bos_token_id is not None:
        parts[0] = [int(tokenizer.bos_token_id), *parts[0]]
    return parts


def splice_parts(
    parts: Sequence[Sequence[int]], audios_QD: Sequence[Tensor], embed_tokens: nn.Embedding
) -> Tensor:
    """Input embeddings (L, D): the i-th audio between part i and part i + 1."""
    weight = embed_tokens.weight
    pieces: list[Tensor] = []
    for index, ids in enumerate(parts):
        ids_L = to_device(torch.tensor(ids, dtype=torch.long), weight.device)
        pieces.append(embed_tokens(ids_L))
        if index < len(audios_QD):
            pieces.append(audios_QD[index].to(weight))
    return torch.cat(pieces)


def splice(
    prompt: str,
    audios_QD: Sequence[Tensor],
    tokenizer: PreTrainedTokenizerBase,
    embed_tokens: nn.Embedding,
) -> Tensor:
    """Input embeddings (L, D) of one prompt, beginning-of-text token included."""
    check_placeholders(prompt, len(audios_QD))
    return splice_parts(prompt_parts(prompt, tokenizer), audios_QD, embed_tokens)
