"""What bodies have in common: strict types, messages with sound, what is refused, streams.

A key that is not known is refused by name, because an answer without what was asked for would be
wrong. Keys of other services that change no answer are accepted and have no effect.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from NatureLM.prompts import AUDIO_TAG, PLACEHOLDER
from NatureLM.serve.settings import Limits, RequestError, over_limit
from NatureLM.serve.sound import Source, audio_part

Role = Literal["system", "developer", "user", "assistant"]
_SHOWN = 100  # characters of what is wrong


class Body(BaseModel):
    """A body, or a part of one."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    no_effect: ClassVar[tuple[str, ...]] = ()
    """Keys that are accepted without effect."""

    @model_validator(mode="before")
    @classmethod
    def _drop_what_has_no_effect(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if key not in cls.no_effect}


class JsonRoute(APIRoute):
    """A route whose body is looked at before it is read: many values take much time and memory."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answered = super().get_route_handler()

        async def handler(request: Request) -> Response:
            if self.body_field is not None:
                check_values(await request.body(), request.app.state.served.settings.limits)
            return await answered(request)

        return handler


def check_values(body: bytes, limits: Limits) -> None:
    """Raise RequestError for JSON of too many values. Texts of any kind do not count."""

    def marks(part: bytes) -> int:
        return sum(map(part.count, (b",", b":", b"[", b"{")))

    most = 2 * limits.values  # a key and its value are two
    if marks(body) <= most:
        return
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 2 * most or sum(map(marks, plain.split(b'"')[::2])) > most:
        told = f"the body holds more than {limits.values:,} values"
        raise over_limit(told, "values", status=413, code="request_too_large")


class Message(Body):
    """One message of a conversation."""

    no_effect = ("name", "refusal", "annotations", "phase", "type", "audio", "function_call")

    role: Role
    content: str | list[dict[str, Any]] | None = None
    """Text, or parts: `text`, `input_audio` and `audio_url`."""
    tool_calls: list[Any] | None = Field(default=None, max_length=0)


@dataclass(frozen=True)
class Dialogue:
    """What a conversation comes to: turns as the model reads them, and the sound in them.

    system: what is said before the first question
    turns: (question with a place for each clip, answer); the last answer is open, so empty
    sources: the sound, in the order of its places
    """

    system: str
    turns: tuple[tuple[str, str], ...]
    sources: tuple[Source, ...]

    def with_turns(self, turns: Sequence[tuple[str, str]]) -> Dialogue:
        return replace(self, turns=tuple(turns))


def read_dialogue(
    messages: Sequence[Message],
    limits: Limits,
    param: str = "messages",
    *,
    has_places: bool = False,
) -> Dialogue:
    """Turns of messages. Raises RequestError for an order or a content that has no meaning here.

    has_places: texts may hold `<AudioHere>` for clips that come beside the messages
    """
    system: list[str] = []
    turns: list[tuple[str, str]] = []
    sources: list[Source] = []
    characters = 0
    for number, message in enumerate(messages):
        place = f"{param}[{number}].content"
        text, found = _content(message, place, has_places)
        characters += len(text)
        told = f"{param} has more than {{1:,}} characters of text"
        limits.check("characters", characters, told, param=param)
        if found and message.role != "user":
            raise RequestError(f"{place}: only user messages may hold sound", param=place)
        sources += found
        if message.role in ("system", "developer"):
            if turns:
                raise RequestError(f"{place}: a system message comes first", param=place)
            system.append(text)
        elif message.role == "user":
            if turns and not turns[-1][1]:
                turns[-1] = (f"{turns[-1][0]}\n{text}".strip(), "")
            else:
                turns.append((text, ""))
        elif not turns or turns[-1][1] or not text:
            raise RequestError(f"{place}: an answer stands after a question", param=place)
        else:
            turns[-1] = (turns[-1][0], text)
    if not turns or turns[-1][1]:
        raise RequestError(f"{param} must end with a message of the user", param=param)
    if not turns[-1][0] and len(turns) == 1:
        raise RequestError(f"{param}: the question is empty", param=param)
    told = f"{param} holds {{}} clips, and {{}} are allowed"
    limits.check("audios", len(sources), told, param=param, code="too_many_audios")
    return Dialogue("\n\n".join(system), tuple(turns), tuple(sources))


def _content(message: Message, place: str, has_places: bool) -> tuple[str, list[Source]]:
    """The text of a message, with a place for each clip where it stands, and the clips."""
    if not isinstance(message.content, list):
        text = checked_text(message.content or "", place)
        if PLACEHOLDER in text and not has_places:
            raise RequestError(
                f"{place}: {PLACEHOLDER} stands for sound, and the message brings none",
                param=place,
            )
        return text.strip(), []
    pieces: list[str] = []
    sources: list[Source] = []
    for number, part in enumerate(message.content):
        at = f"{place}[{number}]"
        kind = part.get("type")
        if kind in ("text", "input_text", "output_text"):
            pieces.append(checked_text(part.get("text"), f"{at}.text"))
        elif kind in ("input_audio", "audio_url"):
            sources.append(audio_part(part, at))
            pieces.append(AUDIO_TAG)
        else:
            raise RequestError(
                f"{at}.type is {str(kind)[:_SHOWN]!r}; text, input_audio and audio_url are "
                "understood",
                param=at,
            )
    return _with_places(pieces, len(sources), place), sources


def _with_places(pieces: Sequence[str], clips: int, place: str) -> str:
    """Pieces of text in one; where the text names the places of the clips, they stand there."""
    texts = [piece for piece in pieces if piece != AUDIO_TAG]
    named = sum(text.count(PLACEHOLDER) for text in texts)
    if not named:
        return " ".join(piece.strip() for piece in pieces if piece.strip())
    if named != clips:
        raise RequestError(
            f"{place}: the text has {named} places {PLACEHOLDER}, and there are {clips} clips",
            param=place,
        )
    return "\n".join(texts).strip()


def checked_text(text: Any, param: str) -> str:
    """Text that a tokenizer can take. Raises RequestError."""
    if not isinstance(text, str):
        raise RequestError(f"{param} must be a string", param=param)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(f"{param} holds half a character (a surrogate)", param=param) from None
    return text


def check_labels(labels: Sequence[str], param: str, limits: Limits) -> None:
    """Raise RequestError for a list of labels that is longer than allowed."""
    told = f"{param} has {{}} names, and {{}} are allowed"
    limits.check("labels", len(labels), told, param=param)
    for number, one in enumerate(labels):
        checked_text(one, f"{param}[{number}]")
    told = f"{param} has more than {{1:,}} characters"
    limits.check("characters", sum(map(len, labels)), told, param=param)


def name_of_field(option: str) -> str:
    """What a request calls an option of `AskOptions`."""
    return "species_list" if option == "labels" else option


async def streamed(
    parts: AsyncGenerator[str | bytes, None],
    kind: str = "text/event-stream",
    close: Callable[[], None] = lambda: None,
) -> StreamingResponse:
    """A response that sends parts as they come.

    close: called at the end, whatever it is

    The first part is waited for, so that what is wrong before it is still said by the status.
    """

    async def sent(first: str | bytes) -> AsyncIterator[str | bytes]:
        try:
            yield first
            async for part in parts:
                yield part
        finally:
            await parts.aclose()
            close()

    try:
        first = await anext(parts, "")
    except BaseException:
        close()
        raise
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(sent(first), media_type=kind, headers=headers)


def event(data: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def first_problem(error: ValidationError | Sequence[Any], param: str = "") -> RequestError:
    """The first thing that is wrong with a body, as a sentence that names it.

    param: where the body stands in the request
    """
    problems = error.errors(include_url=False) if isinstance(error, ValidationError) else error
    one = problems[0]
    where = [part for part in one["loc"] if part != "body"]
    for part in where:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    message = {
        "extra_forbidden": "is not understood here; leave it out",
        "missing": "is missing",
    }.get(one["type"], one["msg"][:1].lower() + one["msg"][1:])
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    code = {"extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter"}
    return RequestError(
        f"{param or 'the body'}: {message}{more}",
        param=param or None,
        code=code.get(one["type"], "invalid_value"),
    )
