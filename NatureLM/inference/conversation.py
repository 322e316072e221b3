"""What can be wrong with a conversation.

Token ids that come one by one → pieces of text whose concatenation is the whole text.

The one row of a conversation in the language model: what it has run stays, what changes runs.

Shapes: L positions, Q audio positions, D width, V vocabulary.

One pass of a model at a time, in the order in which threads asked for it.

A conversation about sound: questions that follow one another, answers that come as text.

The text so far is one row of the language model, whose keys and values stay. A question runs only
what is new: its own words and clips, and the last answer's tokens where the tokenizer would write
that text otherwise than the model did. So an answer is the one that the whole text would get anew.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.generation.cache import PreallocatedCache
from NatureLM.generation.prefill import check_placeholders, forward, prompt_parts
from NatureLM.generation.request import GenerationOptions
from NatureLM.generation.sampling import NonFiniteLogitsError, process_scores, random_stream, sample
from NatureLM.prompts import ChatTemplate, with_clips


class ContextFull(UsageError):  # noqa: N818 (the conversation is full, nothing is broken)
    """The text has become longer than the language model can take."""

    def __init__(self, needed: int, limit: int) -> None:
        super().__init__(
            f"the conversation has {needed} positions with this question, and the language model "
            f"takes {limit} in all, answer included: start a new conversation, or ask with a "
            "shorter question or fewer clips"
        )
        self.needed, self.limit = needed, limit


class ConversationClosed(UsageError):  # noqa: N818
    """The conversation was closed."""


_BROKEN = "\ufffd"


class TextStream:
    """Decodes a growing list of token ids.

    A token may hold only a part of a character. Such a part decodes to U+FFFD until the rest is
    there, so what stands at the end as U+FFFD is held back.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self.text = ""
        """What was given out so far."""

    def push(self, token: int) -> str:
        """Take a token; the text that is certain now and was not given out before."""
        self._ids.append(token)
        return self._give(self._decoded().rstrip(_BROKEN))

    def finish(self) -> str:
        """No token comes any more: what was held back."""
        return self._give(self._decoded())

    def _decoded(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True))

    def _give(self, text: str) -> str:
        new = text[len(self.text) :]
        self.text += new
        return new


_PASS = {"cpu": 2048}  # positions of one pass, which bounds the memory of a long first question
_ACCELERATOR_PASS = 8192


