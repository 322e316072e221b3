"""BEANS-Next's contract `predictions_v1`: `/info` and `/predict` (and `/health`, in `server`).

A batch of items comes in, each with messages and clips; what is wrong with one is its own error.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field

import NatureLM
from NatureLM.errors import NatureLMError
from NatureLM.generation.engine import Answer, GenerationOptions
from NatureLM.prompts import with_clips
from NatureLM.serve.bodies import Body, JsonRoute, Message, checked_text, read_dialogue
from NatureLM.serve.model import Ask, ServedModel, model_of
from NatureLM.serve.settings import RequestError
from NatureLM.serve.sound import Source, too_large

router = APIRouter(route_class=JsonRoute)
SCHEMA = "predictions_v1"
_KINDS: dict[str, Literal["base64", "path", "url"]] = {
    "base64_wav": "base64",
    "file_path": "path",
    "file_url": "url",
}


class TextMessage(Body):
    """One message, whose text may hold `<AudioHere>` for clips."""

    role: str
    content: str


class AudioInput(Body):
    """One clip; it belongs to the place with its number."""

    payload_type: Literal["base64_wav", "file_path", "file_url"]
    data: str
    sample_rate: int
    """Hz; the file's own rate counts."""


class GenerationConfig(Body):
    """How the answer is decoded. Keys that are not known are accepted, as the contract wants it."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    max_tokens: int | None = None
    temperature: float | None = None
    max_length_seconds: float | None = None
    """Of each clip the beginning is heard, so much of it."""
    top_p: float | None = None
    num_beams: int | None = Field(default=None, ge=1, le=16)
    repetition_penalty: float | None = None
    seed: int | None = None
    merging_alpha: float | None = Field(default=None, ge=-10, le=10)


class PredictItem(Body):
    """One sample."""

    sample_id: str
    messages: list[TextMessage]
    audio_inputs: list[AudioInput]
    generation_config: GenerationConfig


def _described(kind: type[Body]) -> dict[str, Any]:
    """The schema of a body with its parts in place, as references would lead nowhere."""
    schema = kind.model_json_schema()
    parts, text = schema.pop("$defs", {}), json.dumps(schema)
    for name, part in parts.items():
        text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(part))
    found: dict[str, Any] = json.loads(text)
    return found


class PredictBody(Body):
    """A batch of samples."""

    schema_version: Literal["predictions_v1"] = "predictions_v1"
    requests: list[dict[str, Any]] = Field(json_schema_extra={"items": _described(PredictItem)})


@router.get("/info", tags=["BEANS-Next"])
def info(request: Request) -> JSONResponse:
    """What the service can do, and which weights it has."""
    served = model_of(request)
    settings = served.settings
    kinds = ["base64_wav"]
    kinds += ["file_path"] if settings.allow_roots else []
    kinds += ["file_url"] if settings.allow_url_hosts else []
    content = {
        "name": "naturelm-serve",
        "version": NatureLM.__version__,
        "model": served.name,
        "model_revision": served.revision,
        "audio_payload_types": kinds,
        "max_batch_size": settings.limits.batch,
        "supports_batching": True,
        "schema_versions": [SCHEMA],
        **served.load_status(),
    }
    return JSONResponse(content)


@router.post("/predict", tags=["BEANS-Next"], response_model=None)
async def predict(body: PredictBody, request: Request) -> JSONResponse:
    """Answers to a batch of samples, matched by `sample_id`."""
    served = model_of(request)
    most = served.settings.limits.batch
    if len(body.requests) > most:
        raise too_large("the batch", len(body.requests), "batch", most)
    ids = [item.get("sample_id") for item in body.requests]
    for number, one in enumerate(ids):
        if not isinstance(one, str) or not one:
            place = f"requests[{number}].sample_id"
            raise RequestError(f"{place} must be a string that is not empty", param=place)
        checked_text(one, f"requests[{number}].sample_id")
    twice = [one for one, times in Counter(ids).items() if times > 1]
    if twice:
        raise RequestError(
            f"the sample_id {str(twice[0])[:100]!r} is there twice", param="requests"
        )
    served.pipeline  # noqa: B018 (503 while the model loads)
    tasks = [
        asyncio.create_task(_answer(served, item, number, request))
        for number, item in enumerate(body.requests)
    ]
    try:
        responses = await served.until_gone(asyncio.gather(*tasks), request)
    finally:
        for task in tasks:
            task.cancel()
    return JSONResponse({"schema_version": SCHEMA, "responses": responses})


async def _answer(
    served: ServedModel, item: dict[str, Any], number: int, request: Request
) -> dict[str, Any]:
    """The response of one item; its error is in it."""
    began = time.monotonic()
    found: dict[str, Any] = {"sample_id": item["sample_id"], "predictions": [], "error": None}
    try:
        ask = await _ask(served, item, f"requests[{number}]", request)
        if isinstance(ask, str):
            found |= {"predictions": [""], "finish_reason": "stop", "usage": {"note": ask}}
        else:
            (answer,) = await served.answers([ask], request)
            found |= {
                "predictions": [answer.text],
                "finish_reason": served.finish_reason(answer),
                "usage": _usage(served, ask, answer),
            }
    except NatureLMError as error:
        if isinstance(error, RequestError) and error.status in (429, 499, 503, 504):
            raise  # the service is full or ends: all of it is asked again later
        found["error"] = str(error)
    found["latency_sec"] = round(time.monotonic() - began, 4)
    return found


def _usage(served: ServedModel, ask: Ask, answer: Answer) -> dict[str, Any]:
    usage: dict[str, Any] = served.usage([ask], [answer])
    if answer.mean_log_probability is not None:
        usage["mean_logprob"] = round(answer.mean_log_probability, 6)
    return usage


async def _ask(
    served: ServedModel, values: dict[str, Any], param: str, request: Request
) -> Ask | str:
    """The prompt of an item; where there is nothing to hear in a clip, the word for that."""
    item = served.parsed(PredictItem, values, param)
    if not item.messages:
        raise RequestError(f"{param}.messages is empty", param=f"{param}.messages")
    told = f"{param}.audio_inputs holds {{}} clips, and {{}} are allowed"
    served.settings.limits.check("audios", len(item.audio_inputs), told)
    config = item.generation_config
    sources = [
        Source(
            _KINDS[one.payload_type],
            one.data,
            f"{param}.audio_inputs[{place}].data",
            config.max_length_seconds,
        )
        for place, one in enumerate(item.audio_inputs)
    ]
    try:
        clips = await served.clips(sources, request)
    except RequestError as error:
        if error.code in ("TooShortAudio", "EmptyAudio"):
            return "too short"
        raise
    dialogue, options = _dialogue(served, item, len(clips), param), _options(served, config)
    ask = served.ask(dialogue, clips, config.merging_alpha, options, request)
    return next((clip.note for clip in clips if clip.note), ask)


def _dialogue(served: ServedModel, item: PredictItem, clips: int, param: str) -> Any:
    """The turns of an item; clips that the text names no place for stand in front."""
    messages = [Message(role=_role(one.role, param), content=one.content) for one in item.messages]
    texts = read_dialogue(messages, served.settings.limits, f"{param}.messages", has_places=True)
    named = sum(question.count("<AudioHere>") for question, _ in texts.turns)
    turns = list(texts.turns)
    if not named:
        turns[0] = (with_clips(turns[0][0], clips), turns[0][1])
    elif named != clips:
        raise RequestError(
            f"{param}: the messages have {named} places <AudioHere>, and there are {clips} clips"
        )
    return texts.with_turns(turns)


def _role(role: str, param: str) -> Any:
    if role not in ("system", "developer", "user", "assistant"):
        raise RequestError(f"{param}: the role {role[:100]!r} is none of system, user, assistant")
    return role


def _options(served: ServedModel, config: GenerationConfig) -> GenerationOptions:
    """The service's way of decoding, which is that of `naturelm infer`, with what an item says."""
    most = served.settings.limits.tokens
    changed: dict[str, Any] = config.model_dump(
        include={"top_p", "num_beams", "repetition_penalty", "seed"}, exclude_none=True
    )
    if config.max_tokens is not None:
        changed["max_new_tokens"] = min(config.max_tokens, most)
    if config.temperature is not None:
        changed["do_sample"] = config.temperature > 0
        if config.temperature > 0:
            changed |= {"temperature": config.temperature, "num_beams": 1}
    return served.generation(changed)
