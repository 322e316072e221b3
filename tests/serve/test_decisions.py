"""Typed questions about sound: probabilities, their order, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from served import DOG, OWL, Running, audio, noise, text, wav

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


def body(*questions: Any, sound: bytes = DOG) -> dict[str, Any]:
    messages = [{"role": "user", "content": [audio(sound), text("A recording at a farm.")]}]
    return {"model": "naturelm-tiny", "input": messages, "questions": list(questions)}


def decide(service: Running, *questions: Any, **more: Any) -> list[dict[str, Any]]:
    answer = service.post("/v1/decisions", body(*questions, **more))
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
    pytest.importorskip("openai", reason="openai is not installed")
    client = service.client()
    if not hasattr(client, "decisions"):
        pytest.skip("this version of openai knows no decisions")
    found = client.decisions.create(**body(WHO, BIRD, LOUD))
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
    answer = service.post("/v1/decisions", body(question))
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"], answer.text


def test_too_many_questions_are_refused_by_their_limit(service: Running) -> None:
    answer = service.post("/v1/decisions", body(*[BIRD] * 65))
    assert answer.status_code == 400
    assert "limit 'questions'" in answer.json()["error"]["message"]
