"""naturelm-small from the embedded model's encoder and SmolLM2-135M-Instruct, in four stages.

words: the projection begins where sounds are near the words for them
listen: projection and Q-Former learn, the language model stays (`configs/small/listen.yml`)
answer: LoRA learns all tasks in fixed wordings, all else stays (`configs/small/answer.yml`)
replay: the same from the same start, with text beside the sounds (`configs/small/replay.yml`)

The last three are `naturelm train`. A finished stage is kept, so that a run which was cut off goes
on with the next one.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import Tensor

from NatureLM.audio.windows import read_clip
from NatureLM.config import Config
from NatureLM.errors import UsageError
from NatureLM.memory import is_out_of_memory
from NatureLM.models import NatureLM
from NatureLM.models.audio_side import AudioSizes
from NatureLM.models.checkpoint.gguf import base_folder
from NatureLM.models.checkpoint.load import read_tokenizer
from NatureLM.models.checkpoint.tensors import (
    index_folder,
    of_language_model,
    state_of,
    write_tensors,
)
from NatureLM.models.configuration import NatureLMConfig
from NatureLM.models.registry import EMBEDDED
from NatureLM.util import write_text
from recipes.tiny import wordings
from recipes.tiny.architecture import WINDOW_DELAYS
from recipes.tiny.data import Clip, Row, audio_rows, read_clips, training_clips, write_rows
from recipes.tiny.recipe import filled, read_config_file, with_model

# Where the projection begins: sounds near the words for them, by least squares.
#
# The base's own embeddings of a name's tokens, averaged, are what an audio embedding of a sound
# with this name should be; stretches after the end of a clip should be as the average of all
# tokens. This takes seconds where the language model would need thousands of answers to say the
# same.

PROJECTION = "projection.safetensors"
_EMBEDDINGS = "model.embed_tokens.weight"
_RIDGE = 3.0
_AT_ONCE = 16

Floats = npt.NDArray[np.float64]


def write_projection(clips: Sequence[Clip], base: Path, folder: Path) -> Path:
    """Fit the projection from the embedded model's Q-Former into the base, and write it.

    base: folder of the language model
    """
    heard, seconds = _heard(clips)
    meant, silence = _meant([clip.label for clip in clips], base)
    counts = Counter(clip.label for clip in clips)
    groups = heard.shape[2]
    sounding = np.arange(groups) * 10.0 / groups < np.asarray(seconds)[:, None]  # (clips, groups)
    wanted = np.where(sounding[..., None], meant[:, None], silence)
    weight = np.array([counts[clip.label] ** -0.5 for clip in clips])
    weights = np.where(sounding, weight[:, None], 0.1 * weight.mean())
    delays = heard.shape[1]
    weight_OI, bias_O = ridge(
        heard.reshape(-1, heard.shape[-1]),
        np.repeat(wanted[:, None], delays, axis=1).reshape(-1, wanted.shape[-1]),
        np.repeat(weights[:, None], delays, axis=1).ravel(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PROJECTION
    tensors = {"weight": weight_OI, "bias": bias_O}
    save_file({f"audio_llama_proj.{name}": _float32(one) for name, one in tensors.items()}, path)
    return path


def ridge(inputs: Floats, targets: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weighted least squares with a little weight decay: matrix (outputs, inputs) and bias."""
    ones = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    weighted = ones * weights[:, None]
    penalty = _RIDGE * weights.mean() * np.eye(ones.shape[1])
    penalty[-1, -1] = 0
    found = np.linalg.solve(weighted.T @ ones + penalty, weighted.T @ targets)
    return found[:-1].T, found[-1]


def _heard(clips: Sequence[Clip]) -> tuple[Floats, list[float]]:
    """What the Q-Former makes of the clips (clips, delays, groups, width); seconds of each."""
    model = NatureLM.from_pretrained(EMBEDDED, audio_only=True)
    model.config.window_delays = [0.0, *WINDOW_DELAYS]
    seen: list[Tensor] = []
    model.audio_llama_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found: list[Tensor] = []
    seconds: list[float] = []
    processor: Any = model.processor
    with torch.inference_mode():
        for first in range(0, len(clips), _AT_ONCE):
            waves = [
                read_clip(clip.path, duration=10.0, sample_rate=processor.sample_rate)
                for clip in clips[first : first + _AT_ONCE]
            ]
            seconds += [len(wave) / processor.sample_rate for wave in waves]
            model.encode_audio(torch.stack([processor.prepare_audio(wave) for wave in waves]))
            # of each delay (windows x groups, 1, width)
            passes = [one.reshape(len(waves), -1, one.shape[-1]) for one in seen]
            found.append(torch.stack(passes, dim=1))
            seen.clear()
    return torch.cat(found).double().numpy(), seconds


def _meant(labels: Sequence[str], base: Path) -> tuple[Floats, Floats]:
    """Mean embedding of each label's tokens (labels, width), and of all tokens (width)."""
    table = index_folder(base)[_EMBEDDINGS].read(torch.float32, torch.device("cpu"))
    tokenizer = read_tokenizer(base)
    means = {
        label: table[tokenizer(f" {label}", add_special_tokens=False).input_ids].mean(dim=0)
        for label in set(labels)
    }
    stacked = torch.stack([means[label] for label in labels])
    return stacked.double().numpy(), table.double().mean(dim=0).numpy()


