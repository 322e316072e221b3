"""What the server of the review page gives away, takes and refuses."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from commands import naturelm
from review_folders import make_clips

from NatureLM.errors import UsageError
from NatureLM.review.folder import VerdictStore, read_verdicts
from NatureLM.review.server import Clips, ReviewSettings, guarded, review_app

testclient = pytest.importorskip("starlette.testclient")
Image = pytest.importorskip("PIL.Image")
HOST = "http://localhost:5002"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_clips(tmp_path / "clips")
    return tmp_path / "clips"


@pytest.fixture
def clips(folder: Path) -> Iterator[Clips]:
    opened = Clips(folder)
    yield opened
    opened.close()


@pytest.fixture
def client(clips: Clips, folder: Path) -> Any:
    return asking(clips, ReviewSettings(folder))


def asking(clips: Clips, settings: ReviewSettings, host: str = HOST) -> Any:
    app = guarded(review_app(lambda _: clips), settings)
    return testclient.TestClient(app, base_url=host, follow_redirects=False)


def judge(client: Any, clip: str, reviewer: str, verdict: str) -> Any:
    sent = {"clip": clip, "reviewer": reviewer, "verdict": verdict}
    return client.post("/api/verdicts", json=sent)


def test_the_page_is_there_without_anything_of_elsewhere(client: Any) -> None:
    page = client.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy
    for name in ("review.js", "clips.js", "saving.js", "review.css"):
        assert client.get(f"/{name}").status_code == 200
        assert "http" not in client.get(f"/{name}").text
    assert " style=" not in page.text
    assert " onclick=" not in page.text


def test_clips_are_told_without_folders_of_the_computer(client: Any, clips: Clips) -> None:
    told = client.get("/api/clips").json()
    first = told["clips"][0]
    assert first["label"] == "Common Cuckoo"
    assert first["recording"] == "dawn.wav"
    assert (first["from"], first["to"]) == pytest.approx((0.1, 1.1))
    assert "/card/" not in client.get("/api/clips").text
    assert str(clips.folder) not in told["id"]


@pytest.mark.parametrize(
    ("rate", "slowed", "played"), [(16_000, 1, 16_000), (192_000, 10, 19_200), (16_000, 10, 8000)]
)
def test_a_slowed_clip_lasts_longer_and_is_lower(
    tmp_path: Path, rate: int, slowed: int, played: int
) -> None:
    make_clips(tmp_path, 2, rate=rate)
    clips = Clips(tmp_path)
    client = asking(clips, ReviewSettings(tmp_path))
    answer = client.get(f"/api/clips/1/sound?slowed={slowed}")
    wave, heard = soundfile.read(io.BytesIO(answer.content))
    clips.close()
    assert heard == played
    assert len(wave) / heard == pytest.approx(1.2 * slowed, abs=0.01)
    loudest = np.abs(np.fft.rfft(wave)).argmax() * heard / len(wave)
    assert loudest == pytest.approx(1000 / slowed, rel=0.02)


@pytest.mark.parametrize(("top", "hertz"), [(12_000, 12_000), (8000, 8000), (0, 24_000)])
def test_a_picture_goes_as_high_as_is_asked(tmp_path: Path, top: int, hertz: int) -> None:
    make_clips(tmp_path, 1, rate=48_000)
    clips = Clips(tmp_path)
    answer = asking(clips, ReviewSettings(tmp_path)).get(f"/api/clips/0/picture?top={top}")
    clips.close()
    assert float(answer.headers["x-hertz"]) == hertz
    assert float(answer.headers["x-seconds"]) == pytest.approx(1.2)
    bright = np.asarray(Image.open(io.BytesIO(answer.content))).max(axis=1).argmax()
    assert 1 - bright / 160 == pytest.approx(500 / hertz, abs=0.02)


def test_what_others_say_is_told_to_who_is_through(client: Any, clips: Clips) -> None:
    names = list(clips.numbers)
    for clip in names:
        assert judge(client, clip, "Ben", "no").status_code == 200
    for clip in names[1:]:
        judge(client, clip, "Ann", "yes")
    before = client.get("/api/verdicts?reviewer=Ann").json()
    assert before["verdicts"] == [[1, "yes"], [2, "yes"], [3, "yes"]]
    assert before["others"] is None
    assert '"no"' not in client.get("/api/verdicts?reviewer=Ann").text
    judge(client, names[0], "Ann", "yes")
    through = client.get("/api/verdicts?reviewer=Ann").json()
    assert through["others"] == {"Ben": {str(number): "no" for number in range(4)}}


def test_a_verdict_is_on_the_disk_when_it_is_answered(
    client: Any, clips: Clips, folder: Path
) -> None:
    clip = next(iter(clips.numbers))
    assert judge(client, clip, " Ann  Lee ", "unsure").json()["verdict"] == "unsure"
    (kept,) = read_verdicts(folder)
    assert (kept.clip, kept.reviewer, kept.verdict) == (clip, "Ann Lee", "unsure")
    judge(client, clip, "Ann Lee", "")
    assert read_verdicts(folder) == []


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        ({"clip": "gone.wav", "reviewer": "Ann", "verdict": "yes"}, 409, "load the page anew"),
        (
            {"clip": "../segments.csv", "reviewer": "Ann", "verdict": "yes"},
            409,
            "not in the folder",
        ),
        ({"clip": None}, 409, "not in the folder"),
        ([1], 400, "a JSON object"),
        ({"clip": 0, "reviewer": "", "verdict": "yes"}, 400, "the reviewer's name"),
        ({"clip": 0, "reviewer": "Ann", "verdict": "maybe"}, 400, "must be yes, no or unsure"),
        ({"clip": 0, "reviewer": "Ann"}, 400, "must be yes, no or unsure"),
        ({"clip": 0, "reviewer": "Ann", "verdict": ["yes"]}, 400, "must be yes, no or unsure"),
    ],
)
def test_what_is_no_verdict_is_refused(
    client: Any, clips: Clips, sent: Any, status: int, said: str
) -> None:
    if isinstance(sent, dict) and sent["clip"] == 0:
        sent = {**sent, "clip": next(iter(clips.numbers))}
    answer = client.post("/api/verdicts", json=sent)
    assert answer.status_code == status
    assert said in answer.json()["detail"]
    assert clips.store.verdicts() == []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/clips/4/sound", 400),
        ("/api/clips/99999999/sound", 404),
        ("/api/clips/-1/sound", 404),
        ("/api/clips/0/sound?slowed=3", 400),
        ("/api/clips/0/picture?top=1e9", 400),
        ("/api/clips/segments.csv/sound", 404),
        ("/segments.csv", 404),
        ("/review.csv", 404),
        ("/%2e%2e/pyproject.toml", 404),
        ("/server.py", 404),
    ],
)
def test_nothing_but_clips_by_their_numbers(client: Any, path: str, status: int) -> None:
    assert client.get(path).status_code == status


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_no_link_leads_out_of_the_folder(client: Any, clips: Clips, tmp_path: Path) -> None:
    inside, outside = clips.folder / clips.segments[0].clip, tmp_path / "secret.wav"
    inside.rename(outside)
    inside.symlink_to(outside)
    answer = client.get("/api/clips/0/sound")
    assert answer.status_code == 400
    assert "is not in the folder any more" in answer.json()["detail"]
    assert client.get("/api/clips/1/sound").status_code == 200


def test_a_clip_that_is_damaged_is_named_without_its_folder(client: Any, clips: Clips) -> None:
    (clips.folder / clips.segments[0].clip).write_bytes(b"RIFF")
    answer = client.get("/api/clips/0/picture")
    assert answer.status_code == 400
    assert clips.segments[0].clip in answer.json()["detail"]
    assert str(clips.folder) not in answer.json()["detail"]


def test_other_names_other_sites_and_who_has_no_token_stay_out(clips: Clips, folder: Path) -> None:
    client = asking(clips, ReviewSettings(folder))
    assert client.get("/api/clips", headers={"host": "evil.example"}).status_code == 403
    other = {"origin": "http://evil.example", "sec-fetch-site": "cross-site"}
    sent = {"clip": clips.segments[0].clip, "reviewer": "Ann", "verdict": "yes"}
    assert client.post("/api/verdicts", json=sent, headers=other).status_code == 403
    assert client.post("/api/verdicts", content=b" " * 10_000).status_code == 413

    locked = ReviewSettings(folder, reviewer="Ann Lee", host="0.0.0.0", token="t" * 20)
    assert asking(clips, locked).get("/api/clips").status_code == 401
    visitor = asking(clips, locked)
    address = locked.address("localhost")
    assert address == f"{HOST}/?token={'t' * 20}&reviewer=Ann+Lee"
    led = visitor.get(address.removeprefix(HOST))
    assert led.headers["location"] == "/?reviewer=Ann+Lee"
    assert visitor.get("/api/clips").status_code == 200


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--token", "short"], "--token has 5 characters"),
        (["--token", "t" * 20, "--no-token"], "--token and --no-token exclude each other"),
        (["--reviewer", " "], "the reviewer's name has 0 characters"),
    ],
)
def test_the_command_refuses_what_cannot_be(folder: Path, arguments: list[str], said: str) -> None:
    result = naturelm("review", folder, *arguments)
    assert result.exit_code != 0
    assert said in result.output


def test_a_folder_without_clips_or_in_use_is_refused(tmp_path: Path, folder: Path) -> None:
    result = naturelm("review", tmp_path)
    assert result.exit_code != 0
    assert "naturelm segments" in result.output
    with VerdictStore(folder):
        result = naturelm("review", folder)
    assert "another program has this review open" in result.output
    make_clips(tmp_path / "none", 0)
    with pytest.raises(UsageError, match="nothing to review"):
        Clips(tmp_path / "none")
