"""Every prompt is built here: one question, labelled examples in front of it, several turns.

A query becomes the complete text that the model was trained on by a template, in which `{}` stands
between what opens a question and what opens its answer. What goes between an answer and the next
question follows from it: the text that ends a turn, which stands after `{}`, then the opening of a
question, without what comes only once at the very beginning (such as a system message).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from NatureLM.errors import UsageError

PLACEHOLDER = "<AudioHere>"
AUDIO_TAG = f"<Audio>{PLACEHOLDER}</Audio>"

_NUMBER = re.compile(r"\[(\d{1,4})\]")
_SPECIAL_TOKEN = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")


ALWAYS_READ = 1 << 18
"""Characters of a text whose tokens are counted in any case, which takes a tenth of a second."""

_UNSURE = 64  # tokens


class PromptTooLong(UsageError):  # noqa: N818 (nothing is broken)
    """A prompt and the shortest answer to it are more positions than the language model takes.

    text, sound, answer: positions of each; of sound none before it is read
    limit: how many there may be
    is_whole: whether all of the text was counted
    what: was asked
    """

    def __init__(
        self,
        text: int,
        sound: int,
        answer: int,
        limit: int,
        *,
        is_whole: bool = True,
        what: str = "",
    ) -> None:
        least, total = "" if is_whole else "at least ", text + sound + answer
        heard = f", {sound} of sound" if sound else ""
        asked = f"{what}: " if what else ""
        super().__init__(
            f"{asked}the prompt takes {least}{total} positions ({text} of text{heard}, "
            f"{answer} of the answer), and the language model takes {limit}: shorten the question, "
            "or give fewer examples, names or clips"
        )
        self.positions, self.limit = total, limit
        self._counts, self._is_whole = (text, sound, answer, limit), is_whole

    def about(self, what: str) -> PromptTooLong:
        """The same, with what was asked in front."""
        return PromptTooLong(*self._counts, is_whole=self._is_whole, what=what)


def token_ids(text: str, tokenizer: Any, most: int | None = None) -> list[int]:
    """Ids of a text without special tokens in front, or of a beginning that has more than `most`.

    So the time depends on what may be used, and not on what was sent. Raises UsageError for a text
    that the tokenizer cannot take.
    """
    size = len(text) if most is None else max(ALWAYS_READ, 8 * most)
    while True:
        ids = _plain_ids(text[:size], tokenizer)
        # The last tokens of a beginning may be others where it goes on, so a few are not counted.
        if size >= len(text) or (most is not None and len(ids) > most + _UNSURE):
            return ids
        size *= 2


def _plain_ids(text: str, tokenizer: Any) -> list[int]:
    try:
        return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
    except BaseException as error:  # what a library in Rust raises is no Exception
        if type(error).__name__ != "PanicException":
            raise
        raise UsageError(
            f"the tokenizer of the model cannot take {quoted(text)} ({error}): its patterns are "
            "not made for such texts, or made to take for ever"
        ) from None


def prompt_parts(prompt: str, tokenizer: Any, most: int | None = None) -> list[list[int]]:
    """Token ids of the parts between placeholders, the beginning-of-text token in front.

    most: of a very long prompt, what follows once there are more tokens than that is left out
    """
    parts: list[list[int]] = []
    total = 0
    for part in prompt.split(PLACEHOLDER):
        parts.append(token_ids(part, tokenizer, None if most is None else max(0, most - total)))
        total += len(parts[-1])
        if most is not None and total > most and len(prompt) > ALWAYS_READ:
            break
    if tokenizer.bos_token_id is not None:
        parts[0] = [int(tokenizer.bos_token_id), *parts[0]]
    return parts


def check_placeholders(prompt: str, audios: int) -> None:
    """Raise UsageError for a prompt whose placeholders are not as many as its audios."""
    places = prompt.count(PLACEHOLDER)
    if places != audios:
        raise UsageError(
            f"the prompt has {places} {PLACEHOLDER} and {audios} audio clips were given; "
            f"each placeholder takes one clip. Prompt: {prompt[:200]!r}"
        )


class PromptReader:
    """Tokenises prompts, each once, and refuses those that cannot be answered.

    limit: positions that the language model takes; None for any number
    answer_tokens: how many tokens an answer needs, by the list that it is chosen from; raises
        UsageError for a list that cannot be used
    """

    def __init__(
        self, tokenizer: Any, limit: int | None, answer_tokens: Callable[[Any], int]
    ) -> None:
        self._limit, self._answer_tokens = limit, answer_tokens
        self._read = lru_cache(maxsize=4096)(
            lambda prompt: _parts_and_length(prompt, tokenizer, limit)
        )

    def check(self, request: Any, sound: int = 0) -> tuple[tuple[int, ...], ...]:
        """The parts of a prompt whose clips take so many positions; raises UsageError."""
        check_placeholders(request.prompt, len(request.audios))
        parts, text = self._read(request.prompt)
        needed, limit = self._answer_tokens(request.choice), self._limit
        if limit is not None and text + sound + needed > limit:
            is_whole = bool(parts) or len(request.prompt) <= ALWAYS_READ
            raise PromptTooLong(text, sound, needed, limit, is_whole=is_whole)
        return parts


def _parts_and_length(
    prompt: str, tokenizer: Any, limit: int | None
) -> tuple[tuple[tuple[int, ...], ...], int]:
    """The parts of a prompt, and their tokens; none of one that is too long is kept."""
    parts = tuple(map(tuple, prompt_parts(prompt, tokenizer, limit)))
    text = sum(map(len, parts))
    return () if limit is not None and text > limit else parts, text


def quoted(text: str, most: int = 60) -> str:
    """A text in quotes; of a long one the beginning."""
    return repr(text) if len(text) <= most else f"{text[:most]!r}..."


def render(template: str, query: str) -> str:
    """The complete prompt: the query, with the audio in front if it names no place for it."""
    return template.replace("{}", with_clips(query, 1))


def with_clips(query: str, clips: int) -> str:
    """The query, with places for so many clips in front if it names none, stripped."""
    if PLACEHOLDER not in query:
        query = f"{AUDIO_TAG} " * clips + query
    return query.strip()


def without_audio(query: str) -> str:
    """The query without its places for clips, stripped."""
    return query.replace(AUDIO_TAG, "").strip()


def place_numbered(query: str, clips: int) -> tuple[str, tuple[int, ...]]:
    """`Is [1] the same as [2]?` with a clip in place of each number, and the numbers in order.

    A query that names no number comes back as it is, with no numbers. Raises UsageError for a
    number that no clip has (`clips` are numbered from 1), and for the mark of the model itself.
    """
    if PLACEHOLDER in query:
        raise UsageError(
            f"The question holds {PLACEHOLDER}, which stands for sound. "
            "Name clips by their numbers instead, such as [1]."
        )
    numbers = tuple(int(number) for number in _NUMBER.findall(query))
    wrong = [number for number in numbers if not 1 <= number <= clips]
    if wrong:
        there = {0: "There is no clip", 1: "There is one clip, [1]"}.get(
            clips, f"There are the clips [1] to [{clips}]"
        )
        raise UsageError(f"{there}, and the question names [{wrong[0]}].")
    return _NUMBER.sub(AUDIO_TAG, query), numbers


def example_blocks(examples: Iterable[tuple[str, str]]) -> str:
    """(what is heard, label) as blocks with a blank line between them."""
    return "\n\n".join(f"Audio: {heard}\nLabel: {label}" for heard, label in examples)


def few_shot_prompt(question: str, labels: Sequence[str]) -> str:
    """The question, one labelled place for audio per example, and an unlabelled one at the end."""
    blocks = example_blocks([*((AUDIO_TAG, label) for label in labels), (AUDIO_TAG, "")])
    return f"{question}\n\n{blocks}".strip()


@dataclass(frozen=True)
class ChatTemplate:
    """A prompt template taken apart.

    start: in front of the first question
    question: in front of every later one
    answer: between a question and its answer
    end: after an answer that another question follows

    For Llama 3, `end` is `<|eot_id|>`, and `question` is the header of the user's turn.
    """

    start: str
    question: str
    answer: str
    end: str

    @classmethod
    def of(cls, template: str) -> ChatTemplate:
        """Take a template with one `{}` apart."""
        start, _, answer = template.partition("{}")
        tokens = list(_SPECIAL_TOKEN.finditer(answer))
        opening = next(
            (t.group() for t in _SPECIAL_TOKEN.finditer(start) if t.group() in answer), None
        )
        if opening is not None:
            return cls(start, start[start.rfind(opening) :], answer, answer.partition(opening)[0])
        if len(tokens) > 1:  # every role has a token of its own, and the first one ends the turn
            return cls(start, start, answer, answer[: tokens[1].start()])
        # Nothing marks a turn: what parts question and answer, or a line feed, parts them too.
        blank = answer[: len(answer) - len(answer.lstrip())]
        return cls(start, start, answer, blank if "\n" in blank else "\n")

    def text(self, turns: Sequence[tuple[str, str]], *, system: str = "") -> str:
        """The text of (question, answer), of which the last is not ended.

        system: what is said before the first question: in a turn of its own where roles have names
            and the template has no such turn yet, else as the beginning of the question

        Placeholders that an answer spells out are taken out of it: no clip belongs to them.
        """
        parts: list[str] = []
        if system and turns:
            if self.start == self.question and "user" in self.question:
                parts = [self.question.replace("user", "system", 1), system, self.end]
            else:
                (first, answer), *rest = turns
                turns = [(f"{system}\n\n{first}", answer), *rest]
        for number, (question, answer) in enumerate(turns):
            while PLACEHOLDER in answer:
                answer = answer.replace(PLACEHOLDER, "")
            parts += [self.end, self.question] if number else [self.start]
            parts += [question, self.answer, answer]
        return "".join(parts)
