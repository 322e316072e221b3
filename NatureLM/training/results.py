"""What a finished run leaves: the model, and its adapter alone where that is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from NatureLM.config.schema import Config
from NatureLM.config.training import RunConfig
from NatureLM.errors import ConfigError
from NatureLM.training.card import write_card
from NatureLM.training.checkpoints import PARTIAL, remove
from NatureLM.training.data import Data
from NatureLM.training.objectives.audio_text import AudioText
from NatureLM.training.objectives.base import Objective
from NatureLM.training.optim import PARTS, NamedParameters, part_of

FINAL, ADAPTER = "final", "adapter"
_WORDS = {
    "beats": "the audio encoder (BEATs)",
    "qformer": "the Q-Former",
    "projection": "the projection",
    "language_model": "the language model itself",
}


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
        write_card(place, config, data, scores, steps=steps)

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
    left_out = [_WORDS[part] for part in PARTS if part in learned and part != "lora"]

    def write(place: Path) -> None:
        model.save_adapter(place)
        (place / "README.md").write_text(_adapter_card(config, left_out), encoding="utf-8")

    return _whole(folder / ADAPTER, write), left_out


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


def _whole(final: Path, write: Callable[[Path], None]) -> Path:
    partial = final.with_name(f"{PARTIAL}{final.name}")
    remove(partial)
    partial.mkdir(parents=True)
    write(partial)
    remove(final)
    os.replace(partial, final)
    return final
