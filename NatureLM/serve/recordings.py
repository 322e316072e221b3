"""Long recordings and vectors: `/v1/audio/transcriptions`, `/v1/windows` and `/v1/embeddings`.

A recording is asked about window by window, as `naturelm infer` does it; what is known is sent
while the rest is worked on. The windows of all recordings are rows of the engine's one batch.
"""

from __future__ import annotations

import base64
import math
import re
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import Field
from starlette.datastructures import UploadFile

from NatureLM.audio.windows import count_windows
from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING
from NatureLM.inference.windows import AskOptions, Mode, RecordingError, WindowResult
from NatureLM.progress import printable
from NatureLM.results.rows import ErrorRow, WindowRow, to_line
from NatureLM.serve.bodies import (
    Body,
    JsonRoute,
    check_labels,
    checked_text,
    event,
    name_of_field,
    streamed,
)
from NatureLM.serve.model import ServedModel, model_of
from NatureLM.serve.settings import RequestError, over_limit
from NatureLM.serve.sound import Source, audio_part, private_file, sound_error

router = APIRouter(route_class=JsonRoute)
_QUESTION = "What is the common name for the focal species in the audio?"
_AS_GIVEN = {
    *("window_length_seconds", "time_expansion", "several", "top_k", "min_confidence"),
    "ask_silence",
}
"""Fields that are options of the same name."""
_LISTS = ("query", "species_list", "include", "timestamp_granularities")
_COPIED = 1 << 20
_LONGEST_NAME = 120


class WindowFields(Body):
    """How a recording is cut, what is asked of each window, and how answers are made."""

    model: str | None = None
    query: list[str] = Field(default=[_QUESTION], min_length=1)
    merging_alpha: float | None = Field(default=None, ge=-10, le=10)
    window_length_seconds: float = Field(default=10.0, gt=0, le=3600)
    hop_length_seconds: float | None = Field(default=None, ge=0.1, le=3600)
    channel: str = "mean"
    """`mean` of all channels, or the number of one, from 1 on."""
    time_expansion: float = Field(default=1.0, ge=0.01, le=1000)
    species_list: list[str] | None = Field(default=None, min_length=1)
    mode: Mode | None = None
    several: bool = False
    top_k: int = Field(default=3, ge=1, le=100)
    min_confidence: float = Field(default=0.0, ge=0, le=1)
    ask_silence: bool = False


class TranscriptionFields(WindowFields):
    """A recording whose answers are read as subtitles: the question is the `prompt`."""

    no_effect = (
        "chunking_strategy", "include", "language", "timestamp_granularities",
        "known_speaker_names", "known_speaker_references",
    )  # fmt: skip
    model: str
    prompt: str = Field(default=_QUESTION, min_length=1)
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    stream: bool = False
    temperature: float = Field(default=0.0, ge=0, le=0)


class EmbeddingBody(Body):
    """Clips whose vectors are wanted."""

    no_effect = ("user", "dimensions")
    model: str
    input: list[dict[str, Any] | str] | dict[str, Any] | str
    """Parts `input_audio` or `audio_url`, or addresses that begin with `data:`; one or several."""
    encoding_format: Literal["float", "base64"] = "float"
    layer: Literal["encoder", "projected"] = "encoder"


def _form_schema(fields: type[Body]) -> dict[str, Any]:
    """The description of a form with a file for the OpenAPI document."""
    schema = fields.model_json_schema()
    schema["properties"] = {"file": {"type": "string", "format": "binary"}, **schema["properties"]}
    schema["required"] = ["file", *schema.get("required", [])]
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


@dataclass(frozen=True)
class Upload:
    """A recording that was sent, as a private file that goes when it is closed.

    name: what its sender calls it; text, never a path
    """

    file: Any
    name: str

    @property
    def path(self) -> Path:
        return Path(self.file.name)

    def close(self) -> None:
        self.file.close()


@router.post(
    "/v1/audio/transcriptions",
    tags=["OpenAI"],
    response_model=None,
    openapi_extra=_form_schema(TranscriptionFields),
)
async def transcribe(request: Request) -> Any:
    """Answers about a recording, window by window, as text, segments or subtitles."""
    served = model_of(request)
    upload, fields = await _uploaded(served, request, TranscriptionFields)
    try:
        served.check_name(fields.model)
        options = _asked(served, upload, fields, [fields.prompt])
        found = _whole(served.windows(upload.path, options, request), upload)
        form = fields.response_format
        if not fields.stream:
            segments = [one async for one in found]
            upload.close()
            return _transcript(segments, form)
    except BaseException:
        upload.close()
        raise
    if form in ("srt", "vtt"):
        return await streamed(_cues(found, form), _TEXT_TYPES[form], upload.close)
    return await streamed(_transcript_events(found), close=upload.close)


