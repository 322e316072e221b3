"""Decoding: beams against exhaustive search, penalties, stopping, batches, and little memory.

Every row stands in one batch, within the budget, sharing only what is the same; rows that wait take
the places of finished ones. Where memory runs out the work goes on with less. Nothing changes but
the work.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from decoding import QUERIES, decode, requests_about_clips, tell_of_sessions, texts
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.generation import labels as module
from NatureLM.generation.decoding import (
    Decoder,
    DecodingSession,
    Prompt,
    RowState,
    process_scores,
    random_stream,
    sample,
)
from NatureLM.generation.engine import Engine, GenerationOptions, Request
from NatureLM.generation.labels import LabelChoice
from NatureLM.generation.prefill import Budget, Row, left_pad, plan_batches, split_by_length
from NatureLM.memory import is_out_of_memory, oom_backoff
from NatureLM.models import NatureLM


def embeddings(model: NatureLM, wav: Tensor, query: str) -> Tensor:
    (embeds,) = model.input_embeddings([model.processor.render(query)], [[wav]])
    return embeds


def test_wide_beams_find_the_best_sequence_of_all(
    nano: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    few = [5, 11, 69, 128, 402]  # a vocabulary small enough to try everything
    tokens = 3

    class Narrow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, **inputs: Any) -> Any:
            if "input_ids" in inputs:
                inputs["input_ids"] = torch.tensor(few)[inputs["input_ids"]]
            out = nano.language_model(**inputs)
            out.logits = out.logits[..., few]
            return out

    with torch.inference_mode():
        embeds = embeddings(nano, nano_waveforms["howl"], "Caption the audio.")
        scores = {}
        for sequence in itertools.product(range(len(few)), repeat=tokens):
            ids = torch.tensor([few[token] for token in sequence])
            whole = torch.cat([embeds, nano.llama_embed_tokens(ids)])
            logits = nano.language_model(inputs_embeds=whole[None]).logits[0]
            steps = logits[len(embeds) - 1 : -1][:, few].log_softmax(-1)
            scores[sequence] = steps[range(tokens), list(sequence)].sum().item()
        best = max(scores, key=scores.__getitem__)
        options = GenerationOptions(max_new_tokens=tokens, num_beams=len(few) ** 2)
        (found,) = decode(Narrow(), [embeds], alphas=[1.0], eos_ids=[], options=options)
    assert tuple(found.ids) == best


def test_an_end_stops_its_own_row_only(nano: NatureLM, nano_waveforms: dict[str, Tensor]) -> None:
    prompts = [nano.processor.render("What is it?"), nano.processor.render("Caption the audio.")]
    audios = [[nano_waveforms["chirps"]], [nano_waveforms["howl"]]]
    options = GenerationOptions(max_new_tokens=10, num_beams=1)
    alphas = [0.0, 1.0]
    free = nano.generate_ids(prompts, audios, alpha=alphas, options=options, eos_ids=[604])
    end = next(token for token in free[0][:-1] if token not in free[1])
    stopped = nano.generate_ids(prompts, audios, alpha=alphas, options=options, eos_ids=[end])
    assert stopped[0] == free[0][: free[0].index(end) + 1]
    assert stopped[1] == free[1]


def test_repetition_penalty_and_minimum_length() -> None:
    def states(options: GenerationOptions, *answers: list[int]) -> list[RowState]:
        prompt = Prompt(torch.zeros(5, 1))
        return [RowState(prompt, 5, 9, options, [2], beams=[ids]) for ids in answers]

    scores = torch.tensor([[2.0, -1.0, 0.5], [1.0, 1.0, 1.0]])
    penalised = GenerationOptions(num_beams=1, repetition_penalty=2.0, min_length=0)
    out = process_scores(scores, states(penalised, [0, 1, 0], []))
    assert out.tolist() == [[1.0, -2.0, 0.5], [1.0, 1.0, 1.0]]
    long = GenerationOptions(num_beams=1, min_length=7)
    out = process_scores(scores, states(long, [0], [0, 1]))
    assert out[0, 2] == -torch.inf
    assert out[1, 2] == 1.0
    assert scores[0, 2] == 0.5, "the scores that came in stay as they were"


def test_sampling_keeps_to_top_k_and_top_p() -> None:
    scores = torch.tensor([[3.0, 2.9, 0.0, -1.0]]).repeat(200, 1)
    for limits in ({"top_k": 2}, {"top_p": 0.6}):
        options = GenerationOptions(num_beams=1, do_sample=True, temperature=1.0, **limits)
        streams = [random_stream(options, number) for number in range(200)]
        assert set(sample(scores, options, streams).tolist()) == {0, 1}


def test_min_length_counts_the_prompt_as_the_reference_does(
    nano: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    prompt = nano.processor.render("What is it?")
    ((first, *_),) = nano.generate_ids(
        [prompt],
        [[nano_waveforms["howl"]]],
        options=GenerationOptions(num_beams=1, max_new_tokens=2),
    )
    for min_length, ends_at_once in ((1, True), (500, False)):
        options = GenerationOptions(num_beams=1, max_new_tokens=2, min_length=min_length)
        (ids,) = nano.generate_ids(
            [prompt], [[nano_waveforms["howl"]]], options=options, eos_ids=[first]
        )
        assert (ids == [first]) is ends_at_once


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_beams": 0}, "num_beams must be an integer, at least 1 and at most 100, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer, at least 1"),
        ({"temperature": 0.0}, "temperature must be a number, at least 1e-06"),
        ({"num_beams": 100_000}, "num_beams must be an integer, at least 1 and at most 100, got"),
        (
            {"max_new_tokens": 10**9},
            "max_new_tokens must be an integer, at least 1 and at most 131",
        ),
        ({"top_k": 10**9}, "top_k must be an integer, at least 0 and at most 1,000,000, got"),
        (
            {"length_penalty": float("nan")},
            "length_penalty must be a number, at least -10 and at most",
        ),
        ({"top_p": 1.5}, "top_p must be a number, above 0 and at most 1"),
        ({"do_sample": True, "num_beams": 2}, "sampling works with one beam"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        GenerationOptions(**options)


def test_placeholders_and_clips_must_agree(
    nano: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    wav = nano_waveforms["howl"]
    one = nano.processor.render("What is it?")
    for clips in ([], [wav, wav]):
        with pytest.raises(UsageError, match=f"1 <AudioHere> and {len(clips)} audio clips"):
            nano.generate([one], [clips])
    with pytest.raises(UsageError, match="2 prompts were given with audio for 1"):
        nano.generate([one, one], [[wav]])


def test_the_order_of_clips_matters(nano: NatureLM, nano_waveforms: dict[str, Tensor]) -> None:
    prompt = nano.processor.render("<Audio><AudioHere></Audio> then <Audio><AudioHere></Audio>?")
    a, b = nano_waveforms["howl"], nano_waveforms["trill"]
    forth, back = nano.input_embeddings([prompt, prompt], [[a, b], [b, a]])
    assert not torch.allclose(forth, back)
    with torch.no_grad():
        swapped = nano.language_model(inputs_embeds=back[None]).logits[0, -1]
        straight = nano.language_model(inputs_embeds=forth[None]).logits[0, -1]
    assert not torch.allclose(straight, swapped, atol=1e-4)


def test_encoded_audio_stands_for_its_waveform(
    nano: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    wav = nano_waveforms["trill"]
    prompt = nano.processor.render("What is it?")
    with torch.no_grad():
        encoded = nano.encode_audio(wav[None])[0]
    from_wave, from_encoded = nano.input_embeddings([prompt, prompt], [[wav], [encoded]])
    assert torch.allclose(from_wave, from_encoded, atol=1e-6)


def test_a_waveform_is_cut_padded_and_clamped_to_the_window(nano: NatureLM) -> None:
    prepare = nano.processor.prepare_audio
    short = prepare(torch.full((100,), 3.0))
    assert short.shape == (160000,)
    assert short[:100].eq(1.0).all()
    assert short[100:].eq(0.0).all()
    assert prepare(torch.zeros(200000)).shape == (160000,)
    with pytest.raises(ValueError, match="shape"):
        prepare(torch.zeros(2, 100))
    with pytest.raises(ValueError, match=r"floating-point samples in \[-1, 1\], got torch.int16"):
        prepare(torch.zeros(100, dtype=torch.int16))


def test_the_configuration_and_the_engine_agree_on_options_and_defaults() -> None:
    from dataclasses import asdict

    from NatureLM.config import GenerateConfig

    configured = GenerateConfig().model_dump(exclude={"merging_alpha"})
    own = {"min_new_tokens": 0, "stop": (), "logprobs": None}  # of single requests
    assert configured | own == asdict(GenerationOptions())


def test_left_padding_gives_every_row_its_own_positions() -> None:
    embeds_RLD, mask_RL, positions_RL = left_pad([torch.ones(3, 2), torch.ones(1, 2)])
    assert mask_RL.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions_RL.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert embeds_RLD[1].tolist() == [[0, 0], [0, 0], [1, 1]]


def test_an_empty_call_gives_no_answers(nano: NatureLM) -> None:
    assert nano.generate([], []) == []


AUDIO = 29  # positions of one audio

ROWS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([-1, -2, 1, 2]), min_size=1, max_size=6),
        st.sampled_from([0.0, 0.5]),
    ),
    min_size=1,
    max_size=12,
)


def rows_of(cases: Sequence[tuple[list[int], float]]) -> list[Row]:
    """Prompts in pieces; negative ones are audio."""
    made = []
    for number, (pieces, alpha) in enumerate(cases):
        ends = itertools.accumulate(AUDIO if piece < 0 else 1 for piece in pieces)
        request = Request(number, "", (), alpha)
        made.append(Row(request, (), (), tuple(pieces), tuple(ends)))
    return made


@given(cases=ROWS, tokens=st.integers(1, 2000), beams=st.integers(1, 3))
def test_every_row_once_within_the_budget(
    cases: list[tuple[list[int], float]], tokens: int, beams: int
) -> None:
    budget = Budget(tokens, beams, new_tokens=5)
    batches = plan_batches(rows_of(cases), budget)
    keys = [row.request.key for batch in batches for row in batch.rows]
    assert sorted(map(int, map(str, keys))) == list(range(len(cases)))
    for batch in batches:
        longest = max(row.length for row in batch.rows)
        size = len(batch.rows) * beams * (longest + 5)
        assert size <= tokens or len(batch.rows) == 1


@given(cases=ROWS)
def test_what_is_shared_is_the_same(cases: list[tuple[list[int], float]]) -> None:
    (batch,) = plan_batches(rows_of(cases), Budget(10**6, 1, 5))
    seen: set[int] = set()
    for shared in batch.shared:
        rows = [batch.rows[place] for place in shared.rows]
        assert len({row.request.alpha for row in rows}) == 1
        assert not seen & set(shared.rows), "a row stands in one shared beginning"
        seen |= set(shared.rows)
        for row in rows:
            count = row.ends.index(shared.length) + 1
            assert row.pieces[:count] == rows[0].pieces[:count]
            assert count < len(row.pieces), "each row keeps a piece of its own"


def test_queries_about_one_sound_share_it_and_other_alphas_do_not() -> None:
    cases = [([9, -1 - clip, 7, query], alpha) for clip in (0, 1) for query in (1, 2, 3)
             for alpha in (0.0, 0.5)]  # fmt: skip
    (batch,) = plan_batches(rows_of(cases), Budget(10**6, 1, 5))
    assert len(batch.shared) == 4
    assert {(len(one.rows), one.length) for one in batch.shared} == {(3, AUDIO + 2)}


def test_an_example_block_is_shared_by_many_clips() -> None:
    block = [5, -1, 6, -2, 7]
    cases = [([*block, -10 - clip, 8], 1.0) for clip in range(6)]
    (batch,) = plan_batches(rows_of(cases), Budget(10**6, 1, 5))
    (shared,) = batch.shared
    assert (len(shared.rows), shared.length) == (6, 2 * AUDIO + 3)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=7),
    most=st.integers(1, 200),
    overhead=st.integers(0, 40),
)
def test_rows_run_in_the_cheapest_pieces(lengths: list[int], most: int, overhead: int) -> None:
    pieces = split_by_length(lengths, most, overhead)
    assert sorted(itertools.chain(*pieces)) == list(range(len(lengths)))

    def cost(parts: Sequence[Sequence[int]]) -> int:
        return sum(len(part) * max(part) + overhead for part in parts)

    def is_allowed(parts: Sequence[Sequence[int]]) -> bool:
        return all(len(part) == 1 or len(part) * max(part) <= most for part in parts)

    ordered = sorted(lengths)
    ways = [
        [ordered[a:b] for a, b in itertools.pairwise([0, *cuts, len(ordered)])]
        for count in range(len(ordered))
        for cuts in itertools.combinations(range(1, len(ordered)), count)
    ]
    found = [[lengths[row] for row in piece] for piece in pieces]
    assert is_allowed(found)
    assert cost(found) == min(cost(way) for way in ways if is_allowed(way))


def test_a_few_long_answers_do_not_hold_up_the_others(
    double: NatureLM, nano_waveforms: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    step = DecodingSession.step

    def counting(session: DecodingSession, tokens_R: Tensor) -> Tensor:
        rows.append(len(tokens_R))
        return step(session, tokens_R)

    monkeypatch.setattr(DecodingSession, "step", counting)
    options = GenerationOptions(
        max_new_tokens=24, num_beams=1, do_sample=True, temperature=1.5, seed=1
    )

    def requests() -> Iterator[Request]:
        for number in range(48):
            prompt = double.processor.render(QUERIES[number % 2])
            yield Request(number, prompt, ("howl",), stream=number)

    def run(**how: Any) -> dict[Any, str | None]:
        rows.clear()
        engine = Engine(double, options, batch_rows=8, eos_ids=list(range(0, 606, 9)), **how)
        return texts(engine, requests(), nano_waveforms)

    refilled = run()
    with_refill = len(rows)
    monkeypatch.setattr(Engine, "_more_rows_pay", lambda engine, decoder: not decoder)
    assert run() == refilled
    assert with_refill < 0.75 * len(rows), "free places were not filled"


def test_columns_that_nobody_uses_are_given_up(double: NatureLM, prompts: list[Prompt]) -> None:
    """Rows that join again and again do not make the cache ever wider."""
    options = GenerationOptions(max_new_tokens=4, num_beams=1)
    decoder = Decoder(double.language_model, options, [])
    longest = max(prompt.embeds_LD.shape[0] for prompt in prompts)
    for number in range(30):
        decoder.add([prompts[number % len(prompts)]])
        decoder.advance()
        assert decoder._session is not None
        assert decoder._session._mask_RL.shape[1] <= longest + 2 * options.max_new_tokens


OPTIONS = GenerationOptions(max_new_tokens=4, num_beams=1)


def run(model: NatureLM, waves: dict[str, Tensor], engine: Engine) -> dict[Any, str | None]:
    return texts(engine, requests_about_clips(model), waves)


@pytest.fixture(scope="module")
def in_one_go(double: NatureLM, clips: dict[str, Any]) -> dict[Any, str | None]:
    """What the engine answers where there is room for all."""
    return run(double, clips, Engine(double, OPTIONS))


class Limited:
    """Stands in for a device that has room for `rows` rows."""

    def __init__(self, rows: int, error: type[RuntimeError] = torch.OutOfMemoryError) -> None:
        self.rows, self.error = rows, error

    def check(self, rows: int) -> None:
        if rows > self.rows:
            raise self.error("CUDA out of memory. Tried to allocate much.")


@pytest.mark.parametrize(
    ("rows", "error"),
    [(1, torch.OutOfMemoryError), (7, RuntimeError)],
)
def test_batches_are_halved_until_they_fit(
    rows: int,
    error: type[RuntimeError],
    double: NatureLM,
    clips: dict[str, Any],
    in_one_go: dict[Any, str | None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tell_of_sessions(monkeypatch, Limited(rows, error).check)
    assert run(double, clips, Engine(double, OPTIONS)) == in_one_go
    assert (
        caplog.messages[0] == "memory ran out when 18 answers were decoded at once; going on with 9"
    )


def test_answers_that_were_begun_begin_again(
    double: NatureLM,
    clips: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Memory runs out in the middle of a step, when some layers have taken it and others not."""
    options = GenerationOptions(
        max_new_tokens=5, num_beams=1, do_sample=True, temperature=1.5, seed=3
    )
    wanted = run(double, clips, Engine(double, options))
    limited = Limited(5)
    step = DecodingSession.step
    last = double.language_model.model.layers[-1].self_attn.forward

    def attend(*args: Any, **how: Any) -> Any:
        if how["hidden_states"].shape[1] == 1:
            limited.check(how["hidden_states"].shape[0])
        return last(*args, **how)

    monkeypatch.setattr(double.language_model.model.layers[-1].self_attn, "forward", attend)
    assert run(double, clips, Engine(double, options)) == wanted
    assert [note.rsplit(" ", 1)[1] for note in caplog.messages] == ["9", "4"]
    assert DecodingSession.step is step


