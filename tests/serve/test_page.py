"""The web page at the address of the service: one port, two guards, one model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from served import DOG, QUESTION, Running, audio, serving, text
from web_app import as_file

pytest.importorskip("gradio", reason="gradio is not installed")
KEY = "a-key-of-one-visitor"
WITH_KEY = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """It is stopped by the last test."""
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
    with httpx.Client(base_url=both.address, timeout=60) as visitor:
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
    sent = httpx.post(f"{both.address}/gradio_api/upload", headers=WITH_KEY, files=dog)
    (address,) = sent.json()
    dropped = "/gradio_api/call/ask_dropped"
    given = {"data": [[as_file(address)], "", False, "as recorded"]}
    event = both.post(dropped, given, WITH_KEY).json()["event_id"]
    assert "dog.wav" in both.get(f"{dropped}/{event}", headers=WITH_KEY).text
    assert not list(Path(".").glob("**/dog.wav")), "nothing of it is in the folder of jobs"


def test_a_visitor_who_listens_does_not_keep_it_from_stopping(both: Running) -> None:
    beat = f"{both.address}/gradio_api/heartbeat/abcdefghij"
    with httpx.stream("GET", beat, headers=WITH_KEY, timeout=30) as listening:
        assert listening.status_code == 200
        both.server.should_exit = True
        both.thread.join(20)
        assert not both.thread.is_alive()
