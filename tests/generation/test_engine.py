"""The engine answers as plain decoding does, one request at a time, whatever the batches.

Where rounding and chance play a part, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from builders import BuildModel
from decoding import ENDS, decode
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from NatureLM.audio import AudioError
from NatureLM.errors import UsageError
from NatureLM.generation.audio_cache import EmbeddingCache
from NatureLM.generation.decoding import NonFiniteLogitsError, RowState
from NatureLM.generation.engine import (
    Answer,
    Engine,
    GenerationOptions,
    Request,
    fold_if_single_alpha,
    yield_in_input_order,
)
from NatureLM.generation.labels import LabelChoice
from NatureLM.inference.pipeline import Pipeline
from NatureLM.merging.lora import active_alpha
from NatureLM.models import NatureLM

TAG = "<Audio><AudioHere></Audio>"
QUERIES = (
    "What is it?",
    "What is the common name for the focal species in the audio?",
    "What is the scientific name for the focal species in the audio?",
    "Which of these, if any, are present in the audio recording? Lazuli Bunting, American Robin, "
    "Gray Wolf, Green Treefrog.",
    f"{TAG} and {TAG}: the same?",
    f"Audio: {TAG}\nLabel: Gray Wolf\n\nAudio: {TAG}\nLabel: Trill\n\nAudio: {TAG}\nLabel:",
    f"Question first. {TAG}",
)
NEW_TOKENS = 6

CASES = st.lists(
    st.tuples(
        st.sampled_from(range(len(QUERIES))),
        st.lists(st.integers(0, 2), min_size=3, max_size=3),
        st.sampled_from([0.0, 0.4, 0.57, 1.0, 1.5]),
        st.integers(0, 5),
    ),
    min_size=1,
    max_size=12,
)
ENGINES = st.fixed_dictionaries(
    {
        "batch_tokens": st.sampled_from([1, 300, 1000, 100_000]),
        "batch_rows": st.sampled_from([1, 3, None]),
        "lookahead": st.sampled_from([1, 4, 100]),
    }
)
DECIDED = 1e-3  # logits that are further apart than this are no matter of rounding


@pytest.fixture(scope="module")
def waves(nano_waveforms: dict[str, Tensor]) -> list[Tensor]:
    return list(nano_waveforms.values())


class Alone:
    """What plain decoding gives to one request at a time, remembered."""

    def __init__(self, model: NatureLM, waves: list[Tensor]) -> None:
        self.model = model
        with torch.inference_mode():
            self.clips = [model.encode_audio(wav[None])[0] for wav in waves]
        self.known: dict[Any, RowState] = {}

    def decoded(self, request: Request, options: GenerationOptions) -> RowState:
        case = (request.prompt, request.audios, request.alpha, request.stream, options)
        if case not in self.known:
            (self.known[case],) = decode(
                self.model.language_model,
                [self.embeddings(request)],
                alphas=[request.alpha],
                eos_ids=ENDS,
                options=options,
                row_numbers=[request.stream],
            )
        return self.known[case]

    def embeddings(self, request: Request) -> Tensor:
        clips = [self.clips[int(key)] for key in request.audios]
        with torch.inference_mode():
            return self.model.input_embeddings([request.prompt], [clips])[0]

    def __call__(self, request: Request, options: GenerationOptions) -> str:
        ids = self.decoded(request, options).ids
        return str(self.model.tokenizer.decode(ids, skip_special_tokens=True))


@pytest.fixture(scope="module")
def alone(double: NatureLM, waves: list[Tensor]) -> Alone:
    return Alone(double, waves)


@pytest.fixture(scope="module")
def alone_in_float32(nano: NatureLM, waves: list[Tensor]) -> Alone:
    return Alone(nano, waves)


def requests_of(model: NatureLM, cases: Iterable[Any]) -> list[Request]:
    """Of (query, clips, α), and the number of the random stream if it matters."""
    made = []
    for number, (query, clips, alpha, *stream) in enumerate(cases):
        assert model.processor is not None
        prompt = model.processor.render(QUERIES[query])
        audios = tuple(str(clip) for clip in clips[: prompt.count("<AudioHere>")])
        made.append(Request(number, prompt, audios, alpha, *stream))
    return made


def answers(engine: Engine, requests: Iterable[Request], waves: list[Tensor]) -> dict[Any, Answer]:
    found = {}
    for answer in engine.run(requests, lambda key: waves[int(key)]):
        assert answer.key not in found, "each request is answered once"
        found[answer.key] = answer
    return found


@examples(8)
@given(
    cases=CASES,
    how=ENGINES,
    beams=st.sampled_from([1, 2, 3]),
    samples=st.booleans(),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 3),
)
def test_answers_are_those_of_one_request_at_a_time(
    cases: list[Any],
    how: dict[str, Any],
    beams: int,
    samples: bool,
    repetition_penalty: float,
    seed: int,
    double: NatureLM,
    waves: list[Tensor],
    alone: Alone,
) -> None:
    chance = {"do_sample": True, "temperature": 1.5, "top_k": 80, "seed": seed} if samples else {}
    options = GenerationOptions(
        max_new_tokens=NEW_TOKENS,
        num_beams=1 if samples else beams,
        repetition_penalty=repetition_penalty,
        **chance,  # type: ignore[arg-type]
    )
    requests = requests_of(double, cases)
    found = answers(Engine(double, options, eos_ids=ENDS, **how), requests, waves)
    assert len(found) == len(requests)
    for request in requests:
        answer, state = found[request.key], alone.decoded(request, options)
        assert answer.text == alone(request, options)
        assert answer.log_probability == pytest.approx(state.log_probability, abs=1e-9)


@examples(5)
@given(cases=CASES, how=ENGINES)
def test_float32_answers_differ_only_where_rounding_decides(
    cases: list[Any],
    how: dict[str, Any],
    nano: NatureLM,
    waves: list[Tensor],
    alone_in_float32: Alone,
) -> None:
    options, alone = GenerationOptions(max_new_tokens=6, num_beams=1), alone_in_float32
    requests = requests_of(nano, cases)
    found = answers(Engine(nano, options, eos_ids=ENDS, **how), requests, waves)
    for request in requests:
        if found[request.key].text != alone(request, options):
            ids = alone.decoded(request, options).ids
            assert min(margins(nano, alone.embeddings(request), ids, request.alpha)) < DECIDED


def margins(model: NatureLM, embeds_LD: Tensor, ids: list[int], alpha: float) -> list[float]:
    """How far the likeliest token is before the next at each step of an answer."""
    with torch.inference_mode(), active_alpha(alpha):
        said = model.llama_embed_tokens(torch.tensor(ids[:-1], dtype=torch.long))
        whole = torch.cat([embeds_LD, said])[None]
        logits = model.language_model(inputs_embeds=whole).logits[0, len(embeds_LD) - 1 :]
    best = logits.topk(2, dim=-1).values
    return (best[:, 0] - best[:, 1]).tolist()


def test_a_whole_sweep_shares_beginnings_and_answers_alike(
    double: NatureLM, waves: list[Tensor], alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions = count_positions(double, monkeypatch)
    cases = [(q, [c, 0, 1], a) for c in range(3) for q in (0, 1, 2) for a in (0.0, 0.5, 1.0)]
    requests = requests_of(double, cases)
    options = GenerationOptions(max_new_tokens=1, num_beams=2)
    engine = Engine(double, options, eos_ids=ENDS)
    found = answers(engine, requests, waves)
    shared = sum(positions)
    positions.clear()
    assert {n: a.text for n, a in found.items()} == {
        request.key: alone(request, options) for request in requests
    }
    assert shared < 0.7 * sum(positions), "keys and values of shared beginnings were not reused"
    assert engine.encoded == 3


def count_positions(model: NatureLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of every pass through the language model."""
    seen: list[int] = []
    forward = model.language_model.forward

    def counting(*args: Any, **inputs: Any) -> Any:
        seen.append(inputs["attention_mask"].shape[0] * inputs["inputs_embeds"].shape[1])
        return forward(*args, **inputs)

    monkeypatch.setattr(model.language_model, "forward", counting)
    return seen


