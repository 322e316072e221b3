"""Files of answers for the tests of scoring."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rapidfuzz")

WriteAnswers = Callable[..., Path]


def row(number: int, label: str, answer: str | None, **more: Any) -> dict[str, Any]:
    """One answer as others write it."""
    base = {"prediction": answer, "label": label, "id": f"s{number:03}", "dataset_name": "watkins"}
    return {**base, "prompt": "", "lora_scale": 1.0, "query": 0, **more}


@pytest.fixture(scope="session")
def make_row() -> Callable[..., dict[str, Any]]:
    """Makes one answer as others write it."""
    return row


@pytest.fixture
def write_answers(tmp_path: Path) -> WriteAnswers:
    """Writes rows (or lines of text) as a file of answers, gzipped where its name says so."""

    def write(rows: Iterable[dict[str, Any] | str], name: str = "answers.jsonl") -> Path:
        lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
        data = "".join(line + "\n" for line in lines).encode(errors="surrogateescape")
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write
