"""Files of answers as `beans score` and `report` read them, and the pages that are made of them."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
NAMES = ["Barn Owl", "Black Phoebe", "Common Loon", "Green Heron", "Mallard", "Veery"]
ALPHAS = [0.0, 0.25, 0.5, 0.75, 1.0]


def row(number: int, label: str, answer: str | None, **more: Any) -> dict[str, Any]:
    """One answer as others write it."""
    base = {"prediction": answer, "label": label, "id": f"s{number:03}", "dataset_name": "watkins"}
    return {**base, "prompt": "", "lora_scale": 1.0, "query": 0, **more}


def write_answers(rows: Iterable[dict[str, Any] | str], name: str = "answers.jsonl") -> Path:
    """Rows (or lines of text) as a file in the working folder, gzipped where its name says so."""
    lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
    data = "".join(line + "\n" for line in lines).encode(errors="surrogateescape")
    path = Path.cwd() / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def varied_rows(
    names: list[str] = NAMES,
    samples: int = 36,
    dataset: str = "watkins",
    queries: Iterable[Any] = (0, 1),
    alphas: Iterable[float] = ALPHAS,
) -> Rows:
    """Answers that get better with α up to 0.75, in some wordings; two questions."""
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


class Page(HTMLParser):
    """What a browser finds in the page of a report: elements, and scripts by their id.

    page: the folder of a report, or the text of its page
    """

    def __init__(self, page: Path | str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.words: list[str] = []
        self._script: str | None = None
        self.feed(page if isinstance(page, str) else (page / "index.html").read_text("utf-8"))

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


class Undrawn(dict[str, str]):
    """In the place of the drawings of a page: nothing for any chart."""

    def __missing__(self, key: str) -> str:
        return '<svg viewBox="0 0 1 1"></svg>'


def weighted_by_hand(true: list[Any], predicted: list[Any]) -> dict[str, float]:
    """Weighted averages of precision, recall and F1, label by label; accuracy, which is top1."""
    sums = dict.fromkeys(("precision", "recall", "f1"), 0.0)
    for label in set(true):
        hits = sum(t == p == label for t, p in zip(true, predicted, strict=True))
        support, answered = true.count(label), predicted.count(label)
        precision, recall = hits / max(answered, 1), hits / support
        sums["precision"] += support * precision
        sums["recall"] += support * recall
        sums["f1"] += support * (2 * precision * recall / (precision + recall or 1))
    sums["accuracy"] = sums["top1"] = float(
        sum(t == p for t, p in zip(true, predicted, strict=True))
    )
    return {name: value / len(true) for name, value in sums.items()}