def test_each_clip_is_loaded_and_encoded_once(double: NatureLM, waves: list[Tensor]) -> None:
    loads: list[str] = []

    def load(key: str) -> Tensor:
        loads.append(key)
        return waves[int(key)]

    cases = [(q, [c, 0, 1], a) for c in range(3) for q in (1, 4) for a in (0.0, 1.0)]
    requests = requests_of(double, cases)
    engine = Engine(
        double, GenerationOptions(max_new_tokens=1, num_beams=1), batch_tokens=200, lookahead=3
    )
    assert len(list(engine.run(requests, load))) == len(requests)
    assert sorted(loads) == ["0", "1", "2"]
    assert engine.encoded == 3


def test_a_small_cache_encodes_again_and_answers_alike(
    double: NatureLM, waves: list[Tensor], alone: Alone
) -> None:
    requests = requests_of(double, [(0, [n % 3, 0, 0], 1.0) for n in range(9)])
    options = GenerationOptions(max_new_tokens=3, num_beams=1)
    engine = Engine(double, options, lookahead=1, embeddings=EmbeddingCache(1), eos_ids=ENDS)
    found = answers(engine, requests, waves)
    assert engine.encoded > 3
    assert all(found[one.key].text == alone(one, options) for one in requests)


def test_a_clip_that_cannot_be_read_takes_only_its_requests(
    double: NatureLM, waves: list[Tensor], alone: Alone
) -> None:
    def load(key: str) -> Tensor:
        if key == "1":
            raise AudioError("bad.wav", "no sound is in it")
        return waves[int(key)]

    cases = [(q, [c, 0, 1], 1.0) for c in range(3) for q in (0, 5)]
    requests = requests_of(double, cases)
    options = GenerationOptions(max_new_tokens=3, num_beams=1)
    engine = Engine(double, options, lookahead=2, eos_ids=ENDS)
    found = {answer.key: answer for answer in engine.run(requests, load)}
    for request in requests:
        answer = found[request.key]
        if "1" in request.audios:
            assert answer.text is None
            assert "bad.wav" in str(answer.error)
        else:
            assert answer.text == alone(request, options)