@router.post(
    "/v1/windows",
    tags=["NatureLM"],
    response_model=None,
    openapi_extra=_form_schema(WindowFields),
)
async def ask_windows(request: Request) -> Any:
    """Rows about a recording as `naturelm infer` writes them (NDJSON), while they are made."""
    served = model_of(request)
    upload, fields = await _uploaded(served, request, WindowFields)
    try:
        served.check_name(fields.model)
        told = "there are {} queries, and {} are allowed"
        served.settings.limits.check("questions", len(fields.query), told, param="query")
        rows = _rows(served, upload, fields, request)
    except BaseException:
        upload.close()
        raise
    return await streamed(rows, "application/x-ndjson", upload.close)


@router.post("/v1/embeddings", tags=["OpenAI"], response_model=None)
async def embed(body: EmbeddingBody, request: Request) -> JSONResponse:
    """A vector for each clip: the mean over the positions of a layer that hold sound."""
    served = model_of(request)
    served.check_name(body.model)
    given = body.input if isinstance(body.input, list) else [body.input]
    most = served.settings.limits.audios
    if not given or len(given) > most:
        told = f"input holds {len(given)} clips, and 1 to {most} are allowed"
        raise over_limit(told, "audios", param="input")
    sources = [_clip_source(one, f"input[{number}]") for number, one in enumerate(given)]
    clips = await served.clips(sources, request)
    vectors = await run_in_threadpool(served.vectors, clips, body.layer)
    data = [
        {"object": "embedding", "index": number, "embedding": _encoded(one, body.encoding_format)}
        for number, one in enumerate(vectors)
    ]
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": usage})


def _clip_source(given: dict[str, Any] | str, param: str) -> Source:
    if isinstance(given, str):
        if not given.startswith("data:"):
            raise RequestError(
                f"{param}: only sound has a vector here, and this is text", param=param
            )
        return Source("url", given, param)
    if given.get("type") not in ("input_audio", "audio_url"):
        raise RequestError(f"{param}.type must be input_audio or audio_url", param=param)
    return audio_part(given, param)


def _encoded(vector: Any, form: str) -> Any:
    if form == "float":
        return [float(one) for one in vector]
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


# -- what comes in ---------------------------------------------------------------------------

Fields = TypeVar("Fields", bound=WindowFields)


async def _uploaded(
    served: ServedModel, request: Request, kind: type[Fields]
) -> tuple[Upload, Fields]:
    """The file of a form, kept, and its fields. Raises RequestError."""
    served.pipeline  # noqa: B018 (503 while the model loads, before the file is read)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RequestError("send the recording as multipart/form-data with a part `file`")
    kept = private_file(served.folder)
    try:
        async with request.form(max_files=1, max_fields=2000) as form:
            values: dict[str, Any] = {}
            for key, value in form.multi_items():
                name = key.removesuffix("[]")
                if isinstance(value, UploadFile):
                    if name != "file":
                        raise RequestError(f"{name}: only the part `file` is a file", param=name)
                elif name in _LISTS:
                    values.setdefault(name, []).append(checked_text(value, name))
                elif name in values:
                    raise RequestError(f"{name} is given twice", param=name)
                else:
                    values[name] = checked_text(value, name)
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RequestError("file is missing: a part with a file name", param="file")
            fields = served.parsed(kind, values, "", strict=False)
            await run_in_threadpool(shutil.copyfileobj, file.file, kept, _COPIED)
            await run_in_threadpool(kept.flush)
            sent = checked_text(file.filename or "", "file")
            name = printable(re.split(r"[/\\]", sent)[-1])[-_LONGEST_NAME:] or "recording"
    except BaseException:
        kept.close()
        raise
    return Upload(kept, name), fields


def _asked(
    served: ServedModel, upload: Upload, fields: WindowFields, queries: Sequence[str]
) -> AskOptions:
    """What is asked of each window. Raises RequestError for what is wrong before the first one."""
    limits = served.settings.limits
    info = served.sound.check(upload.path, "file", upload.name)
    names, channel = tuple(fields.species_list or ()), fields.channel
    hop = fields.hop_length_seconds or fields.window_length_seconds
    check_labels(names, "species_list", limits)
    try:
        options = AskOptions(
            queries=tuple(queries),
            merging_alpha=served.alpha(fields.merging_alpha),
            hop_length_seconds=hop,
            channel=int(channel) if channel.isdecimal() else channel,
            mode=fields.mode or ("score" if names else "generate"),
            labels=names,
            named=name_of_field,
            **fields.model_dump(include=_AS_GIVEN),
        )
    except UsageError as error:
        raise RequestError(str(error)) from None
    windows = count_windows(
        info.duration * fields.time_expansion, fields.window_length_seconds, hop
    )
    told = "this would be {:,} answers, and {:,} are allowed"
    limits.check("rows", windows * len(queries), told, param="hop_length_seconds")
    return options