def test_fewer_clips_are_encoded_at_once(
    double: NatureLM,
    nano_waveforms: dict[str, Tensor],
    in_one_go: dict[Any, str | None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    limited = Limited(1)
    encode = double.encode_audio

    def encoding(wav_BS: Tensor) -> Tensor:
        limited.check(len(wav_BS))
        return encode(wav_BS)

    monkeypatch.setattr(double, "encode_audio", encoding)
    engine = Engine(double, OPTIONS)
    assert run(double, nano_waveforms, engine) == in_one_go
    assert caplog.messages == ["memory ran out when 3 clips were encoded at once; going on with 1"]
    assert engine.encoded == 3


def test_one_row_that_does_not_fit_is_an_error(
    double: NatureLM, clips: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tell_of_sessions(monkeypatch, Limited(0).check)
    with pytest.raises(torch.OutOfMemoryError):
        run(double, clips, Engine(double, OPTIONS))


def test_other_errors_are_raised() -> None:
    with pytest.raises(RuntimeError, match="shape"), oom_backoff(8, "rows were run"):
        raise RuntimeError("shape mismatch")
    assert not is_out_of_memory(ValueError("out of memory"))


def test_memory_bounds_batches_and_embeddings(
    double: NatureLM, clips: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    tell_of_sessions(monkeypatch, rows.append)
    run(double, clips, Engine(double, OPTIONS))
    assert rows == [18]
    rows.clear()
    config = double.language_model.config
    width = config.hidden_size // config.num_attention_heads
    position = 2 * config.num_hidden_layers * config.num_key_value_heads * width * 8
    run(double, clips, Engine(double, OPTIONS, max_memory=4 * 400 * position))
    assert max(rows) * (60 + 4) <= 400 + 64
    assert len(rows) > 3


def test_rows_that_others_could_not_join_go_on(
    double: NatureLM, clips: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out after keys and values were put together, before the logits were."""
    options = GenerationOptions(max_new_tokens=9, num_beams=1)
    wanted = run(double, clips, Engine(double, options))
    cat = torch.cat
    vocabulary = double.language_model.config.vocab_size
    failures: list[int] = []

    def joining(tensors: Any, *args: Any, **how: Any) -> Tensor:
        rows = [one.shape for one in tensors]
        if not failures and all(len(one) == 2 and one[1] == vocabulary for one in rows):
            failures.append(len(rows))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cat(tensors, *args, **how)

    monkeypatch.setattr(torch, "cat", joining)
    engine = Engine(double, options, eos_ids=[604, 402, 69, 11], batch_rows=6)
    alone = Engine(double, options, eos_ids=[604, 402, 69, 11], batch_rows=6)
    found = run(double, clips, engine)
    assert failures
    assert found == run(double, clips, alone)
    assert found.keys() == wanted.keys()


def test_lists_left_are_scored_in_smaller_batches_too(
    double: NatureLM,
    clips: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    choice = LabelChoice(("Owl", "Wolf"))
    requests = [replace(one, choice=choice) for one in requests_about_clips(double)]
    limited = Limited(3)
    score = module.score_trie

    def scoring(model: Any, prompts: Any, *args: Any, **how: Any) -> Any:
        limited.check(len(prompts))
        return score(model, prompts, *args, **how)

    monkeypatch.setattr(module, "score_trie", scoring)
    engine = Engine(double, OPTIONS, batch_rows=6)
    answers = list(engine.run(requests, clips.__getitem__))
    assert len(answers) == len(requests)
    assert caplog.messages == [
        "memory ran out when 6 lists of labels were scored at once; going on with 3"
    ]
