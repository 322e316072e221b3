"""What does not fit the language model is an error of its own request, at every door."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import BuildModel
from transformers import LlamaConfig

from NatureLM import prompts
from NatureLM.config.schema import AUDIO_EXAMPLES, EXAMPLES, SpeciesConfig
from NatureLM.data.sample import SampleSet
from NatureLM.errors import UsageError
from NatureLM.experiments.plan import FewShotPool, Plan, Renderer
from NatureLM.experiments.run import Answerer
from NatureLM.experiments.tune import score_samples
from NatureLM.generation import engine as engine_module
from NatureLM.generation import prefill
from NatureLM.generation.engine import Answer, Engine, GenerationOptions, Request
from NatureLM.generation.labels import LabelChoice, LabelGrammar
from NatureLM.generation.prefill import context_length
from NatureLM.inference.conversation import ContextFull
from NatureLM.inference.pipeline import Pipeline
from NatureLM.models import NatureLM
from NatureLM.prompts import PromptTooLong, prompt_parts, token_ids
from tests.commands import calls_in, naturelm
from tests.experiment_runs import plan_of, rows_of, run

LIMIT, CLIP = 160, 2  # positions in all, and of a clip
TOO_LONG = "Which of these birds is it? " + "robin, wren, " * 60


@pytest.fixture(scope="module")
def small(build_model: BuildModel) -> NatureLM:
    """Takes `LIMIT` positions; a window of one second is `CLIP` of them."""
    made = build_model(llama={"max_position_embeddings": LIMIT}, window_seconds=1.0).double()
    assert made.config.audio_positions() == CLIP
    return made


def sound(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, 16000).astype(np.float32)


def text_of(model: NatureLM, query: str) -> int:
    """Positions of a prompt's text."""
    return sum(map(len, prompt_parts(model.processor.render(query), model.tokenizer)))


def room(model: NatureLM, query: str) -> int:
    """Positions that a question about a clip leaves."""
    return LIMIT - text_of(model, query) - model.config.audio_positions()


def said(model: NatureLM, query: str, answer: int = 1) -> str:
    """How a question about a clip is refused."""
    text, heard = text_of(model, query), model.config.audio_positions()
    return (
        f"the prompt takes {text + heard + answer} positions ({text} of text, {heard} of sound, "
        f"{answer} of the answer), and the language model takes {LIMIT}: shorten the question, or "
        "give fewer examples, names or clips"
    )


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        ({}, 100),
        ({"rope_type": "linear", "factor": 4.0}, 400),
        ({"rope_type": "dynamic", "factor": 2.5}, 250),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}, 400),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 25}, 100),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": 50,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            100,
        ),
    ],
)
def test_positions_are_counted_as_transformers_does(rope: dict[str, Any], length: int) -> None:
    config = LlamaConfig(max_position_embeddings=100, rope_parameters={"rope_theta": 1e4, **rope})
    assert context_length(SimpleNamespace(config=config)) == length
    assert context_length(SimpleNamespace(config=SimpleNamespace())) is None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_audio_query_token": 2, "second_stride": 0.2},
        {"window_level_Qformer": False, "num_audio_query_token": 3},
        {"max_pooling": True},
        {"fbank_cfg": {"num_mel_bins": 64}},
    ],
)
@pytest.mark.parametrize("seconds", [None, 2.5])
def test_positions_of_sound(
    changes: dict[str, Any], seconds: float | None, build_model: BuildModel
) -> None:
    model = build_model(window_seconds=4.0, **changes)
    wav_S = model.processor.prepare_audio(sound(), seconds)
    with torch.inference_mode():
        found = model.encode_audio(wav_S[None])[0]
    assert found.shape[0] == model.config.audio_positions(seconds)


