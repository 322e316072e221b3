"""Long recordings as subtitles, rows and vectors."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from served import DOG, OWL, PLAIN, QUESTION, Running, audio, noise, serving, wav
from web_app import until

from NatureLM.inference.pipeline import Pipeline
from NatureLM.results.rows import ErrorRow, WindowRow, from_line
from NatureLM.serve.settings import Limits

MODEL = "naturelm-tiny"


@pytest.fixture(scope="module")
def recording() -> bytes:
    """25 s: an owl, then nothing, then a dog."""
    parts = []
    for data in (OWL, None, DOG):
        samples, rate = (np.zeros(160_000), 16_000) if data is None else _read(data)
        wanted = np.zeros(10 * rate)
        wanted[: min(len(samples), len(wanted))] = samples[: len(wanted)]
        parts.append(wanted[:: max(1, rate // 16_000)])
    return wav(np.concatenate(parts)[:400_000])


def _read(data: bytes) -> tuple[Any, int]:
    samples, rate = soundfile.read(io.BytesIO(data))
    return (samples if samples.ndim == 1 else samples.mean(axis=1)), rate


def send(service: Running, path: str, data: bytes, **fields: Any) -> httpx.Response:
    files = {"file": ("night at the lake.wav", data)}
    address = f"{service.address}{path}"
    return httpx.post(address, files=files, data=fields, timeout=60, verify=PLAIN)


def rows(answer: httpx.Response) -> list[WindowRow | ErrorRow]:
    lines = answer.content.splitlines(keepends=True)
    return [from_line(line, "answer", number) for number, line in enumerate(lines, start=1)]


def test_rows_are_those_of_infer(service: Running, recording: bytes, tmp_path: Path) -> None:
    pipeline: Pipeline = service.model.pipeline
    (tmp_path / "a.wav").write_bytes(recording)
    expected = list(pipeline.windows(str(tmp_path / "a.wav"), [[QUESTION, "Is it a bird?"]]))
    answer = send(service, "/v1/windows", recording, query=[QUESTION, "Is it a bird?"])
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    found = rows(answer)
    assert len(found) == len(expected) == 6
    for row, one in zip(found, expected, strict=True):
        assert isinstance(row, WindowRow)
        assert (row.start, row.end, row.query, row.text, row.note) == (
            one.start, one.end, one.query, one.text, one.note,
        )  # fmt: skip
        assert (row.confidence or 0) == pytest.approx(one.confidence or 0, rel=1e-3)
        assert (row.confidence or 0) == round(row.confidence or 0, 6), "as files have it"
        assert row.audio_path == "night at the lake.wav"
    assert len({row.run for row in found}) == 1


def test_a_damaged_recording_ends_with_a_row_that_says_so(service: Running) -> None:
    file = io.BytesIO()
    soundfile.write(file, noise(40), 16_000, format="FLAC")
    data = bytearray(file.getvalue())
    middle = len(data) // 2
    data[middle : middle + 4000] = b"\0" * 4000
    answer = send(service, "/v1/windows", bytes(data))
    if answer.status_code == 200:
        found = rows(answer)
        assert isinstance(found[-1], ErrorRow)
        assert "/" not in found[-1].error
    else:
        assert answer.status_code == 400


def test_names_are_scored_in_every_window(service: Running, recording: bytes) -> None:
    names = ["Barn Owl", "Dog"]
    found = rows(
        send(service, "/v1/windows", recording, species_list=names, hop_length_seconds="5")
    )
    asked = [row for row in found if isinstance(row, WindowRow) and not row.note]
    assert {row.text for row in asked} <= {*names, "None"}
    assert all(row.confidence is not None and row.alternatives for row in asked)


@pytest.mark.parametrize("form", ["json", "text", "srt", "vtt", "verbose_json"])
def test_a_transcription_has_the_asked_form(service: Running, recording: bytes, form: str) -> None:
    answer = send(service, "/v1/audio/transcriptions", recording, model=MODEL, response_format=form)
    assert answer.status_code == 200, answer.text
    if form == "json":
        assert set(answer.json()) == {"text"}
    elif form == "verbose_json":
        found = answer.json()
        assert found["duration"] == 25.0
        assert [(one["start"], one["end"]) for one in found["segments"]] == [
            (0.0, 10.0), (10.0, 20.0), (20.0, 25.0),
        ]  # fmt: skip
        assert (found["segments"][1]["text"], found["segments"][1]["note"]) == ("", "silent")
    elif form == "srt":
        assert answer.text.startswith("1\n00:00:00,000 --> 00:00:10,000\n")
        assert "2\n00:00:20,000 --> 00:00:25,000\n" in answer.text, "silence has no subtitle"
    elif form == "vtt":
        assert answer.text.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:10.000\n")


def test_the_client_of_openai_reads_transcriptions(service: Running, recording: bytes) -> None:
    client = service.client()

    def file() -> Any:
        return "night.wav", io.BytesIO(recording)

    whole = client.audio.transcriptions.create(
        model=MODEL, file=file(), prompt=QUESTION, response_format="verbose_json"
    )
    assert [one.text for one in whole.segments if one.text]
    events = list(
        client.audio.transcriptions.create(model=MODEL, file=file(), prompt=QUESTION, stream=True)
    )
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == whole.text
    deltas = [one.delta for one in events if one.type == "transcript.text.delta"]
    assert "".join(deltas) == whole.text


@pytest.mark.parametrize("least", ["0", "1"])
def test_subtitles_come_as_they_are_made(service: Running, recording: bytes, least: str) -> None:
    """Where the answer is `None`, as it is below `min_confidence`, nothing is shown."""
    fields = {"model": MODEL, "response_format": "srt", "min_confidence": least}
    whole = send(service, "/v1/audio/transcriptions", recording, **fields)
    streamed = send(service, "/v1/audio/transcriptions", recording, stream="true", **fields)
    assert streamed.text == whole.text
    assert "None" not in whole.text
    assert ("-->" in whole.text) == (least == "0")


def test_answers_cannot_break_subtitles() -> None:
    from NatureLM.inference.windows import WindowResult
    from NatureLM.serve.recordings import subtitles

    text = "one\n\n2\n00:00:00,000 --> 00:00:01,000\n<b>&"
    one = WindowResult("a", 0.0, 3600.5, "q", text, 1.0, prompt="", window_index=0)

    def cues(form: str) -> Iterator[str]:
        return subtitles([one], form)

    assert "".join(cues("srt")).count("-->") == 1
    assert "".join(cues("srt")).count("\n\n") == 1
    assert "&lt;b&gt;&amp;" in "".join(cues("vtt"))
    assert "01:00:00.500" in "".join(cues("vtt"))


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("/v1/windows", {"hop_length_seconds": "0"}, "hop_length_seconds"),
        ("/v1/windows", {"time_expansion": "900"}, "time expansion"),
        ("/v1/windows", {"channel": "9"}, "channel"),
        ("/v1/windows", {"mode": "score"}, "labels"),
        ("/v1/windows", {"query": ["x"] * 65}, "limit 'questions'"),
        ("/v1/windows", {"folder": "/etc"}, "not understood"),
        ("/v1/windows", {"window_length_seconds": "60"}, "10 s"),
        ("/v1/audio/transcriptions", {}, "model: is missing"),
        ("/v1/audio/transcriptions", {"model": "whisper-1"}, "not served here"),
        ("/v1/audio/transcriptions", {"model": MODEL, "response_format": "doc"}, "verbose_json"),
        ("/v1/audio/transcriptions", {"model": MODEL, "temperature": "0.7"}, "temperature"),
    ],
)  # fmt: skip
def test_fields_without_meaning_are_refused(
    service: Running, path: str, fields: dict[str, Any], words: str
) -> None:
    answer = send(service, path, DOG, **fields)
    assert answer.status_code in (400, 404), answer.text
    assert words in answer.json()["error"]["message"]


def test_more_answers_than_are_allowed_are_refused_before_the_first() -> None:
    with serving(limits=Limits(rows=5)) as service:
        few = send(service, "/v1/windows", DOG, query=["x"] * 5)
        assert few.status_code == 200
        many = send(service, "/v1/windows", DOG, query=["x"] * 6)
        assert "6 answers, and 5 are allowed; the limit 'rows'" in many.text


@pytest.mark.parametrize("data", [b"", b"hello", b"RIFF\0\0\0\0WAVE", OWL[:100]])
def test_a_file_that_is_no_recording_is_refused(service: Running, data: bytes) -> None:
    answer = send(service, "/v1/windows", data)
    assert answer.status_code == 400
    assert "/tmp" not in answer.text
    assert answer.json()["error"]["param"] == "file"


def test_a_form_without_a_file_is_refused(service: Running) -> None:
    address = f"{service.address}/v1/windows"
    answer = httpx.post(address, data={"query": "x"}, verify=PLAIN)
    assert answer.status_code == 400
    none = httpx.post(address, files={"other": ("a.wav", DOG)}, verify=PLAIN)
    assert "file" in none.json()["error"]["message"]


def test_nothing_is_left_of_recordings(service: Running, recording: bytes) -> None:
    send(service, "/v1/windows", recording)
    address, files = f"{service.address}/v1/windows", {"file": ("a.wav", recording)}
    with httpx.stream("POST", address, files=files, verify=PLAIN) as answer:
        next(answer.iter_bytes())
    until(lambda: not list(service.model.folder.iterdir()))


def test_vectors_are_those_of_embed(service: Running, tmp_path: Path) -> None:
    from NatureLM.audio.windows import iter_windows
    from NatureLM.search.build import Embedder

    (tmp_path / "a.wav").write_bytes(DOG)
    model = service.model.pipeline.model
    for layer in ("encoder", "projected"):
        expected = Embedder(model, layer).vectors(list(iter_windows(tmp_path / "a.wav")))[0]
        body = {"model": MODEL, "input": [audio(DOG), audio(OWL)], "layer": layer}
        found = service.post("/v1/embeddings", body).json()
        assert [one["index"] for one in found["data"]] == [0, 1]
        np.testing.assert_allclose(found["data"][0]["embedding"], expected, rtol=1e-4, atol=1e-5)
    coded = service.post("/v1/embeddings", {**body, "encoding_format": "base64"}).json()
    floats = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(floats, expected, rtol=1e-4, atol=1e-5)


def test_the_client_of_openai_reads_vectors(service: Running) -> None:
    address = f"data:audio/wav;base64,{base64.b64encode(DOG).decode()}"
    found = service.client().embeddings.create(model=MODEL, input=[address])
    assert len(found.data[0].embedding) > 100
    refused = service.post("/v1/embeddings", {"model": MODEL, "input": "a text"})
    assert "only sound has a vector" in refused.json()["error"]["message"]
    assert json.loads(refused.text)["error"]["param"] == "input[0]"
