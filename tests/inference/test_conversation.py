"""Conversations: answers as if the whole text were read anew; clips asked as they are."""

from __future__ import annotations

import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from builders import BuildModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from NatureLM.audio import AudioError
from NatureLM.errors import UsageError
from NatureLM.generation.engine import GenerationOptions
from NatureLM.inference.conversation import (
    ContextFull,
    Conversation,
    FairLock,
    TextStream,
    lock_of,
)
from NatureLM.inference.pipeline import Pipeline
from NatureLM.inference.windows import WindowResult
from NatureLM.models import NatureLM
from NatureLM.prompts import PLACEHOLDER, ChatTemplate, prompt_parts

QUERIES = ["What is it?", "Sure?", "Caption the audio.", "¿Ñandú 🐦?"]


@pytest.fixture(scope="module")
def exact(build_model: BuildModel) -> NatureLM:
    return build_model(seed=3).double()


@pytest.fixture(scope="module")
def clips(exact: NatureLM, nano_waveforms: dict[str, Tensor]) -> list[Tensor]:
    """Encoded clips (Q, D): what is asked here is not about hearing."""
    return exact.encode_clips([list(nano_waveforms.values())])[0]


def talk(
    model: NatureLM, *audios: Any, alpha: float | None = None, tokens: int = 12, **options: Any
) -> Conversation:
    chosen = GenerationOptions(**{"num_beams": 1, "max_new_tokens": tokens, **options})
    return Conversation(model, lambda clip: clip, audios, alpha=alpha, options=chosen)


def anew(conversation: Conversation, model: NatureLM, turn: int = -1) -> str:
    """What the model answers to the whole text up to a question, without any cache."""
    turns = conversation.turns[: len(conversation.turns) + turn + 1]
    assert model.processor is not None
    prompt = ChatTemplate.of(model.processor.prompt_template).text(
        [*((one.question, one.answer) for one in turns[:-1]), (turns[-1].question, "")]
    )
    heard = [clip.audio_QD for one in turns for clip in one.clips]
    options = {
        name: getattr(conversation.options, name)
        for name in ("max_new_tokens", "num_beams", "do_sample", "temperature", "seed")
    }
    return model.generate([prompt], [heard], alpha=conversation.alpha, **options)[0]


@settings(max_examples=15)
@given(
    script=st.lists(
        st.tuples(
            st.sampled_from(QUERIES),
            st.lists(st.integers(0, 2), max_size=2),  # new clips
            st.none() | st.integers(0, 4),  # pieces that are read; None: all
        ),
        min_size=1,
        max_size=4,
    ),
    alpha=st.sampled_from([0.0, 0.6, 1.0]),
    sampled=st.booleans(),
)
def test_answers_are_those_of_the_whole_text_read_anew(
    script: list[tuple[str, list[int], int | None]],
    alpha: float,
    sampled: bool,
    exact: NatureLM,
    clips: list[Tensor],
) -> None:
    conversation = talk(exact, clips[0], alpha=alpha, do_sample=sampled, temperature=1.5)
    asked = 0
    for query, new, read in script:
        answer = "".join(islice(conversation.ask(query, [clips[n] for n in new]), read))
        if not answer and read is not None:
            continue
        asked += 1
        assert len(conversation.turns) == asked
        assert conversation.turns[-1].answer == answer
        whole = anew(conversation, exact)
        assert whole.startswith(answer)
        if read is None:
            assert answer == whole
            assert conversation.turns[-1].finished


def test_the_prompt_is_what_the_model_saw(exact: NatureLM, clips: list[Tensor]) -> None:
    with talk(exact, clips[0]) as conversation:
        first = "".join(conversation.ask("What is it?"))
        "".join(conversation.ask("Sure?"))
        assert exact.processor is not None
        start = exact.processor.render("What is it?")
        assert conversation.prompt.startswith(f"{start}{first}<|eot_id|>")
        assert conversation.prompt.endswith(conversation.turns[-1].answer)


