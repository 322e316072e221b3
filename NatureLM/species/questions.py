"""The question that goes with a species list where nobody asked another one."""

from __future__ import annotations

from collections.abc import Sequence

from NatureLM.species.lists import Kind

# The wordings are those that the published model was trained and measured with.
NAME_QUESTION = "What is the {kind} name for the focal species in the audio?"
CHOICE_QUESTION = "Which of these, if any, are present in the audio recording? {names}."


def default_question(names: Sequence[str], kind: Kind, *, lists_names: bool = False) -> str:
    """The question to ask.

    lists_names: whether it names the list, which a free answer and one of several names need
    """
    if lists_names:
        return CHOICE_QUESTION.format(names=", ".join(names))
    return NAME_QUESTION.format(kind=kind)