def test_placeholders_that_do_not_fit_are_the_requests_own_error(
    double: NatureLM, waves: list[Tensor]
) -> None:
    good, bad = requests_of(double, [(0, [0, 0, 0], 1.0), (4, [0, 1, 0], 1.0)])
    bad = Request(bad.key, bad.prompt, bad.audios[:1])
    found = answers(Engine(double, GenerationOptions(max_new_tokens=1)), [bad, good], waves)
    assert found[good.key].error is None
    assert "2 <AudioHere> and 1 audio clips" in str(found[bad.key].error)


def test_a_mistake_in_loading_is_raised(double: NatureLM) -> None:
    def load(key: str) -> Tensor:
        raise TypeError("a mistake")

    requests = requests_of(double, [(0, [0, 0, 0], 1.0)])
    with pytest.raises(TypeError, match="a mistake"):
        list(Engine(double).run(requests, load))


def test_requests_are_read_as_they_are_needed(double: NatureLM, waves: list[Tensor]) -> None:
    taken: list[int] = []

    def source() -> Iterator[Request]:
        for request in requests_of(double, [(0, [0, 0, 0], 1.0)] * 20):
            taken.append(int(str(request.key)))
            yield request

    options = GenerationOptions(max_new_tokens=1, num_beams=1)
    run = Engine(double, options, lookahead=4).run(source(), lambda key: waves[int(key)])
    next(run)
    assert len(taken) <= 8
    run.close()


def test_one_alpha_is_folded_and_taken_back_whatever_happens(
    double: NatureLM, waves: list[Tensor], alone: Alone
) -> None:
    before = {name: one.clone() for name, one in double.language_model.named_parameters()}
    requests = requests_of(double, [(q, [0, 1, 2], 0.57) for q in range(len(QUERIES))])
    options = GenerationOptions(max_new_tokens=NEW_TOKENS, num_beams=2)
    with fold_if_single_alpha(double, [one.alpha for one in requests]):
        assert double.folded is not None
        found = answers(Engine(double, options, eos_ids=ENDS), requests, waves)
    assert all(found[one.key].text == alone(one, options) for one in requests)
    with pytest.raises(RuntimeError, match="on purpose"), fold_if_single_alpha(double, [0.3]):
        raise RuntimeError("on purpose")
    with fold_if_single_alpha(double, [0.3, 0.4]):
        assert double.folded is None
    assert double.folded is None
    after = dict(double.language_model.named_parameters())
    assert all(torch.equal(after[name], old) for name, old in before.items())


