"""The embedded model from nothing, in three stages whose results are kept and reused.

text: a small Llama learns instructions (`naturelm train`, configs/tiny/text.yml)
encoder: BEATs learns to tell the sounds apart (`encoder.py`)
audio: the whole model learns to answer about recordings (`naturelm train`, configs/tiny/audio.yml)

A stage whose settings changed, and every stage after it, is made anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.audio import probe
from NatureLM.config import Config, load_config
from NatureLM.errors import UsageError
from NatureLM.training.tiny.architecture import language_model_config
from NatureLM.training.tiny.card import write_card
from NatureLM.training.tiny.encoder import EncoderSettings, settings_as_dict, train_encoder
from NatureLM.training.tiny.evaluate import evaluate
from NatureLM.training.tiny.sounds import Clip, clips_of, read_clips, training_clips
from NatureLM.training.tiny.tables import audio_rows, text_rows, write_rows
from NatureLM.training.tiny.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from NatureLM.models import NatureLM

STAGES = ("text", "encoder", "audio")


@dataclass(frozen=True)
class Recipe:
    """Lengths of the stages.

    steps: updates of the text and audio stages; None takes those of the configuration files
    clips_per_class: most training clips of a class; None takes all
    held_out: training fold that is kept for choosing settings
    measured: whether the model is measured on the test splits in the end
    """

    seed: int = 1
    text_count: int = 240_000
    text_steps: int | None = None
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    audio_steps: int | None = None
    clips_per_class: int | None = None
    held_out: str | None = None
    measured: bool = True

    @classmethod
    def short(cls) -> Recipe:
        """All stages within two minutes: shows that they work, not what they can do."""
        return cls(
            text_count=2_000,
            text_steps=12,
            encoder=EncoderSettings(steps=8),
            audio_steps=4,
            clips_per_class=2,
            measured=False,
        )


class Run:
    """A run of the recipe into one folder."""

    def __init__(self, recipe: Recipe, data: Path, output: Path, configs: Path) -> None:
        self.recipe = recipe
        self.data = data
        self.output = output
        self.text_config = _config(configs / "text.yml")
        self.audio_config = _config(configs / "audio.yml")
        clips = read_clips(data)
        self.clips = list(_at_most(training_clips(clips, recipe.held_out), recipe.clips_per_class))
        self.labels = sorted({clip.label for clip in training_clips(clips)})
        self.valid = clips_of(clips, "valid")
        if recipe.held_out:
            self.valid += clips_of(clips, recipe.held_out)
        if recipe.clips_per_class:
            self.valid = self.valid[:8]
        output.mkdir(parents=True, exist_ok=True)

    def run(self) -> Path:
        """All stages; returns the folder of the finished model."""
        identity = ""
        for name, settings in zip(STAGES, self._settings(), strict=True):
            identity = _digest(identity, settings)
            folder = self.output / name
            if _finished(folder) == identity:
                self.log({"stage": name, "event": "reused"})
                continue
            if (folder / "identity").is_file() and _read(folder / "identity") != identity:
                shutil.rmtree(folder)
            folder.mkdir(exist_ok=True)
            (folder / "identity").write_text(identity)
            since = time.monotonic()
            {"text": self.text, "encoder": self.encoder, "audio": self.audio}[name](folder)
            (folder / "finished").write_text(identity)
            minutes = round((time.monotonic() - since) / 60, 2)
            self.log({"stage": name, "event": "finished", "minutes": minutes})
        return self._deliver()

    def _settings(self) -> list[Any]:
        recipe, names = self.recipe, [str(clip.path) for clip in self.clips]
        return [
            [self.text_config.model_dump(mode="json"), recipe.text_count, recipe.text_steps],
            [settings_as_dict(recipe.encoder), names, recipe.seed],
            [self.audio_config.model_dump(mode="json"), recipe.audio_steps],
        ]

    # -- stages -----------------------------------------------------------------------------

    def text(self, folder: Path) -> None:
        """Tokenizer, tables of instructions, and the language model."""
        base, tables, seed = folder / "blank", folder / "tables", self.recipe.seed
        tokenizer = train_tokenizer(seed=seed)
        tokenizer.save_pretrained(base)
        language_model_config(tokenizer).save_pretrained(base)
        write_rows(text_rows(self.recipe.text_count, seed), tables / "text.jsonl")
        write_rows(text_rows(600, seed, unseen=True), tables / "text_unseen.jsonl")
        config = _filled(self.text_config, tables, folder / "run", self.recipe.text_steps)
        config = _with(config, model={"llama_path": str(base)})
        _train(config)

    def encoder(self, folder: Path) -> None:
        """The encoder; `folder/beats.safetensors` names its tensors as BEATs does."""
        settings = replace(self.recipe.encoder, seed=self.recipe.seed)
        train_encoder(self.clips, self.valid, self.labels, settings, folder, self.log)

    def audio(self, folder: Path) -> None:
        """Tables of questions, and the whole model."""
        tables = folder / "tables"
        write_rows(audio_rows(self.clips, self.recipe.seed), tables / "audio.jsonl")
        asked = audio_rows(self.valid, self.recipe.seed, unseen=True)
        write_rows(asked, tables / "audio_valid.jsonl")
        config = _filled(self.audio_config, tables, folder / "run", self.recipe.audio_steps)
        paths = {
            "llama_path": str(self.output / "text" / "run" / "final"),
            "beats_path": str(self.output / "encoder" / "beats.safetensors"),
        }
        _train(_with(config, model=paths))

    def _deliver(self) -> Path:
        """The finished model in half precision, measured, with its card."""
        from NatureLM.models import NatureLM

        model = NatureLM.from_pretrained(self.output / "audio" / "run" / "final")
        folder = self.output / "model"
        save_small(model, folder)
        self.log({"stage": "model", "event": "saved", "folder": folder.name})
        if self.recipe.measured:
            self._measure(folder)
        return folder

    def _measure(self, folder: Path) -> None:
        """Measure what was saved on the test splits, and write the card."""
        from NatureLM.models import NatureLM

        model = NatureLM.from_pretrained(folder)
        results = evaluate(model, self.data)
        for result in results:
            self.log({"stage": "model", "event": "measured", "result": result.line()})
        write_card(
            folder,
            results,
            clips=len(self.clips),
            minutes=sum(probe(clip.path).duration for clip in self.clips) / 60,
            parameters=sum(p.numel() for p in model.parameters()),
            command="make tiny",
            seed=self.recipe.seed,
        )

    def log(self, row: dict[str, Any]) -> None:
        """One line to the console and to `log.jsonl`."""
        line = json.dumps(row)
        print(line, flush=True)
        with (self.output / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def save_small(model: NatureLM, folder: Path) -> None:
    """Write the model with float16 weights; nothing in it names where it was made."""
    model.config.llama_path = None
    in_half: Any = model
    in_half.half().save_pretrained(folder)


def _train(config: Config) -> None:
    from NatureLM.training.loop import train

    train(config, resume=True)


def _config(path: Path) -> Config:
    if not path.is_file():
        raise UsageError(
            f"{path} does not exist; run from the root of the repository, or name the folder of "
            "text.yml and audio.yml with --configs"
        )
    return load_config(path)


def _filled(config: Config, tables: Path, run: Path, steps: int | None) -> Config:
    """The configuration with the tables' folder, the run's folder and the number of steps."""
    assert config.datasets is not None
    assert config.run is not None
    found = {
        name: [
            table.model_copy(update={"path": str(tables / table.path)})
            for table in getattr(config.datasets, name)
        ]
        for name in ("train", "valid")
    }
    changes: dict[str, Any] = {"output_dir": str(run)}
    if steps is not None:
        changes.update(max_steps=steps, eval_every=steps, save_every=steps)
    return config.model_copy(
        update={
            "datasets": config.datasets.model_copy(update=found),
            "run": config.run.model_copy(update=changes),
        }
    )


def _with(config: Config, *, model: dict[str, str]) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update=model)})


def _at_most(clips: list[Clip], per_class: int | None) -> Iterator[Clip]:
    taken: dict[str, int] = {}
    for clip in clips:
        taken[clip.label] = taken.get(clip.label, 0) + 1
        if per_class is None or taken[clip.label] <= per_class:
            yield clip


def _digest(before: str, settings: Any) -> str:
    text = before + json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _finished(folder: Path) -> str:
    return _read(folder / "finished")


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
