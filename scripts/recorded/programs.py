"""Two recorded programs: one that uses the package from Python, one that opens the page."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CLIPS = ["assets/synthetic_cow.flac", "assets/synthetic_heath_at_dusk.ogg"]
QUERY = "What is the common name for the focal species in the audio?"


def api() -> None:
    """Print what the documented calls give."""
    import torch

    from NatureLM.infer import Pipeline
    from NatureLM.models import NatureLM

    model: Any = NatureLM.from_pretrained("nano/checkpoint")
    small = Pipeline(model)
    pipeline: Any = Pipeline()
    show("texts", pipeline(CLIPS, QUERY, num_beams=1))
    show("two questions", pipeline(CLIPS, [QUERY, "Caption the audio"], alpha=0.5, num_beams=1))
    for mode in ("score", "constrained"):
        found = pipeline.windows(
            CLIPS, QUERY, mode=mode, labels=["Cow", "Barn Owl", "European Nightjar"]
        )
        show(mode, [(one.start, one.text, *rounded(one.alternatives)) for one in found])
    broken = pipeline.windows(["odd/text.wav", "odd/tone.wav"], QUERY, errors="yield")
    show("errors", [type(one).__name__ for one in broken])
    show("stream", list(pipeline.stream(CLIPS[0], QUERY)))
    show("alphas", pipeline.compare_alphas(CLIPS[0], QUERY, [0.0, 0.5, 1.0]))
    with pipeline.conversation(CLIPS[:1]) as talk:
        first, second = "".join(talk.ask(QUERY)), "".join(talk.ask("Is it a bird?"))
        show("conversation", [first, second, talk.positions, talk.prompt])
    show("small", small(["nano/audio/howl_16k.wav"], "What is it?", max_new_tokens=6, num_beams=2))
    prompt = model.processor.render("What is it?")
    wav_BS = 0.1 * torch.sin(torch.arange(2 * model.config.window_samples) / 7).reshape(2, -1)
    audio_BQD = model.encode_audio(wav_BS)
    show("embeddings", [list(audio_BQD.shape), round(audio_BQD.double().mean().item(), 5)])
    audios = [[audio_BQD[0]], [wav_BS[1]]]
    show("generate", model.generate([prompt] * 2, audios, alpha=[1.0, 0.5], max_new_tokens=5))
    batch = {"prompts": [prompt] * 2, "audios": audios, "answers": ["Wolf", "Rain"]}
    show("loss", [round(model.loss(batch, alpha=alpha).loss.item(), 4) for alpha in (1.0, 0.3)])
    with model.fold(0.5):
        show("folded", model.generate([prompt], [audios[0]], alpha=0.5, max_new_tokens=5))
    with model.use_recipe("recipe.yml"):
        show("recipe", model.generate([prompt], [audios[0]], max_new_tokens=5))
    model.save_adapter("adapter")
    model.save_pretrained("saved", max_shard_size="300KB")


def rounded(alternatives: Sequence[tuple[str, float]]) -> Iterator[str]:
    return (f"{label} {share:.5f}" for label, share in alternatives)


def show(name: str, values: Any) -> None:
    """A line, or a line for each of several values."""
    print(name, *(values if isinstance(values, list) else [values]), sep="\n  ")


def app(command: Sequence[str]) -> None:
    """Open the page, keep what it offers in app.json, and end it as the system would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--runs-dir", "runs", "--assets-dir", "assets"]
    with subprocess.Popen([*command, "inference-app", *options], stderr=subprocess.PIPE) as page:
        assert page.stderr is not None
        for line in page.stderr:
            print(line.decode().rstrip())
            if b"is ready" in line:
                break
        address = f"http://127.0.0.1:{port}"
        config = json.loads(urllib.request.urlopen(f"{address}/config").read())
        calls = json.loads(urllib.request.urlopen(f"{address}/gradio_api/info").read())
        os.kill(page.pid, signal.SIGTERM)
        print("exit code", page.wait(60))
    shown = ("elem_id", "label", "value", "choices", "info")
    parts = [
        {"type": one["type"], **{key: one["props"].get(key) for key in shown}}
        for one in config["components"]
    ]
    kept = {"components": parts, "calls": calls["named_endpoints"]}
    Path("app.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    if sys.argv[1] == "api":
        api()
    else:
        app(sys.argv[2:])
