"""What a language model said, without what belongs to no answer: marks, lead-ins, prefixes."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from NatureLM.evaluation.protocols import END_OF_TEXT, plain

MOST_CHARACTERS = 20_000
"""Of an answer that is read at all; the longest answer of the model has a tenth of them."""


@dataclass(frozen=True)
class Unparsed:
    """An answer that is no value of its type, or may be more than one.

    text: as it was said
    """

    text: str


_WINDOW = re.compile(r"^#[\d.]+ ?s? ?- ?[\d.]+ ?s?#? ?: ?")  # of the reference's text output
_MARKS = re.compile(r"[*`]+|(?<!\w)_+|_+(?!\w)")
_LEAD = re.compile(
    r"\b(?:(?:final|correct|best|my|the)\s+)*(?:answer|response|prediction|label|output)"
    r"(?:\s+(?:is|would be|should be)\s*:?|\s*[:=])\s*",
    re.IGNORECASE,
)
_QUOTES = ('""', "''", "()", "[]")


def said(text: str) -> str:
    """The answer in plain letters and one line.

    NFC, plain quotes and dashes, one space for all blanks; without what follows the end of the
    text, times of a window in front, marks of Markdown, quotes around all of it.
    """
    text = plain(text[:MOST_CHARACTERS].partition(END_OF_TEXT)[0])
    return unquoted(_MARKS.sub("", _WINDOW.sub("", text)).strip())


def unquoted(text: str) -> str:
    """Without quotes or brackets around all of it, and without a full stop at the end."""
    while True:
        before, text = text, text.strip()
        if len(text) > 1 and text[-1] in ".!" and text[-2] not in ".!":
            text = text[:-1].rstrip()
        if len(text) > 1 and text[0] + text[-1] in _QUOTES and text[0] not in text[1:-1]:
            text = text[1:-1].strip()
        if text == before:
            return text


def answers_in(text: str) -> list[str]:
    """What follows each `Answer:` or `The answer is` of a text; the text itself without one.

    text: as `said` returns it. One that asks back is no answer
    """
    if text.endswith("?"):
        return []
    parts = _LEAD.split(text)
    return [unquoted(part) for part in parts[1:] if part.strip()] or [text]


def is_too_long(text: str) -> bool:
    """Whether an answer has more characters than are read."""
    return len(text) > MOST_CHARACTERS


def folded(text: str) -> str:
    """Without capital letters, accents and marks; dashes are spaces, one space for all blanks."""
    text = unicodedata.normalize("NFKD", plain(text).casefold())
    letters = (one for one in text if not unicodedata.combining(one) and one != "'")
    return " ".join("".join(one if one.isalnum() else " " for one in letters).split())


_TO_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
_WORDS = {word: value for value, word in enumerate(_TO_TWENTY.split())}
_TENS = {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70}
_WORDS |= _TENS | {"eighty": 80, "ninety": 90, "single": 1, "dozen": 12}
_NUMBER_WORD = re.compile(
    r"\b(?:(twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)"
    r"[- ](one|two|three|four|five|six|seven|eight|nine)|a dozen|" + "|".join(_WORDS) + r")\b",
    re.IGNORECASE,
)


def with_digits(text: str) -> str:
    """Numbers in words up to ninety-nine, and a dozen, in digits."""

    def digits(found: re.Match[str]) -> str:
        tens, ones = found[1], found[2]
        if tens:
            return str(_WORDS[tens.lower()] + _WORDS[ones.lower()])
        return str(_WORDS[found[0].lower().removeprefix("a ")])

    return _NUMBER_WORD.sub(digits, text)
