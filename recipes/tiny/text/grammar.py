"""Many wordings from few lines.

A line such as "[Repeat|Copy] [this|the following]: {text}" stands for all its combinations. One in
six of them, chosen by a checksum of the text, is kept out of training to measure whether
instructions of unseen wording are followed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from itertools import product

_UNSEEN_ONE_IN = 6


def expand(line: str) -> list[str]:
    """All texts of a line, in order; an empty alternative is allowed, spaces are tidied."""
    parts = re.split(r"\[([^\[\]]*)\]", line)
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    texts = (_tidy("".join(chosen)) for chosen in product(*choices))
    return list(dict.fromkeys(texts))


def expand_all(lines: Iterable[str]) -> tuple[str, ...]:
    """All texts of several lines, each once."""
    return tuple(dict.fromkeys(text for line in lines for text in expand(line)))


def split(texts: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(seen, unseen); with fewer than three texts all are seen and unseen."""
    every = list(texts)
    unseen = tuple(text for text in every if zlib.crc32(text.encode()) % _UNSEEN_ONE_IN == 0)
    seen = tuple(text for text in every if text not in set(unseen))
    return (seen or tuple(every), unseen or tuple(every[-1:]))


def _tidy(text: str) -> str:
    text = re.sub(r" {2,}", " ", text)
    text = re.sub(r" ([.,?]|:(?! common))", r"\1", text).strip(" ")
    return text[:1].upper() + text[1:] if not text.startswith("{") else text