async def _whole(
    found: AsyncIterator[WindowResult | RecordingError], upload: Upload
) -> AsyncIterator[WindowResult]:
    """Answers of a recording that can be read to its end. Raises RequestError."""
    async for one in found:
        if isinstance(one, RecordingError):
            raise sound_error(one.error, "file", upload.name)
        yield one


# -- what goes out ---------------------------------------------------------------------------

_TEXT_TYPES = {"srt": "application/x-subrip", "vtt": "text/vtt", "text": "text/plain"}


async def _rows(
    served: ServedModel, upload: Upload, fields: WindowFields, request: Request
) -> AsyncGenerator[bytes, None]:
    """Lines of a result file; the last is a row of an error where the recording is damaged."""
    options = _asked(served, upload, fields, fields.query)
    run = served.run_settings(options).run
    alpha = options.merging_alpha
    is_first = True
    async for one in served.windows(upload.path, options, request):
        if isinstance(one, RecordingError):
            if is_first:
                raise sound_error(one.error, "file", upload.name)
            text, kind = str(one.error).replace(str(upload.path), upload.name), one.error.kind
            yield to_line(ErrorRow(upload.name, text, kind, alpha, model=served.name, run=run))
            continue
        is_first = False
        named = replace(one, audio_path=upload.name)
        yield to_line(WindowRow.of(named, model=served.name, run=run))


def _transcript(segments: Sequence[WindowResult], form: str) -> Any:
    text = "\n".join(one.text for one in segments if one.text)
    if form == "json":
        return JSONResponse({"text": text})
    if form == "text":
        return PlainTextResponse(f"{text}\n")
    if form == "verbose_json":
        content = {
            "task": "transcribe",
            "language": "",
            "duration": max((one.end for one in segments), default=0.0),
            "text": text,
            "segments": [_segment(number, one) for number, one in enumerate(segments)],
        }
        return JSONResponse(content)
    return PlainTextResponse("".join(subtitles(segments, form)), media_type=_TEXT_TYPES[form])


def _segment(number: int, one: WindowResult) -> dict[str, Any]:
    """As Whisper's segments are, with our confidence and notes besides."""
    found: dict[str, Any] = {
        "id": number,
        "seek": 0,
        "start": one.start,
        "end": one.end,
        "text": one.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": math.log(max(one.confidence or 1.0, 1e-9)),
        "compression_ratio": 1.0,
        "no_speech_prob": 0.0 if one.asked else 1.0,
        "confidence": one.confidence,
    }
    if one.alternatives:
        found["alternatives"] = [{"label": name, "confidence": p} for name, p in one.alternatives]
    if one.note:
        found["note"] = one.note
    return found


async def _transcript_events(found: AsyncIterator[WindowResult]) -> AsyncGenerator[str, None]:
    """Server-sent events: each answer as it comes, then the whole text."""
    texts: list[str] = []
    number = 0
    try:
        async for one in found:
            if one.text:
                delta = one.text if not texts else f"\n{one.text}"
                texts.append(one.text)
                told = {"type": "transcript.text.delta", "delta": delta}
                yield event({**told, "segment": _segment(number, one)})
            number += 1
        yield event({"type": "transcript.text.done", "text": "\n".join(texts)})
    except RequestError as error:
        if not number:
            raise
        yield event({"type": "error", **error.body()})
    yield "data: [DONE]\n\n"


async def _cues(found: AsyncIterator[WindowResult], form: str) -> AsyncGenerator[str, None]:
    """Subtitles as they come."""
    head, number = subtitle_head(form), 0
    async for one in found:
        number += is_shown(one)
        yield head + (subtitle(number, one, form) if is_shown(one) else "")
        head = ""


def subtitles(segments: Iterable[WindowResult], form: str) -> Iterator[str]:
    """A whole file of subtitles, SubRip or WebVTT."""
    yield subtitle_head(form)
    for number, one in enumerate(filter(is_shown, segments), start=1):
        yield subtitle(number, one, form)


def is_shown(one: WindowResult) -> bool:
    """Whether a window has a subtitle: not where there is no answer, or it is that nothing is."""
    return one.text not in ("", None, NOTHING)


def subtitle_head(form: str) -> str:
    return "WEBVTT\n\n" if form == "vtt" else ""


def subtitle(number: int, one: WindowResult, form: str) -> str:
    """One cue. Blank lines would end it, and `-->` would begin another."""
    text = "\n".join(line for line in one.text.splitlines() if line.strip())
    text = text.replace("-->", "->")
    if form == "vtt":
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    times = f"{_clock(one.start, form)} --> {_clock(one.end, form)}"
    return f"{number}\n{times}\n{text}\n\n" if form == "srt" else f"{times}\n{text}\n\n"


def _clock(seconds: float, form: str) -> str:
    whole = round(seconds * 1000)
    mark = "," if form == "srt" else "."
    hours, rest = divmod(whole, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{mark}{rest % 1000:03}"
