"""Prompt families that no training sample has: the questions of the study of merging.

Fixed before the first training. No wording here shares five words in a row with a wording of the
training text (a test checks it); lists are longer than in the audio training, in other orders, and
one family puts a few-shot block of text in front. `{names}` is a list, `{examples}` a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ListOrder = Literal["none", "shuffled", "alphabetical", "reversed"]
Answer = Literal["common", "scientific : common"]


@dataclass(frozen=True)
class HeldOutFamily:
    """A way of asking.

    query: the wording, with `{names}` or `{examples}` where they go
    answer: what a right answer looks like
    order: order of the names of the list
    list_length: number of names in the list; 0 if there is none, -1 for all classes
    examples: labelled text descriptions in the few-shot block
    """

    name: str
    query: str
    answer: Answer = "common"
    order: ListOrder = "none"
    list_length: int = 0
    examples: int = 0


HELD_OUT: tuple[HeldOutFamily, ...] = (
    HeldOutFamily(
        "only_the_name",
        "Identify the focal species, only print the common name and nothing else.",
    ),
    HeldOutFamily("new_wording", "I recorded this on my walk today. Any idea who made it?"),
    HeldOutFamily(
        "exactly_one_of_two",
        "Identify the focal species.\nOutput exactly one of: {names}",
        order="shuffled",
        list_length=2,
    ),
    HeldOutFamily(
        "exactly_one_of_twenty",
        "Identify the focal species.\nOutput exactly one of: {names}",
        order="shuffled",
        list_length=20,
    ),
    HeldOutFamily(
        "exactly_one_of_all",
        "Identify the focal species.\nOutput exactly one of: {names}",
        order="alphabetical",
        list_length=-1,
    ),
    HeldOutFamily(
        "list_in_front",
        "Candidates, from z to a: {names}\nYour answer must be a candidate from above.",
        order="reversed",
        list_length=20,
    ),
    HeldOutFamily(
        "scientific_colon_common",
        "Identify the focal species and provide its taxonomic name followed by a colon and its"
        " common name.",
        answer="scientific : common",
    ),
    HeldOutFamily(
        "text_examples",
        "Output exactly one of: {names}\n\n{examples}\n\nAudio: <Audio><AudioHere></Audio>\nLabel:",
        order="shuffled",
        list_length=4,
        examples=4,
    ),
)
