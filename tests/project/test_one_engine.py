"""Whatever asks a model many questions asks through the engine: no other way is left."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "NatureLM"
CONVERSATION = PACKAGE / "inference" / "conversation.py"  # one row, token by token, KV kept
FOLDERS = ("inference", "experiments", "beans", "cli", "reports", "search", "app")
BESIDE_THE_ENGINE = {"generate", "generate_ids", "encode_audio", "encode_clips", "decode_beams"}
ITS_PARTS = {"decoding", "prefill", "sampling", "beams", "scoring"}


def ways_around(source: str) -> Iterator[str]:
    """Calls of the model's own decoding, and imports of the parts that the engine is made of."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in BESIDE_THE_ENGINE:
                yield f"line {node.lineno} calls {node.func.attr}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "NatureLM.generation."
        ):
            part = str(node.module).rpartition(".")[2]
            if part in ITS_PARTS:
                yield f"line {node.lineno} imports {node.module}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_goes_around_the_engine(folder: str) -> None:
    found = {
        str(path.relative_to(PACKAGE)): ways
        for path in (PACKAGE / folder).rglob("*.py")
        if path != CONVERSATION and (ways := list(ways_around(path.read_text(encoding="utf-8"))))
    }
    assert not found


def test_a_way_around_would_be_seen() -> None:
    assert list(ways_around("texts = model.generate(prompts, audios)"))
    assert list(ways_around("from NatureLM.generation.decoding import Decoder"))
    assert not list(ways_around("answers = Engine(model).run(requests, load)"))
