"""Clips that a question names by number: `Is [1] the same animal as [2]?`."""

from __future__ import annotations

import re

from NatureLM.errors import UsageError
from NatureLM.prompts.template import AUDIO_TAG, PLACEHOLDER

_NUMBER = re.compile(r"\[(\d{1,4})\]")


def place_numbered(query: str, clips: int) -> tuple[str, tuple[int, ...]]:
    """The query with the sound of a clip in place of each `[number]`, and the numbers in order.

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
