"""Prompts that are decoded together: they leave when they are finished, and others may join.

Shapes: L positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from NatureLM.generation.beams import BeamDecoding
from NatureLM.generation.constrained import LabelGrammar
from NatureLM.generation.decoded import Decoded
from NatureLM.generation.options import GenerationOptions
from NatureLM.generation.prefill import SharedStart
from NatureLM.generation.session import DecodingSession
from NatureLM.generation.single import SingleDecoding
from NatureLM.generation.static_steps import StaticSteps
from NatureLM.generation.transfer import to_device


@dataclass(frozen=True, eq=False)
class Prompt:
    """Something to decode.

    embeds_LD: embeddings (length, width)
    alpha: share of the adapter
    stream: number of the random stream when sampling
    grammar: which answers are allowed (None: any)
    """

    embeds_LD: Tensor
    alpha: float = 1.0
    stream: int = 0
    grammar: LabelGrammar | None = None


class Decoder:
    """Decodes prompts a token at a time. What a prompt gives does not depend on the others.

    eos_ids: tokens that end an answer
    static: takes the steps that it can take
    """

    def __init__(
        self,
        language_model: nn.Module,
        options: GenerationOptions,
        eos_ids: Sequence[int],
        static: StaticSteps | None = None,
    ) -> None:
        self._model, self._static = language_model, static
        self._options = options
        kind: Any = BeamDecoding if options.num_beams > 1 else SingleDecoding
        self._rule = kind(options, eos_ids)
        self._session: DecodingSession | None = None
        self._active: list[tuple[Prompt, Any]] = []

    def __len__(self) -> int:
        """Prompts that are not finished."""
        return len(self._active)

    @torch.inference_mode()
    def add(self, prompts: Sequence[Prompt], shared: Sequence[SharedStart] = ()) -> None:
        """Run prompts, and decode them from now on.

        shared: prompts of one α that begin with the same embeddings, which are then run once
        """
        if not prompts:
            return
        session = DecodingSession(
            self._model,
            [prompt.embeds_LD for prompt in prompts],
            [prompt.alpha for prompt in prompts],
            shared=shared,
            new_tokens=self._options.max_new_tokens,
            static=self._static,
        )
        if self._session is None:
            self._session = session
        else:
            self._session.join(session)
        self._active += [
            (one, self._rule.begin(one.embeds_LD.shape[0], one.stream, one.grammar))
            for one in prompts
        ]

    @torch.inference_mode()
    def advance(self) -> list[tuple[Prompt, Decoded]]:
        """Take every prompt a token further; those that are finished leave."""
        if self._session is None:
            return []
        choice = self._rule.choose(self._session.logits_RV, [state for _, state in self._active])
        finished = [(prompt, state.result()) for prompt, state in self._active if state.done]
        self._active = [(prompt, state) for prompt, state in self._active if not state.done]
        if self._active:
            self._session.select(choice.rows)
            device = self._session.logits_RV.device
            self._session.step(to_device(torch.tensor(choice.tokens), device))
        else:
            self._session = None
        return finished
