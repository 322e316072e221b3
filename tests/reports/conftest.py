"""Made-up answers for the tests of reports."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rapidfuzz")
pytest.importorskip("matplotlib")

Rows = list[dict[str, Any]]
NAMES = ["Barn Owl", "Black Phoebe", "Common Loon", "Green Heron", "Mallard", "Veery"]
ALPHAS = [0.0, 0.25, 0.5, 0.75, 1.0]


class Page(HTMLParser):
    """What a browser finds in a page: elements, and the texts of scripts by their id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.words: list[str] = []
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs).get("id") or "code"
            self.scripts[self._script] = ""

    def handle_endtag(self, tag: str) -> None:
        self._script = None if tag == "script" else self._script

    def handle_data(self, data: str) -> None:
        if self._script is None:
            self.words.append(data)
        else:
            self.scripts[self._script] += data

    @property
    def charts(self) -> dict[str, Any]:
        """The charts of the page by key."""
        return {chart["key"]: chart for chart in json.loads(self.scripts["chart-data"])}


@pytest.fixture(scope="session")
def read_page() -> Callable[[Path], Page]:
    """Reads the page of a report's folder."""
    return lambda folder: Page((folder / "index.html").read_text("utf-8"))


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., Rows]:
    """Answers that get better with α up to 0.75, in some wordings; two questions."""

    def make(
        names: list[str] = NAMES,
        samples: int = 36,
        dataset: str = "watkins",
        queries: Iterable[Any] = (0, 1),
        alphas: Iterable[float] = ALPHAS,
    ) -> Rows:
        rng = random.Random(3)
        rows = []
        for query in queries:
            for alpha in alphas:
                for number in range(samples):
                    label = names[number % len(names)]
                    is_heard = rng.random() < 0.2 + 0.8 * min(alpha, 1.5 - alpha)
                    heard = label if is_heard else rng.choice(names)
                    text = heard if rng.random() < alpha else f"It may be the {heard}, I think."
                    rows.append(
                        {
                            "prediction": text,
                            "label": label,
                            "id": f"s{number:04}",
                            "dataset_name": dataset,
                            "prompt": f"Question <{query}>?",
                            "lora_scale": alpha,
                            "query": query,
                            "cluster": f"r{number // 3}",
                        }
                    )
        return rows

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as a file of answers."""

    def write(rows: Rows, name: str = "answers.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
