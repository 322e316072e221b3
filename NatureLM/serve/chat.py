"""`/v1/chat/completions`, `/v1/models` and `/v1/decisions`, as the OpenAI API has them, with sound.

Extra fields of chats are vLLM's `min_tokens`, `top_k` and `repetition_penalty`, ours are
`merging_alpha` and `num_beams`, and for answers that are chosen from a list `species_list`, `mode`,
`several`, `min_confidence`.

Decisions are typed questions that are answered with calibrated probabilities. Each question is a
list of labels that are scored after the same prompt, so a clip is encoded once and the input is run
once, however many questions there are. Nothing is decoded.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field

from NatureLM.errors import UsageError
from NatureLM.generation.decoding import TokenLogProbability
from NatureLM.generation.engine import Answer, GenerationOptions
from NatureLM.generation.labels import NOTHING, LabelChoice
from NatureLM.inference.windows import AskOptions, Mode
from NatureLM.serve.bodies import (
    Body,
    Dialogue,
    JsonRoute,
    Message,
    check_labels,
    checked_text,
    event,
    name_of_field,
    read_dialogue,
    streamed,
)
from NatureLM.serve.model import Ask, Piece, ServedModel, model_of
from NatureLM.serve.settings import Limits, RequestError

router = APIRouter(route_class=JsonRoute)
_STOPS = 4
_YES, _NO = "Yes", "No"


class StreamOptions(Body):
    """What a stream holds besides the text."""

    no_effect = ("include_obfuscation",)
    include_usage: bool = False


class JsonSchema(Body):
    """A schema that the answer follows."""

    no_effect = ("description",)
    name: str = "answer"
    json_schema: dict[str, Any] = Field(default={}, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


_AS_TEXT = ResponseFormat(type="text")


class ChatBody(Body):
    """A conversation whose next message is asked for."""

    no_effect = (
        "metadata", "parallel_tool_calls", "prediction", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "reasoning_effort", "safety_identifier",
        "service_tier", "store", "tool_choice", "user", "verbosity", "web_search_options",
    )  # fmt: skip

    model: str
    """Name of the model, as `/v1/models` gives it."""
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Tokens of the answer, the end included; `max_tokens` is the same."""
    max_tokens: int | None = Field(default=None, ge=1)
    min_tokens: int | None = Field(default=None, ge=0)
    """So many come before the end, unless a text of `stop` does; for free answers."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0 takes the likeliest token; without it the service's configuration decides."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    """Texts at which the answer ends; they are not part of it."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    logit_bias: dict[str, float] | None = Field(default=None, max_length=0)
    tools: list[Any] | None = Field(default=None, max_length=0)
    audio: None = None

    merging_alpha: float | None = Field(default=None, ge=-10, le=10)
    """Share of the adapter: 0 is the base language model, 1 the fine-tuned one."""
    num_beams: int | None = Field(default=None, ge=1, le=16)
    top_k: int | None = Field(default=None, ge=0, le=1_000_000)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    length_penalty: float | None = Field(default=None, ge=-10, le=10)
    species_list: list[str] | None = Field(default=None, min_length=1)
    """Names that the answer is chosen from."""
    mode: Mode | None = None
    """How it is chosen: `score` compares all names, `constrained` writes one of them."""
    several: bool = False
    """Whether a constrained answer may be several names."""
    alternatives: int = Field(default=3, ge=1, le=100)
    """How many names are given with their confidence, of scored ones."""
    min_confidence: float = Field(default=0.0, ge=0, le=1)
    """Below it the answer is `None`."""
    ask_silence: bool = False
    """Ask about clips without sound, too."""


@router.get("/v1/models", tags=["OpenAI"])
def list_models(request: Request) -> JSONResponse:
    """The model that is served."""
    served = model_of(request)
    return JSONResponse({"object": "list", "data": [served.card()]})


@router.get("/v1/models/{name:path}", tags=["OpenAI"])
def get_model(name: str, request: Request) -> JSONResponse:
    """One model by its name."""
    served = model_of(request)
    served.check_name(name)
    return JSONResponse(served.card())


@router.post("/v1/chat/completions", tags=["OpenAI"], response_model=None)
async def chat(body: ChatBody, request: Request) -> JSONResponse | StreamingResponse:
    """The next message of a conversation about sound."""
    served = model_of(request)
    served.check_name(body.model)
    asks = await _asks(served, body, request)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}
    if body.stream:
        return await streamed(_events(served, body, asks, head, request))
    answers = await served.answers(asks, request)
    choices = [
        {
            "index": index,
            "message": _message(_text(served, ask, answer, body)),
            "finish_reason": served.finish_reason(answer),
            "logprobs": served.logprobs(answer.log_probabilities) if body.logprobs else None,
            **_confidences(served, ask, answer, body),
        }
        for index, (ask, answer) in enumerate(zip(asks, answers, strict=True))
    ]
    usage = served.usage(asks, answers)
    return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": usage})


async def _asks(served: ServedModel, body: ChatBody, request: Request) -> list[Ask]:
    """One prompt for each answer that is asked for."""
    limits = served.settings.limits
    count = body.n or 1
    limits.check("answers", count, "n is {}, and {} answers are allowed", param="n")
    dialogue = read_dialogue(body.messages, limits)
    choice, options = _choice(body, limits), _options(served, body)
    constraint = None
    if body.response_format is not None and body.response_format.type != "text":
        if choice is not None:
            raise RequestError(
                "response_format and species_list are two ways to choose an answer; give one",
                param="response_format",
            )
        schema = _schema(body.response_format)
        constraint = await run_in_threadpool(served.json_grammar, schema, options)
    clips = await served.clips(dialogue.sources, request, with_silence=body.ask_silence)
    ask = served.ask(
        *(dialogue, clips, body.merging_alpha, options, request),
        choice=choice,
        constraint=constraint,
    )
    return [replace(ask, stream=number) for number in range(count)]