_MOST = 1 << 20  # positions of a clip


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip as the language model hears it: audio embeddings (Q, D), and a number of its own."""

    number: int
    audio_QD: Tensor


class Pieces:
    """A text with clips in it as numbers: token ids, and below zero the positions of clips.

    text: complete text with placeholders, one for each of the clips
    """

    def __init__(self, text: str, clips: Sequence[Clip], tokenizer: Any) -> None:
        self._clips = {clip.number: clip for clip in clips}
        self.ids: list[int] = []
        for index, part in enumerate(prompt_parts(text, tokenizer)):
            self.ids += part
            if index < len(clips):
                first = clips[index].number * _MOST
                self.ids += [-1 - first - q for q in range(clips[index].audio_QD.shape[0])]

    def __len__(self) -> int:
        return len(self.ids)

    def embeddings(self, start: int, stop: int, embed_tokens: torch.nn.Embedding) -> Tensor:
        """Input embeddings (stop - start, D)."""
        weight = embed_tokens.weight
        ids = torch.tensor(self.ids[start:stop], dtype=torch.long, device=weight.device)
        embeds_LD: Tensor = embed_tokens(ids.clamp_min(0))
        for place, number in enumerate(self.ids[start:stop]):
            if number < 0:
                clip, position = divmod(-1 - number, _MOST)
                embeds_LD[place] = self._clips[clip].audio_QD[position].to(weight)
        return embeds_LD


class Context:
    """Keys and values of one growing text under one α.

    model: see `NatureLM.generation.engine.EngineModel`
    """

    def __init__(self, model: Any, alpha: float) -> None:
        self._model = model
        self._alphas = [alpha]
        self._cache = PreallocatedCache()
        self._ids: list[int] = []  # what the cache holds

    @property
    def held(self) -> int:
        """Positions whose keys and values are there."""
        return len(self._ids)

    def read(self, pieces: Pieces) -> Tensor:
        """Run what is not held yet of a text; logits (1, V) after its last position."""
        both = zip(self._ids, pieces.ids, strict=False)
        alike = sum(1 for _ in takewhile(lambda two: two[0] == two[1], both))
        self._keep(min(alike, len(pieces) - 1))
        size = _PASS.get(self._model.device.type, _ACCELERATOR_PASS)
        logits_RV = torch.empty(0)
        for start in range(self.held, len(pieces), size):
            stop = min(start + size, len(pieces))
            embeds_LD = pieces.embeddings(start, stop, self._model.llama_embed_tokens)
            logits_RV = self._forward(pieces.ids[start:stop], inputs_embeds=embeds_LD[None])
        return logits_RV

    def step(self, token: int) -> Tensor:
        """Append a token; logits (1, V) after it."""
        ids = torch.tensor([[token]], device=self._model.llama_embed_tokens.weight.device)
        return self._forward([token], input_ids=ids)

    def _forward(self, new: Sequence[int], **inputs: Any) -> Tensor:
        device = self._model.llama_embed_tokens.weight.device
        before, total = self.held, self.held + len(new)
        try:
            logits = forward(
                self._model.language_model,
                self._cache,
                self._alphas,
                attention_mask=torch.ones(1, total, dtype=torch.long, device=device),
                position_ids=torch.arange(before, total, device=device)[None],
                **inputs,
            )
        except BaseException:
            # Some layers may have taken the new positions, others not.
            self._cache, self._ids = PreallocatedCache(), []
            raise
        self._ids += new
        return logits

    def _keep(self, positions: int) -> None:
        """Forget all but the first positions."""
        if positions == 0:
            self._cache = PreallocatedCache()
        elif positions < self.held:
            self._cache.crop(positions - self.held)
        self._ids = self._ids[:positions]


class FairLock:
    """A lock that is given in the order of asking.

    Python's own goes to whoever is quickest, and a thread that generates text takes it again
    before a waiting one has woken up.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._held = False

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            mine = threading.Event()
            self._waiting.append(mine)
        try:
            mine.wait()
        except BaseException:  # interrupted: give the place in the queue away
            with self._guard:
                given = mine not in self._waiting
                if not given:
                    self._waiting.remove(mine)
            if given:
                self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().set()  # it stays held, by the next one
            else:
                self._held = False


_locks: WeakKeyDictionary[Any, FairLock] = WeakKeyDictionary()
_making = threading.Lock()


def lock_of(model: Any) -> FairLock:
    """The lock of a model, the same for all that use it."""
    with _making:
        return _locks.setdefault(model, FairLock())


Load: TypeAlias = Callable[[Any], Any]
"""A clip as a caller has it → waveform (samples,) at the model's sample rate."""


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
    clips: tuple[Clip, ...] = ()


