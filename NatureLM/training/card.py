"""The model card that is written beside a trained model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import NatureLM
from NatureLM.config.load import dump_config
from NatureLM.config.schema import Config
from NatureLM.config.training import DatasetsConfig, RunConfig
from NatureLM.training.data import Data
from NatureLM.training.evaluation import lines

_USES = {
    "audio-text": (
        'Use it with `naturelm infer --model <this folder> --audio-path <recordings> --query "…"` '
        "or `NatureLM.from_pretrained(<this folder>)`."
    ),
    "text": "It is a base language model: name this folder as `model.llama_path`.",
    "encoder": "It is an audio encoder: name this folder as `model.beats_path`.",
}
_MOST_ANSWERS = 100


def write_card(
    folder: Path, config: Config, data: Data, scores: dict[str, float], *, steps: int
) -> None:
    """Write `README.md`: what it is, what it was trained on and how, scores, and all settings."""
    (folder / "README.md").write_text(card(config, data, scores, steps=steps), encoding="utf-8")


def card(config: Config, data: Data, scores: dict[str, float], *, steps: int) -> str:
    """The text of the card."""
    run, datasets = config.run or RunConfig(), config.datasets or DatasetsConfig()
    rows = Counter(example.dataset for example in data.train)
    tasks = Counter(example.task or "(none named)" for example in data.train)
    answers = sorted({example.answer for example in data.train})
    if len(answers) > _MOST_ANSWERS:
        listed = f"{len(answers)} different answers."
    else:
        listed = "Answers it was trained to give: " + "; ".join(answers) + "."
    named = [t for t in (datasets.train_ann_path, *(t.path for t in datasets.train)) if t]
    parts = [
        "---\nlibrary_name: naturelm-audio\ntags:\n- bioacoustics\n---",
        f"# {Path(run.output_dir).name}",
        f"Made with `naturelm train`, naturelm-audio {NatureLM.__version__}. {_USES[run.task]}",
        "## Data",
        "\n".join(f"- {name}: {count} rows" for name, count in rows.most_common()),
        "Tables: " + (", ".join(f"`{Path(name).name}`" for name in named) or "given in Python."),
        "Tasks: " + ", ".join(f"{task} ({count})" for task, count in tasks.most_common()) + ".",
        listed,
        "## Scores",
        _scores(scores, data),
        "## Limits",
        "It knows what its training data shows: other species, places, recorders and questions may "
        "get confident wrong answers. The scores are of one validation table; test it on "
        "recordings of your own before you rely on it.",
        "## Training",
        f"{steps} steps, seed {run.seed}, all settings:",
        f"```yaml\n{dump_config(config).strip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _scores(scores: dict[str, float], data: Data) -> str:
    if not scores:
        return "Not evaluated: no validation table was given."
    table = ["| score | value |", "|---|---|"]
    table += [f"| {name} | {value} |" for name, value in lines(scores)]
    note = f"On {len(data.valid)} validation rows; 95 % intervals over recordings in brackets:"
    return "\n".join([note, "", *table])
