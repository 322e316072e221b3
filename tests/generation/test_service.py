"""Requests of many clients in one batch: each answer is the one that it would get alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from decoding import ENDS, finish
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.generation import engine as engine_module
from NatureLM.generation.decoding import Decoder, Prompt, RowState
from NatureLM.generation.engine import Answer, Engine, GenerationOptions, Request
from NatureLM.generation.labels import LabelChoice
from NatureLM.generation.service import (
    EngineService,
    ServiceError,
)
from NatureLM.models import NatureLM
from NatureLM.prompts import PromptTooLong, token_ids

Make = Callable[..., EngineService]
Clip = dict[str, Tensor]
GREEDY = GenerationOptions(max_new_tokens=6, num_beams=1)
WAYS = (
    GREEDY,
    replace(GREEDY, max_new_tokens=2, repetition_penalty=1.5),
    replace(GREEDY, do_sample=True, temperature=1.0, seed=3),
    replace(GREEDY, do_sample=True, temperature=2.0, top_k=20, seed=4, max_new_tokens=8),
    replace(GREEDY, do_sample=True, temperature=1.5, top_p=0.8, min_length=200),
    replace(GREEDY, num_beams=2),
    replace(GREEDY, num_beams=3, length_penalty=0.5, repetition_penalty=1.2),
    replace(GREEDY, num_beams=2, max_new_tokens=3),
    None,
)


def outcome(state: RowState) -> tuple[Any, ...]:
    return state.ids, round(state.log_probability, 9)


class AloneDecoder:
    """What prompts give by themselves, remembered."""

    def __init__(self, model: NatureLM, default: GenerationOptions) -> None:
        self.model, self.default = model, default
        self.known: dict[Any, Any] = {}

    def __call__(self, prompt: Prompt) -> tuple[Any, ...]:
        case = (id(prompt.embeds_LD), prompt.alpha, prompt.stream, prompt.options)
        if case not in self.known:
            decoder = Decoder(self.model.language_model, prompt.options or self.default, ENDS)
            decoder.add([replace(prompt, options=None)])
            (state,) = finish(decoder)
            self.known[case] = outcome(state)
        return self.known[case]


@pytest.fixture(scope="module")
def by_itself(double: NatureLM) -> AloneDecoder:
    return AloneDecoder(double, replace(GREEDY, num_beams=2))


@examples(10)
@given(
    lumps=st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, 17), st.sampled_from(WAYS)), min_size=1, max_size=4),
            st.integers(0, 5),
        ),
        min_size=1,
        max_size=4,
    ),
    gone=st.sets(st.integers(0, 8), max_size=3),
)
def test_rows_of_all_kinds_decode_side_by_side(
    lumps: list[Any],
    gone: set[int],
    double: NatureLM,
    prompts: list[Prompt],
    by_itself: AloneDecoder,
) -> None:
    """Each lump joins so many steps after the one before; in the end some are removed."""
    decoder = Decoder(double.language_model, by_itself.default, ENDS)
    made: list[Prompt] = []
    found: list[RowState] = []
    for cases, steps in lumps:
        lump = [replace(prompts[n], options=way) for n, way in cases]
        decoder.add(lump)
        made += lump
        for _ in range(steps):
            found += decoder.advance()
    removed = [one for n, one in enumerate(made) if n in gone and one in decoder.prompts]
    decoder.remove(removed)
    found += finish(decoder)
    assert {state.prompt for state in found} == set(made) - set(removed)
    for state in found:
        assert outcome(state) == by_itself(state.prompt)


# -- options of requests ----------------------------------------------------------------------


def one_answer(model: NatureLM, request: Request, wave: Tensor) -> Answer:
    (answer,) = Engine(model, GREEDY, eos_ids=ENDS).run([request], lambda _: wave)
    return answer


def asked(model: NatureLM, query: str = "What is it?", **facts: Any) -> Request:
    assert model.processor is not None
    return Request("q", model.processor.render(query), ("x",), **facts)


@pytest.mark.parametrize("beams", [1, 2])
def test_stop_strings_end_an_answer_before_them(
    beams: int, double: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    wave = nano_waveforms["howl"]
    long = GenerationOptions(max_new_tokens=20, num_beams=beams)
    free = one_answer(double, asked(double, options=long), wave)
    assert free.text
    stop = free.text[len(free.text) // 2 :][:3]
    stopped = one_answer(double, asked(double, options=replace(long, stop=("\n\n#", stop))), wave)
    assert stopped.text is not None
    assert stop not in stopped.text
    assert stopped.is_whole
    if beams == 1:
        assert stopped.text == free.text[: free.text.index(stop)]
        assert stopped.ids == free.ids[: len(stopped.ids)]
        shorter = Engine(double, GREEDY).model.tokenizer.decode(stopped.ids[:-1])
        assert stop not in shorter, "no token more than needed"


def test_tokens_come_with_their_log_probabilities(
    double: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    for options in (GREEDY, replace(GREEDY, do_sample=True, temperature=1.5)):
        request = asked(double, options=replace(options, logprobs=3))
        answer = one_answer(double, request, nano_waveforms["trill"])
        assert [one.token for one in answer.log_probabilities] == list(answer.ids)
        total = sum(one.value for one in answer.log_probabilities)
        assert total == pytest.approx(answer.log_probability)
        for one in answer.log_probabilities:
            values = [value for _, value in one.likeliest]
            assert len(values) == 3
            assert values == sorted(values, reverse=True)
            if not options.do_sample:
                assert one.likeliest[0] == (one.token, pytest.approx(one.value))
    with pytest.raises(UsageError, match="num_beams is 2 and logprobs is 3"):
        GenerationOptions(logprobs=3)
    with pytest.raises(UsageError, match="stop must be texts that are not empty"):
        GenerationOptions(stop=("",))


class Only:
    """Allows some tokens, by a mask; then an end."""

    def __init__(self, tokens: Sequence[int], vocabulary: int, length: int) -> None:
        self.mask_V = torch.zeros(vocabulary, dtype=torch.bool)
        self.mask_V[list(tokens)] = True
        self.length = length

    def allowed(self, ids: Sequence[int], room: int) -> Tensor:
        assert room >= 1
        return self.mask_V if len(ids) < self.length else torch.zeros_like(self.mask_V)


class Broken:
    def allowed(self, ids: Sequence[int], room: int) -> Sequence[int]:
        raise ValueError("no such rule")


@pytest.mark.parametrize("beams", [1, 2])
def test_constraints_hold_for_their_own_requests(
    beams: int, double: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    wave = nano_waveforms["howl"]
    options = replace(GREEDY, num_beams=beams)
    only = Only((70, 71, 72), double.llama_embed_tokens.weight.shape[0], 3)
    requests = [
        asked(double, options=options, constraint=only),
        asked(double, options=options, constraint=Broken()),
        asked(double, options=options),
    ]
    requests = [replace(one, key=n) for n, one in enumerate(requests)]
    found = {
        one.key: one for one in Engine(double, GREEDY, eos_ids=ENDS).run(requests, lambda _: wave)
    }
    assert set(found[0].ids[:3]) <= {70, 71, 72}
    assert found[0].ids[3] in ENDS
    assert str(found[1].error) == "no such rule"
    assert found[2].ids == one_answer(double, requests[2], wave).ids


def test_many_chats_take_few_passes(
    service: Make,
    double: NatureLM,
    nano_waveforms: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes: list[int] = []
    forward = type(double.language_model).forward

    def counted(self: Any, *args: Any, **inputs: Any) -> Any:
        passes.append(1)
        return forward(self, *args, **inputs)

    monkeypatch.setattr(type(double.language_model), "forward", counted)
    names = list(nano_waveforms)
    options = replace(GREEDY, max_new_tokens=20)
    kinds = [
        (asked(double, alpha=alpha, options=options), name)
        for alpha, name in zip((0.0, 0.4, 1.0), names, strict=True)
    ]
    alone = [one_answer(double, request, nano_waveforms[name]) for request, name in kinds]
    times = 11
    by_themselves, passes[:] = times * len(passes), []
    one = service()
    with one._changed:
        tickets = [
            one.submit(request, {"x": nano_waveforms[name]}) for request, name in times * kinds
        ]
    assert [ticket.result(60).ids for ticket in tickets] == times * [one.ids for one in alone]
    assert by_themselves >= 6 * len(passes)


# -- the service ------------------------------------------------------------------------------


@pytest.fixture
def clip(nano_waveforms: dict[str, Tensor]) -> Clip:
    return {"x": nano_waveforms["howl"]}


@pytest.fixture
def service(double: NatureLM) -> Iterator[Make]:
    made: list[EngineService] = []

    def make(**how: Any) -> EngineService:
        engine = Engine(double, how.pop("options", GREEDY), eos_ids=how.pop("ends", ENDS))
        made.append(EngineService(engine, **how))
        return made[-1]

    yield make
    for one in made:
        one.drain(0)


def mixed(model: NatureLM, names: Sequence[str]) -> list[tuple[Request, str]]:
    """Requests of all kinds about clips, at three α."""
    made: list[tuple[Request, str]] = []
    words = ("Trill", "Wren", "Owl", "Fox", "Rook", "Kite", "Mole")
    labels = [one for one in words if not set(ENDS) & set(token_ids(one, model.tokenizer))]
    for number, way in enumerate([*WAYS, *WAYS[:3]]):
        alpha = (0.0, 0.4, 1.0)[number % 3]
        query = ("What is it?", "Caption the audio.")[number % 2]
        choice = LabelChoice(tuple(labels[:2])) if number >= len(WAYS) else None
        request = asked(model, query, alpha=alpha, options=way, stream=number, choice=choice)
        made.append((request, names[number % len(names)]))
    return made


def test_clients_together_get_what_each_gets_alone(
    service: Make, double: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    names = list(nano_waveforms)
    once = mixed(double, names)
    alone = 2 * [one_answer(double, request, nano_waveforms[name]) for request, name in once]
    cases = 2 * once
    one = service()

    def ask(case: tuple[Request, str]) -> tuple[Answer, list[int]]:
        told: list[int] = []
        ticket = one.submit(
            case[0], {"x": nano_waveforms[case[1]]}, on_tokens=told.extend, deadline=300
        )
        return ticket.result(300), told

    with ThreadPoolExecutor(8) as clients:
        found = list(clients.map(ask, cases))
    for (answer, told), wanted, (request, _) in zip(found, alone, cases, strict=True):
        assert (answer.text, answer.ids) == (wanted.text, wanted.ids)
        is_streamed = (request.options or GREEDY).num_beams == 1 and not request.is_scored
        assert told == (list(answer.ids) if is_streamed else [])
        if wanted.scores is not None:
            assert answer.scores is not None
            assert answer.scores.log_likelihoods == pytest.approx(wanted.scores.log_likelihoods)
    counts = one.counts()
    assert (counts.requests, counts.answers, counts.waiting, counts.running) == (24, 24, 0, 0)
    assert counts.windows == len(set(names[: len(cases)]))
    assert counts.tokens == sum(len(answer.ids) for answer, _ in found)
    assert min(counts.encode_seconds, counts.prefill_seconds, counts.decode_seconds) > 0
    assert counts.score_seconds > 0


def test_nothing_is_shared_between_tenants(
    service: Make,
    double: NatureLM,
    clip: Clip,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared: list[set[str]] = []
    plan = engine_module.plan_batches

    def watched(rows: Any, budget: Any) -> Any:
        batches = plan(rows, budget)
        for batch in batches:
            shared.extend(
                {batch.rows[row].request.tenant for row in one.rows} for one in batch.shared
            )
        return batches

    monkeypatch.setattr(engine_module, "plan_batches", watched)
    one = service()
    with one._changed:  # all are there before the first is worked on
        tickets = [
            one.submit(asked(double, query, tenant=tenant), clip)
            for tenant in ("a", "b")
            for query in ("What is it?", "What is it, then?", "What is it now?")
        ]
    answers = [ticket.result(60) for ticket in tickets]
    assert [one.text for one in answers[:3]] == [one.text for one in answers[3:]]
    assert one.counts().windows == 2, "each tenant's clip is encoded for this tenant"
    assert {frozenset(group) for group in shared} == {frozenset("a"), frozenset("b")}
    before = one.counts().cache_hits
    one.submit(asked(double, tenant="a"), clip).result(60)
    assert (one.counts().windows, one.counts().cache_hits) == (2, before + 1)
    one.submit(asked(double, tenant="c"), clip).result(60)
    assert one.counts().windows == 3


LONG = GenerationOptions(max_new_tokens=500, num_beams=1)


def started(one: EngineService, request: Request, clip: Clip, **how: Any) -> Any:
    """The ticket of a request, of which a token has come."""
    came = threading.Event()
    ticket = one.submit(request, clip, on_tokens=lambda _: came.set(), **how)
    assert came.wait(60)
    return ticket


def test_whoever_gives_up_frees_a_place(service: Make, double: NatureLM, clip: Clip) -> None:
    one = service(options=LONG, ends=[], max_waiting=2)
    wanted = one_answer(double, asked(double, options=GREEDY), clip["x"])
    left = started(one, asked(double), clip)
    late = started(one, asked(double), clip, deadline=0.5)
    other = started(one, asked(double, options=replace(LONG, max_new_tokens=40)), clip)
    left.cancel()
    with pytest.raises(ServiceError, match="was cancelled"):
        left.result(60)
    with pytest.raises(ServiceError, match="no answer in time"):
        late.result(60)
    assert other.result(60).ids[:3] == wanted.ids[:3]
    counts = one.counts()
    assert (counts.cancelled, counts.answers, counts.running) == (2, 1, 0)


def test_a_listener_that_fails_ends_its_own_request(
    service: Make, double: NatureLM, clip: Clip
) -> None:
    def gone(_: Sequence[int]) -> None:
        raise BrokenPipeError("the client left")

    one = service(options=LONG, ends=[])
    bad = one.submit(asked(double), clip, on_tokens=gone)
    good = one.submit(asked(double, options=GREEDY), clip)
    with pytest.raises(BrokenPipeError):
        bad.result(60)
    assert len(good.result(60).ids) == GREEDY.max_new_tokens


def test_a_full_queue_says_when_to_come_again(service: Make, double: NatureLM, clip: Clip) -> None:
    one = service(max_waiting=2)
    with one._changed:
        tickets = [one.submit(asked(double), clip) for _ in range(2)]
        with pytest.raises(ServiceError, match="2 requests wait for an answer") as caught:
            one.submit(asked(double), clip)
    assert caught.value.kind == "full"
    assert 1 <= caught.value.retry_seconds <= 60
    assert [ticket.result(60).text for ticket in tickets]
    one.submit(asked(double), clip).result(60)
    assert one.counts().refused == 1


def test_what_cannot_be_answered_is_refused_at_once(
    service: Make, double: NatureLM, clip: Clip
) -> None:
    one = service()
    with pytest.raises(PromptTooLong):
        one.submit(asked(double, "word " * 200_000), clip)
    with pytest.raises(UsageError, match="0 <AudioHere> and 1 audio clips"):
        one.submit(Request(0, "no place", ("x",)), clip)
    with pytest.raises(UsageError, match="than the 1024 tokens"):
        one.submit(asked(double, choice=LabelChoice(("x" * 9999,))), clip)
    with pytest.raises(UsageError, match="alpha"):
        one.submit(asked(double, alpha=float("nan")), clip)
    assert one.counts().requests == 0


def test_a_service_that_closes_answers_what_it_took(
    service: Make, double: NatureLM, clip: Clip
) -> None:
    one = service()
    tickets = [one.submit(asked(double, options=way), clip) for way in WAYS]
    one.drain()
    assert all(ticket.result(0).ids for ticket in tickets)
    with pytest.raises(ServiceError, match="closed") as refused:
        one.submit(asked(double), clip)
    assert refused.value.kind == "stopped"
    endless = service(options=LONG, ends=[])
    ticket = started(endless, asked(double), clip)
    begun = time.monotonic()
    endless.drain(0.1)
    assert time.monotonic() - begun < 30
    with pytest.raises(ServiceError, match="closed"):
        ticket.result(0)


def test_a_thread_that_fails_says_so_to_all_that_wait(
    service: Make,
    double: NatureLM,
    clip: Clip,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reasons: list[BaseException] = []
    one = service(on_failure=reasons.append)

    def fail(*_: Any) -> Any:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(one._engine, "advance", fail)
    with one._changed:
        tickets = [one.submit(asked(double), clip) for _ in range(3)]
    for ticket in tickets:
        with pytest.raises(ServiceError, match="RuntimeError: the device is gone"):
            ticket.result(60)
    one._thread.join(60)
    assert [str(one) for one in reasons] == ["the device is gone"]
    with pytest.raises(ServiceError, match="has failed"):
        one.submit(asked(double), clip)
