"""BEANS-Next's contract, fact by fact, and its own checks where the checkout is there."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from served import DOG, OWL, PLAIN, QUESTION, Running, noise, serving, wav

from NatureLM.inference.pipeline import Pipeline

CHECKOUT = os.environ.get("BEANS_NEXT") or None
_PLACE = "<Audio><AudioHere></Audio>"


def item(name: str, *clips: bytes, question: str = "x", **config: Any) -> dict[str, Any]:
    return {
        "sample_id": name,
        "messages": [{"role": "user", "content": question}],
        "audio_inputs": [
            {
                "payload_type": "base64_wav",
                "data": base64.b64encode(clip).decode(),
                "sample_rate": 16_000,
            }
            for clip in clips
        ],
        "generation_config": {"max_tokens": 32, "temperature": 0.0, **config},
    }


def predict(service: Running, *items: dict[str, Any]) -> dict[str, Any]:
    answer = service.post("/predict", {"schema_version": "predictions_v1", "requests": items})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {"schema_version", "responses"}
    for one in body["responses"]:
        known = {"sample_id", "predictions", "finish_reason", "usage", "latency_sec", "error"}
        assert set(one) <= known, "a response takes no other key"
    return {one["sample_id"]: one for one in body["responses"]}


def test_info_holds_what_the_contract_asks_for(service: Running) -> None:
    info = service.get("/info").json()
    for key in ("name", "model", "model_revision"):
        assert isinstance(info[key], str)
        assert info[key]
    assert info["audio_payload_types"] == ["base64_wav"]
    assert info["max_batch_size"] >= 2
    assert info["supports_batching"] is True
    assert "predictions_v1" in info["schema_versions"]


def test_health_waits_for_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    is_there = threading.Event()

    def late(*given: Any, **more: Any) -> Pipeline:
        assert is_there.wait(60)
        return Pipeline(*given, **more)

    monkeypatch.setattr("NatureLM.inference.pipeline.Pipeline", late)
    with serving(wait=False) as service:
        assert service.get("/health").status_code == 503
        refused = service.post("/predict", {"requests": []})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert service.get("/info").json()["load_status"] == "loading"
        is_there.set()
        service.model.loader.wait()
        assert service.get("/health").status_code == 200


def test_a_prediction_is_the_answer_of_infer(service: Running, tmp_path: Path) -> None:
    """With the beams of the configuration, as `naturelm infer` has them."""
    pipeline: Pipeline = service.model.pipeline
    expected = {}
    for name, data in (("dog", DOG), ("owl", OWL)):
        (tmp_path / name).write_bytes(data)
        (one,) = pipeline.windows(str(tmp_path / name), QUESTION)
        expected[name] = one
    found = predict(
        service,
        item("owl", OWL, question=f"{_PLACE} {QUESTION}"),
        item("dog", DOG, question=QUESTION),
    )
    for name, one in expected.items():
        assert found[name]["predictions"] == [one.text]
        assert found[name]["error"] is None
        assert found[name]["usage"]["completion_tokens"] > 0
        assert np.exp(found[name]["usage"]["mean_logprob"]) == pytest.approx(
            one.confidence, rel=1e-3
        )


def test_only_the_beginning_is_heard_where_that_is_asked_for(service: Running) -> None:
    import io

    import soundfile

    samples, rate = soundfile.read(io.BytesIO(OWL))
    short = wav(samples[: 2 * rate], rate)
    found = predict(
        service,
        item("short", short, question=QUESTION),
        item("cut", OWL, question=QUESTION, max_length_seconds=2),
        item("whole", OWL, question=QUESTION),
    )
    usages = {name: one["usage"]["mean_logprob"] for name, one in found.items()}
    assert usages["cut"] == pytest.approx(usages["short"], abs=1e-4)
    assert usages["whole"] != pytest.approx(usages["short"], abs=1e-4)


def test_a_millisecond_of_silence_is_answered_with_nothing(service: Running) -> None:
    found = predict(service, item("a", wav(np.zeros(16)), max_tokens=1))["a"]
    assert found["predictions"] == [""]
    assert not found["error"]
    assert found["usage"]["note"] == "too short"
    silent = predict(service, item("a", wav(np.zeros(16_000))))["a"]
    assert (silent["predictions"], silent["usage"]["note"]) == ([""], "silent")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"audio_inputs": [{"payload_type": "base64_wav", "data": "?", "sample_rate": 1}]}, "64"),
        ({"audio_inputs": [{"payload_type": "mp3", "data": "", "sample_rate": 1}]}, "payload_type"),
        ({"audio_inputs": [{"payload_type": "file_path", "data": "/etc/passwd",
                            "sample_rate": 1}]}, "not open to requests"),
        ({"audio_inputs": [{"payload_type": "file_url", "data": "https://example.org/x.wav",
                            "sample_rate": 1}]}, "--allow-url-host"),
        ({"generation_config": {"max_tokens": 0}}, "max_new_tokens"),
        ({"generation_config": []}, "generation_config"),
        ({"messages": [{"role": "user", "content": _PLACE * 3}]}, "3 places"),
        ({"extra": 1}, "not understood"),
        ({"generation_config": {"merging_alpha": 1e300}}, "merging_alpha"),
        ({"generation_config": {"num_beams": 100}}, "num_beams"),
    ],
)  # fmt: skip
def test_a_bad_item_is_its_own_error(service: Running, change: dict[str, Any], words: str) -> None:
    bad = {**item("bad", DOG), **change}
    found = predict(service, item("good", DOG), bad)
    assert found["good"]["predictions"][0]
    assert found["bad"]["predictions"] == []
    assert words in found["bad"]["error"]


def test_keys_of_tomorrow_are_accepted_where_the_contract_says_so(service: Running) -> None:
    assert predict(service, item("a", DOG, top_secret=1))["a"]["error"] is None


def test_batches_are_counted_before_items_are_read(service: Running) -> None:
    most = service.get("/info").json()["max_batch_size"]
    items = [item(f"{n}", b"\0") for n in range(most + 1)]
    answer = service.post("/predict", {"schema_version": "predictions_v1", "requests": items})
    assert answer.status_code == 413
    assert "limit 'batch'" in answer.json()["error"]["message"]


def test_an_id_that_is_there_twice_is_a_fault_of_the_batch(service: Running) -> None:
    body = {"schema_version": "predictions_v1", "requests": [item("a", DOG), item("a", OWL)]}
    answer = service.post("/predict", body)
    assert answer.status_code == 400
    assert "'a' is there twice" in answer.json()["error"]["message"]


def test_the_answer_about_three_clips_depends_on_their_order(service: Running) -> None:
    """Few-shot, as tier 4 has it: two examples and the clip that is asked about."""
    question = f"Label the last sound. {_PLACE}: A. {_PLACE}: B. {_PLACE}:"
    clips = DOG, OWL, wav(noise(3))
    found = predict(
        service,
        item("as given", *clips, question=question),
        item("swapped", clips[1], clips[0], clips[2], question=question),
        item("again", *clips, question=question),
    )
    scores = {name: one["usage"]["mean_logprob"] for name, one in found.items()}
    assert scores["as given"] == scores["again"]
    assert scores["as given"] != scores["swapped"]


def test_files_below_an_allowed_folder_are_read(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "dog.wav").write_bytes(DOG)
    (outside / "dog.wav").write_bytes(DOG)
    (inside / "link.wav").symlink_to(outside / "dog.wav")
    os.mkfifo(inside / "pipe.wav")
    with serving(allow_roots=(inside,)) as service:
        assert "file_path" in service.get("/info").json()["audio_payload_types"]

        def ask(path: Path | str) -> dict[str, Any]:
            one = item("a", question=QUESTION)
            audio = {"payload_type": "file_path", "data": str(path), "sample_rate": 16_000}
            found: dict[str, Any] = predict(service, {**one, "audio_inputs": [audio]})["a"]
            return found

        assert ask(inside / "dog.wav")["predictions"] == ["Dog"]
        for path in (
            outside / "dog.wav",
            inside / ".." / "out" / "dog.wav",
            inside / "link.wav",
            inside / "pipe.wav",
            inside,
            inside / "none.wav",
            "/dev/zero",
            "/proc/self/mem",
            "dog.wav\0",
        ):
            refused = ask(path)["error"]
            assert "not open to requests" in refused, path
            assert str(tmp_path) not in refused


@pytest.mark.skipif(CHECKOUT is None, reason="BEANS_NEXT names no checkout of beans-next")
def test_beans_next_itself_is_content(service: Running) -> None:
    """Its own conformance check and its client, from the checkout that BEANS_NEXT names."""
    assert CHECKOUT is not None
    script = [sys.executable, "-m", "scripts.check_launcher", service.address]
    done = subprocess.run(script, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "conformance checks passed" in done.stdout


_CLIENT = """
import json, sys
from beans_next.api.http_schemas import PredictionsV1Request
from beans_next.models.http import HttpClient
with HttpClient(sys.argv[1]) as client:
    client.health()
    found = client.generate(PredictionsV1Request.model_validate_json(sys.stdin.read()))
