"""A conversation about sound: questions that follow one another, answers that come as text.

The text so far is one row of the language model, whose keys and values stay. A question runs only
what is new: its own words and clips, and the last answer's tokens where the tokenizer would write
that text otherwise than the model did. So an answer is the one that the whole text would get anew.

Shapes: L positions, Q audio positions, D width.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from NatureLM.errors import UsageError
from NatureLM.generation.audio_cache import EncodedClip
from NatureLM.generation.decoding import Decoder, Prompt
from NatureLM.generation.engine import GenerationOptions
from NatureLM.generation.prefill import (
    PreallocatedCache,
    common_positions,
    context_length,
    merge_prompt_parts,
    pieces_of,
)
from NatureLM.prompts import ChatTemplate, check_placeholders, prompt_parts, with_clips


class ContextFull(UsageError):  # noqa: N818 (the conversation is full, nothing is broken)
    """The text has become longer than the language model can take."""

    def __init__(self, needed: int, limit: int) -> None:
        super().__init__(
            f"the conversation has {needed} positions with this question, and the language model "
            f"takes {limit} in all, answer included: start a new conversation, or ask with a "
            "shorter question or fewer clips"
        )
        self.needed, self.limit = needed, limit


class TextStream:
    """Decodes a growing list of token ids; `text` is what was given out so far.

    A token may hold only a part of a character. Such a part decodes to U+FFFD until the rest is
    there, so what stands at the end as U+FFFD is held back.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self.text = ""

    def push(self, token: int) -> str:
        """Take a token; the text that is certain now and was not given out before."""
        self._ids.append(token)
        return self._give(self._decoded().rstrip("\ufffd"))

    def finish(self) -> str:
        """No token comes any more: what was held back."""
        return self._give(self._decoded())

    def _decoded(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True))

    def _give(self, text: str) -> str:
        new = text[len(self.text) :]
        self.text += new
        return new


