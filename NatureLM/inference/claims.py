"""Detections of another program, which are asked about in place of windows: does the model agree?

"BirdNET says wren at 12.3 s: what do you say?" `{label}` in a question is the name that the table
gives.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from NatureLM.audio import AudioError
from NatureLM.field.context import RecordingContext, fill
from NatureLM.generation.labels import NOTHING
from NatureLM.inference.windows import RecordingWindow

LABEL_PLACE = "{label}"
_YES_OR_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


def with_label(query: str, heard: RecordingWindow) -> str:
    """The question with the name that the table gives."""
    return query.replace(LABEL_PLACE, heard.claim.label if heard.claim is not None else "")


def filled(query: str, heard: RecordingWindow, known: RecordingContext | None) -> str:
    """The question with what is known of the recording and of the detection.

    known: of the recording, where questions ask for it

    Raises AudioError where that is too little.
    """
    if known is not None:
        question, missing = fill(query, known.at(heard.window.start))
        if missing:
            advice = "Give a table with --deployments that says it, or ask without it"
            raise AudioError(heard.recording.name, missing, advice, "UnknownContext")
        query = question
    return with_label(query, heard)


def agrees(claim: Mapping[str, Any], answer: Any) -> bool | None:
    """Whether an answer says what the table says; None where it says neither.

    answer: a name, several with commas between, a text with a name in it, or yes or no

    A text that names nothing of the claim agrees as little as another name does.
    """
    if answer is None or isinstance(answer, bool):
        return answer
    said = [answer] if isinstance(answer, str) else list(answer)
    if len(said) == 1 and (decided := _YES_OR_NO.match(said[0])):
        return decided[1].lower() == "yes"
    if not any(said):
        return None
    if said == [NOTHING]:
        return False
    names = [claim.get(key) for key in ("label", "common_name", "scientific_name")]
    wanted = {_plain(name) for name in names if name}
    return any(f" {name} " in f" {_plain(text)} " for text in said for name in wanted)


def with_agreement(claim: Mapping[str, Any] | None, answer: Any) -> Mapping[str, Any] | None:
    """The claim, and whether the answer agrees with it."""
    return None if claim is None else {**claim, "agrees": agrees(claim, answer)}


def _plain(name: str) -> str:
    """A name without what spellings differ in: case, accents, hyphens, apostrophes."""
    letters = unicodedata.normalize("NFKD", name).casefold()
    kept = "".join(one for one in letters if not unicodedata.combining(one) and one not in "'’")  # noqa: RUF001
    return " ".join(re.findall(r"\w+", kept.replace("_", " ")))
