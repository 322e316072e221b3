"""Pictures of a run of the recipe: learning curves of its stages, and what is taken for what.

`python -m recipes.tiny.pictures --run OUT --answers answers.jsonl --output-path FOLDER`;
the answers are those of `recipes.tiny.evaluate --answers`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from NatureLM.errors import UsageError
from NatureLM.reports.figures import need_matplotlib
from recipes import Arguments, program

Row = dict[str, Any]
Curve = tuple[list[float], list[float]]
OTHER = "anything else"


def read_rows(path: Path) -> list[Row]:
    """JSON lines; none if the file is not there."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def curve(rows: Sequence[Row], value: str, **wanted: Any) -> Curve:
    """Steps and values of the rows that have the value and all of `wanted`."""
    chosen = [
        row
        for row in rows
        if value in row and "step" in row and all(row.get(k) == v for k, v in wanted.items())
    ]
    return [row["step"] for row in chosen], [row[value] for row in chosen]


def stage_curves(run: Path) -> dict[str, dict[str, Curve]]:
    """Title of a panel → name of a line → its curve."""
    text, audio, polish, encoder = (
        read_rows(run / stage / "log.jsonl")
        for stage in ("text/run", "audio/run", "polish/run", "encoder/listener")
    )
    teachers = sorted((run / "teachers").glob("teacher_*/log.jsonl"))
    return {
        "text: loss": {
            "training": curve(text, "loss", kind="train"),
            "unseen wordings": curve(text, "loss", kind="valid"),
        },
        "teachers and encoder: accuracy on valid": {
            **{
                path.parent.name.replace("_", " "): curve(read_rows(path), "accuracy", kind="valid")
                for path in teachers
            },
            "encoder": curve(encoder, "accuracy", kind="valid"),
        },
        "audio: loss": {
            "training": curve(audio, "loss", kind="train"),
            "valid, unseen wordings": curve(audio, "loss", kind="valid"),
        },
        "polish, from the teachers' answers: loss": {
            "training": curve(polish, "loss", kind="train")
        },
    }


def confusions(answers: Sequence[Row], question: str) -> tuple[list[str], list[list[int]]]:
    """Labels that occur (and `OTHER`), and counts (truth × answer) of a question."""
    asked = [row for row in answers if row["question"] == question]
    if not asked:
        raise UsageError(f"the answers hold none to the question {question!r}")
    labels = sorted({row["truth"] for row in asked})
    counts = Counter(
        (row["truth"], row["answer"] if row["answer"] in labels else OTHER) for row in asked
    )
    columns = [*labels, OTHER]
    return columns, [[counts[truth, answer] for answer in columns] for truth in labels]


def draw_curves(run: Path, path: Path) -> None:
    """One panel for each stage."""
    panels = stage_curves(run)
    with svg_figure(path, len(panels), (16, 3.8)) as (_, axes):
        for axis, (title, lines) in zip(axes, panels.items(), strict=True):
            for name, (steps, values) in lines.items():
                axis.plot(steps, values, label=name, linewidth=1.5)
            axis.set(title=title, xlabel="updates")
            axis.grid(alpha=0.3)
            axis.legend(frameon=False, fontsize=9)
            if "loss" in title:
                axis.set_yscale("log")


def draw_confusions(answers: Sequence[Row], question: str, path: Path) -> None:
    """Truth in rows, answers in columns, shares of a row as shades, counts as numbers."""
    columns, counts = confusions(answers, question)
    shares = [[n / max(sum(row), 1) for n in row] for row in counts]
    size = 0.24 * len(columns) + 2.5
    with svg_figure(path, 1, (size, size)) as (_, (axis,)):
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for y, row in enumerate(counts):
            for x, count in enumerate(row):
                if count:
                    color = "white" if shares[y][x] > 0.6 else "black"
                    axis.text(x, y, count, ha="center", va="center", fontsize=7, color=color)
        axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8)
        axis.set_yticks(range(len(counts)), columns[: len(counts)], fontsize=8)
        axis.set(
            xlabel="answer", ylabel="truth", title=f"{question}: {sum(map(sum, counts))} clips"
        )


@contextmanager
def svg_figure(
    path: Path, columns: int, size: tuple[float, float], **options: Any
) -> Iterator[tuple[Any, Any]]:
    """A figure with a row of axes, written to `path` when the block ends; the same bytes each time.

    size: width and height in inches; options: those of matplotlib's `subplots`

    Raises UsageError without matplotlib.
    """
    need_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {"svg.hashsalt": "naturelm", "svg.fonttype": "none", "font.size": 10}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.subplots(1, columns, squeeze=False, **options)[0]
        figure.savefig(path, metadata={"Date": None})


@program
def main(arguments: Arguments) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny.pictures")
    parser.add_argument("--run", type=Path, required=True, help="the recipe's output folder")
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--output-path", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.output_path.mkdir(parents=True, exist_ok=True)
    draw_curves(options.run, options.output_path / "tiny-learning-curves.svg")
    answers = read_rows(options.answers)
    draw_confusions(answers, "common name", options.output_path / "tiny-confusions.svg")


if __name__ == "__main__":
    sys.exit(main())