def _float32(values: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


# Text for replay: everyday instructions without sound, and the base model's own answers to them.
#
# What is replayed keeps the language model as it was, so the answers are its own (greedy), right or
# not. None of the instructions asks for capitals, JSON, letters of options, another language or
# labelled examples, which the study asks for.


def _listed(text: str) -> list[str]:
    return text.split(",")


_THINGS = _listed(
    "a river,the moon,bread,a bicycle,an old tree,rain,a lighthouse,the sea,a violin,a clock,"
    "winter,a market,a train,honey,a garden,a mountain,sleep,a bridge,a letter,glass,the sun,"
    "a horse,an owl,a whale,a spider,salt,a library,a candle,paper,a forest,wind,a boat"
)
_KINDS = _listed(
    "fruit,vegetables,birds,fish,insects,tools,musical instruments,colours,trees,flowers,"
    "countries,cities,rivers,sports,drinks,kinds of weather,pieces of furniture,metals,planets"
)
_QUALITIES = _listed(
    "big,cold,happy,fast,quiet,bright,heavy,old,early,soft,strong,empty,dry,near,rich,brave,"
    "clean,deep,easy,wide"
)
_WORDS = _listed(
    "apple,stone,window,summer,pencil,cloud,table,school,yellow,planet,music,engine,kitchen,"
    "harbour,ticket,island,basket,mirror,pocket,thunder"
)
_SENTENCES = (
    "The shop opens at nine.",
    "My sister lives near the station.",
    "We will plant two trees in spring.",
    "The old bridge was closed last week.",
    "He forgot his umbrella on the bus.",
    "The children are reading in the library.",
    "It rained for three days.",
    "She bought bread and cheese at the market.",
    "The boat reached the island before noon.",
    "Nobody heard the clock strike.",
)
_INSTRUCTIONS = (
    "Write one sentence about {thing}.",
    "Describe {thing} in a few words.",
    "What is {thing}? Answer briefly.",
    "Write a title for a story about {thing}.",
    "Why do people like {thing}? One sentence, please.",
    "What does {thing} look like?",
    "Name three {kind}.",
    "Give me an example of {kind}.",
    "List two {kind}, one on each line.",
    "What do {kind} have in common?",
    "What is the opposite of {quality}?",
    "Give another word for {quality}.",
    "Use the word {quality} in a sentence.",
    "Which letter does the word {word} begin with?",
    "How many letters are in the word {word}?",
    "Sort these words by the alphabet: {words}.",
    "Which of these words is the longest: {words}?",
    "Repeat these words in the same order: {words}.",
    "What is the last of these words: {words}?",
    "What is {number} plus {digit}?",
    "Which is larger, {number} or {digit}?",
    "Count from {digit} to ten.",
    "Make a question of this sentence: {sentence}",
    "Repeat this sentence: {sentence}",
    "Say this in other words: {sentence}",
    "What is this sentence about: {sentence}",
    "Is this sentence about the past? {sentence} Answer yes or no.",
)


def instructions(seed: int) -> Iterator[str]:
    """Instructions without end, each once for all that can be told apart."""
    rng, seen = random.Random(f"small-texts {seed}"), set()
    while True:
        text = rng.choice(_INSTRUCTIONS).format(
            thing=rng.choice(_THINGS),
            kind=rng.choice(_KINDS),
            quality=rng.choice(_QUALITIES),
            word=rng.choice(_WORDS),
            words=", ".join(rng.sample(_WORDS, rng.randint(3, 5))),
            number=rng.randint(10, 99),
            digit=rng.randint(1, 9),
            sentence=rng.choice(_SENTENCES),
        )
        if text not in seen:
            seen.add(text)
            yield text


def replay_rows(model: NatureLM, count: int, seed: int, most_tokens: int = 64) -> Iterator[Row]:
    """Up to `count` instructions with the answers that the base model gives to them.

    Answers that do not end within `most_tokens` are left out.
    """
    from NatureLM.generation.engine import Engine, GenerationOptions, Request
    from NatureLM.inference.loading import processor_of

    template = processor_of(model).prompt_template
    prompts: Sequence[str] = list(islice(instructions(seed), count))
    engine = Engine(model, GenerationOptions(max_new_tokens=most_tokens, num_beams=1))
    requests = (
        Request(place, template.replace("{}", prompt), (), 0.0 if model.config.lora else 1.0)
        for place, prompt in enumerate(prompts)
    )
    answers = {answer.key: answer for answer in engine.run(requests, lambda name: name)}
    for place, prompt in enumerate(prompts):
        answer = answers[place]
        if answer.is_whole and answer.text and answer.text.strip():
            yield {
                "prompt": prompt,
                "answer": answer.text.strip(),
                "task": "replay",
                "dataset": "text",
            }


# The stages

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