def test_wrong_sizes_and_alphas_are_refused(build_model: Any, waves: list[Tensor]) -> None:
    model = build_model(lora=False)
    with pytest.raises(UsageError, match="batch_tokens must be at least 1, got 0"):
        Engine(model, batch_tokens=0)
    with pytest.raises(UsageError, match="alpha must be 1"):
        answers(Engine(model), requests_of(model, [(0, [0, 0, 0], 0.5)]), waves)


@given(entries=st.lists(st.booleans(), max_size=12), data=st.data())
def test_every_entry_in_its_place(entries: list[bool], data: st.DataObject) -> None:
    """Whatever the order in which answers come, and however many are taken at once."""
    wanted: list[Any] = [
        Request(number, f"prompt {number}", ()) if asks else f"between {number}"
        for number, asks in enumerate(entries)
    ]

    def run(requests: Iterable[Request], load: Any) -> Iterator[Answer]:
        pool: list[Request] = []
        source = iter(requests)
        going_on = True
        while going_on or pool:
            if going_on and (not pool or data.draw(st.booleans())):
                one = next(source, None)
                going_on = one is not None
                pool += [] if one is None else [one]
            else:
                request = pool.pop(data.draw(st.integers(0, len(pool) - 1)))
                yield Answer(request, f"answer {request.key}")

    got = list(yield_in_input_order(run, wanted, load=lambda key: None))
    assert [one.request if isinstance(one, Answer) else one for one in got] == wanted


def test_answers_are_given_as_soon_as_their_turn_comes() -> None:
    requests = [Request(number, "", ()) for number in range(3)]

    def run(coming: Iterable[Request], load: Any) -> Iterator[Answer]:
        first, second, third = coming
        yield Answer(second, "b")
        yield Answer(first, "a")
        steps.append("first is there")
        yield Answer(third, "c")

    steps: list[str] = []
    answers = yield_in_input_order(run, requests, load=lambda key: None)
    assert [next(answers).text, next(answers).text] == ["a", "b"]
    assert steps == []


@pytest.fixture
def overflowing(build_model: BuildModel) -> NatureLM:
    model = build_model()
    head = model.language_model.lm_head
    head.register_forward_hook(lambda _, inputs, logits: torch.full_like(logits, torch.nan))
    return model


def test_weights_that_are_broken_are_named(
    build_model: BuildModel, nano_waveforms: dict[str, Tensor]
) -> None:
    model = build_model()
    with torch.no_grad():
        model.language_model.lm_head.weight[3, 1] = torch.inf
        model.language_model.lm_head.weight[3, 2] = -torch.inf
    assert model.processor is not None
    request = Request("a", model.processor.render("What is it?"), ("howl",))
    engine = Engine(model, GenerationOptions(max_new_tokens=3, num_beams=1))
    (answer,) = engine.run([request], nano_waveforms.__getitem__)
    assert str(answer.error) == (
        "the model's weights are broken, so there is no answer: "
        "llama_model.base_model.model.lm_head.weight holds NaN or infinity; get the checkpoint "
        "again, or train without what made it so"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1},
        {"num_beams": 2},
        {"num_beams": 1, "do_sample": True},
        {"num_beams": 1, "do_sample": True, "top_k": 3, "top_p": 0.9},
    ],
)
@pytest.mark.parametrize("how", [None, "score", "constrained"])
def test_there_is_no_answer_and_the_reason_is_said(
    options: dict[str, Any],
    how: Any,
    overflowing: NatureLM,
    nano_waveforms: dict[str, Tensor],
) -> None:
    choice = None if how is None else LabelChoice(("Owl", "Wolf"), how)
    assert overflowing.processor is not None
    prompt = overflowing.processor.render("What is it?")
    request = Request("a", prompt, ("howl",), choice=choice)
    engine = Engine(overflowing, GenerationOptions(max_new_tokens=3, **options))
    (answer,) = engine.run([request], nano_waveforms.__getitem__)
    assert answer.text is None
    assert isinstance(answer.error, NonFiniteLogitsError)
    assert "--dtype" in str(answer.error)


def test_a_conversation_says_so_too(
    overflowing: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    talk = Pipeline(overflowing).conversation([nano_waveforms["howl"]])
    with pytest.raises(NonFiniteLogitsError):
        list(talk.ask("What is it?"))
    assert talk.turns == ()