class Conversation:
    """Questions about clips, each with those before it in mind. Made by `Pipeline.conversation`.

    model: a `NatureLM`
    load: reads a clip
    audios: clips that the first question is about
    alpha: share of the adapter, the same in all turns; by default the model's
    options: how answers are decoded, with one beam: what was given out cannot be taken back

    Several conversations with one model may go on at once, in different threads and under
    different α; one conversation is for one person.
    """

    def __init__(
        self,
        model: Any,
        load: Load,
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
        self._context = Context(model, self.alpha)
        self._turns: list[Turn] = []
        self._clips = 0
        self._closed = False
        self._own = threading.RLock()  # one step at a time of this conversation
        self._first = self._heard(audios)

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
        return self._context.held

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
            self._context = Context(self._model, self.alpha)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, query: str, audios: Sequence[Any]) -> Iterator[str]:
        with self._own:
            turn, pieces = self._begin(query, audios)
        try:
            yield from self._pieces(turn, pieces)
        finally:
            with self._own:
                if not turn.answer and not turn.finished and self._goes_on(turn):
                    self._drop(turn)

    def _begin(self, query: str, audios: Sequence[Any]) -> tuple[Turn, Pieces]:
        """The question as a turn of the conversation, and the whole text with it."""
        self._check_open()
        if self._turns and not self._turns[-1].answer and not self._turns[-1].finished:
            self._drop(self._turns[-1])  # still going on, and nothing of its answer was read
        clips = (*self._first, *self._heard(audios))
        question = with_clips(query, len(clips))
        check_placeholders(question, len(clips))
        turn = Turn(question, clips=clips)
        turns = [*self._turns, turn]
        pieces = Pieces(
            self._template.text([(one.question, one.answer) for one in turns]),
            [clip for one in turns for clip in one.clips],
            self._model.tokenizer,
        )
        limit = self._limit()
        if limit is not None and len(pieces) >= limit:
            raise ContextFull(len(pieces), limit)
        self._turns, self._first = turns, ()
        return turn, pieces

    def _drop(self, turn: Turn) -> None:
        """Take a turn out that came to nothing; its clips wait for the next question."""
        self._turns = [one for one in self._turns if one is not turn]
        self._first = turn.clips

    def _pieces(self, turn: Turn, pieces: Pieces) -> Iterator[str]:
        """The pieces of an answer; each is in the turn before it is given out."""
        stream = TextStream(self._model.tokenizer)
        for token in self._tokens(turn, pieces):
            piece = stream.push(token)
            turn.answer = stream.text
            if piece:
                yield piece
        if self._goes_on(turn):
            piece = stream.finish()
            turn.answer, turn.finished = stream.text, True
            if piece:
                yield piece

    def _tokens(self, turn: Turn, pieces: Pieces) -> Iterator[int]:
        """The answer's tokens, the one that ends it included, until another question is asked."""
        options, eos_ids = self.options, self._model.eos_ids
        limit = self._limit()
        room = options.max_new_tokens if limit is None else limit - len(pieces)
        stream = random_stream(options, 0) if options.do_sample else None
        generated: list[int] = []
        while len(generated) < min(options.max_new_tokens, room):
            with self._own:
                if not self._goes_on(turn):
                    return
                with lock_of(self._model), torch.inference_mode():
                    context = self._context
                    logits_RV = context.step(generated[-1]) if generated else context.read(pieces)
                if logits_RV.isnan().any():
                    raise NonFiniteLogitsError
                scores_RV = process_scores(logits_RV, [generated], [len(pieces)], eos_ids, options)
                if stream is not None:
                    drawn_R = sample(scores_RV, options, [stream])
                else:
                    drawn_R = scores_RV.argmax(dim=-1)
                generated.append(int(drawn_R))
            yield generated[-1]
            if generated[-1] in eos_ids:
                return

    def _goes_on(self, turn: Turn) -> bool:
        return not self._closed and bool(self._turns) and self._turns[-1] is turn

    def _heard(self, audios: Sequence[Any]) -> tuple[Clip, ...]:
        """Clips as the language model hears them."""
        if not audios:
            return ()
        waveforms = [self._load(audio) for audio in audios]
        with lock_of(self._model), torch.inference_mode():
            (encoded,) = self._model.encode_clips([waveforms])
        first, self._clips = self._clips, self._clips + len(encoded)
        return tuple(Clip(first + place, one) for place, one in enumerate(encoded))

    def _limit(self) -> int | None:
        """Positions that the language model was made for; None if it does not say."""
        limit = getattr(self._model.language_model.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    def _check_open(self) -> None:
        if self._closed:
            raise ConversationClosed("the conversation was closed; start a new one")
