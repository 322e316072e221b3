"""The embedded model from nothing, in six stages whose results are kept and reused.

text: a small Llama learns instructions (`naturelm train`, configs/tiny/text.yml)
teachers: convolutional networks learn to tell the sounds apart (`encoder.py`)
encoder: BEATs learns it from them (`encoder.py`)
audio: the whole model learns to answer about recordings (`naturelm train`, configs/tiny/audio.yml)
polish: the same for longer and more slowly, with the teachers' answers (configs/tiny/polish.yml)
context: it learns to name sounds by the examples in its prompt (`context.py`)

Text is learnt beside teachers and encoder, in a process of its own, and so is each teacher. A stage
whose settings changed, and every stage that builds on it, is made anew.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from NatureLM.audio.decode import probe
from NatureLM.config import Config, load_config
from NatureLM.errors import UsageError
from NatureLM.training.objectives import DistillationTargets
from NatureLM.util import digest
from recipes.tiny import wordings
from recipes.tiny.architecture import WINDOW_DELAYS, language_model_config, train_tokenizer
from recipes.tiny.context import ContextSettings, train_context, views_in
from recipes.tiny.context_data import ViewSettings
from recipes.tiny.data import (
    Clip,
    Row,
    audio_rows,
    clips_of,
    read_clips,
    text_rows,
    training_clips,
    write_rows,
)
from recipes.tiny.encoder import (
    ENCODER,
    EncoderSettings,
    Schedule,
    Sounds,
    Teachers,
    TeacherSettings,
    load_teachers,
    train_encoder,
    train_teacher,
)
from recipes.tiny.evaluate import evaluate, write_card
from recipes.tiny.few_shot import evaluate_few_shot
from recipes.tiny.species import source
from recipes.tiny.spectrograms import Spectrograms
from recipes.tiny.tasks import answer

if TYPE_CHECKING:
    from NatureLM.models import NatureLM

# Questions whose answer names the sound, so that the teachers have a say in it.
_TAUGHT_FAMILIES = (
    wordings.COMMON,
    wordings.SCIENTIFIC,
    wordings.GROUP,
    wordings.SOUND,
    wordings.ANIMALS_PRESENT,
)


@dataclass(frozen=True)
class Recipe:
    """Lengths of the stages.

    steps: updates of the text and audio stages; None takes those of the configuration files
    balance: 0 draws clips evenly, 1 draws classes evenly, in the teachers' and encoder's stage
    clips_per_class: most training clips of a class; None takes all
    no_animal: how often the last stage asks sounds without an animal for a name, relative to before
    absent: share of lists that lack what is heard, in the last stage
    taught: the teachers' part of the answers that the stage polish learns
    views, context: of the stage context
    held_out: training fold that is kept for choosing settings
    measured: whether the model is measured on the test splits in the end
    """

    seed: int = 1
    text_count: int = 240_000
    text_steps: int | None = None
    balance: float = 0.5
    teachers: TeacherSettings = field(default_factory=TeacherSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    audio_steps: int | None = None
    polish_steps: int | None = None
    no_animal: float = 0.3
    absent: float = 0.03
    taught: float = 0.9
    views: ViewSettings = field(default_factory=ViewSettings)
    context: ContextSettings = field(default_factory=ContextSettings)
    clips_per_class: int | None = None
    held_out: str | None = None
    measured: bool = True

    @classmethod
    def short(cls) -> Recipe:
        """All stages within two minutes: shows that they work, not what they can do."""
        return cls(
            text_count=2_000,
            text_steps=12,
            teachers=TeacherSettings(count=1, schedule=Schedule(4, ((1.0, 16, 16),))),
            encoder=EncoderSettings(schedule=Schedule(8, ((0.5, 18, 16), (0.5, 62, 8)))),
            audio_steps=4,
            polish_steps=2,
            views=ViewSettings(own=1, voices=1, each=1),
            context=ContextSettings(aims=1, steps=1, sounds=9, questions=2),
            clips_per_class=2,
            measured=False,
        )


class Run:
    """A run of the recipe into one folder."""

    def __init__(
        self, recipe: Recipe, data: Path, output: Path, configs: Path, threads: int = 2
    ) -> None:
        self.settings = (recipe, data, output, configs)
        self.threads = threads
        self.recipe = recipe
        self.data = data.resolve()  # tables name files from wherever they lie
        self.output = output
        self.text_config = read_config_file(configs / "text.yml")
        self.audio_config = read_config_file(configs / "audio.yml")
        self.polish_config = read_config_file(configs / "polish.yml")
        clips = read_clips(self.data)
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
        with _processes(1) as beside:
            text = beside.submit(_in_process, self.settings, "stage", "text")
            self.stage("teachers")
            torch.set_num_threads(self.threads)
            self.stage("encoder")
            text.result()
        self.stage("audio")
        self.stage("polish")
        self.stage("context")
        return self.deliver()

    def stage(self, name: str) -> None:
        """One stage, unless its result is there already."""
        identity, folder = self._identities()[name], self.output / name
        if _read(folder / "finished") == identity:
            self.log({"stage": name, "event": "reused"})
            return
        if (folder / "identity").is_file() and _read(folder / "identity") != identity:
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        (folder / "identity").write_text(identity)
        since, cpu_since = time.monotonic(), time.process_time()
        getattr(self, name)(folder)
        (folder / "finished").write_text(identity)
        self.log(
            {
                "stage": name,
                "event": "finished",
                "minutes": round((time.monotonic() - since) / 60, 2),
                "cpu_minutes": round((time.process_time() - cpu_since) / 60, 2),
            }
        )

    def _identities(self) -> dict[str, str]:
        """What each stage's result depends on."""
        recipe, names = self.recipe, [clip.path.name for clip in self.clips]
        asked = (recipe.no_animal, recipe.absent, recipe.taught, recipe.polish_steps)
        made: dict[str, str] = {}
        made["text"] = _digest(_set(self.text_config), recipe.text_count, recipe.text_steps)
        made["teachers"] = _digest(asdict(recipe.teachers), names, recipe.seed)
        made["encoder"] = _digest(made["teachers"], asdict(recipe.encoder))
        audio = (made["text"], made["encoder"], _set(self.audio_config), recipe.audio_steps)
        made["audio"] = _digest(*audio)
        made["polish"] = _digest(made["audio"], _set(self.polish_config), *asked)
        made["context"] = _digest(made["polish"], asdict(recipe.views), asdict(recipe.context))
        return made

    # -- stages -----------------------------------------------------------------------------

    def text(self, folder: Path) -> None:
        """Tokenizer, tables of instructions, and the language model."""
        base, tables, seed = folder / "blank", folder / "tables", self.recipe.seed
        tokenizer = train_tokenizer(seed=seed)
        tokenizer.save_pretrained(base)
        language_model_config(tokenizer).save_pretrained(base)
        write_rows(text_rows(self.recipe.text_count, seed), tables / "text.jsonl")
        write_rows(text_rows(600, seed, unseen=True), tables / "text_unseen.jsonl")
        config = filled(self.text_config, tables, folder / "run", self.recipe.text_steps)
        _train(with_model(config, model={"llama_path": str(base)}))

    def teachers(self, folder: Path) -> None:
        """Networks that name sounds, for the encoder to learn from; one in each process."""
        with _processes(self.threads) as beside:
            made = [
                beside.submit(_in_process, self.settings, "teacher", number, folder)
                for number in range(self.recipe.teachers.count)
            ]
            for one in made:
                one.result()

    def teacher(self, number: int, folder: Path) -> None:
        """One of them."""
        train_teacher(self._sounds(), self.recipe.teachers, folder, self.recipe.seed, number)

    def encoder(self, folder: Path) -> None:
        """The audio encoder and the Q-Former."""
        settings = replace(self.recipe.encoder, seed=self.recipe.seed)
        train_encoder(self._sounds(), self._teachers(), settings, folder)

    def _teachers(self) -> Teachers:
        return load_teachers(self.output / "teachers", len(self.labels), self.recipe.teachers)

    def _sounds(self) -> Sounds:
        spectrograms = Spectrograms(self.clips, self.labels, self.recipe.balance)
        return Sounds(spectrograms, self.valid, self.labels)

    def audio(self, folder: Path) -> None:
        """Tables of questions, and the whole model."""
        rows = audio_rows(self.clips, self.recipe.seed)
        config = self._asking(folder, self.audio_config, self.recipe.audio_steps, rows)
        paths = {
            "llama_path": str(self.output / "text" / "run" / "final"),
            "beats_path": str(self.output / "encoder" / ENCODER),
            "qformer_path": str(self.output / "encoder" / ENCODER),
        }
        _train(with_model(config, model=paths))

    def polish(self, folder: Path) -> None:
        """The model goes on learning, from what the teachers would answer.

        Sounds without an animal are seldom asked for a name, and lists seldom lack what is heard.
        """
        recipe = self.recipe
        rows = audio_rows(self.clips, recipe.seed, no_animal=recipe.no_animal, absent=recipe.absent)
        config = self._asking(folder, self.polish_config, recipe.polish_steps, rows)
        texts = {
            family: [answer(family, [source(label)]) for label in self.labels]
            for family in _TAUGHT_FAMILIES
        }
        soft = DistillationTargets(self._teachers().mean, texts, recipe.taught)
        _train(
            with_model(config, model={"ckpt": str(self.output / "audio" / "run" / "final")}), soft
        )

    def _asking(
        self, folder: Path, config: Config, steps: int | None, rows: Iterable[Row]
    ) -> Config:
        """The configuration, with tables of these questions and of those about `valid`."""
        tables = folder / "tables"
        write_rows(rows, tables / "audio.jsonl")
        write_rows(
            audio_rows(self.valid, self.recipe.seed, unseen=True), tables / "audio_valid.jsonl"
        )
        return filled(config, tables, folder / "run", steps)

    def context(self, folder: Path) -> None:
        """LoRA learns to name sounds by examples, and goes on with the questions of before."""
        from NatureLM.models import NatureLM

        model = NatureLM.from_pretrained(self.output / "polish" / "run" / "final")
        model.config.window_delays = list(WINDOW_DELAYS)
        views, clips = views_in(folder, model, self.clips, self.valid, self.recipe.views)
        train_context(model, views, clips, self.recipe.context, folder)
        model.save_pretrained(folder / "final")

    def deliver(self) -> Path:
        """The finished model in half precision, measured, with its card."""
        from NatureLM.models import NatureLM

        model = NatureLM.from_pretrained(self.output / "context" / "final")
        model.config.window_delays = list(WINDOW_DELAYS)
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
        results, _ = evaluate(model, self.data)
        for result in results:
            self.log({"stage": "model", "event": "measured", "result": result.line()})
        unseen = [clip for clip in read_clips(self.data) if clip.split == "unseen"]
        few_shot = evaluate_few_shot(model, unseen)
        for one in few_shot:
            self.log({"stage": "model", "event": "measured", "result": one.line()})
        write_card(
            folder,
            results,
            few_shot,
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


def _processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


def _in_process(settings: tuple[Recipe, Path, Path, Path], method: str, *arguments: Any) -> None:
    """Call a method of the run in a process of its own."""
    torch.set_num_threads(1)
    getattr(Run(*settings, threads=1), method)(*arguments)


def save_small(model: NatureLM, folder: Path) -> None:
    """Write the model with float16 weights; nothing in it names where it was made."""
    model.config.llama_path = None
    in_half: Any = model
    in_half.half().save_pretrained(folder)


def _train(config: Config, soft: DistillationTargets | None = None) -> None:
    from NatureLM.training.train import train

    train(config, resume=True, soft=soft)


def read_config_file(path: Path) -> Config:
    if not path.is_file():
        raise UsageError(
            f"{path} does not exist; run from the root of the repository, or name the folder of "
            "text.yml and audio.yml with --configs"
        )
    return load_config(path)


def filled(config: Config, tables: Path, run: Path, steps: int | None) -> Config:
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


def with_model(config: Config, *, model: dict[str, str]) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update=model)})


def _set(config: Config) -> dict[str, Any]:
    """What differs from the defaults, so that a key which is new leaves results as they are."""
    return config.model_dump(mode="json", exclude_defaults=True)


def _at_most(clips: list[Clip], per_class: int | None) -> Iterator[Clip]:
    taken: dict[str, int] = {}
    for clip in clips:
        taken[clip.label] = taken.get(clip.label, 0) + 1
        if per_class is None or taken[clip.label] <= per_class:
            yield clip


def _digest(*settings: Any) -> str:
    return digest(json.dumps(settings, sort_keys=True), size=8).hex()


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