class FairLock:
    """A lock that is given in the order of asking.

    Python's own goes to whoever is quickest, and a thread that generates text takes it again
    before a waiting one has woken up.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()  # of those who asked; the first one has the lock

    def __enter__(self) -> None:
        mine = object()
        with self._changed:
            self._queue.append(mine)
            try:
                self._changed.wait_for(lambda: self._queue[0] is mine)
            except BaseException:  # interrupted: give the place in the queue away
                self._queue.remove(mine)
                self._changed.notify_all()
                raise

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._queue.popleft()
            self._changed.notify_all()


_locks: WeakKeyDictionary[Any, FairLock] = WeakKeyDictionary()
_making = threading.Lock()


def lock_of(model: Any) -> FairLock:
    """The lock of a model, the same for all that use it."""
    with _making:
        return _locks.setdefault(model, FairLock())


@dataclass
class Turn:
    """A question and its answer.

    question: with the places of its clips
    answer: as far as it has come; what was read of it, where it was not read to its end
    finished: whether the model came to an end, or to the limit of tokens
    """

    question: str
    answer: str = ""
    finished: bool = False
    clips: tuple[EncodedClip, ...] = ()


class Conversation:
    """Questions about clips, each with those before it in mind. Made by `Pipeline.conversation`.

    model: a `NatureLM`
    load: reads a clip as a caller has it: waveform (samples,) at the model's sample rate
    audios: clips that the first question is about
    alpha: share of the adapter, the same in all turns; by default the model's
    options: how answers are decoded, with one beam: what was given out cannot be taken back

    Several conversations with one model may go on at once, in different threads and under
    different α; one conversation is for one person.
    """

    def __init__(
        self,
        model: Any,
        load: Callable[[Any], Any],
        audios: Sequence[Any] = (),
        *,
        alpha: float | None = None,
        options: GenerationOptions | None = None,
    ) -> None:
        self.options = options or GenerationOptions(num_beams=1)
        if self.options.num_beams != 1:
            raise UsageError(
                f"num_beams is {self.options.num_beams}: text that comes piece by piece is decoded "
                "with one beam, because beams change their mind; set num_beams to 1, or ask with "
                "Pipeline.windows"
            )
        (self.alpha,) = model.alphas_for(alpha, 1)
        self._model = model
        self._load = load
        self._template = ChatTemplate.of(model.processor.prompt_template)
        self._cache = PreallocatedCache()
        self._pieces: list[int] = []  # of the text; the cache holds all but the last
        self._turns: list[Turn] = []
        self._clips = 0
        self._closed = False
        self._own = threading.RLock()  # one step at a time of this conversation
        self._first = self._encode(audios)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Questions and answers so far."""
        return tuple(self._turns)

    @property
    def prompt(self) -> str:
        """The whole text as the model has seen it and written it."""
        return self._template.text([(turn.question, turn.answer) for turn in self._turns])

    @property
    def positions(self) -> int:
        """How much of the language model's context is used."""
        return self._cache.get_seq_length()

    def ask(self, query: str, audios: Sequence[Any] = ()) -> Iterator[str]:
        """Ask the next question; the answer's text comes in pieces, as the model writes it.

        audios: clips that are new with this question. They stand at the `<AudioHere>` of the query,
            in order, or in front of it if it names no place

        The question is asked when the first piece is read. Whoever stops reading leaves the answer
        as far as it was read. Raises UsageError, ContextFull among them; the conversation is then
        as before.
        """
        if not query.strip():
            raise UsageError("the question is empty")
        self._check_open()
        return self._answer(query, audios)

    def close(self) -> None:
        """Let go of what the conversation holds; its turns can still be read."""
        with self._own:
            self._closed = True
            self._cache = PreallocatedCache()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, query: str, audios: Sequence[Any]) -> Iterator[str]:
        """The pieces of an answer; each is in the turn before it is given out."""
        with self._own:
            turn, tokens = self._begin(query, audios)
        stream = TextStream(self._model.tokenizer)
        try:
            while (token := self._next(turn, tokens)) is not None:
                piece = stream.push(token)
                turn.answer = stream.text
                if piece:
                    yield piece
            if self._is_last(turn):
                piece = stream.finish()
                turn.answer, turn.finished = stream.text, True
                if piece:
                    yield piece
        finally:
            with self._own:
                if not turn.answer and not turn.finished and self._is_last(turn):
                    self._drop(turn)

    def _next(self, turn: Turn, tokens: Iterator[int]) -> int | None:
        """The answer's next token; None at its end, or once another question is asked."""
        with self._own:
            if not self._is_last(turn):
                return None
            try:
                with lock_of(self._model):
                    return next(tokens, None)
            except BaseException:
                # Some layers may have taken the new positions, others not.
                self._cache = PreallocatedCache()
                raise

    def _begin(self, query: str, audios: Sequence[Any]) -> tuple[Turn, Iterator[int]]:
        """The question as a turn of the conversation, and the tokens of its answer."""
        self._check_open()
        if self._turns and not self._turns[-1].answer and not self._turns[-1].finished:
            self._drop(self._turns[-1])  # still being answered, and nothing of it was read
        clips = (*self._first, *self._encode(audios))
        question = with_clips(query, len(clips))
        check_placeholders(question, len(clips))
        turn = Turn(question, clips=clips)
        turns = [*self._turns, turn]
        text = self._template.text([(one.question, one.answer) for one in turns])
        limit = context_length(self._model.language_model)
        parts = prompt_parts(text, self._model.tokenizer, limit)
        every_clip = [clip for one in turns for clip in one.clips]
        length = sum(map(len, parts)) + sum(clip.audio_QD.shape[0] for clip in every_clip)
        if limit is not None and length >= limit:
            raise ContextFull(length, limit)
        self._turns, self._first = turns, ()
        return turn, self._tokens(parts, every_clip)

    def _tokens(
        self, parts: Sequence[Sequence[int]], clips: Sequence[EncodedClip]
    ) -> Iterator[int]:
        """The tokens that answer a string, of which what the cache holds is not run again."""
        model = self._model
        pieces, ends = pieces_of(parts, clips)
        kept = min(common_positions(self._pieces, pieces, ends), self.positions)
        if kept:
            self._cache.crop(kept - self.positions)
        else:
            self._cache = PreallocatedCache()
        self._pieces = list(pieces)
        with torch.inference_mode():
            audios_QD = [clip.audio_QD for clip in clips]
            embeds_LD = merge_prompt_parts(parts, audios_QD, model.llama_embed_tokens)
        decoder = Decoder(model.language_model, self.options, model.eos_ids)
        for token in decoder.stream(Prompt(embeds_LD[kept:], self.alpha), self._cache):
            self._pieces.append(token)
            yield token

    def _drop(self, turn: Turn) -> None:
        """Take a turn out that came to nothing; its clips wait for the next question."""
        self._turns = [one for one in self._turns if one is not turn]
        self._first = turn.clips

    def _encode(self, audios: Sequence[Any]) -> tuple[EncodedClip, ...]:
        """Clips as audio embeddings, each with a number of its own."""
        if not audios:
            return ()
        waveforms = [self._load(audio) for audio in audios]
        with lock_of(self._model), torch.inference_mode():
            (encoded,) = self._model.encode_clips([waveforms])
        first, self._clips = self._clips, self._clips + len(encoded)
        return tuple(EncodedClip(f"{first + place:x}", one) for place, one in enumerate(encoded))

    def _is_last(self, turn: Turn) -> bool:
        """Whether no other question was asked since."""
        return not self._closed and bool(self._turns) and self._turns[-1] is turn

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the conversation was closed; start a new one")
