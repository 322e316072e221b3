"""The routes of OpenAI: chat, streams, lists, schemas, models, errors, with its own client; typed
questions about sound.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from served import (
    DOG,
    OWL,
    QUESTION,
    Running,
    audio,
    events,
    noise,
    serving,
    streamed_text,
    text,
    wav,
)

from NatureLM.inference.pipeline import Pipeline
from NatureLM.serve.bodies import check_values
from NatureLM.serve.settings import Limits

MODEL = "naturelm-tiny"


def asked(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]


def created(service: Running, *parts: Any, **more: Any) -> Any:
    """What the client of OpenAI makes of the answer to one message."""
    create = service.client().chat.completions.create
    return create(model=MODEL, messages=asked(*parts), **more)


@pytest.fixture(scope="module")
def pipeline(service: Running) -> Pipeline:
    return service.model.pipeline


@pytest.mark.parametrize("data", [DOG, OWL], ids=["wav", "flac"])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_an_answer_is_that_of_the_pipeline(
    service: Running, pipeline: Pipeline, data: bytes, alpha: float, tmp_path: Any
) -> None:
    path = tmp_path / "clip"
    path.write_bytes(data)
    (expected,) = pipeline.windows(str(path), QUESTION, alpha=alpha, num_beams=1)
    more = {"merging_alpha": alpha}
    answer = created(service, audio(data), text(QUESTION), extra_body=more)
    (choice,) = answer.choices
    assert choice.message.content == expected.text
    assert choice.finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens > pipeline.model.config.audio_positions()


def test_a_stream_holds_the_same_text_and_ends_with_usage(service: Running) -> None:
    parts, options = (audio(OWL), text(QUESTION)), {"include_usage": True}
    whole = created(service, *parts)
    chunks = list(created(service, *parts, stream=True, stream_options=options))
    pieces = [one.choices[0].delta.content or "" for one in chunks if one.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 1, "it comes piece by piece"
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize("least", [0, 9, 20])
def test_an_answer_has_at_least_so_many_tokens(service: Running, least: int) -> None:
    def answered(**more: Any) -> tuple[int, str]:
        body = service.chat(audio(DOG), text(QUESTION), max_tokens=20, **more).json()
        return body["usage"]["completion_tokens"], body["choices"][0]["finish_reason"]

    tokens, reason = answered(min_tokens=least)
    assert (tokens >= least, tokens == least) == (True, least == 20)
    assert reason == ("length" if tokens == 20 else "stop")
    assert answered() == answered(min_tokens=0)
    assert answered()[0] < 9, "else this shows nothing"


def test_turns_are_those_of_a_conversation(service: Running, pipeline: Pipeline) -> None:
    later = "Is it a bird, a frog or a mammal?"
    with pipeline.conversation(_samples(OWL)) as conversation:
        first = "".join(conversation.ask(QUESTION))
        second = "".join(conversation.ask(later))
    messages = [
        *asked(audio(OWL), text(QUESTION)),
        {"role": "assistant", "content": first},
        {"role": "user", "content": later},
    ]
    answer = service.client().chat.completions.create(model=MODEL, messages=messages)
    assert answer.choices[0].message.content == second


def _samples(data: bytes) -> Any:
    import io

    import soundfile

    from NatureLM.audio.windows import read_clip

    samples, rate = soundfile.read(io.BytesIO(data))
    return read_clip(samples, input_sample_rate=rate, sample_rate=16_000, duration=10.0)


def test_swapped_clips_change_the_answer(service: Running) -> None:
    """Three clips, two of them examples: which one is asked about depends on their order."""

    def ask(*clips: bytes) -> str:
        blocks = [
            part
            for clip, label in zip(clips, ("Label: A", "Label: B", "Label:"), strict=True)
            for part in (text("Audio:"), audio(clip), text(label))
        ]
        answer = created(service, *blocks, logprobs=True, top_logprobs=5)
        found = answer.choices[0].logprobs.content[0]
        return json.dumps([(one.token, round(one.logprob, 4)) for one in found.top_logprobs])

    toad = noise(3)
    one, other = ask(DOG, OWL, wav(toad)), ask(OWL, DOG, wav(toad))
    assert one != other
    assert one == ask(DOG, OWL, wav(toad))


def test_names_are_chosen_from_with_their_confidence(
    service: Running, pipeline: Pipeline, tmp_path: Any
) -> None:
    names = ["Barn Owl", "Dog", "Common Cuckoo"]
    path = tmp_path / "clip.wav"
    path.write_bytes(DOG)
    (expected,) = pipeline.windows(str(path), QUESTION, mode="score", labels=names, top_k=4)
    more = {"species_list": names, "alternatives": 4}
    answer = created(service, audio(DOG), text(QUESTION), extra_body=more)
    found = answer.choices[0].model_extra
    assert answer.choices[0].message.content == expected.text
    assert found["confidence"] == pytest.approx(expected.confidence, rel=1e-4)
    assert [one["label"] for one in found["alternatives"]][1:] == [
        name for name, _ in expected.alternatives
    ]
    sure = {"species_list": names, "min_confidence": 1.0}
    unsure = service.chat(audio(wav(noise(4))), text(QUESTION), **sure).json()
    assert unsure["choices"][0]["message"]["content"] == "None"


@pytest.mark.parametrize(("least", "said"), [(0.0, "Dog"), (1.0, "None")])
def test_a_stream_says_no_more_than_is_sure(service: Running, least: float, said: str) -> None:
    more = {"species_list": ["Barn Owl", "Dog"], "min_confidence": least}
    parts = audio(DOG), text(QUESTION)
    whole = service.chat(*parts, **more).json()["choices"][0]["message"]["content"]
    assert streamed_text(service.chat(*parts, stream=True, **more)) == whole == said


def test_an_answer_follows_a_schema(service: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"species": {"type": "string"}, "count": {"type": "integer"}},
        "required": ["species", "count"],
        "additionalProperties": False,
    }
    named = {"name": "call", "schema": schema, "strict": True}
    form = {"type": "json_schema", "json_schema": named}
    for alpha in (0.0, 1.0):
        for tokens in (24, 60):
            answer = created(
                *(service, audio(OWL), text(QUESTION)),
                max_completion_tokens=tokens,
                response_format=form,
                extra_body={"merging_alpha": alpha},
            )
            found = json.loads(answer.choices[0].message.content)
            assert set(found) == {"species", "count"}
            assert isinstance(found["count"], int)
            assert answer.usage.completion_tokens <= tokens


def test_several_answers_are_drawn_and_a_seed_repeats_them(service: Running) -> None:
    def draw(seed: int) -> list[str]:
        more = {"n": 4, "temperature": 1.5, "seed": seed, "max_completion_tokens": 12}
        answer = created(service, audio(wav(noise(5))), text("Caption the audio"), **more)
        return [one.message.content for one in answer.choices]

    assert draw(1) == draw(1)
    assert len(set(draw(1)) | set(draw(2))) > 1


def test_an_answer_ends_at_a_stop_and_at_its_limit(service: Running) -> None:
    parts = audio(OWL), text("Caption the audio")
    whole = service.chat(*parts).json()["choices"][0]
    words = whole["message"]["content"].split()
    assert len(words) > 2
    stopped = service.chat(*parts, stop=[words[2]]).json()["choices"][0]
    assert stopped["message"]["content"] == whole["message"]["content"].partition(words[2])[0]
    assert stopped["finish_reason"] == "stop"
    streamed = service.chat(*parts, stop=[words[2]], stream=True)
    assert streamed_text(streamed) == stopped["message"]["content"]
    short = service.chat(*parts, max_tokens=2).json()["choices"][0]
    assert short["finish_reason"] == "length"
    assert whole["message"]["content"].startswith(short["message"]["content"])


@pytest.mark.parametrize("more", [{}, {"stop": ["zzz"]}, {"species_list": ["Dog", "Cat"]}])
def test_a_stream_has_log_probabilities_with_each_chunk(
    service: Running, more: dict[str, Any]
) -> None:
    """As OpenAI sends them: those of the tokens that came since the chunk before."""
    parts, more = (audio(OWL), text("Caption the audio")), {**more, "logprobs": True}
    more = {**more, "top_logprobs": 2}
    if "species_list" in more:
        more["mode"] = "constrained"
    whole = service.chat(*parts, **more).json()["choices"][0]
    choices = events(service.chat(*parts, **more, stream=True))
    with_text = [one for one in choices if one["delta"].get("content")]
    assert all(one["logprobs"]["content"] for one in with_text)
    assert len(with_text) > 1 or "species_list" in more
    came = [token for one in choices for token in (one["logprobs"] or {"content": []})["content"]]
    expected = whole["logprobs"]["content"]
    assert [one["token"] for one in came] == [one["token"] for one in expected]
    likely = [one["logprob"] for one in expected]
    assert [one["logprob"] for one in came] == pytest.approx(likely, abs=1e-4)
    assert choices[-1]["logprobs"] is None


def test_log_probabilities_are_those_of_the_answer(service: Running) -> None:
    found = service.chat(audio(OWL), text(QUESTION), logprobs=True, top_logprobs=3).json()
    content = found["choices"][0]["logprobs"]["content"]
    written = "".join(one["token"] for one in content)
    assert found["choices"][0]["message"]["content"] in written
    for one in content:
        assert one["logprob"] <= 0
        assert len(one["top_logprobs"]) == 3
        assert one["top_logprobs"][0]["logprob"] == pytest.approx(one["logprob"], abs=1e-5)
        assert bytes(one["bytes"]).decode(errors="replace") == one["token"]


def test_a_system_message_is_heard(service: Running) -> None:
    def positions(*system: Any) -> int:
        body = {"model": MODEL, "messages": [*system, *asked(audio(OWL), text(QUESTION))]}
        found = service.post("/v1/chat/completions", body).json()
        return int(found["usage"]["prompt_tokens"])

    plain = positions()
    assert positions({"role": "system", "content": "Answer in one word."}) > plain
    assert positions({"role": "developer", "content": [text("Answer in one word.")]}) > plain


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "at most 0"),
        ({"frobnicate": 1}, "frobnicate", "not understood"),
        ({"presence_penalty": 0.5}, "presence_penalty", "less than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"max_tokens": 10**6}, "max_tokens", "limit 'tokens'"),
        ({"max_tokens": 9, "min_tokens": 10}, "min_tokens", "may have 9"),
        ({"species_list": ["Wren"], "min_tokens": 1}, "min_tokens", "free answers"),
        ({"n": 99}, "n", "limit 'answers'"),
        ({"num_beams": 2, "stream": True}, "num_beams", "cannot be streamed"),
        ({"species_list": ["x"] * 1001}, "species_list", "limit 'labels'"),
        ({"species_list": ["Wren", "Wren"]}, "species_list", "Wren"),
        ({"species_list": ["Wren" * 9999, "Owl" * 9999]}, "species_list", "limit 'characters'"),
        ({"mode": "score"}, "species_list", "labels"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "up to 4"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
            "response_format",
            "Invalid type",
        ),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    service: Running, body: dict[str, Any], param: str, words: str
) -> None:
    answer = service.chat(audio(DOG), text("What is it?"), **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "at least 1"),
        ([{"role": "user", "content": ""}], "question is empty"),
        ([{"role": "user", "content": "<AudioHere>?"}], "stands for sound"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "is 'image_url'"),
        ([{"role": "assistant", "content": "x"}], "after a question"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "comes first"),
        ([{"role": "system", "content": [audio(DOG)]}], "only user messages"),
        ([{"role": "user", "content": "half \ud800"}], "surrogate"),
        ([{"role": "user", "content": [audio(DOG)] * 17}], "limit 'audios'"),
        ([{"role": "user", "content": "x" * 60_000}], "limit 'characters'"),
        ([{"role": "user", "content": "x y " * 10_000}], "positions"),
        ([{"role": "tool", "content": "x"}], "messages[0].role"),
    ],
)
def test_messages_without_meaning_are_refused(service: Running, messages: Any, words: str) -> None:
    answer = service.post("/v1/chat/completions", {"model": MODEL, "messages": messages})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_errors_are_those_of_the_client(service: Running) -> None:
    openai, client = pytest.importorskip("openai"), service.client()
    assert [one.id for one in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.models.retrieve("gpt-6")
    with pytest.raises(openai.NotFoundError, match="'gpt-6' is not served here"):
        client.chat.completions.create(model="gpt-6", messages=asked(text("x")))
    with pytest.raises(openai.BadRequestError, match="not base64"):
        created(service, {"type": "input_audio", "input_audio": {"data": "?!", "format": "wav"}})


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b'{"model": 1e999}', b"\xff\xfe"])
def test_a_body_that_is_no_json_is_refused(service: Running, body: bytes) -> None:
    answer = service.post("/v1/chat/completions", body)
    assert answer.status_code == 400, answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    "part",
    [
        '"metadata": {' + ",".join(f'"k{n}":1' for n in range(60_000)) + "}",
        '"messages": [' + ",".join(["{}"] * 60_000) + "]",
        '"a": "\\\\\\"\\\\", "b": [' + ",".join(["0"] * 120_000) + "]",
    ],
    ids=["keys", "messages", "escapes"],
)
def test_a_body_of_many_values_is_refused_unread(service: Running, part: str) -> None:
    body = f'{{"model": "{MODEL}", {part}}}'.encode()
    answer = service.post("/v1/chat/completions", body)
    assert answer.status_code == 413, answer.text
    assert "limit 'values'" in answer.json()["error"]["message"]


def test_texts_may_hold_what_parts_values(service: Running) -> None:
    sound = "data:audio/wav;base64," + "A" * 200_000
    texts = {"content": '[{,:"\\' * 30_000, "url": sound}
    check_values(json.dumps(texts).encode(), Limits())


@pytest.mark.parametrize(
    "address", ["data:audio/wav,\ud800", "data:audio/wav,%41", "data:a" + ";a=b" * 10**6]
)
def test_an_address_without_base64_is_refused(service: Running, address: str) -> None:
    part = {"type": "audio_url", "audio_url": {"url": address}}
    answer = service.chat(part)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_base64")


@pytest.mark.parametrize(
    "address", ["s3://frogs/a.wav", "gs://frogs/a.wav", "memory://a.wav", "file:///a.wav"]
)
def test_a_request_reaches_no_store(
    service: Running, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("NatureLM.storage.filesystem", lambda path: pytest.fail("was asked"))
    answer = service.chat({"type": "audio_url", "audio_url": {"url": address}}, text(QUESTION))
    assert answer.status_code == 400, answer.text
    answer = service.chat({"type": "audio", "audio": address}, text(QUESTION))
    assert answer.status_code == 400, answer.text


def test_silence_is_refused_unless_it_is_asked_for(service: Running) -> None:
    silent = audio(wav([0.0] * 16_000))
    refused = service.chat(silent, text(QUESTION))
    assert refused.json()["error"]["code"] == "silent_audio"
    assert service.chat(silent, text(QUESTION), ask_silence=True).status_code == 200


def test_a_wrong_key_is_an_error_of_the_client() -> None:
    openai = pytest.importorskip("openai")
    with serving(api_keys={"lab": "k" * 32}) as service:
        with pytest.raises(openai.AuthenticationError):
            service.client("wrong").models.list()
        assert service.client("k" * 32).models.list().data[0].id == MODEL


WHO = {
    "type": "choice",
    "name": "who",
    "instructions": "Which animal makes the sound?",
    "choices": [{"value": "Dog"}, {"value": "Barn Owl", "description": "screeches at night"}],
}
BIRD = {"type": "predicate", "instructions": "The animal is a bird."}
LOUD = {
    "type": "score",
    "name": "activity",
    "instructions": "How often does it call?",
    "levels": [{"label": "once"}, {"label": "some times"}, {"label": "all the time"}],
}


def typed(*questions: Any, sound: bytes = DOG) -> dict[str, Any]:
    messages = [{"role": "user", "content": [audio(sound), text("A recording at a farm.")]}]
    return {"model": "naturelm-tiny", "input": messages, "questions": list(questions)}


def decide(service: Running, *questions: Any, **more: Any) -> list[dict[str, Any]]:
    answer = service.post("/v1/decisions", typed(*questions, **more))
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["answers"]
    return found


def test_answers_are_typed_and_in_the_order_of_the_questions(service: Running) -> None:
    who, bird, loud = decide(service, WHO, BIRD, LOUD)
    assert (who["type"], who["name"]) == ("choice", "who")
    shares = {one["value"]: one["probability"] for one in who["probabilities"]}
    assert sum(shares.values()) == pytest.approx(1)
    assert who["choice"] == max(shares, key=shares.__getitem__)
    assert who["confidence"] == max(shares.values())
    assert bird["name"] is None
    assert 0 <= bird["probability"] <= 1
    assert [one["value"] for one in loud["probabilities"]] == [0, 1, 2]
    mean = sum(one["value"] * one["probability"] for one in loud["probabilities"])
    assert loud["score"] == pytest.approx(mean)


def test_sound_decides(service: Running) -> None:
    """The model tells a dog from an owl, so the answers differ by clip alone."""
    names = {**WHO, "choices": [{"value": "Dog"}, {"value": "Barn Owl"}]}
    (dog,), (owl,) = decide(service, names, sound=DOG), decide(service, names, sound=OWL)
    assert (dog["choice"], owl["choice"]) == ("Dog", "Barn Owl")


def test_an_answer_is_the_same_alone_and_among_others(service: Running) -> None:
    together = decide(service, WHO, BIRD, LOUD)
    alone = [decide(service, one)[0] for one in (WHO, BIRD, LOUD)]
    for one, other in zip(together, alone, strict=True):
        for key in ("probability", "confidence", "score"):
            assert one.get(key) == pytest.approx(other.get(key), abs=1e-5)


def test_a_clip_is_encoded_once_for_64_questions(service: Running) -> None:
    questions = [{**BIRD, "instructions": f"It calls more than {n} times."} for n in range(64)]
    before = service.figures()["naturelm_windows_total"]
    assert len(decide(service, *questions, sound=wav(noise(4, seed=64)))) == 64
    assert service.figures()["naturelm_windows_total"] - before <= 1


def test_booleans_and_strings_are_told_apart(service: Running) -> None:
    question = {**WHO, "choices": [{"value": True}, {"value": False}]}
    (found,) = decide(service, question)
    assert [one["value"] for one in found["probabilities"]] == [True, False]
    assert found["choice"] in (True, False)
    assert isinstance(found["choice"], bool)


def test_the_client_of_openai_reads_the_answers(service: Running) -> None:
    client = service.client()
    if not hasattr(client, "decisions"):
        pytest.skip("this version of openai knows no decisions")
    found = client.decisions.create(**typed(WHO, BIRD, LOUD))
    assert [one.type for one in found.answers] == ["choice", "predicate", "score"]
    assert found.usage.input_tokens == found.usage.total_tokens > 0


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"type": "guess", "instructions": "x"}, "questions[0]"),
        ({"type": "predicate"}, "instructions"),
        ({**WHO, "choices": [{"value": "Dog"}]}, "at least 2"),
        ({**WHO, "choices": [{"value": "Dog"}, {"value": "Dog"}]}, "Dog"),
        ({**WHO, "choices": [{"value": f"{n}"} for n in range(1001)]}, "limit 'labels'"),
        ({**WHO, "choices": [{"value": "\ud800"}, {"value": "x"}]}, "surrogate"),
        ({**LOUD, "levels": [{"label": ""}, {"label": "x"}]}, "at least 1 character"),
        ({**BIRD, "weight": 1}, "not understood"),
        ({**BIRD, "name": "\ud800"}, "questions[0].predicate.name"),
        ({**BIRD, "instructions": "x" * 50_001}, "limit 'characters'"),
        (
            {**WHO, "choices": [{"value": f"{n}" + "x" * 500} for n in range(100)]},
            "limit 'characters'",
        ),
    ],
)
def test_questions_without_meaning_are_refused(
    service: Running, question: dict[str, Any], words: str
) -> None:
    answer = service.post("/v1/decisions", typed(question))
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"], answer.text


def test_too_many_questions_are_refused_by_their_limit(service: Running) -> None:
    answer = service.post("/v1/decisions", typed(*[BIRD] * 65))
    assert answer.status_code == 400
    assert "limit 'questions'" in answer.json()["error"]["message"]
