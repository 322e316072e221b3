"""Many clients at once: each gets what it would get alone; and the web page at the same address."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from served import DOG, OWL, PLAIN, QUESTION, Running, audio, message, noise, serving, text, wav
from web_app import as_file, until

CLIPS = {"dog": DOG, "owl": OWL, "noise": wav(noise(6))}
NAMES = ["Barn Owl", "Dog", "Common Cuckoo"]
SCHEMA = {
    "type": "object",
    "properties": {"species": {"type": "string"}},
    "required": ["species"],
    "additionalProperties": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "more beams": {"num_beams": 4, "max_tokens": 12},
    "sampled": {"temperature": 1.2, "seed": 5, "max_tokens": 12},
    "list": {"species_list": NAMES},
    "written list": {"species_list": NAMES, "mode": "constrained"},
    "schema": {
        "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
        "max_tokens": 30,
    },
    "penalty": {"repetition_penalty": 1.5, "max_tokens": 20},
}
ASKED = st.tuples(
    st.sampled_from(sorted(CLIPS)),
    st.sampled_from([QUESTION, "Caption the audio", "Is it a bird, a frog or a mammal?"]),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.sampled_from(sorted(KINDS)),
)


def ask(service: Running, asked: tuple[str, str, float, str], **more: Any) -> Any:
    clip, question, alpha, kind = asked
    answer = service.chat(
        audio(CLIPS[clip]), text(question), merging_alpha=alpha, **KINDS[kind], **more
    )
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


@examples(3)
@given(st.lists(ASKED, min_size=8, max_size=12))
def test_answers_together_are_those_of_one_after_the_other(
    service: Running, asked: list[Any]
) -> None:
    alone = {one: ask(service, one) for one in set(asked)}
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda one: ask(service, one), asked))
    assert together == [alone[one] for one in asked]


def test_64_chats_at_three_alphas(service: Running) -> None:
    asked = [(clip, QUESTION, alpha, "greedy") for clip in CLIPS for alpha in (0.0, 0.4, 1.0)] * 8
    alone = {one: ask(service, one) for one in set(asked)}
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(lambda one: ask(service, one), asked[:64]))
    assert together == [alone[one] for one in asked[:64]]


def test_who_goes_away_frees_its_rows(service: Running) -> None:
    """Streams that are cut off, and requests whose client hangs up, leave nothing running."""
    body = message(audio(OWL), text("Caption the audio"), max_tokens=1000, temperature=2.0)
    address = f"{service.address}/v1/chat/completions"

    def cut_off(stream: bool) -> None:
        try:
            with httpx.stream(
                "POST", address, json={**body, "stream": stream}, timeout=0.4, verify=PLAIN
            ) as one:
                next(one.iter_lines())
        except httpx.TransportError:
            pass

    threads = [threading.Thread(target=cut_off, args=(n % 2 == 0,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    def is_idle() -> bool:
        now = service.figures()
        return not (now["naturelm_running"] or now["naturelm_queue"])

    until(is_idle, 10)


def test_keys_share_nothing() -> None:
    """What one key has asked is found in no answer, figure or cache of another."""
    keys = {"one": "1" * 32, "two": "2" * 32}
    with serving(api_keys=keys) as service:

        def windows(key: str) -> float:
            headers = {"authorization": f"Bearer {key}"}
            answer = service.chat(audio(DOG), text(QUESTION), headers=headers)
            assert answer.json()["choices"][0]["message"]["content"] == "Dog"
            return service.figures(headers=headers)["naturelm_windows_total"]

        assert [windows(keys["one"]), windows(keys["one"])] == [1, 1], "its own is encoded once"
        assert windows(keys["two"]) == 2, "another's is encoded anew"
        assert windows(keys["one"]) == 2


def test_figures_count_what_was_done(service: Running) -> None:
    before = service.figures()
    clip = audio(wav(noise(3, seed=77)))
    answer = service.chat(clip, text(QUESTION)).json()
    service.chat(clip, text(QUESTION))
    after = service.figures()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown('naturelm_requests_total{route="/v1/chat/completions",status="200"}') == 2
    assert grown("naturelm_windows_total") == 1
    assert grown("naturelm_cache_hits_total") >= 1
    assert grown("naturelm_tokens_total") == 2 * answer["usage"]["completion_tokens"]
    for name in ("encode", "prefill", "decode"):
        assert grown(f"naturelm_{name}_seconds_total") > 0
    assert after["naturelm_ready"] == 1
    assert after["naturelm_queue"] == 0


KEY = "a-key-of-one-visitor"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """It is stopped by the last test."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    before = os.umask(0o022), os.getcwd()
    os.chdir(tmp_path_factory.mktemp("runs"))
    try:
        with serving(api_keys={"one": KEY}, with_page=True) as running:
            yield running
    finally:
        os.umask(before[0])
        os.chdir(before[1])


