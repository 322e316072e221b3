"""The model behind the routes: loaded in the background, asked by all requests at once.

Prompts of all routes and clients meet in one continuous batch of the engine. What a client gets is
what it would get alone; a client that goes away frees its rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import tempfile
import threading
import time
from asyncio import FIRST_COMPLETED
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from NatureLM.errors import NatureLMError, UsageError
from NatureLM.generation.audio_cache import EmbeddingCache, Load
from NatureLM.generation.decoding import TokenLogProbability
from NatureLM.generation.engine import Answer, Engine, GenerationOptions, Run, before_stop
from NatureLM.generation.engine import Request as Prompt
from NatureLM.generation.service import (
    EngineService,
    ServiceError,
    Ticket,
)
from NatureLM.inference.background import PipelineLoader
from NatureLM.inference.conversation import TextStream
from NatureLM.inference.loading import processor_of
from NatureLM.inference.windows import AskOptions, RecordingError, WindowResult
from NatureLM.models.registry import find
from NatureLM.prompts import ChatTemplate, prompt_parts
from NatureLM.serve.bodies import Dialogue, first_problem
from NatureLM.serve.settings import RequestError, ServeSettings, over_limit
from NatureLM.serve.sound import Clip, SoundReader, Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from NatureLM.inference.pipeline import Pipeline
    from NatureLM.results.rows import RunSettings

logger = logging.getLogger(__name__)
State = Literal["loading", "ready", "failed", "stopped"]
T = TypeVar("T")
B = TypeVar("B", bound=BaseModel)
_DECODERS = 2  # clips that are decoded at once
_RETRY_SECONDS = 2.0
_AHEAD = 16  # results of a recording that wait for a slow client


@dataclass(frozen=True, eq=False, kw_only=True)
class Ask(Prompt):
    """One prompt of one client, with its clips."""

    options: GenerationOptions
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class Piece:
    """What has come of an answer that is streamed.

    tokens: those that no earlier piece had, with how likely they were, if the options ask for them
    """

    text: str
    tokens: tuple[TokenLogProbability, ...] = ()


class ServedModel:
    """The model of a service, and what routes ask of it.

    on_failure: told why nothing can be answered any more: the model cannot be loaded, or the
        engine has died
    """

    def __init__(
        self, settings: ServeSettings, on_failure: Callable[[str], None] = logger.error
    ) -> None:
        self.settings, self._on_failure = settings, on_failure
        self.loader = PipelineLoader(self._load)
        self.error = ""
        self.name = _public_name(settings.name)
        self._folder = tempfile.TemporaryDirectory(prefix="naturelm-serve-")
        self.folder = Path(self._folder.name)
        self._began = time.monotonic()
        self._has_stopped = False
        self._service: EngineService | None = None
        self._readers = ThreadPoolExecutor(_DECODERS, "decode")
        self._embedding = threading.Lock()

    # -- life --------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        if self._has_stopped:
            return "stopped"
        if self.error:
            return "failed"
        return "ready" if self.loader.state == "ready" else "loading"

    def _load(self) -> Pipeline:
        """The pipeline, once all that answers with it is there."""
        settings, limits = self.settings, self.settings.limits
        try:
            pipeline = settings.load()
            config = pipeline.model.config
            self.sound = SoundReader(
                settings, config.sample_rate, config.window_seconds, self.folder
            )
            # A file is read for it, and a request may have 64 questions.
            self._calibration = functools.lru_cache(64)(
                lambda alpha: pipeline.calibration_at(alpha)[0]
            )
            self._template = ChatTemplate.of(processor_of(pipeline.model).prompt_template)
            engine = Engine(
                pipeline.model,
                GenerationOptions(**pipeline.cfg.generate.model_dump(exclude={"merging_alpha"})),
                max_memory=settings.max_memory,
                embeddings=EmbeddingCache(limits.cache_bytes),
            )
            self._service = EngineService(
                engine, max_waiting=limits.queue, on_failure=self._engine_died
            )
        except Exception as error:
            reason = str(error)
            if not isinstance(error, NatureLMError):
                reason = type(error).__name__
                logger.exception("the model cannot be loaded")
            self._fail(f"the model {self.name} cannot be loaded: {reason}")
            raise
        return pipeline

    def _fail(self, reason: str) -> None:
        self.error = reason
        self._on_failure(reason)

    def _engine_died(self, error: BaseException) -> None:
        self._fail(f"the engine has failed ({type(error).__name__}: {error}), so the service ends")

    def close(self) -> None:
        """End the engine and remove what was kept."""
        self._has_stopped = True
        if self._service is not None:
            self._service.drain(0.0)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._folder.cleanup()

    # -- what it is --------------------------------------------------------------------------

    @property
    def pipeline(self) -> Pipeline:
        """The loaded model. Raises RequestError (503) while there is none."""
        loaded = self.loader.loaded
        if loaded is None or self.state != "ready":
            raise RequestError(
                {"loading": f"the model {self.name} is loading: try again in a moment"}.get(
                    self.state, "the service cannot answer; its log says why"
                ),
                status=503,
                code="model_not_ready",
                retry_after=_RETRY_SECONDS,
            )
        return loaded

    @property
    def revision(self) -> str:
        """The hash of the weights; before they are loaded, that they are not."""
        loaded = self.loader.loaded
        return "loading" if loaded is None else str(loaded.model.fingerprint)

    def load_status(self) -> dict[str, Any]:
        """How far the loading is, as BEANS-Next's launchers tell it."""
        loaded = self.loader.loaded
        return {
            "load_status": self.state,
            "loading_elapsed_sec": round(time.monotonic() - self._began, 1),
            "last_error": self.error or None,
            "audio_sample_rate_hz": None if loaded is None else loaded.model.config.sample_rate,
        }

    def card(self) -> dict[str, Any]:
        """The model as `/v1/models` lists it."""
        return {"id": self.name, "object": "model", "created": 0, "owned_by": "naturelm"}

    def check_name(self, name: str | None) -> None:
        """Raise RequestError (404) for a model that is not served here."""
        if name not in (None, self.name):
            shown = str(name)[:100]
            raise RequestError(
                f"the model {shown!r} is not served here; {self.name!r} is",
                status=404,
                param="model",
                code="model_not_found",
            )

    # -- from requests to prompts ------------------------------------------------------------

    def tenant(self, request: Request) -> str:
        """Whose request it is: the name of the key."""
        return str(request.scope.get("visitor") or "")

    def alpha(self, given: float | None) -> float:
        """The share of the adapter: the request's, or the service's."""
        return self.settings.default_alpha if given is None else given

    def generation(self, changed: dict[str, Any]) -> GenerationOptions:
        """The configuration's way of decoding with some values in place of its own."""
        values = self.pipeline.cfg.generate.model_dump(exclude={"merging_alpha"}) | changed
        if values["do_sample"] and "num_beams" not in changed:
            values["num_beams"] = 1
        values["max_new_tokens"] = min(values["max_new_tokens"], self.settings.limits.tokens)
        try:
            return GenerationOptions(**values)
        except UsageError as error:
            raise RequestError(str(error)) from None

    def parsed(self, kind: type[B], values: dict[str, Any], param: str, strict: bool = True) -> B:
        """Values as a record. Raises RequestError that names the first wrong one."""
        try:
            return kind.model_validate(values, strict=strict)
        except ValidationError as error:
            raise first_problem(error, param) from None

    def prompt(self, dialogue: Dialogue) -> str:
        """The complete text, as `Pipeline` and `Conversation` write it."""
        self.pipeline  # noqa: B018
        return self._template.text(dialogue.turns, system=dialogue.system)

    async def clips(
        self, sources: Sequence[Source], request: Request, *, with_silence: bool = True
    ) -> list[Clip]:
        """The sound of a request, decoded. Raises RequestError.

        with_silence: whether there may be clips without sound
        """
        self.pipeline  # noqa: B018
        loop = asyncio.get_running_loop()
        work = [loop.run_in_executor(self._readers, self.sound.clip, one) for one in sources]
        clips: list[Clip] = await self.until_gone(asyncio.gather(*work), request)
        for source, clip in zip(sources, clips, strict=True):
            if not with_silence:
                clip.refuse_silence(source.param)
        return clips

    def ask(
        self,
        dialogue: Dialogue,
        clips: Sequence[Clip],
        alpha: float | None,
        options: GenerationOptions,
        request: Request,
        **some: Any,
    ) -> Ask:
        """What a request asks about clips; `some` are more fields of it."""
        return Ask(
            key=None,
            prompt=self.prompt(dialogue),
            audios=tuple(clip.name for clip in clips),
            alpha=self.alpha(alpha),
            options=options,
            tenant=self.tenant(request),
            clips=tuple(clips),
            **some,
        )

    # -- answers -----------------------------------------------------------------------------

    async def answers(self, asks: Sequence[Ask], request: Request) -> list[Answer]:
        """The answers to prompts, in order. Raises RequestError for the first without one.

        Who goes away before they are there leaves nothing behind.
        """
        tickets: list[Ticket] = []
        try:
            for ask in asks:
                tickets.append(self._submit(ask))
            futures = [asyncio.wrap_future(one.future) for one in tickets]
            for one in futures:
                one.add_done_callback(_heard)
            await self.until_gone(asyncio.wait(futures), request)
            return [_result(one) for one in futures]
        finally:
            for ticket in tickets:
                ticket.cancel()

    async def stream(
        self, asks: Sequence[Ask], request: Request
    ) -> AsyncIterator[tuple[int, Piece | Answer]]:
        """Pieces of answers as they come, each with the number of its prompt; at last the answer.

        The answer has all tokens; those that no piece had are given with the piece before it.
        """
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Any]]()

        def put(number: int, found: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(queue.put_nowait, (number, found))

        tickets: list[Ticket] = []
        texts = [TextStream(self.pipeline.model.tokenizer) for _ in asks]
        told, pushed, said = ([0] * len(asks) for _ in range(3))  # characters; tokens
        try:
            for number, ask in enumerate(asks):
                is_text = ask.choice is None and ask.options.num_beams == 1
                ticket = self._submit(ask, functools.partial(put, number) if is_text else None)
                tickets.append(ticket)
                ticket.future.add_done_callback(functools.partial(put, number))
            left, has_begun = len(asks), False
            while left:
                # Who goes away later is noticed by the response that is sent.
                coming = queue.get()
                number, found = await (coming if has_begun else self.until_gone(coming, request))
                has_begun = True
                if isinstance(found, list):
                    for token in found:
                        texts[number].push(token)
                    pushed[number] += len(found)
                    # The beginning of a stop string may be the end of what has come.
                    held = max((len(one) - 1 for one in asks[number].options.stop), default=0)
                    text = before_stop(texts[number].text, asks[number].options.stop)
                    if piece := text[told[number] : max(0, len(text) - held)]:
                        told[number] += len(piece)
                        tokens = tickets[number].log_probabilities[said[number] : pushed[number]]
                        said[number] = pushed[number]
                        yield number, Piece(piece, tuple(tokens))
                    continue
                answer = _result(found)
                rest = (answer.text or "")[told[number] :]
                last = answer.log_probabilities[said[number] :]
                if rest or last:
                    yield number, Piece(rest, last)
                left -= 1
                yield number, answer
        finally:
            for ticket in tickets:
                ticket.cancel()

    async def windows(
        self, path: Path, options: AskOptions, request: Request
    ) -> AsyncIterator[WindowResult | RecordingError]:
        """Answers about a recording, window by window, as they come."""
        tenant, loop = self.tenant(request), asyncio.get_running_loop()
        queue = asyncio.Queue[Any](_AHEAD)
        has_left = threading.Event()

        def put(item: Any) -> None:
            asyncio.run_coroutine_threadsafe(queue.put(item), loop).result()

        def work() -> None:
            try:
                asked = self.pipeline.unanswered(
                    [path], options, None, run=self._run(tenant), warn=logger.debug
                )
                with contextlib.closing(asked) as results:
                    for result in results:
                        if has_left.is_set():
                            return
                        put(result)
                put(None)
            except Exception as error:
                put(error)

        thread = threading.Thread(target=work, name="windows", daemon=True)
        thread.start()
        try:
            while (found := await self.until_gone(queue.get(), request)) is not None:
                if isinstance(found, NatureLMError):
                    raise refused(found)
                if isinstance(found, Exception):
                    raise found
                yield found
        finally:
            has_left.set()
            while thread.is_alive():  # it may be waiting for room
                with contextlib.suppress(asyncio.QueueEmpty):
                    queue.get_nowait()
                await asyncio.sleep(0.01)

    def vectors(self, clips: Sequence[Clip], layer: str) -> NDArray[Any]:
        """Vectors (clips, width) of clips, as `naturelm embed` makes them."""
        from NatureLM.audio.windows import Window
        from NatureLM.search.build import Embedder

        windows = [Window(0, 0.0, clip.seconds, clip.samples, clip.note) for clip in clips]
        with self._embedding:
            return Embedder(self.pipeline.model, layer).vectors(windows)

    def _submit(self, ask: Ask, on_tokens: Callable[[Sequence[int]], None] | None = None) -> Ticket:
        """Give a prompt to the engine. Raises RequestError for one that is not taken."""
        clips = {clip.name: clip.samples for clip in ask.clips}
        if self.settings.log_prompts:
            logger.info("asked by %s: %r", ask.tenant or "somebody", ask.prompt)
        try:
            ticket = self._engine.submit(
                ask, clips, deadline=self.settings.limits.request_seconds, on_tokens=on_tokens
            )
        except NatureLMError as error:
            raise refused(error) from None
        if self.settings.log_prompts:
            ticket.future.add_done_callback(_log_answer)
        return ticket

    @property
    def _engine(self) -> EngineService:
        self.pipeline  # noqa: B018
        assert self._service is not None
        return self._service

    def _run(self, tenant: str) -> Run:
        """What answers the requests of a recording, a few of them at a time, in order."""
        options = self.generation({})

        def run(requests: Iterable[Prompt], load: Load) -> Iterator[Answer]:
            waiting: deque[tuple[Prompt, Ticket]] = deque()
            coming = iter(requests)
            try:
                while True:
                    for request in islice(coming, _AHEAD - len(waiting)):
                        asked = replace(request, options=options, tenant=tenant)
                        clips = {name: load(name) for name in request.audios}
                        waiting.append((request, self._patiently(asked, clips)))
                    if not waiting:
                        return
                    request, ticket = waiting.popleft()
                    try:
                        yield replace(ticket.result(), request=request)
                    except NatureLMError as error:
                        yield Answer(request, None, error)
            finally:
                for _, ticket in waiting:
                    ticket.cancel()

        return run

    def _patiently(self, request: Prompt, clips: dict[str, Any]) -> Ticket:
        """Give a request of a recording to the engine as soon as half of its room is free.

        The other half is for those who cannot wait.
        """
        while True:
            if self._engine.counts().waiting < max(1, self.settings.limits.queue // 2):
                try:
                    return self._engine.submit(request, clips)
                except ServiceError as error:
                    if error.kind != "full":
                        raise
            time.sleep(0.1)

    async def until_gone(self, awaited: Awaitable[T], request: Request) -> T:
        """What is awaited; it is cancelled where the client goes away or the time is over."""
        task = asyncio.ensure_future(awaited)
        gone = asyncio.ensure_future(_disconnected(request))
        seconds = self.settings.limits.request_seconds
        try:
            await asyncio.wait({task, gone}, timeout=seconds, return_when=FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise RequestError("the client has gone", status=499)
            told = f"the answer took longer than {seconds:g} s"
            raise over_limit(told, "request_seconds", status=504, code="timeout")
        finally:
            for one in (task, gone):
                one.add_done_callback(_heard)
                one.cancel()

    # -- from answers to responses -----------------------------------------------------------

    def ranked(self, ask: Ask, answer: Answer) -> list[tuple[str, float]]:
        """Labels with their calibrated probabilities, best first; of a written one only itself."""
        if answer.scores is None:
            return [(answer.text or "", math.exp(answer.log_probability or 0.0))]
        found = self._calibration(ask.alpha)
        temperature = 1.0 if found is None else found.temperature
        return answer.scores.at_temperature(temperature).ranked()

    def normalize(self, alpha: float) -> Any:
        """How scores of labels of different lengths are made alike, at this α."""
        found = self._calibration(alpha)
        return "sum" if found is None else found.normalize

    def finish_reason(self, answer: Answer) -> str:
        """`length` where the limit of tokens ended an answer, else `stop`."""
        return "stop" if answer.is_whole else "length"

    def logprobs(self, tokens: Iterable[TokenLogProbability]) -> dict[str, Any]:
        """Tokens with how likely they were, as the OpenAI API writes them."""
        return {"content": [self._token(one) for one in tokens]}

    def _token(self, one: TokenLogProbability) -> dict[str, Any]:
        likeliest = [self._piece(token, value) for token, value in one.likeliest]
        return {**self._piece(one.token, one.value), "top_logprobs": likeliest}

    def _piece(self, token: int, value: float) -> dict[str, Any]:
        text = str(self.pipeline.model.tokenizer.decode([token]))
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    def usage(self, asks: Sequence[Ask], answers: Sequence[Answer]) -> dict[str, int]:
        """Positions of prompts, clips included (once for answers to the same), and tokens."""
        prompts = {ask.prompt: self._positions(ask) for ask in asks}
        prompt, answered = sum(prompts.values()), sum(len(one.ids) for one in answers)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answered,
            "total_tokens": prompt + answered,
        }

    def _positions(self, ask: Ask) -> int:
        """Of a prompt, its clips included."""
        model = self.pipeline.model
        text = sum(map(len, prompt_parts(ask.prompt, model.tokenizer)))
        return text + len(ask.clips) * model.config.audio_positions()

    def run_settings(self, options: AskOptions) -> RunSettings:
        """The settings that rows of `/v1/windows` name, as those of `naturelm infer` do."""
        from NatureLM.results.rows import RunSettings

        generate = self.pipeline.cfg.generate
        values = options.settings(model=self.name, adapter=None, generate=generate)
        return RunSettings(values | self.pipeline.settings(options))

    def json_grammar(self, schema: Any, options: GenerationOptions) -> Any:
        """What holds an answer to a JSON Schema. Raises RequestError."""
        from NatureLM.generation.json_schema import JsonSchemaGrammar

        model = self.pipeline.model
        try:
            return JsonSchemaGrammar(schema, model.tokenizer, model.eos_ids, options.max_new_tokens)
        except UsageError as error:
            raise RequestError(f"response_format: {error}", param="response_format") from None

    def counts(self) -> Iterator[tuple[str, str, float]]:
        """Name, meaning and value of the engine's figures."""
        yield "ready", "Whether questions are answered.", float(self.state == "ready")
        if self._service is None:
            return
        counts = self._service.counts()
        for name, value, what in (
            ("prompts_total", counts.requests, "Prompts that were taken."),
            ("prompts_refused_total", counts.refused, "Prompts that found the queue full."),
            ("prompts_cancelled_total", counts.cancelled, "Prompts given up, or out of time."),
            ("tokens_total", counts.tokens, "Tokens of answers."),
            ("windows_total", counts.windows, "Windows of sound that were encoded."),
            ("cache_hits_total", counts.cache_hits, "Windows that were encoded before."),
            ("queue", counts.waiting, "Prompts that wait."),
            ("running", counts.running, "Prompts whose answers are decoded."),
            ("encode_seconds_total", counts.encode_seconds, "Spent encoding sound."),
            ("prefill_seconds_total", counts.prefill_seconds, "Spent reading prompts."),
            ("decode_seconds_total", counts.decode_seconds, "Spent decoding answers."),
            ("score_seconds_total", counts.score_seconds, "Spent scoring lists of labels."),
        ):
            yield name, what, float(value)


def _heard(done: asyncio.Future[Any]) -> None:
    """Nobody may be there any more to hear why there is no answer."""
    if not done.cancelled():
        done.exception()


async def _disconnected(request: Request) -> None:
    """Wait until the client goes away; its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def refused(error: Exception) -> RequestError:
    """What kept a prompt from an answer, as HTTP says it."""
    if isinstance(error, RequestError):
        return error
    if not isinstance(error, ServiceError):
        return RequestError(str(error), status=400 if isinstance(error, UsageError) else 500)
    if error.kind == "full":
        again = error.retry_seconds
        return over_limit(str(error), "queue", status=429, code="queue_full", retry_after=again)
    if error.kind == "late":
        return over_limit(str(error), "request_seconds", status=504, code="timeout")
    return RequestError(str(error), status=503 if error.kind == "stopped" else 500)


def _log_answer(future: Any) -> None:
    error = future.exception()
    logger.info("answered: %s", repr(future.result().text) if error is None else error)


def _result(future: Any) -> Answer:
    """The answer of a future that is done. Raises RequestError."""
    try:
        answer: Answer = future.result()
    except NatureLMError as error:
        raise refused(error) from None
    return answer


def model_of(request: Request) -> ServedModel:
    """The model behind a request."""
    model: ServedModel = request.app.state.served
    return model


def _public_name(name: str) -> str:
    """The name that clients give: of a folder the last part, so that no path is told."""
    return name if find(name) is not None or not Path(name).exists() else Path(name).resolve().name
