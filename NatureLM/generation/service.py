"""The engine for many clients at once: requests come when they like and meet in one batch.

A thread owns the engine. In turn it encodes sound that came, lets new rows join, takes all rows a
token further, and scores some lists of labels; between two steps it lets go of what was cancelled
or is out of time. An answer is the one that the request would get alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from NatureLM.errors import NatureLMError
from NatureLM.generation.audio_cache import EncodedClip
from NatureLM.generation.decoding import TokenLogProbability
from NatureLM.generation.engine import Answer, Engine, Request, RowQueue
from NatureLM.generation.prefill import Row

OnTokens = Callable[[Sequence[int]], None]

_ENCODED_AT_ONCE = 8  # clips between two steps of those that are answered
_SCORED_AT_ONCE = 8  # rows, likewise
_RETRY_SECONDS = (1.0, 60.0)
_MEMORY = 0.9  # how much of an answer's mean time stays with each answer


class ServiceError(NatureLMError):
    """Why a request got no answer, though nothing is wrong with what it asked.

    kind: "full" where as many requests wait as may, "stopped" where the service was closed or has
        failed, "cancelled" by whoever asked, "late" where its time was over
    retry_seconds: of "full", when to come again
    """

    def __init__(
        self,
        kind: Literal["full", "stopped", "cancelled", "late"],
        message: str,
        retry_seconds: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.kind, self.retry_seconds = kind, retry_seconds


@dataclass
class ServiceCounts:
    """What a service did since it was made; times are seconds of its thread.

    requests: that were taken, of which `answers` had one, `errors` had none, `cancelled` were given
        up or out of time
    waiting, running: requests now, not yet decoded and decoded
    tokens: of answers; windows: that were encoded; cache_hits: that were not, as they were known
    """

    requests: int = 0
    refused: int = 0
    answers: int = 0
    errors: int = 0
    cancelled: int = 0
    waiting: int = 0
    running: int = 0
    tokens: int = 0
    windows: int = 0
    cache_hits: int = 0
    encode_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    score_seconds: float = 0.0

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of the block to `<name>_seconds`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            key = f"{name}_seconds"
            setattr(self, key, getattr(self, key) + time.perf_counter() - start)


@dataclass(eq=False)
class Ticket:
    """A request on its way, made by `EngineService.submit`; `asked` is it as it was given.

    log_probabilities: of the tokens that `on_tokens` was told, if the options ask for them
    """

    request: Request
    asked: Request
    clips: Mapping[str, Any]
    deadline: float | None
    on_tokens: OnTokens | None
    wake: Callable[[], None]
    future: Future[Answer] = field(default_factory=Future)
    failure: Exception | None = None
    told: int = 0
    log_probabilities: list[TokenLogProbability] = field(default_factory=list)

    def result(self, timeout: float | None = None) -> Answer:
        """The answer, once it is there.

        Raises what kept the request from one: UsageError, ServiceError; TimeoutError if there is
        none within `timeout` seconds.
        """
        return self.future.result(timeout)

    def cancel(self) -> None:
        """Give the request up; its rows are free at the next step."""
        self.failure = ServiceError("cancelled", "the request was cancelled")
        self.wake()

    def problem(self) -> Exception | None:
        """Why nobody waits for it any more."""
        is_late = self.deadline is not None and time.monotonic() >= self.deadline
        if self.failure is None and is_late:
            return ServiceError("late", "there was no answer in time")
        return self.failure


class EngineService:
    """Answers requests from many threads with one engine.

    engine: nobody else may use it. Sound that it keeps is found by the tenant who sent it
    max_waiting: requests that may wait to be decoded; further ones are refused
    on_failure: told why the thread came to an end, if it did so by itself

    As a context manager it is drained at the end.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int = 128,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._engine, self._max_waiting, self._on_failure = engine, max_waiting, on_failure
        self._changed = threading.Condition()
        self._checking = threading.Lock()
        self._new: list[Ticket] = []
        self._silent: list[Ticket] = []  # whose sound is not encoded yet
        self._tickets: set[Ticket] = set()  # all that have no answer
        self._rows = RowQueue()
        self._scored: list[Row] = []
        self._decoder = engine.new_decoder()
        self._counts = ServiceCounts()
        self._seconds = 1.0  # between two answers
        self._last = time.monotonic()
        self._stopped: str | None = None
        self._is_abandoned = False
        self._thread = threading.Thread(target=self._work, name="naturelm-engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        request: Request,
        clips: Mapping[str, Any] | None = None,
        *,
        deadline: float | None = None,
        on_tokens: OnTokens | None = None,
    ) -> Ticket:
        """Take a request; it is answered as soon as there is room.

        clips: by the names in `request.audios`: waveforms (samples,) at the model's rate
        deadline: seconds from now on
        on_tokens: told the new ids of an answer with one beam after every step, in the thread of
            the service; what it raises is the request's error

        Raises UsageError for what cannot be answered, and ServiceError where the queue is full or
        the service has stopped.
        """
        self._refuse_if_full()
        engine, ready = self._engine, dict[str, Any]()
        for name in dict.fromkeys(request.audios):
            clip = (clips or {})[name]
            is_encoded = isinstance(clip, EncodedClip)
            ready[name] = clip if is_encoded else engine.model.processor.prepare_audio(clip)
        with self._checking:  # tokenisers are not made for threads
            engine.check(request)
        end = None if deadline is None else time.monotonic() + deadline
        ticket = Ticket(request, request, ready, end, on_tokens, self._wake)
        ticket.request = replace(request, key=ticket)
        with self._changed:
            self._refuse_if_full()
            self._counts.requests += 1
            if not self._tickets:
                self._last = time.monotonic()
            self._new.append(ticket)
            self._tickets.add(ticket)
            self._changed.notify_all()
        return ticket

    def counts(self) -> ServiceCounts:
        """What was done so far."""
        with self._changed:
            running = len(self._decoder)
            return replace(self._counts, waiting=len(self._tickets) - running, running=running)

    def drain(self, timeout: float | None = None) -> None:
        """Take no more requests, answer those that were taken, and end the thread.

        timeout: seconds after which those without an answer are given up
        """
        with self._changed:
            self._stopped = self._stopped or "the service is closing"
            self._changed.notify_all()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._is_abandoned = True
            self._wake()
            self._thread.join()

    def __enter__(self) -> EngineService:
        return self

    def __exit__(self, *_: object) -> None:
        self.drain()

    def _refuse_if_full(self) -> None:
        with self._changed:
            if self._stopped is not None:
                raise ServiceError("stopped", self._stopped)
            waiting = len(self._tickets) - len(self._decoder)
            if waiting >= self._max_waiting:
                self._counts.refused += 1
                low, high = _RETRY_SECONDS
                retry = min(high, max(low, waiting * self._seconds))
                raise ServiceError(
                    "full",
                    f"{waiting} requests wait for an answer, and no more are taken: try again in "
                    f"{retry:.0f} s",
                    retry,
                )

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # -- the thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while self._wait():
                self._give_up()
                self._encode_some()
                self._refill()
                self._score_some()
                self._advance()
        except BaseException as error:  # whatever it is, nobody may wait for ever
            reason = f"the service has failed: {type(error).__name__}: {error}"
            self._end(reason)
            with suppress(Exception):
                self._on_failure(error)
        else:
            self._end("the service was closed")

    def _wait(self) -> bool:
        """Wait for something to do; False where there will be nothing any more."""
        with self._changed:
            while not self._tickets and self._stopped is None:
                self._changed.wait()
            self._silent += self._new
            self._new = []
            return bool(self._tickets) and not self._is_abandoned

    def _end(self, reason: str) -> None:
        with self._changed:
            self._stopped = reason
            left = list(self._tickets)
            self._tickets.clear()
            self._new, self._silent = [], []
        self._decoder.clear()
        for ticket in left:
            ticket.future.set_exception(ServiceError("stopped", reason))

    def _settle(self, ticket: Ticket, answer: Answer | None, why: Exception | None = None) -> None:
        """The request has come to its end, with an answer or an error."""
        error = why if answer is None else answer.error
        with self._changed:
            self._tickets.discard(ticket)
            now, counts = time.monotonic(), self._counts
            self._seconds = _MEMORY * self._seconds + (1 - _MEMORY) * (now - self._last)
            self._last = now
            if error is None:
                counts.answers += 1
            elif isinstance(error, ServiceError) and error.kind in ("cancelled", "late"):
                counts.cancelled += 1
            else:
                counts.errors += 1
            counts.tokens += 0 if answer is None else len(answer.ids)
        if error is not None:
            ticket.future.set_exception(error)
        elif answer is not None:
            ticket.future.set_result(replace(answer, request=ticket.asked))

    def _give_up(self) -> None:
        """Let go of those that nobody waits for."""
        with self._changed:
            gone = {one: why for one in self._tickets if (why := one.problem())}
        if not gone:
            return
        left = set(map(id, gone))

        def stays(row: Row) -> bool:
            return id(row.request.key) not in left

        with self._changed:
            self._new = [one for one in self._new if id(one) not in left]
        self._silent = [one for one in self._silent if id(one) not in left]
        self._scored = [row for row in self._scored if stays(row)]
        self._rows.remove([row for row in self._rows if not stays(row)])
        self._decoder.remove([one for one in self._decoder.prompts if not stays(one.source)])
        for ticket, why in gone.items():
            self._settle(ticket, None, why)

    def _encode_some(self) -> None:
        """Encode the sound of those that came first, and put them in line."""
        if not self._silent:
            return
        sound: dict[str, Any] = {}
        tenants: dict[str, str] = {}
        some: list[Ticket] = []
        for ticket in self._silent:
            if some and len(sound) + len(ticket.clips) > _ENCODED_AT_ONCE:
                break
            some.append(ticket)
            for name, clip in ticket.clips.items():
                key = f"{id(ticket):x}/{name}"
                sound[key], tenants[key] = clip, ticket.request.tenant
        self._silent = self._silent[len(some) :]
        before = self._engine.encoded
        with self._counts.timed("encode"):
            known = self._engine.encode(sound, sound.__getitem__, tenants.__getitem__)
        windows = self._engine.encoded - before
        self._counts.windows += windows
        self._counts.cache_hits += len(sound) - windows
        for ticket in some:
            clips = [known[f"{id(ticket):x}/{name}"] for name in ticket.request.audios]
            ticket.clips = {}
            made = self._engine.row(ticket.request, clips)
            if isinstance(made, Answer):
                self._settle(ticket, made)
            elif ticket.request.is_scored:
                self._scored.append(made)
            else:
                self._rows.add([made])

    def _refill(self) -> None:
        if len(self._rows):
            with self._counts.timed("prefill"):
                self._engine.refill(self._decoder, self._rows)

    def _score_some(self) -> None:
        if not self._scored:
            return
        choice = self._scored[0].request.choice
        some = [row for row in self._scored if row.request.choice == choice][:_SCORED_AT_ONCE]
        taken = set(map(id, some))
        self._scored = [row for row in self._scored if id(row) not in taken]
        with self._counts.timed("score"):
            answers = list(self._engine.score(some))
        for answer in answers:
            self._settle(_ticket(answer.request), answer)

    def _advance(self) -> None:
        if not self._decoder:
            return
        with self._counts.timed("decode"):
            finished = list(self._engine.advance(self._decoder, self._rows))
        for state in self._decoder.states:
            if len(state.beams) == 1:
                ticket = _ticket(state.prompt.source.request)
                self._tell(ticket, state.ids, state.log_probabilities)
        for answer in finished:
            ticket = _ticket(answer.request)
            if answer.error is None:
                self._tell(ticket, answer.ids, answer.log_probabilities)
            self._settle(ticket, answer)

    def _tell(
        self,
        ticket: Ticket,
        ids: Sequence[int],
        log_probabilities: Sequence[TokenLogProbability],
    ) -> None:
        """Give out the tokens that were not given out yet. After memory ran out they come again."""
        options = ticket.request.options or self._engine.options
        if ticket.on_tokens is None or options.num_beams > 1 or len(ids) <= ticket.told:
            return
        ticket.log_probabilities += log_probabilities[ticket.told :]
        new, ticket.told = list(ids[ticket.told :]), len(ids)
        try:
            ticket.on_tokens(new)
        except Exception as error:  # whoever listened is gone; the others are not
            ticket.on_tokens, ticket.failure = None, error


def _ticket(request: Request) -> Ticket:
    return cast(Ticket, request.key)
