"""What a finished run leaves: the model, its adapter alone if asked for, and a card for each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import NatureLM
from NatureLM.config.load import dump_config
from NatureLM.config.schema import Config, DatasetsConfig, RunConfig
from NatureLM.errors import ConfigError
from NatureLM.training.checkpoint import PARTIAL, remove
from NatureLM.training.data import Data
from NatureLM.training.evaluation import score_lines
from NatureLM.training.objectives import AudioText, Objective
from NatureLM.training.optim import PARTS, NamedParameters, part_of

FINAL, ADAPTER = "final", "adapter"
_USES = {
    "audio-text": (
        'Use it with `naturelm infer --model <this folder> --audio-path <recordings> --query "…"` '
        "or `NatureLM.from_pretrained(<this folder>)`."
    ),
    "text": "It is a base language model: name this folder as `model.llama_path`.",
    "encoder": "It is an audio encoder: name this folder as `model.beats_path`.",
}
_PART_NAMES = {
    "beats": "the audio encoder (BEATs)",
    "qformer": "the Q-Former",
    "projection": "the projection",
    "language_model": "the language model itself",
}
_MOST_ANSWERS = 100


def check_adapter(config: Config, objective: Objective) -> None:
    """Raise ConfigError if `run.save_adapter` asks for an adapter that the run will not have."""
    run = config.run or RunConfig()
    if not run.save_adapter:
        return
    if not isinstance(objective, AudioText):
        raise ConfigError(f"run.save_adapter: a run of the task {run.task} has no adapter")
    if not objective.model.config.lora:
        raise ConfigError("run.save_adapter: the model has no adapter (model.lora)")
    if not config.model.lora:
        raise ConfigError("run.save_adapter: the adapter does not learn (model.lora is false)")


def write_result(
    folder: Path,
    objective: Objective,
    config: Config,
    data: Data,
    scores: dict[str, float],
    *,
    steps: int,
) -> Path:
    """Write `folder/final` with its card, whole or not at all."""

    def write(place: Path) -> None:
        objective.save(place)
        card = _card(config, data, scores, steps=steps)
        (place / "README.md").write_text(card, encoding="utf-8")

    return _whole(folder / FINAL, write)


def write_adapter(
    folder: Path, objective: Objective, parameters: NamedParameters, config: Config
) -> tuple[Path, list[str]]:
    """Write `folder/adapter` in PEFT's format; the folder, and what else learned and is not in it.

    parameters: those that learned
    """
    assert isinstance(objective, AudioText)
    model = objective.model
    learned = {part_of(name) for name, _ in parameters}
    left_out = [_PART_NAMES[part] for part in PARTS if part in learned and part != "lora"]

    def write(place: Path) -> None:
        model.save_adapter(place)
        (place / "README.md").write_text(_adapter_card(config, left_out), encoding="utf-8")

    return _whole(folder / ADAPTER, write), left_out


def _whole(final: Path, write: Callable[[Path], None]) -> Path:
    partial = final.with_name(f"{PARTIAL}{final.name}")
    remove(partial)
    partial.mkdir(parents=True)
    write(partial)
    remove(final)
    os.replace(partial, final)
    return final


def _card(config: Config, data: Data, scores: dict[str, float], *, steps: int) -> str:
    """What it is, what it was trained on and how, scores, and all settings."""
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
    table += [f"| {name} | {value} |" for name, value in score_lines(scores)]
    note = f"On {len(data.valid)} validation rows; 95 % intervals over recordings in brackets:"
    return "\n".join([note, "", *table])


def _adapter_card(config: Config, left_out: list[str]) -> str:
    base = config.model.ckpt or config.model.llama_path
    said = (
        f"The run also trained {', '.join(left_out)}, which an adapter cannot hold: for its "
        f"answers take the whole result, the folder `{FINAL}` beside this one."
        if left_out
        else "Nothing else learned in this run, so the two together answer as its whole result."
    )
    return (
        "---\nlibrary_name: peft\ntags:\n- bioacoustics\n---\n\n"
        f"# Adapter of {Path((config.run or RunConfig()).output_dir).name}\n\n"
        f"LoRA of the language model, for `{Path(base).name if Path(base).is_dir() else base}`: "
        "`naturelm infer --model <that model> --adapter <this folder>`, or "
        "`NatureLM.from_pretrained(<that model>, adapter=<this folder>)`.\n\n"
        f"{said}\n"
    )
