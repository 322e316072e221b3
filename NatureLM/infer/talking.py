"""What is asked of clips as they are, without windows: streams, conversations, α side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from NatureLM.errors import UsageError
from NatureLM.infer.devices import to_stderr

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from NatureLM.conversation import Conversation
    from NatureLM.generation.ordered import Run
    from NatureLM.models import NatureLM


class Talking:
    """The part of `Pipeline` that talks about clips.

    `audios` is a clip or several, each a path or samples at `input_sample_rate` Hz. Of one that is
    longer than the model's window the beginning is heard, which `warn` is told.
    """

    if TYPE_CHECKING:
        model: NatureLM

        def _run(
            self, settings: dict[str, Any], batch_size: int | None, note: Callable[[str], None]
        ) -> Run: ...
        def _alpha(self, alpha: float | None) -> float: ...
        def _generation(self) -> dict[str, Any]: ...

    def conversation(
        self,
        audios: Any = (),
        *,
        alpha: float | None = None,
        input_sample_rate: float = 16000,
        warn: Callable[[str], None] | None = None,
        **generation: Any,
    ) -> Conversation:
        """A conversation whose first question is about these clips.

        `Conversation.ask` gives an answer's text as it comes. It is decoded greedily, or sampled
        (`do_sample=True`), whatever number of beams the configuration has: beams may change what
        they said before.
        """
        from NatureLM.conversation import Conversation
        from NatureLM.generation.options import GenerationOptions

        def load(clip: Any) -> NDArray[Any]:
            return self._clip(clip, input_sample_rate, warn or to_stderr)

        options = GenerationOptions(**{**self._generation(), "num_beams": 1, **generation})
        return Conversation(
            self.model, load, as_list(audios), alpha=self._alpha(alpha), options=options
        )

    def stream(
        self, audios: Any, query: str, *, alpha: float | None = None, **generation: Any
    ) -> Iterator[str]:
        """The answer to one question about a clip, or about several, as text that comes in pieces.

        Decoded with one beam; `generation` may hold what `conversation` takes.
        """
        return self.conversation(audios, alpha=alpha, **generation).ask(query)

    def compare_alphas(
        self,
        audios: Any,
        query: str,
        alphas: Sequence[float],
        *,
        input_sample_rate: float = 16000,
        warn: Callable[[str], None] | None = None,
        **generation: Any,
    ) -> list[str]:
        """The answers to one question at several α, in their order; the clips are encoded once."""
        from NatureLM.generation.ordered import in_order
        from NatureLM.generation.requests import Answer, Request
        from NatureLM.prompts import ChatTemplate, with_clips

        if not query.strip():
            raise UsageError("the question is empty")
        notes = warn or to_stderr
        clips = {
            str(number): self._clip(clip, input_sample_rate, notes)
            for number, clip in enumerate(as_list(audios))
        }
        processor = self.model.processor
        assert processor is not None, "a loaded model has a processor"
        template = ChatTemplate.of(processor.prompt_template)
        prompt = template.text([(with_clips(query, len(clips)), "")])
        requests = [
            Request(key=place, prompt=prompt, audios=tuple(clips), alpha=float(alpha))
            for place, alpha in enumerate(alphas)
        ]
        run = self._run({**self._generation(), **generation}, None, notes)
        texts: list[str] = []
        for answer in in_order(run, requests, clips.__getitem__):
            assert isinstance(answer, Answer)
            if answer.error is not None:
                raise answer.error
            texts.append(answer.text or "")
        return texts

    def _clip(self, clip: Any, rate: float, warn: Callable[[str], None]) -> NDArray[Any]:
        """The beginning of a clip, as much as the model hears at once."""
        from NatureLM.audio import probe, read_clip
        from NatureLM.audio.clip import clip_array

        config = self.model.config
        longest = config.window_seconds
        if not isinstance(clip, (str, Path)):
            samples: NDArray[Any] = clip_array(
                clip, rate, duration=longest, sample_rate=config.sample_rate
            )
            return samples
        seconds = probe(clip).duration
        if seconds > longest:
            warn(f"{clip}: lasts {seconds:.1f} s, and the first {longest:g} s of it are heard")
        return read_clip(clip, duration=longest, sample_rate=config.sample_rate)


def as_list(audios: Any) -> list[Any]:
    """One audio or several; an array is one audio, a list of numbers too."""
    if isinstance(audios, (str, Path)) or hasattr(audios, "__array__"):
        return [audios]
    items = list(audios)
    if items and all(isinstance(one, Real) for one in items):
        return [np.asarray(items, np.float32)]
    return items
