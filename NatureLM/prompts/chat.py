"""Several questions and answers as one text, in the form that a template has for one question.

A template says how one turn looks: `{}` stands between what opens a question and what opens its
answer. What goes between an answer and the next question follows from it: the text that ends a
turn, which stands after `{}`, then the opening of a question, without what comes only once at the
very beginning (such as a system message).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from NatureLM.prompts.template import PLACEHOLDER

_PLACE = "{}"
_MARK = re.compile(r"<[^<>]*>|\[[^\[\]]*\]")  # a special token


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
        start, _, answer = template.partition(_PLACE)
        marks = list(_MARK.finditer(answer))
        opening = next((m.group() for m in _MARK.finditer(start) if m.group() in answer), None)
        if opening is not None:
            return cls(start, start[start.rfind(opening) :], answer, answer.partition(opening)[0])
        if len(marks) > 1:  # every role has a mark of its own, and the first one ends the turn
            return cls(start, start, answer, answer[: marks[1].start()])
        # Nothing marks a turn: what parts question and answer, or a line feed, parts them too.
        blank = answer[: len(answer) - len(answer.lstrip())]
        return cls(start, start, answer, blank if "\n" in blank else "\n")

    def text(self, turns: Sequence[tuple[str, str]]) -> str:
        """The text of (question, answer), of which the last is not ended.

        Placeholders that an answer spells out are taken out of it: no clip belongs to them.
        """
        parts: list[str] = []
        for number, (question, answer) in enumerate(turns):
            parts += [self.end, self.question] if number else [self.start]
            parts += [question, self.answer, _without_placeholders(answer)]
        return "".join(parts)


def _without_placeholders(answer: str) -> str:
    while PLACEHOLDER in answer:
        answer = answer.replace(PLACEHOLDER, "")
    return answer