@pytest.mark.parametrize("beams", [1, 2])
def test_the_last_answers_that_fit_end_at_the_limit(
    beams: int, small: NatureLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    positions: list[int] = []
    forward = prefill.forward

    def watched(*args: Any, **inputs: Any) -> Any:
        positions.append(int(inputs["position_ids"].max()))
        return forward(*args, **inputs)

    for module in ("prefill", "decoding"):
        monkeypatch.setattr(f"NatureLM.generation.{module}.forward", watched)
    options = GenerationOptions(max_new_tokens=30, num_beams=beams)
    fitting = next(n for n in range(160, 0, -1) if room(small, "a " * n) >= 1)
    words = [fitting - less for less in (-2, -1, 0, 1, 2, 28, 29, 30, 40)]
    made = [Request(n, small.processor.render("a " * n), ("x",)) for n in words]
    engine = Engine(small, options, eos_ids=[])
    found = {one.key: one for one in engine.run(made, lambda _: sound())}
    for number, answer in found.items():
        left = room(small, "a " * number)
        if left < 1:
            assert isinstance(answer.error, PromptTooLong)
            assert answer.error.positions > LIMIT
        else:
            assert len(answer.ids) == min(30, left)
    assert {min(30, max(0, len(one.ids))) for one in found.values()} >= {0, 1, 2, 29, 30}
    assert max(positions) == LIMIT - 2, "the last token is written and not read"
    assert engine.encoded == 1


def test_one_request_does_not_stop_the_others(small: NatureLM) -> None:
    render = small.processor.render
    long_label = LabelChoice(("Wren", "robin" + " robin" * 100))
    good = [
        Request("free", render("What is it?"), ("x",)),
        Request("scored", render("What is it?"), ("x",), choice=LabelChoice(("Wren", "Robin"))),
    ]
    bad = {
        "long": Request("long", render(TOO_LONG), ("x",)),
        "label": Request("label", render("What is it?"), ("x",), choice=long_label),
        "constrained": Request(
            "constrained",
            render("What is it?"),
            ("x",),
            choice=replace(long_label, how="constrained"),
        ),
        "special": Request("special", render("?"), ("x",), choice=LabelChoice(("[PAD]",))),
        "clips": Request("clips", render("?"), ()),
        "prior": Request("prior", "What?", (), choice=LabelChoice(("Wren",), normalize="prior")),
    }
    mixed = [*bad.values(), good[0], *bad.values(), good[1]]
    mixed = [replace(one, key=(place, one.key)) for place, one in enumerate(mixed)]
    options = GenerationOptions(max_new_tokens=5)
    found = {one.key[1]: one for one in Engine(small, options).run(mixed, lambda _: sound())}
    for one in good:
        (alone,) = Engine(small, options).run([one], lambda _: sound())
        assert found[one.key].text == alone.text
    errors = {key: str(found[key].error) for key in bad}
    text = text_of(small, TOO_LONG)
    assert errors["long"] == (
        f"the prompt takes {text + 1} positions ({text} of text, 1 of the answer), and the "
        f"language model takes {LIMIT}: shorten the question, or give fewer examples, names or "
        "clips"
    )
    for kind in ("label", "constrained"):
        assert errors[kind] == (
            f"the label {long_label.labels[1][:60]!r}... has 605 characters, which are more than "
            f"the {LIMIT} tokens that a label may have: shorten it"
        )
    assert "no plain text" in errors["special"]
    assert "1 <AudioHere> and 0 audio clips" in errors["clips"]
    assert "this one has none" in errors["prior"]


@pytest.mark.parametrize("how", ["score", "constrained"])
def test_the_longest_label_must_fit_behind_the_prompt(how: Any, small: NatureLM) -> None:
    labels = ("Wren", "one two three four five six seven eight nine ten")
    longest = max(len(token_ids(one, small.tokenizer)) for one in labels) + 1
    query = "a " * 200
    while text_of(small, query) + small.config.audio_positions() + longest > LIMIT:
        query = query.removeprefix("a ")
    choice = LabelChoice(labels, how)
    for text, fits in ((query, True), (f"a {query}", False)):
        request = Request(0, small.processor.render(text), ("x",), choice=choice)
        (answer,) = Engine(small).run([request], lambda _: sound())
        if fits:
            assert answer.text in (*labels, "None")
        else:
            assert str(answer.error) == said(small, text, longest)


def test_several_labels_are_closed_where_little_room_is_left(small: NatureLM) -> None:
    labels = tuple(f"bird {letter}" for letter in "abcdefgh")
    choice = LabelChoice(labels, "constrained", several=True)
    needed = LabelGrammar(choice, small.tokenizer, small.eos_ids).needed
    queries = ["a " * n for n in range(160) if -3 < room(small, "a " * n) - needed < 12]
    made = [Request(one, small.processor.render(one), ("x",), choice=choice) for one in queries]
    answers = list(Engine(small, GenerationOptions(num_beams=1)).run(made, lambda _: sound()))
    assert {room(small, str(one.key)) - needed for one in answers} >= {-1, 0, 1}
    for one in answers:
        if room(small, str(one.key)) < needed:
            assert isinstance(one.error, PromptTooLong)
        else:
            assert set(str(one.text).split(", ")) <= {*labels, "None"}
            assert one.ids[-1] in small.eos_ids


def test_what_is_too_long_is_not_tokenised_to_its_end(
    nano: NatureLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    tokenizer = nano.tokenizer
    monkeypatch.setattr(prompts, "ALWAYS_READ", 2**16)  # so that the time says how much was read

    def counted(text: str, **options: Any) -> Any:
        read.append(len(text))
        return tokenizer(text, **options)

    started = time.process_time()
    for text in ("a" * 8_000_000, "a b " * 2_000_000, "\U0001f600" * 4_000_000):
        assert len(token_ids(text, counted, 2048)) > 2048
    assert sum(read) == 3 * 2**16
    whole = token_ids("a b " * 8_000, counted, 2048)
    assert whole == token_ids("a b " * 8_000, tokenizer)
    label = LabelChoice(("Wren", "x" * 40_000))
    request = Request(0, nano.processor.render("?"), ("x",), choice=label)
    (answer,) = Engine(nano).run([request], lambda _: sound())
    assert "has 40000 characters, which are more than the 1024 tokens" in str(answer.error)
    prompt = "b " * 4_000_000
    (answer,) = Engine(nano).run([Request(0, prompt, ())], lambda _: sound())
    assert "takes at least " in str(answer.error)
    assert time.process_time() - started < 5


# -- the doors --------------------------------------------------------------------------------


def asked_long(ask: Callable[[], Any]) -> str:
    with pytest.raises(PromptTooLong) as caught:
        ask()
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_question_to_windows_is_refused_before_the_first(small: NatureLM) -> None:
    pipeline = Pipeline(small)
    options: dict[str, Any] = {"window_length_seconds": 1.0, "hop_length_seconds": 1.0}

    def load(*_: Any) -> Any:
        pytest.fail("nothing is heard")

    class Sound:
        __array__ = load

    for errors in ("raise", "yield"):
        ask = lambda how=errors: list(  # noqa: E731
            pipeline.windows([Sound()], [["What?", TOO_LONG]], errors=how, **options)
        )
        assert asked_long(ask) == f"the question {TOO_LONG[:60]!r}...: {said(small, TOO_LONG)}"
    with pytest.raises(UsageError, match="more than the 160 tokens"):
        list(pipeline.windows([Sound()], "?", mode="score", labels=["x" * 9999], **options))


def test_the_other_doors_of_the_pipeline_and_the_model(small: NatureLM) -> None:
    pipeline = Pipeline(small)
    text = asked_long(lambda: pipeline.compare_alphas(sound(), TOO_LONG, [0.0, 1.0]))
    assert "of text, 1 of the answer), and the language model takes 160" in text
    prompt = small.processor.render(TOO_LONG)
    both = [small.processor.render("?"), prompt]
    asked_long(lambda: small.generate(both, [[sound()]] * 2, max_new_tokens=2))
    asked_long(lambda: small.score_labels([prompt], [[sound()]], ["Wren"]))
    clips = [sound(number) for number in range(60)]
    many = "<AudioHere> " * 60
    text = asked_long(lambda: small.generate([many], [clips]))
    assert f"{60 * small.config.audio_positions()} of sound" in text


def test_a_conversation_that_grows_ends_in_numbers(small: NatureLM) -> None:
    with Pipeline(small).conversation(sound(), max_new_tokens=9) as talk:
        with pytest.raises(ContextFull, match=f"language model takes {LIMIT} in all"):
            list(talk.ask(TOO_LONG))
        with pytest.raises(ContextFull) as caught:
            deque((list(talk.ask("And now?")) for _ in range(40)), maxlen=0)
        assert caught.value.needed >= caught.value.limit == LIMIT
        assert talk.positions <= LIMIT
        started = time.process_time()
        with pytest.raises(ContextFull):
            list(talk.ask("a " * 10_000_000))
        assert time.process_time() - started < 3


def few_shot(model: NatureLM, flag: str, species: int, samples: int = 4) -> Plan:
    """A plan with a query that holds examples of so many species, and one without."""
    plan = plan_of(samples, queries=("What is it?", f"Know these:\n{{{flag}}}"), alphas=(0.0, 1.0))
    told = [SpeciesConfig(name=f"Bird {n}", description="sings " * 4) for n in range(species)]
    pool = None
    if flag == AUDIO_EXAMPLES:
        others = plan_of(samples + 2 * species).samples[samples:]
        labelled = [replace(one, label=f"Bird {n // 2}") for n, one in enumerate(others)]
        pool = FewShotPool(labelled, 1, 0, "made-up")
    return Plan(plan.samples, plan.queries, plan.alphas, Renderer("Q: {} A:", told, pool))


@pytest.mark.parametrize("flag", [EXAMPLES, AUDIO_EXAMPLES])
def test_a_block_of_examples_that_is_too_long_names_the_query(
    flag: str, small: NatureLM, tmp_path: Path
) -> None:
    with pytest.raises(PromptTooLong) as caught:
        run(small, few_shot(small, flag, 30), tmp_path)
    begin = f"extended.queries, 'Know these:\\n{{{flag}}}': the prompt takes "
    assert str(caught.value).startswith(begin)
    assert not list(tmp_path.iterdir())
    run(small, few_shot(small, flag, 2), tmp_path)


def own_questions(long: tuple[int, ...]) -> Plan:
    """Samples with questions of their own, some too long."""
    plan = plan_of(4, queries=None, alphas=(0.0, 1.0))
    asked = [TOO_LONG if n in long else "What is it?" for n in range(4)]
    samples = [
        replace(one, instruction=text) for one, text in zip(plan.samples, asked, strict=True)
    ]
    return Plan(samples, None, plan.alphas, Renderer("Q: {} A:"))


def test_samples_with_too_long_questions_are_rows_with_errors(
    small: NatureLM, tmp_path: Path
) -> None:
    done = run(small, own_questions((1, 3)), tmp_path)
    assert (done.progress.answers, done.progress.errors) == (4, 4)
    failed = [row for row in rows_of(tmp_path) if "error" in row]
    assert {row["error_type"] for row in failed} == {"PromptTooLong"}
    begin = "the question of sample 's1': the prompt takes "
    assert sum(row["error"].startswith(begin) for row in failed) == 2
    with pytest.raises(PromptTooLong, match="the question of sample 's0': the prompt takes"):
        run(small, own_questions((0, 1, 2, 3)), tmp_path / "none")


def test_tuning_and_calibrating_leave_out_what_does_not_fit(small: NatureLM) -> None:
    trials = [one for one in own_questions((1, 3)).trials() if one.alpha == 1.0]
    answerer = Answerer(small, trials, max_new_tokens=3)
    assert [one.sample_id for one in answerer.trials] == ["s0", "s2"]
    assert [text.split(": ")[0] for text in answerer.left_out.values()] == [
        "sample 's1'",
        "sample 's3'",
    ]
    assert len(answerer([0.0, 1.0])) == 4
    samples = SampleSet("made-up", plan_of(2).samples).samples
    asked_long(lambda: score_samples(small, samples, ["Wren"], TOO_LONG))
    with pytest.raises(UsageError, match="has 9999 characters"):
        score_samples(small, samples, ["x" * 9999], "?")


def test_an_answer_says_what_it_was_refused_for(small: NatureLM) -> None:
    request = Request(0, small.processor.render(TOO_LONG), ("x",))
    problem = Engine(small).problem_of(request, small.config.audio_positions())
    assert str(problem) == said(small, TOO_LONG)
    assert isinstance(problem, PromptTooLong)
    assert problem.limit == LIMIT
    assert isinstance(Answer(request, None, problem).error, engine_module.UsageError)


def test_the_command_refuses_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(calls_in(tmp_path))
    query = "robin wren " * 2500
    found = naturelm("infer", "--audio-path", "calls", "--query", query, "--output-path", "o.jsonl")
    assert found.exit_code == 2
    said = " ".join(found.output.split())
    assert "of the answer), and the language model takes 2048: shorten the question" in said
    assert not (tmp_path / "o.jsonl").exists()