def test_a_question_runs_only_what_is_new(
    exact: NatureLM, clips: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[int] = []
    forward = exact.language_model.forward

    def spy(*args: Any, **inputs: Any) -> Any:
        given = inputs.get("inputs_embeds", inputs.get("input_ids"))
        run.append(given.shape[1])
        return forward(*args, **inputs)

    monkeypatch.setattr(exact.language_model, "forward", spy)
    conversation = talk(exact, *clips, tokens=8)
    said = "".join(conversation.ask("What is it? " * 10))
    assert run[0] > sum(clip.shape[0] for clip in clips) + 10
    assert run[1:] == [1] * (len(run) - 1)
    before = conversation.positions
    run.clear()
    "".join(conversation.ask("Sure?", [clips[1]]))
    assert exact.processor is not None
    wrapped = "<|eot_id|>" + exact.processor.render("Sure?")
    words = sum(map(len, prompt_parts(wrapped, exact.tokenizer))) - 1  # the beginning of text
    own = words + clips[1].shape[0]
    # Besides, the last answer's end: its last token, and what is written otherwise than it was.
    end = len(exact.tokenizer(said, add_special_tokens=False).input_ids)
    assert own < run[0] <= own + end < before


def test_a_question_that_nobody_reads_was_not_asked(exact: NatureLM, clips: list[Tensor]) -> None:
    conversation = talk(exact, clips[0])
    conversation.ask("What is it?")
    assert conversation.turns == ()
    answer = "".join(conversation.ask("Sure?"))
    assert [turn.answer for turn in conversation.turns] == [answer]
    assert conversation.turns[0].question.count(PLACEHOLDER) == 1, "the clip is still there"


def test_an_answer_ends_where_its_reader_stopped(exact: NatureLM, clips: list[Tensor]) -> None:
    conversation = talk(exact, clips[0])
    reader = conversation.ask("What is it?")
    partial = next(reader) + next(reader)
    second = "".join(conversation.ask("Sure?"))
    assert list(reader) == [], "another question ended the answer"
    assert [turn.answer for turn in conversation.turns] == [partial, second]
    assert not conversation.turns[0].finished
    assert second == anew(conversation, exact)


def test_a_failure_leaves_the_conversation_as_it_was(
    exact: NatureLM, clips: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = talk(exact, clips[0])
    "".join(conversation.ask("What is it?"))
    turns = conversation.turns
    with monkeypatch.context() as patch:
        patch.setattr(exact.language_model.model.layers[1], "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            "".join(conversation.ask("Sure?"))
    with pytest.raises(UsageError, match="2 <AudioHere> and 1 audio clips"):
        next(conversation.ask(f"{PLACEHOLDER} or {PLACEHOLDER}?", [clips[1]]))
    with pytest.raises(UsageError, match="empty"):
        conversation.ask("  ")
    assert conversation.turns == turns
    assert "".join(conversation.ask("Sure?")) == anew(conversation, exact)


def test_a_full_context_is_said(build_model: BuildModel, nano_waveforms: dict[str, Tensor]) -> None:
    model = build_model(llama={"max_position_embeddings": 120}).double()
    conversation = talk(model, nano_waveforms["howl"], tokens=30)
    "".join(conversation.ask("What is it?"))
    while conversation.positions < 80:
        "".join(conversation.ask("And?"))
    turns = conversation.turns
    with pytest.raises(ContextFull, match="takes 120 in all") as caught:
        "".join(conversation.ask("one two three four five six seven eight nine ten " * 3))
    assert caught.value.limit == 120
    assert conversation.turns == turns
    # What still fits is answered, within the limit.
    for _ in range(4):
        try:
            "".join(conversation.ask("And?"))
        except ContextFull:
            break
    else:
        pytest.fail("the context never became full")
    assert conversation.positions <= 120


def test_an_end_token_is_no_text_and_ends_the_answer(
    exact: NatureLM, clips: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = talk(exact, clips[0])
    free = "".join(conversation.ask("What is it?"))
    (ids,) = exact.generate_ids(
        [conversation.prompt.removesuffix(free)], [[clips[0]]], options=conversation.options
    )
    monkeypatch.setattr(type(exact), "eos_ids", property(lambda self: [ids[4]]))
    stopped = talk(exact, clips[0])
    answer = "".join(stopped.ask("What is it?"))
    assert free.startswith(answer)
    assert len(answer) < len(free)
    assert "".join(stopped.ask("Sure?")) == anew(stopped, exact)


def test_conversations_in_threads_do_not_disturb_each_other(
    exact: NatureLM, clips: list[Tensor]
) -> None:
    alphas = [0.0, 0.5, 1.5]

    def hold(alpha: float) -> list[str]:
        conversation = talk(exact, clips[0], alpha=alpha)
        return ["".join(conversation.ask(query)) for query in QUERIES[:3]]

    alone = [hold(alpha) for alpha in alphas]
    assert len({str(one) for one in alone}) > 1, "alpha matters"
    together: dict[float, list[str]] = {}
    start = threading.Barrier(len(alphas))

    def run(alpha: float) -> None:
        start.wait()
        together[alpha] = hold(alpha)

    threads = [threading.Thread(target=run, args=(alpha,)) for alpha in alphas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[alpha] for alpha in alphas] == alone


def test_beams_are_refused_and_a_closed_conversation_too(
    exact: NatureLM, clips: list[Tensor]
) -> None:
    with pytest.raises(UsageError, match=r"num_beams is 2: .* set num_beams to 1"):
        talk(exact, num_beams=2)
    conversation = talk(exact, clips[0])
    reader = conversation.ask("What is it?")
    next(reader)
    conversation.close()
    assert list(reader) == []
    assert conversation.positions == 0
    assert len(conversation.turns) == 1
    with pytest.raises(UsageError, match="start a new one"):
        conversation.ask("Sure?")


def test_a_folded_model_answers_at_its_own_alpha_only(
    build_model: BuildModel, nano_waveforms: dict[str, Tensor]
) -> None:
    model = build_model(seed=5)
    with model.fold(0.5):
        assert talk(model).alpha == 0.5
        with pytest.raises(UsageError, match=r"folded \(at alpha 0.5\)"):
            talk(model, alpha=1.0)


def byte_tokens(nano: NatureLM, data: bytes) -> list[int]:
    """Every byte as a token of its own."""
    shown = [byte for byte in range(256) if chr(byte).isprintable() and byte not in (32, 160)]
    hidden = [byte for byte in range(256) if byte not in shown]  # these are written as U+0100 on
    names = {byte: chr(byte) for byte in shown} | {
        byte: chr(256 + place) for place, byte in enumerate(hidden)
    }
    ids: list[int] = nano.tokenizer.convert_tokens_to_ids([names[byte] for byte in data])
    assert None not in ids
    return ids


@given(text=st.text(st.sampled_from("aé🐦中\u0301 \n\ufffd"), max_size=12), cut=st.integers(0, 3))
def test_no_character_is_broken(nano: NatureLM, text: str, cut: int) -> None:
    data = text.encode()
    ids = byte_tokens(nano, data[: len(data) - cut])
    stream = TextStream(nano.tokenizer)
    pieces = [stream.push(token) for token in ids]
    for end in range(1, len(pieces) + 1):
        said = "".join(pieces[:end])
        assert text.startswith(said), "only what will stay is given out"
    pieces.append(stream.finish())
    assert "".join(pieces) == nano.tokenizer.decode(ids, skip_special_tokens=True) == stream.text


@given(ids=st.lists(st.integers(0, 604), max_size=20))
def test_any_tokens_give_the_decoded_whole(nano: NatureLM, ids: list[int]) -> None:
    stream = TextStream(nano.tokenizer)
    pieces = [stream.push(token) for token in ids]
    assert "".join([*pieces, stream.finish()]) == nano.tokenizer.decode(
        ids, skip_special_tokens=True
    )


def test_turns_are_taken_in_the_order_of_asking(nano: NatureLM) -> None:
    lock = FairLock()
    order: list[int] = []

    def take(number: int) -> None:
        with lock:
            order.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(5)]
    with lock:
        for number, thread in enumerate(threads):
            thread.start()
            while len(lock._queue) <= number + 1:  # the first one has it
                time.sleep(0.001)
        with_first_done = list(order)
    for thread in threads:
        thread.join()
    assert with_first_done == []
    assert order == list(range(5))
    assert lock_of(nano) is lock_of(nano)


def test_who_is_interrupted_gives_the_place_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    lock = FairLock()
    with lock, monkeypatch.context() as patch:
        patch.setattr(threading.Condition, "wait_for", interrupted)
        with pytest.raises(KeyboardInterrupt), lock:
            pytest.fail("the lock was given twice")
        assert len(lock._queue) == 1
    with lock:
        assert len(lock._queue) == 1


# Clips asked as they are: streams, conversations, α side by side.

QUERY = "What is it?"
SHORT = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def pipeline(nano: NatureLM) -> Pipeline:
    return Pipeline(nano)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Four seconds of a rising tone at 22.05 kHz."""
    t = np.arange(4 * 22050) / 22050
    path = tmp_path / "tone.wav"
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * (500 + 300 * t) * t), 22050)
    return path


def test_a_stream_is_the_answer_of_windows(pipeline: Pipeline, recording: Path) -> None:
    (whole,) = pipeline.windows([recording], QUERY, alpha=0.5, num_beams=1, **SHORT)
    assert isinstance(whole, WindowResult)
    pieces = list(pipeline.stream(recording, QUERY, alpha=0.5, **SHORT))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 1
    samples, rate = soundfile.read(recording, dtype="float32")
    by_array = pipeline.stream([samples], QUERY, alpha=0.5, input_sample_rate=rate, **SHORT)
    assert "".join(by_array) == whole.text


def test_a_conversation_takes_files_of_later_turns(pipeline: Pipeline, recording: Path) -> None:
    conversation = pipeline.conversation([recording], **SHORT)
    "".join(conversation.ask(QUERY))
    "".join(conversation.ask("And this one?", [recording]))
    assert conversation.prompt.count("<AudioHere>") == 2
    assert conversation.alpha == 1.0
    with pytest.raises(AudioError, match=r"nothing\.wav"):
        next(conversation.ask("And this?", [recording.with_name("nothing.wav")]))
    assert len(conversation.turns) == 2


def test_without_clips_nothing_is_said_of_sound(pipeline: Pipeline) -> None:
    conversation = pipeline.conversation(**SHORT)
    "".join(conversation.ask(QUERY))
    assert "<Audio>" not in conversation.prompt


def test_the_beginning_of_a_long_clip_is_heard_and_that_is_said(
    pipeline: Pipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "long.wav"
    noise = 0.1 * np.random.default_rng(0).normal(size=12 * 16000)
    soundfile.write(path, noise, 16000)
    whole = "".join(pipeline.stream([path], QUERY, **SHORT))
    assert caplog.messages == [f"{path}: lasts 12.0 s, and the first 10 s of it are heard"]
    samples, rate = soundfile.read(path)
    start = pipeline.stream(samples[: 10 * rate], QUERY, **SHORT)
    assert "".join(start) == whole
    assert len(caplog.messages) == 1


def test_alphas_side_by_side(nano: NatureLM, recording: Path, encoded: list[int]) -> None:
    pipeline = Pipeline(nano)
    alphas = [1.0, 0.0, 0.5, 1.0]
    query = "Is <AudioHere> like <AudioHere>?"
    answers = pipeline.compare_alphas([recording, recording], query, alphas, **SHORT)
    assert sum(encoded) <= 2
    alone = [
        pipeline.compare_alphas([recording, recording], query, [alpha], **SHORT)[0]
        for alpha in alphas
    ]
    assert answers == alone
    assert len(set(answers)) > 1
    (one,) = pipeline.windows([recording], QUERY, alpha=0.25, **SHORT)
    assert isinstance(one, WindowResult)
    assert pipeline.compare_alphas(recording, QUERY, [0.25], **SHORT) == [one.text]
    assert pipeline.compare_alphas(recording, QUERY, []) == []
    with pytest.raises(UsageError, match="placeholder takes one clip"):
        pipeline.compare_alphas(recording, query, [1.0])
    with pytest.raises(UsageError, match="empty"):
        pipeline.compare_alphas(recording, " ", [1.0])