def test_each_has_its_addresses_and_both_need_a_key(both: Running) -> None:
    assert both.get("/health").json() == {"status": "ok"}
    for path in ("/", "/config", "/gradio_api/info", "/docs", "/v1/models", "/metrics"):
        assert both.get(path).status_code == 401, path
        assert both.get(path, headers=WITH_KEY).status_code == 200, path
    assert both.get("/v1/models", headers=WITH_KEY).json()["data"][0]["id"] == "naturelm-tiny"
    assert 'id="routes"' in both.get("/docs", headers=WITH_KEY).text
    page = both.get("/", headers=WITH_KEY)
    assert "gradio" in page.text
    policy = "content-security-policy"
    assert page.headers[policy] != both.get("/docs", headers=WITH_KEY).headers[policy]
    for path in ("/nothing", "/gradio_api/file=/etc/passwd", "/gradio_api/mcp"):
        assert both.get(path, headers=WITH_KEY).status_code in (401, 404), path


def test_the_cookie_of_the_page_opens_the_page_alone(both: Running) -> None:
    with httpx.Client(base_url=both.address, timeout=60, verify=PLAIN) as visitor:
        entered = visitor.get("/", params={"token": KEY})
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        assert visitor.get("/").status_code == 200
        assert visitor.get("/v1/models").status_code == 401


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/gradio_api/queue/join"])
def test_others_are_kept_out_of_both(path: str, both: Running) -> None:
    for more in ({"Host": "example.org"}, {"Origin": "https://example.org"}):
        refused = both.post(path, {}, {**WITH_KEY, **more})
        assert refused.status_code == 403, more
    large = both.post(path, bytes(70 * 2**20), WITH_KEY)
    assert large.status_code == 413


def test_one_model_answers_both(both: Running) -> None:
    answer = both.chat(audio(DOG), text(QUESTION), headers=WITH_KEY).json()
    assert answer["choices"][0]["message"]["content"] == "Dog"
    dog = {"files": ("dog.wav", DOG)}
    address = f"{both.address}/gradio_api/upload"
    sent = httpx.post(address, headers=WITH_KEY, files=dog, verify=PLAIN)
    (address,) = sent.json()
    dropped = "/gradio_api/call/ask_dropped"
    given = {"data": [[as_file(address)], "", False, "as recorded"]}
    event = both.post(dropped, given, WITH_KEY).json()["event_id"]
    assert "dog.wav" in both.get(f"{dropped}/{event}", headers=WITH_KEY).text
    assert not list(Path(".").glob("**/dog.wav")), "nothing of it is in the folder of jobs"


def test_a_visitor_who_listens_does_not_keep_it_from_stopping(both: Running) -> None:
    beat = f"{both.address}/gradio_api/heartbeat/abcdefghij"
    with httpx.stream("GET", beat, headers=WITH_KEY, timeout=30, verify=PLAIN) as listening:
        assert listening.status_code == 200
        both.server.should_exit = True
        both.thread.join(20)
        assert not both.thread.is_alive()
