"""What a run writes: its log, checkpoints, and in the end the model, its adapter and their cards.

A folder is whole or not there at all: it is written under a temporary name and renamed when all of
it is on the disk. A checkpoint `step_00001234` is safetensors and a small JSON state. Only what
learns is in it; the rest comes from where the run started. Its state says which settings and data
it is of: a run is resumed only with the same.

Scores are names and numbers; one with an interval has two more entries, `<name>_low` and
`<name>_high`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import NatureLM
from NatureLM.config.load import dump_config
from NatureLM.config.schema import Config, DatasetsConfig, ModelConfig, RunConfig
from NatureLM.errors import ConfigError, NatureLMError, UsageError
from NatureLM.models.checkpoint.tensors import read_header
from NatureLM.models.registry import CheckpointError, one_line
from NatureLM.progress import ProgressBar, say
from NatureLM.training.data import Data
from NatureLM.training.objectives import AudioText, Objective
from NatureLM.training.optim import (
    PARTS,
    MuonWithAdamW,
    NamedParameters,
    copy_full,
    distribute_like,
    part_of,
)
from NatureLM.util import atomic_write, format_duration, library, parse_json, shown, writing

_NAME = re.compile(r"^step_(\d{8,})$")
PARTIAL = ".partial-"
GOES_ON = ". The last checkpoint is whole; the same command with --resume goes on from there"
WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
_REMOVE = "; remove this checkpoint, and --resume goes on from the one before it"
AVERAGE, STATE = "average.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk."""

    step: int
    folder: Path

    def state(self) -> dict[str, Any]:
        """The JSON state. Raises NatureLMError where it is none."""
        path = self.folder / STATE
        try:
            state = parse_json(path.read_text(encoding="utf-8"))
            kinds = {"run": dict, "scores": dict, "bad_files": dict, "best": list | None}
            for key, kind in kinds.items():
                if not isinstance(state[key], kind):
                    raise ValueError(f"{key} is {shown(state[key])}")
            if not (state["best"] is None or len(state["best"]) == 2):
                raise ValueError(f"best is {shown(state['best'])}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            said = one_line(error)
            raise NatureLMError(f"{path}: is no state of a run ({said}){_REMOVE}") from None
        return dict(state)

    def tensors(self, file: str) -> dict[str, Tensor]:
        """The tensors of one of its files; empty if it has no such file."""
        path = self.folder / file
        if not path.is_file():
            return {}
        try:
            read_header(path)
        except CheckpointError as error:
            raise NatureLMError(f"{error}{_REMOVE}") from None
        return load_file(path)


def checkpoints(folder: Path) -> list[Checkpoint]:
    """All whole checkpoints, oldest first."""
    matches = ((_NAME.match(path.name), path) for path in folder.glob("step_*"))
    found = [Checkpoint(int(match[1]), path) for match, path in matches if match]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def write_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> Checkpoint:
    """Write file name → tensors and the state; replaces a checkpoint of the same step."""
    final = folder / f"step_{step:08d}"
    with _whole(final) as partial:
        for file, named in tensors.items():
            save_file({n: t.detach().cpu().contiguous() for n, t in named.items()}, partial / file)
        (partial / STATE).write_text(json.dumps(dict(state), indent=1) + "\n", encoding="utf-8")
        for path in partial.iterdir():
            _to_disk(path)
    _to_disk(folder)
    return Checkpoint(step, final)


@contextmanager
def _whole(final: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `final` when the block ends well."""
    partial = final.with_name(f"{PARTIAL}{final.name}")
    try:
        with writing(final, GOES_ON):
            remove(partial)
            partial.mkdir(parents=True)
            yield partial
            remove(final)
            os.replace(partial, final)
    except SafetensorError as error:
        raise NatureLMError(f"{final}: cannot be written ({error}){GOES_ON}") from None


def clean(folder: Path, keep: int, also: Sequence[int] = ()) -> None:
    """Remove partial checkpoints and all but the last `keep` and the steps in `also`."""
    for path in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)
    for checkpoint in checkpoints(folder)[:-keep]:
        if checkpoint.step not in also:
            remove(checkpoint.folder)


def remove(folder: Path) -> None:
    """Remove a folder so that a half removed one is not taken for a checkpoint."""
    if not folder.exists():
        return
    doomed = folder
    if not folder.name.startswith(PARTIAL):
        doomed = folder.with_name(f"{PARTIAL}{folder.name}-old")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(folder, doomed)
    shutil.rmtree(doomed)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer | MuonWithAdamW, parameters: NamedParameters
) -> dict[str, Tensor]:
    """The optimiser's state by `<parameter>/<kind>`."""
    return {
        f"{name}/{kind}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in parameters
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer | MuonWithAdamW,
    parameters: NamedParameters,
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back what `optimizer_tensors` gave."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, kind = key.rpartition("/")
        by_name.setdefault(name, {})[kind] = value
    for name, parameter in parameters:
        if name in by_name:
            for kind, value in by_name[name].items():
                if kind != "step" and value.shape != parameter.shape:
                    raise NatureLMError(
                        f"{OPTIMIZER}: {shown(f'{name}/{kind}')} is of shape {tuple(value.shape)}, "
                        f"and the weights are of {tuple(parameter.shape)}{_REMOVE}"
                    )
            optimizer.state[parameter] = {
                kind: value if kind == "step" else distribute_like(value, parameter)
                for kind, value in by_name[name].items()
            }


@torch.no_grad()
def load_weights(parameters: NamedParameters, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Put back the weights that learn; all names and shapes must fit."""
    wanted = {name: tuple(p.shape) for name, p in parameters}
    there = {name: tuple(t.shape) for name, t in tensors.items()}
    if wanted != there:
        different = sorted(
            name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name)
        )
        raise NatureLMError(
            f"{source} is of another model or other frozen parts; different: "
            f"{', '.join(different[:5])}{' …' if len(different) > 5 else ''}"
        )
    for name, parameter in parameters:
        copy_full(parameter.detach(), tensors[name])


def _to_disk(path: Path) -> None:
    """Flush a file or folder, so that a rename never outlives what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems cannot flush folders
        if path.is_file():
            raise
    finally:
        os.close(descriptor)


# Settings that may differ when a run is resumed: they change no number.
_FREE_RUN = {
    "log_freq",
    "num_workers",
    "device",
    "output_dir",
    "evaluate",
    "save_every",
    "keep_checkpoints",
    "trackers",
    "use_best",
    "save_adapter",
}
_FREE_DATASETS = {"max_bad_share", "audio_cache_mb", "test", "test_ann_path"}


def run_settings(config: Config, *, data: str, processes: int) -> dict[str, Any]:
    """What must be equal for a run to be resumed: settings by dotted name, as JSON keeps them.

    data: fingerprint of the training data
    """
    found = _settings(config.run or RunConfig(), config.datasets or DatasetsConfig(), config.model)
    return {**found, "training data": data, "processes": processes}


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], source: Path) -> None:
    """Raise UsageError with what differs.

    A setting that was not known when `before` was written had its default then.
    """
    defaults = _settings(RunConfig(), DatasetsConfig(), ModelConfig())
    then = {**defaults, **before}
    changed = sorted(
        key
        for key in then.keys() | now.keys()
        if _filled(then.get(key), defaults.get(key)) != _filled(now.get(key), defaults.get(key))
    )
    if changed:
        shown = "; ".join(f"{k}: {then.get(k)!r} then, {now.get(k)!r} now" for k in changed)
        raise UsageError(
            f"{source} is of a run with other settings, so it cannot be continued ({shown}); "
            "to start a new run from its weights, finish it and name it as model.ckpt"
        )


def _settings(run: RunConfig, datasets: DatasetsConfig, model: ModelConfig) -> dict[str, Any]:
    sections = {
        "datasets": datasets.model_dump(mode="json", exclude=_FREE_DATASETS),
        "run": run.model_dump(mode="json", exclude=_FREE_RUN),
        "model": model.model_dump(mode="json"),
    }
    flat = {f"{name}.{k}": v for name, section in sections.items() for k, v in section.items()}
    settings: dict[str, Any] = json.loads(json.dumps(flat))
    return settings


def _filled(value: Any, default: Any) -> Any:
    """Without what says nothing, so that keys inside a section may have come since."""
    if isinstance(value, Mapping):
        inner = default if isinstance(default, Mapping) else {}
        known = {**inner, **value}
        return {k: _filled(v, inner.get(k)) for k, v in known.items() if v is not None}
    if isinstance(value, list):
        return [_filled(item, None) for item in value]
    return value


# The log

LOW, HIGH = "_low", "_high"


def score_lines(scores: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """(name in words, value in words with its interval) of every score."""
    for name, value in scores.items():
        if not name.endswith((LOW, HIGH)):
            text = f"{value:.4f}"
            if name + LOW in scores:
                text += f" [{scores[name + LOW]:.3f}, {scores[name + HIGH]:.3f}]"
            yield name.replace("_", " "), text


class Tracker(NamedTuple):
    """Where numbers are shown: takes them with their step, and is closed at the end."""

    log: Callable[[Mapping[str, float], int], None]
    close: Callable[[], None]


class RunLog:
    """Progress of a run on this process; silent on all but the first.

    folder: where `log.jsonl` goes; on a resumed run, lines after `step` are removed first
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        total: int,
        trackers: Sequence[str] = (),
        main: bool = True,
    ) -> None:
        self._main = main
        self._total = total
        self._first = step
        self._begun = time.monotonic()
        self._path = folder / "log.jsonl"
        self._bar = ProgressBar(
            "bar",
            "step {task.completed}/{task.total}, {task.fields[note]}",
            "eta",
            total=total,
            note="",
        )
        self._trackers: list[Tracker] = []
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            keep_until(self._path, step)
            self._trackers = [make_tracker(name, folder) for name in trackers]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around the loop: a bar on a terminal."""
        if not self._main:
            yield
            return
        try:
            with self._bar:
                self.step(self._first)
                yield
        finally:
            for tracker in self._trackers:
                tracker.close()

    def settle(self, done: int, total: int) -> None:
        """The run will have so many steps, of which some are done."""
        if total != self._total:
            self._total = total
            self._bar.update(done, total=total)
            self.say(f"{total} steps fit into the time (run.max_seconds)")

    def step(self, done: int) -> None:
        """One more update is done."""
        self._bar.update(done)

    def train(self, done: int, numbers: Mapping[str, float]) -> None:
        """Numbers of training after `done` updates."""
        rate = (done - self._first) / max(time.monotonic() - self._begun, 1e-9)
        left = (self._total - done) / rate if rate > 0 else 0.0
        note = f"loss {numbers['loss']:.4f}, {numbers['samples_per_second']:.1f} samples/s"
        if self._bar.is_shown:
            self._bar.update(done, note=note)
        else:
            self.say(
                f"step {done}/{self._total}: {note}, rate {numbers['learning_rate']:.2e}, "
                f"{format_duration(left) if left >= 60 else f'0 min {int(left)} s'} left"
            )
        self._write("train", done, numbers)

    def evaluation(self, done: int, scores: Mapping[str, float], name: str = "valid") -> None:
        """Scores on a table after `done` updates."""
        told = ", ".join(f"{score} {value}" for score, value in score_lines(scores))
        self.say(f"step {done}/{self._total}: {name} {told}")
        self._write(name, done, scores)

    def say(self, text: str) -> None:
        """A line for people."""
        if self._main:
            say(text)

    def _write(self, kind: str, done: int, numbers: Mapping[str, float]) -> None:
        if not self._main:
            return
        with (
            writing(self._path, ". The last checkpoint is whole; --resume goes on from there"),
            self._path.open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps({"kind": kind, "step": done, **numbers}) + "\n")
        for tracker in self._trackers:
            tracker.log({f"{kind}/{name}": value for name, value in numbers.items()}, done)


def keep_until(path: Path, step: int) -> None:
    """Leave only the log's whole lines up to `step`: what comes after is written again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step and step > 0:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    with atomic_write(path, alone=True) as unfinished:
        unfinished.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def make_tracker(name: str, folder: Path) -> Tracker:
    """A tracker by name. Raises `UsageError` if its package is not installed."""
    package = library(name, f"run.trackers names {name}: pip install {name}")
    if name == "trackio":
        package.init(project="naturelm", name=folder.name, resume="allow")
        return Tracker(lambda numbers, step: package.log(numbers, step=step), package.finish)
    tensorboard = library("torch.utils.tensorboard", "")
    writer: Any = tensorboard.SummaryWriter(str(folder / "tensorboard"))

    def write(numbers: Mapping[str, float], step: int) -> None:
        for key, value in numbers.items():
            writer.add_scalar(key, value, step)

    return Tracker(write, writer.close)


# The result


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
    steps: int,
) -> Path:
    """Write `folder/final` with its card, whole or not at all."""
    final = folder / FINAL
    with _whole(final) as partial:
        objective.save(partial)
        card = _card(config, data, scores, steps, objective.revisions)
        (partial / "README.md").write_text(card, encoding="utf-8")
    return final


def write_adapter(
    folder: Path, objective: Objective, parameters: NamedParameters, config: Config
) -> tuple[Path, list[str]]:
    """Write `folder/adapter` in PEFT's format; the folder, and what else learned and is not in it.

    parameters: those that learned
    """
    assert isinstance(objective, AudioText)
    learned = {part_of(name) for name, _ in parameters}
    left_out = [_PART_NAMES[part] for part in PARTS if part in learned and part != "lora"]
    with _whole(folder / ADAPTER) as partial:
        objective.model.save_adapter(partial)
        (partial / "README.md").write_text(_adapter_card(config, left_out), encoding="utf-8")
    return folder / ADAPTER, left_out


def _card(
    config: Config,
    data: Data,
    scores: dict[str, float],
    steps: int,
    revisions: Mapping[str, str],
) -> str:
    """What it is, what it was trained on and how, scores, and all settings."""
    run, datasets = config.run or RunConfig(), config.datasets or DatasetsConfig()
    rows = Counter(example.dataset for example in data.train)
    tasks = Counter(example.task or "(none named)" for example in data.train)
    answers = sorted({example.answer for example in data.train})
    if len(answers) > _MOST_ANSWERS:
        listed = f"{len(answers)} different answers."
    else:
        listed = "Answers it was trained to give: " + "; ".join(answers) + "."
    names = {"revision": "model.ckpt", "base_revision": "the base"}
    started = "".join(f", commit {one} of {names[key]}" for key, one in revisions.items())
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
        f"{steps} steps, seed {run.seed}{started}, all settings:",
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
