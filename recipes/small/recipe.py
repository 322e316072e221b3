"""naturelm-small from the embedded model's encoder and SmolLM2-135M-Instruct, in four stages.

words: the projection begins where sounds are near the words for them (`words.py`)
listen: projection and Q-Former learn, the language model stays (`configs/small/listen.yml`)
answer: LoRA learns all tasks in fixed wordings, all else stays (`configs/small/answer.yml`)
replay: the same from the same start, with text beside the sounds (`configs/small/replay.yml`)

The last three are `naturelm train`. A finished stage is kept, so that a run which was cut off goes
on with the next one.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from NatureLM.config import Config
from NatureLM.errors import UsageError
from NatureLM.models import NatureLM
from NatureLM.models.audio_side import AudioSizes
from NatureLM.models.checkpoint.gguf import base_folder
from NatureLM.models.checkpoint.tensors import of_language_model, state_of, write_tensors
from NatureLM.models.configuration import NatureLMConfig
from NatureLM.util import is_out_of_memory, write_text
from recipes.small.texts import replay_rows
from recipes.small.words import PROJECTION, write_projection
from recipes.tiny import wordings
from recipes.tiny.architecture import WINDOW_DELAYS
from recipes.tiny.data import Row, audio_rows, read_clips, training_clips, write_rows
from recipes.tiny.recipe import filled, read_config_file, with_model

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
STAGES = ("words", "listen", "answer", "replay")
_TRAINED = STAGES[1:]
# Every task is asked in two wordings: what is fixed is what an adapter comes to expect.
FIXED = {family: texts[:2] for family, texts in wordings.SEEN.items()}
_TEXTS = 40  # instructions whose answers are replayed
_LEAST_ROWS = 8


@dataclass(frozen=True)
class Recipe:
    """What a run makes.

    base: folder of the language model
    texts: table of the replayed answers; None asks the base model
    steps: updates of each stage; None takes those of the configuration files
    seconds: that all stages together may take for their updates; None is no limit
    device: where training runs, as in `run.device`
    batch: clips of a step; None takes those of the configuration files
    """

    base: str = BASE
    texts: Path | None = None
    steps: int | None = None
    seconds: float | None = None
    device: str = "auto"
    batch: int | None = None
    seed: int = 1


class Run:
    """A run of the recipe into one folder."""

    def __init__(self, recipe: Recipe, data: Path, output: Path, configs: Path) -> None:
        self.recipe, self.output = recipe, output
        self.configs = {name: read_config_file(configs / f"{name}.yml") for name in _TRAINED}
        self.clips = training_clips(read_clips(data.resolve()))
        output.mkdir(parents=True, exist_ok=True)

    def run(self) -> Path:
        """All stages; returns the folder of the finished model."""
        for name in STAGES:
            self.stage(name)
        return self.deliver()

    def stage(self, name: str) -> None:
        """Train a stage, unless its result is there already."""
        folder, since = self.output / name, time.monotonic()
        if (folder / "finished").is_file():
            return
        if folder.exists():
            shutil.rmtree(folder)
        if name == "words":
            base = base_folder(self.recipe.base, Path("."), weights=True)
            write_projection(self.clips, base, folder)
        else:
            self._write_tables(name, folder / "tables")
            _train(self._config(name, folder))
        write_text(folder / "finished", f"{time.monotonic() - since:.0f} s\n")

    def _config(self, name: str, folder: Path) -> Config:
        recipe = self.recipe
        config = filled(self.configs[name], folder / "tables", folder / "run", recipe.steps)
        parts = {"llama_path": recipe.base}
        if name == "listen":
            parts["audio_llama_proj_model"] = str(self.output / "words" / PROJECTION)
        else:
            start = str(self.output / "listen" / "run" / "final")
            names = ("beats_path", "qformer_path", "audio_llama_proj_model")
            parts |= dict.fromkeys(names, start)
        changes: dict[str, Any] = {"device": recipe.device}
        if recipe.seconds is not None:
            changes["max_seconds"] = recipe.seconds / len(_TRAINED)
        if recipe.batch is not None:
            changes["batch_size_train"] = recipe.batch
        assert config.run is not None
        run = config.run.model_copy(update=changes)
        return with_model(config.model_copy(update={"run": run}), model=parts)

    def _write_tables(self, name: str, tables: Path) -> None:
        rows = list(
            audio_rows(
                self.clips, self.recipe.seed, no_animal=0.3, absent=0.1, among=FIXED, longest=6
            )
        )
        write_rows(rows, tables / "audio.jsonl")
        if name == "replay":
            # as heavy together as the sounds, so that the tables' weights are the shares of draws
            heavy = sum(float(row["weight"]) for row in rows)
            texts = list(self._texts())
            write_rows(_weighted(texts, heavy / len(texts)), tables / "replay.jsonl")

    def _texts(self) -> Iterator[Row]:
        if self.recipe.texts is not None:
            with self.recipe.texts.open(encoding="utf-8") as file:
                yield from map(json.loads, file)
            return
        model = NatureLM.from_pretrained(self.output / "listen" / "run" / "final")
        yield from replay_rows(model, _TEXTS, self.recipe.seed)

    def deliver(self) -> Path:
        """The partial checkpoint, and the adapter of the stage "replay" beside it."""
        folder = self.output / "model"
        model = NatureLM.from_pretrained(self.output / "answer" / "run" / "final")
        model.config.window_delays = list(WINDOW_DELAYS)
        save_partial(model, folder)
        other: Any = NatureLM.from_pretrained(self.output / "replay" / "run" / "final")
        other.half().save_adapter(folder / "replay")
        return folder


def _weighted(rows: Iterable[Row], weight: float) -> Iterator[Row]:
    for row in rows:
        yield {**row, "weight": round(weight, 6)}


def _train(config: Config) -> None:
    """`naturelm train`, with fewer rows at a time where a card's memory runs out."""
    from NatureLM.training.train import train

    assert config.run is not None
    rows = config.run.rows_per_pass
    while True:
        run = config.run.model_copy(update={"rows_per_pass": rows})
        try:
            train(config.model_copy(update={"run": run}))
            return
        except RuntimeError as error:
            if not is_out_of_memory(error) or rows <= _LEAST_ROWS:
                raise
        rows //= 2
        shutil.rmtree(Path(config.run.output_dir), ignore_errors=True)
        torch.cuda.empty_cache()


# Keys of the configuration that the language model's own files say, or that only loading needs.
_LEFT_OUT = frozenset({"text_config", "model_type", "llama_path", "quantized"})


def save_partial(model: NatureLM, folder: Path, base: str = BASE) -> None:
    """Write what differs from the base language model, in float16: the published layout.

    base: what `llama_path` will say
    """
    if not model.config.lora:
        raise UsageError("a model without an adapter has nothing of its own in its language model")
    folder.mkdir(parents=True, exist_ok=True)
    own = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in state_of(model).items()
        if not of_language_model(name) or ".lora_" in name
    }
    write_tensors(own, folder)
    known = (AudioSizes.__annotations__ | NatureLMConfig.__annotations__).keys() - _LEFT_OUT
    values = {name: value for name, value in model.config.to_dict().items() if name in known}
    text = json.dumps({"llama_path": base, **values}, indent=2, sort_keys=True)
    write_text(folder / "config.json", text + "\n")