print(json.dumps([one.model_dump() for one in found.responses]))
"""


@pytest.mark.skipif(CHECKOUT is None, reason="BEANS_NEXT names no checkout of beans-next")
def test_its_client_asks_about_three_clips(service: Running) -> None:
    """As tier 4 has them: what the last one is depends on which example is which."""
    assert CHECKOUT is not None
    question = f"Label the last sound. {_PLACE}: A. {_PLACE}: B. {_PLACE}:"
    clips = DOG, OWL, wav(noise(3))
    asked = {
        "schema_version": "predictions_v1",
        "requests": [
            item("given", *clips, question=question, max_length_seconds=10),
            item("swapped", clips[1], clips[0], clips[2], question=question),
        ],
    }
    script = [sys.executable, "-c", _CLIENT, f"{service.address}/predict"]
    done = subprocess.run(
        script, cwd=CHECKOUT, input=json.dumps(asked), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    given, swapped = json.loads(done.stdout)
    assert [given["sample_id"], swapped["sample_id"]] == ["given", "swapped"]
    assert given["predictions"]
    assert not given["error"]
    assert given["usage"]["mean_logprob"] != swapped["usage"]["mean_logprob"]


def test_the_connection_is_kept(service: Running) -> None:
    with httpx.Client(base_url=service.address, timeout=60, verify=PLAIN) as client:
        for _ in range(3):
            assert client.get("/info").status_code == 200
