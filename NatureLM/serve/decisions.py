"""`/v1/decisions`: typed questions about sound, answered with calibrated probabilities.

The shapes are those of OpenAI's Decisions API; messages may hold sound besides. Each question is a
list of labels that are scored after the same prompt, so a clip is encoded once and the input is run
once, however many questions there are. Nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from NatureLM.errors import UsageError
from NatureLM.generation.labels import LabelChoice
from NatureLM.serve.bodies import (
    Body,
    Dialogue,
    JsonRoute,
    Message,
    check_labels,
    read_dialogue,
)
from NatureLM.serve.model import model_of
from NatureLM.serve.settings import Limits, RequestError

router = APIRouter(route_class=JsonRoute)
_YES, _NO = "Yes", "No"


class TextPart(Body):
    """A piece of a question."""

    no_effect = ("prompt_cache_breakpoint",)
    type: Literal["input_text"]
    text: str


Name = Annotated[str | None, Field(max_length=1000)]
Instructions = Annotated[str, Field(min_length=1)] | list[TextPart]


class Predicate(Body):
    """How likely a statement about the input is true."""

    type: Literal["predicate"]
    instructions: Instructions
    name: Name = None


class Option(Body):
    """One of the values to choose from."""

    value: str | bool
    description: str | None = None


class Choice(Body):
    """Which of some values fits."""

    type: Literal["choice"]
    instructions: Instructions
    name: Name = None
    choices: list[Option] = Field(min_length=2)


class Level(Body):
    """A step of a scale."""

    label: str = Field(min_length=1)
    description: str | None = None


class Score(Body):
    """Where the input stands on a scale of ordered levels."""

    type: Literal["score"]
    instructions: Instructions
    name: Name = None
    levels: list[Level] = Field(min_length=2)


Question = Annotated[Predicate | Choice | Score, Field(discriminator="type")]


class DecisionBody(Body):
    """Questions about one input."""

    no_effect = ("prompt_cache_key", "prompt_cache_options", "safety_identifier", "metadata")

    model: str
    input: str | list[Message] = Field(min_length=1)
    """Text, or messages whose parts may be `input_text`, `input_audio` and `audio_url`."""
    questions: list[Question] = Field(min_length=1)
    merging_alpha: float | None = Field(default=None, ge=-10, le=10)
    ask_silence: bool = False


@dataclass(frozen=True)
class Labels:
    """The labels of a question, the values that they stand for, and what explains them."""

    labels: tuple[str, ...]
    values: tuple[str | bool | int, ...]
    text: str


@router.post("/v1/decisions", tags=["OpenAI"])
async def decide(body: DecisionBody, request: Request) -> JSONResponse:
    """Probabilities of answers to typed questions about sound."""
    served = model_of(request)
    served.check_name(body.model)
    limits = served.settings.limits
    told = "there are {} questions, and {} are allowed"
    limits.check("questions", len(body.questions), told, param="questions")
    messages = (
        [Message(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    )
    dialogue = read_dialogue(messages, limits, "input")
    lists = [
        _labels(one, f"questions[{number}]", limits) for number, one in enumerate(body.questions)
    ]
    clips = await served.clips(dialogue.sources, request, with_silence=body.ask_silence)
    alpha, options = served.alpha(body.merging_alpha), served.generation({})
    normalize = served.normalize(alpha)
    asks = [
        served.ask(
            *(_asked(dialogue, question, one), clips, alpha, options, request),
            choice=LabelChoice(one.labels, "score", normalize=normalize),
        )
        for question, one in zip(body.questions, lists, strict=True)
    ]
    answers = await served.answers(asks, request)
    found = [
        _answer(question, one, dict(served.ranked(ask, answer)))
        for question, one, ask, answer in zip(body.questions, lists, asks, answers, strict=True)
    ]
    tokens = served.usage(asks, answers)["prompt_tokens"]
    usage = {
        "input_tokens": tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens,
    }
    return JSONResponse({"model": served.name, "answers": found, "usage": usage})


def _labels(question: Predicate | Choice | Score, param: str, limits: Limits) -> Labels:
    """What a question is answered from. Raises RequestError."""
    check_labels([_instructions(question)], f"{param}.instructions", limits)
    described: list[tuple[str, str | None]]
    values: tuple[str | bool | int, ...]
    if isinstance(question, Predicate):
        return Labels((_YES, _NO), (True, False), "Answer with Yes or No.")
    if isinstance(question, Choice):
        values = tuple(one.value for one in question.choices)
        described = [(_word(one.value), one.description) for one in question.choices]
    else:
        values = tuple(range(len(question.levels)))
        described = [(one.label, one.description) for one in question.levels]
    check_labels([label for label, _ in described], param, limits)
    check_labels([text or "" for _, text in described], param, limits)
    lines = []
    for label, description in described:
        lines.append(f"- {label}: {description}" if description else label)
    if any(description for _, description in described):
        text = "Answer with one of these:\n" + "\n".join(
            line if line.startswith("- ") else f"- {line}" for line in lines
        )
    else:
        text = f"Answer with one of these: {', '.join(lines)}."
    labels = tuple(label for label, _ in described)
    try:
        LabelChoice(labels, "score")
    except UsageError as error:
        raise RequestError(f"{param}: {error}", param=param) from None
    return Labels(labels, values, text)


def _instructions(question: Predicate | Choice | Score) -> str:
    given = question.instructions
    return given if isinstance(given, str) else "\n".join(part.text for part in given)


def _word(value: str | bool) -> str:
    return value if isinstance(value, str) else "true" if value else "false"


def _asked(dialogue: Dialogue, question: Any, labels: Labels) -> Dialogue:
    """The conversation with the question at the end of its last turn."""
    text = _instructions(question)
    *before, (last, _) = dialogue.turns
    whole = f"{last}\n{text.strip()}\n{labels.text}".strip()
    return dialogue.with_turns([*before, (whole, "")])


def _answer(question: Any, labels: Labels, found: dict[str, float]) -> dict[str, Any]:
    """The answer to a question from the probabilities of its labels."""
    probabilities = [found[label] for label in labels.labels]
    answer: dict[str, Any] = {"type": question.type, "name": question.name}
    if isinstance(question, Predicate):
        return {**answer, "probability": probabilities[0]}
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    answer["confidence"] = probabilities[best]
    if isinstance(question, Choice):
        each: Sequence[dict[str, Any]] = [
            {"value": value, "probability": one}
            for value, one in zip(labels.values, probabilities, strict=True)
        ]
        return {**answer, "choice": labels.values[best], "probabilities": each}
    each = [
        {"value": place, "label": label, "probability": one}
        for place, (label, one) in enumerate(zip(labels.labels, probabilities, strict=True))
    ]
    score = sum(place * one for place, one in enumerate(probabilities))
    return {**answer, "score": score, "probabilities": each}
