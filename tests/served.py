"""A service on a port of its own, and what tests send to it."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import soundfile
from web_app import ASSETS, free_port

if TYPE_CHECKING:
    from NatureLM.serve.model import ServedModel
    from NatureLM.serve.settings import ServeSettings

DOG = (ASSETS / "synthetic_dog.WAV").read_bytes()
OWL = (ASSETS / "synthetic_barn_owl.flac").read_bytes()
QUESTION = "What is the common name for the focal species in the audio?"


@dataclass
class Running:
    """A service that answers."""

    address: str
    model: ServedModel
    settings: ServeSettings

    def client(self, key: str = "none", **more: Any) -> Any:
        """The client of the openai package."""
        from openai import OpenAI

        return OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, **more)

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        if body is not None:
            more["json"] = body
        return httpx.post(f"{self.address}{path}", timeout=60, **more)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(f"{self.address}{path}", timeout=60, **more)

    def chat(self, *parts: Any, **more: Any) -> httpx.Response:
        """The answer to one message of the given parts."""
        messages = [{"role": "user", "content": list(parts)}]
        return self.post(
            "/v1/chat/completions", {"model": "naturelm-tiny", "messages": messages, **more}
        )


@contextmanager
def serving(*, wait: bool = True, **settings: Any) -> Iterator[Running]:
    """The service with the embedded model."""
    from NatureLM.serve.model import ServedModel
    from NatureLM.serve.server import make_server
    from NatureLM.serve.settings import ServeSettings

    told = ServeSettings(**{"port": free_port(), **settings})
    model = ServedModel(told)
    server = make_server(told, model)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    running = Running(f"http://127.0.0.1:{told.port}", model, told)
    try:
        while wait and model.state == "loading":
            time.sleep(0.05)
        while not server.started:
            time.sleep(0.01)
        yield running
    finally:
        server.should_exit = True
        thread.join(30)


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
