"""A service on a port of its own, and what tests send to it."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import soundfile
from web_app import ASSETS, free_port, started, until

if TYPE_CHECKING:
    from NatureLM.serve.model import ServedModel
    from NatureLM.serve.settings import ServeSettings

DOG = (ASSETS / "synthetic_dog.WAV").read_bytes()
OWL = (ASSETS / "synthetic_barn_owl.flac").read_bytes()
# Addresses of services here are plain; without this each request reads all certificates.
PLAIN = httpx.create_ssl_context(verify=False)
QUESTION = "What is the common name for the focal species in the audio?"


@dataclass
class Running:
    """A service that answers."""

    address: str
    model: ServedModel
    settings: ServeSettings
    server: Any
    thread: threading.Thread

    def client(self, key: str = "none", **more: Any) -> Any:
        """The client of the openai package."""
        openai = pytest.importorskip("openai", reason="openai is not installed")
        http = openai.DefaultHttpxClient(verify=PLAIN)
        address = f"{self.address}/v1"
        return openai.OpenAI(base_url=address, api_key=key, max_retries=0, http_client=http, **more)

    def post(self, path: str, body: Any, headers: Any = None) -> httpx.Response:
        """JSON, or bytes that may be none."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"content-type": "application/json", **(headers or {})}
        return httpx.post(
            f"{self.address}{path}", content=content, headers=kind, timeout=60, verify=PLAIN
        )

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(f"{self.address}{path}", timeout=60, verify=PLAIN, **more)

    def chat(self, *parts: Any, headers: Any = None, **more: Any) -> httpx.Response:
        """The answer to one message of the given parts."""
        return self.post("/v1/chat/completions", message(*parts, **more), headers)

    def figures(self, **more: Any) -> dict[str, float]:
        """What `/metrics` counts, by name."""
        lines = self.get("/metrics", **more).text.splitlines()
        plain = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name: float(value) for name, value in plain}


@contextmanager
def serving(*, wait: bool = True, **settings: Any) -> Iterator[Running]:
    """The service with the embedded model."""
    from NatureLM.serve.model import ServedModel
    from NatureLM.serve.server import _page, make_server
    from NatureLM.serve.settings import ServeSettings

    told = ServeSettings(**{"port": free_port(), **settings})
    model = ServedModel(told)
    with _page(told, model, lambda line: None) as page:
        server = make_server(told, model, page)
        with started(server) as thread:
            until(lambda: not (wait and model.state == "loading"), 90)
            yield Running(f"http://127.0.0.1:{told.port}", model, told, server, thread)


def message(*parts: Any, **more: Any) -> dict[str, Any]:
    """The body of a chat of one message."""
    messages = [{"role": "user", "content": list(parts)}]
    return {"model": "naturelm-tiny", "messages": messages, **more}


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The choices of a chat that is streamed, as they come."""
    lines = answer.text.splitlines()
    return [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]


def streamed_text(answer: httpx.Response) -> str:
    return "".join(one["delta"].get("content") or "" for one in events(answer))


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def audio(data: bytes, form: str = "wav") -> dict[str, Any]:
    encoded = base64.b64encode(data).decode()
    return {"type": "input_audio", "input_audio": {"data": encoded, "format": form}}


def wav(samples: Any, rate: int = 16_000, subtype: str = "PCM_16") -> bytes:
    """A WAV file of samples (samples,) or (samples, channels)."""
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples), rate, format="WAV", subtype=subtype)
    return file.getvalue()


def noise(seconds: float, seed: int = 0) -> Any:
    """White noise (samples,) at 16 kHz."""
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16_000)).clip(-1, 1)