def _options(served: ServedModel, body: ChatBody) -> GenerationOptions:
    """How the answer is decoded: the service's configuration, with what the request says."""
    limits = served.settings.limits
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stops) > _STOPS or not all(stops):
        raise RequestError(f"stop takes up to {_STOPS} texts that are not empty", param="stop")
    for stop in stops:
        checked_text(stop, "stop")
    tokens = body.max_completion_tokens or body.max_tokens
    name = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
    limits.check("tokens", tokens or 0, f"{name} is {{}}, and {{}} are allowed", param=name)
    is_free = body.species_list is None and body.response_format in (None, _AS_TEXT)
    if body.min_tokens and not is_free:
        raise RequestError(
            "min_tokens is for free answers, not for those from a list or of a schema",
            param="min_tokens",
        )
    if (body.min_tokens or 0) > (tokens or limits.tokens):
        raise RequestError(
            f"min_tokens is {body.min_tokens}, and the answer may have {tokens or limits.tokens}",
            param="min_tokens",
        )
    changed: dict[str, Any] = {
        "stop": tuple(stops) or None,
        "logprobs": (body.top_logprobs or 0) if body.logprobs else None,
        "num_beams": body.num_beams or 1,
        "max_new_tokens": tokens,
        "min_new_tokens": body.min_tokens,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "seed": None if body.seed is None else body.seed % 2**32,
        "repetition_penalty": body.repetition_penalty,
        "length_penalty": body.length_penalty,
    }
    if body.temperature is not None:
        changed["do_sample"] = body.temperature > 0
        changed["temperature"] = body.temperature or None
    if body.stream and changed["num_beams"] > 1:
        raise RequestError(
            f"num_beams is {body.num_beams}: beams change their mind, so their text cannot be "
            "streamed; leave out num_beams or stream",
            param="num_beams",
        )
    return served.generation({name: v for name, v in changed.items() if v is not None})


def _choice(body: ChatBody, limits: Limits) -> LabelChoice | None:
    """The list that the answer is chosen from."""
    names = body.species_list
    check_labels(names or (), "species_list", limits)
    mode: Mode = body.mode or ("generate" if names is None else "score")
    try:
        options = AskOptions(
            queries=(),
            mode=mode,
            labels=tuple(names or ()),
            several=body.several,
            min_confidence=body.min_confidence,
            named=name_of_field,
        )
        return options.choice()
    except UsageError as error:
        raise RequestError(str(error), param="species_list") from None


def _schema(wanted: ResponseFormat) -> dict[str, Any]:
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None:
        raise RequestError(
            "response_format.json_schema is missing", param="response_format.json_schema"
        )
    return wanted.json_schema.json_schema


def _message(content: str | None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "refusal": None}


def _confidences(served: ServedModel, ask: Ask, answer: Answer, body: ChatBody) -> dict[str, Any]:
    """What is said of how sure an answer is, where it was chosen from a list."""
    if ask.choice is None:
        return {}
    ranked = served.ranked(ask, answer)
    found: dict[str, Any] = {"confidence": ranked[0][1]}
    if ask.choice.how == "score":
        shown = ranked[: body.alternatives]
        found["alternatives"] = [{"label": name, "confidence": one} for name, one in shown]
    return found


def _text(served: ServedModel, ask: Ask, answer: Answer, body: ChatBody) -> str | None:
    """The answer; `None` where it is less sure than was asked for."""
    if ask.choice is not None and served.ranked(ask, answer)[0][1] < body.min_confidence:
        return NOTHING
    return answer.text


async def _events(
    served: ServedModel, body: ChatBody, asks: list[Ask], head: dict[str, Any], request: Request
) -> AsyncGenerator[str, None]:
    """Server-sent events: the text as it comes, how it ended, and usage where it is wanted."""
    head = {**head, "object": "chat.completion.chunk"}
    with_usage = body.stream_options is not None and body.stream_options.include_usage

    def chunk(index: int, delta: dict[str, Any], **more: Any) -> str:
        choice = {"index": index, "delta": delta, "finish_reason": None, "logprobs": None, **more}
        return event({**head, "choices": [choice], **({"usage": None} if with_usage else {})})

    def likely(tokens: Sequence[TokenLogProbability]) -> dict[str, Any]:
        return {"logprobs": served.logprobs(tokens)} if body.logprobs else {}

    answers: dict[int, Answer] = {}
    has_begun: set[int] = set()
    try:
        async for index, piece in served.stream(asks, request):
            ask = asks[index]
            if index not in has_begun:
                has_begun.add(index)
                yield chunk(index, _message(""))
            if isinstance(piece, Piece):
                if ask.choice is None:
                    yield chunk(index, {"content": piece.text}, **likely(piece.tokens))
                continue
            if ask.choice is not None:  # how sure it is decides what is said
                said = {"content": _text(served, ask, piece, body)}
                yield chunk(index, said, **likely(piece.log_probabilities))
            answers[index] = piece
            more = _confidences(served, ask, piece, body)
            yield chunk(index, {}, finish_reason=served.finish_reason(piece), **more)
        if with_usage:
            usage = served.usage(asks, [answers[number] for number in sorted(answers)])
            yield event({**head, "choices": [], "usage": usage})
    except RequestError as error:
        if not has_begun:
            raise
        yield event(error.body())
    yield "data: [DONE]\n\n"


# -- decisions --------------------------------------------------------------------------------


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
