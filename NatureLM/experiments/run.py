"""How long an experiment takes, about: from what was measured, before anything is loaded.

Where a run stands: done and total, rate, time left, share of right answers at each α.

The sound of clips for a model: read by key, each in its window.

From a configuration and its data to a plan.

Answers to the cells of a plan at any α: each clip is encoded once, α are rows of a batch.

Answers in the files that the reference writes: one for each dataset, query and α.

`beans_zero_eval_<dataset>_query<number>_lora<α>.jsonl`, rows sorted by sample id. α stands in data
and name as exactly as it was asked for: 0.57 is 0.57, where the reference makes it 56.

A plan becomes answers: what has none yet goes through the engine into the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from NatureLM.config.experiment import AUDIO_EXAMPLES, ExperimentConfig
from NatureLM.data.clip import Clip, read_window
from NatureLM.data.sample import Sample, SampleSet, open_samples
from NatureLM.data.table import DataError
from NatureLM.errors import NatureLMError
from NatureLM.experiments.plan import (
    FewShotPool,
    Plan,
    Renderer,
    Selection,
    Trial,
    run_settings,
    select,
)
from NatureLM.experiments.store import TrialStore, export
from NatureLM.experiments.tune import Row
from NatureLM.inference.loading import processor_of

if TYPE_CHECKING:
    from NatureLM.config import GenerateConfig
    from NatureLM.generation.audio_cache import EncodedClip, PaddedClip
    from NatureLM.generation.request import Request
    from NatureLM.models import NatureLM


USUAL_ANSWER = 20
"""Tokens that an answer has, as a rule; those of a list of species have fewer."""


@dataclass(frozen=True)
class Speed:
    """What a model does on a machine.

    encoding: seconds for a window; token: seconds for a token of one beam, batches being full
    machine: where that was measured, in words
    """

    encoding: float
    token: float
    machine: str


SMALL = Speed(encoding=0.05, token=0.0006, machine="two cores of a processor")
LARGE = Speed(encoding=0.01, token=0.0005, machine="one data-centre GPU")


def estimate_seconds(plan: Plan, speed: Speed, *, max_new_tokens: int, num_beams: int) -> float:
    """Seconds for all encodings and generations, answers being of usual length."""
    tokens = min(USUAL_ANSWER, max_new_tokens)
    return plan.n_encodings * speed.encoding + len(plan) * tokens * num_beams * speed.token


@dataclass
class TrialProgress:
    """Counts of a run, as it goes.

    total: cells of the plan; before: those that had an answer already
    answers, errors: what was done since
    right: answers that stand for the label, and all that were given, at each α
    """

    total: int
    before: int = 0
    answers: int = 0
    errors: int = 0
    right: dict[float, tuple[int, int]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        """Cells that need nothing more in this run."""
        return self.before + self.answers + self.errors

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Answers a second."""
        return (self.answers + self.errors) / max(self.seconds, 1e-6)

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None before the first answer."""
        if not self.answers + self.errors:
            return None
        return max(0, self.total - self.done) / self.rate

    def accuracy(self) -> dict[float, float]:
        """Share of right answers of this run so far, by α in order."""
        return {alpha: right / count for alpha, (right, count) in sorted(self.right.items())}

    def count(self, cell: Trial, is_right: bool) -> None:
        """Count an answer."""
        right, count = self.right.get(cell.alpha, (0, 0))
        self.right[cell.alpha] = (right + is_right, count + 1)
        self.answers += 1


Progress: TypeAlias = Callable[[TrialProgress], None]
"""Called after every answer and error, and once before the first."""


class Correctness:
    """Whether an answer stands for its label: the nearest label of the dataset, as when scored.

    Without rapidfuzz: the same text but for case. This is for watching a run; scoring is done
    afterwards, with intervals.
    """

    def __init__(self, plan: Plan) -> None:
        labels: dict[str, set[str]] = {}
        for sample in plan.samples:
            labels.setdefault(sample.dataset_name, set()).add(sample.label)
        self._labels = {name: sorted(found) for name, found in labels.items()}
        self._known: dict[tuple[str, str], str] = {}

    def __call__(self, cell: Trial, prediction: str) -> bool:
        """Whether it is right."""
        what = (cell.dataset_name, prediction)
        if what not in self._known:
            self._known[what] = self._read(*what)
        return self._known[what] == cell.label

    def _read(self, dataset: str, prediction: str) -> str:
        labels = self._labels[dataset]
        try:
            from rapidfuzz.distance import Levenshtein
        except ImportError:
            folded = prediction.strip().casefold()
            return next((one for one in labels if one.strip().casefold() == folded), "")
        return min(labels, key=lambda label: Levenshtein.distance(label, prediction.strip()))


class ClipLoader:
    """Reads clips by key, for the threads of the engine.

    A component whose clips are shorter than the model's window is heard in windows of that length,
    as the reference does; a clip that is longer is cut, and counted.

    Raises UsageError for a model without a processor.
    """

    def __init__(self, model: NatureLM, clips: Iterable[Clip] = ()) -> None:
        processor = processor_of(model)
        self._rate, self._seconds = processor.sample_rate, processor.window_seconds
        self._clips: dict[str, Clip] = {}
        self._cut: set[str] = set()
        self.know(clips)

    @property
    def cut(self) -> int:
        """Clips that were longer than their window."""
        return len(self._cut)

    def know(self, clips: Iterable[Clip]) -> None:
        """Clips that will be asked for."""
        self._clips.update((clip.key, clip) for clip in clips)

    def __call__(self, key: str) -> PaddedClip:
        """The sound of a clip; raises AudioError."""
        from NatureLM.generation.audio_cache import PaddedClip

        heard = read_window(self._clips[key], self._rate, self._seconds)
        if heard.is_cut:
            self._cut.add(key)
        return PaddedClip(heard.samples, heard.seconds)


def make_plan(
    config: ExperimentConfig, template: str, *, warn: Callable[[str], None] = lambda _: None
) -> Plan:
    """The plan of an experiment; labels are read, sound is not.

    template: text around a query, with `{}`
    warn: takes notes that a user should see

    Raises DataError, DataError or UsageError: data that cannot be read, nothing left to test, too
    few example clips, no question to ask.
    """
    if config.data is None:
        raise DataError("extended.data: no data are named")
    data = open_samples(config.data, config.datasets)
    if config.top_k_species is not None and len(data.datasets) > 1:
        raise DataError(
            f"extended.top_k_species is {config.top_k_species}, and it works with one dataset; "
            f"{data.name} holds {', '.join(data.datasets)}: name one in extended.datasets"
        )
    selection = select(config, data.samples)
    for note in (*data.notes, *selection.notes):
        warn(note)
    if config.queries is None:
        _check_instructions(selection.samples, data.name)
    support = _support(config, data, selection)
    renderer = Renderer(template, selection.species, support, config.seed)
    return Plan(selection.samples, config.queries, config.lora_scales, renderer)


def _support(config: ExperimentConfig, data: SampleSet, selection: Selection) -> FewShotPool | None:
    if not any(f"{{{AUDIO_EXAMPLES}}}" in query for query in config.queries or ()):
        return None
    pool: Sequence[Sample] = data.samples
    name = data.name
    table = config.support_table
    if table is not None:
        pool, name = open_samples(table, key_prefix="support:").samples, table.path
    support = FewShotPool(pool, config.n_examples, config.seed, name)
    support.check([one.name for one in selection.species], selection.samples)
    return support


def _check_instructions(samples: Sequence[Sample], name: str) -> None:
    silent = next((sample for sample in samples if not sample.instruction.strip()), None)
    if silent is not None:
        raise DataError(
            f"{name}: sample {silent.id!r} brings no question of its own (column "
            "instruction_text), and extended.queries is not set: put at least one question there"
        )


Report: TypeAlias = Callable[[int, int], None]
"""Told how many answers of how many are there."""

ROWS = 32
"""Answers of a batch at most, each with an α of its own."""


class NothingHeardError(NatureLMError):
    """None of the clips could be read."""


class Answerer:
    """Answers the same cells again and again at other α.

    The sound of all cells is read and encoded when this is made, and kept (29 vectors for ten
    seconds in the published model: half a megabyte for a clip).

    rows: most answers that are decoded at once
    max_memory: bytes that batches and kept embeddings may take beside the model's weights
    cache_dir: folder of audio embeddings; None takes that of the environment, if there is one
    note: told where memory runs out, or the folder cannot be used
    left_out: what is wrong with the clips that cannot be read; their cells are not answered

    Raises NothingHeardError where no cell is left.
    """

    def __init__(
        self,
        model: NatureLM,
        cells: Sequence[Trial],
        *,
        rows: int = ROWS,
        max_memory: int | None = None,
        cache_dir: Path | None = None,
        note: Callable[[str], None] = lambda text: None,
        report: Report = lambda done, total: None,
        **generation: Any,
    ) -> None:
        from NatureLM.generation.audio_cache import make_embedding_cache
        from NatureLM.generation.engine import Engine
        from NatureLM.generation.request import GenerationOptions

        self._report = report
        self._engine = Engine(
            model,
            GenerationOptions(**generation),
            batch_rows=rows,
            max_memory=max_memory,
            embeddings=make_embedding_cache(cache_dir, note, max_memory=max_memory),
            note=note,
        )
        self.left_out: dict[str, str] = {}
        self._clips = self._encode(model, cells)
        self.cells = [cell for cell in cells if all(one.key in self._clips for one in cell.audios)]
        if not self.cells:
            why = "; ".join(list(self.left_out.values())[:3]) or "there are no samples"
            raise NothingHeardError(f"there is nothing to answer: {why}")

    def __call__(self, alphas: Sequence[float]) -> list[Row]:
        """A row for every cell at every α, as `beans score` reads them."""
        from NatureLM.generation.request import Request

        asked = [(cell, alpha) for cell in self.cells for alpha in alphas]
        requests = [
            Request(
                key=place,
                prompt=cell.prompt,
                audios=tuple(clip.key for clip in cell.audios),
                alpha=alpha,
                stream=int(cell.id[:7], 16),
            )
            for place, (cell, alpha) in enumerate(asked)
        ]
        texts: dict[Any, str | None] = {}
        for answer in self._engine.run(requests, self._clips.__getitem__):
            if answer.error is not None:
                raise answer.error
            texts[answer.key] = answer.text
            self._report(len(texts), len(asked))
        return [_row(cell, alpha, texts[place]) for place, (cell, alpha) in enumerate(asked)]

    def _encode(self, model: NatureLM, cells: Sequence[Trial]) -> dict[str, EncodedClip]:
        """The clips that can be read, by key."""
        by_key = {clip.key: clip for cell in cells for clip in cell.audios}
        found = self._engine.encode(by_key, ClipLoader(model, by_key.values()))
        self.left_out |= {key: str(one) for key, one in found.items() if isinstance(one, Exception)}
        return {key: one for key, one in found.items() if not isinstance(one, Exception)}


def _row(cell: Trial, alpha: float, text: str | None) -> Row:
    return {
        "prediction": text,
        "label": cell.label,
        "id": cell.sample_id,
        "dataset_name": cell.dataset_name,
        "prompt": cell.prompt,
        "lora_scale": alpha,
        "query": cell.query,
        "cluster": cell.cluster,
    }


ANSWERS = "answers.jsonl"
EXPORT = "reference_layout"


@dataclass(frozen=True)
class RunSummary:
    """What a run did.

    answers, errors: of this run; before: answers that were there
    encoded: windows that went through the encoder
    accuracy: share of right answers of this run at each α
    path: the file of answers; exported: the files in the reference's layout
    cut: clips that are longer than what is heard of them
    """

    answers: int
    errors: int
    before: int
    encoded: int
    seconds: float
    accuracy: dict[float, float]
    path: Path
    exported: tuple[Path, ...] = ()
    cut: int = 0

    def __str__(self) -> str:
        there = f" ({self.before} more from before)" if self.before else ""
        failed = f", {self.errors} without an answer" if self.errors else ""
        lines = [
            f"{self.answers} answers{there}{failed} in {self.seconds:.1f} s, "
            f"{self.encoded} windows encoded",
            f"Answers: {self.path}",
        ]
        if self.cut:
            clips = "1 clip is" if self.cut == 1 else f"{self.cut} clips are"
            lines.append(f"{clips} longer than the window: only the beginning was heard")
        if self.exported:
            lines.append(f"In the reference's layout: {self.exported[0].parent}")
        return "\n".join(lines)


def answers_path(output: Path) -> Path:
    """The file of answers of a run whose results go to `output`, a folder or that very file."""
    return output if output.suffix == ".jsonl" else output / ANSWERS


def run_experiment(
    model: NatureLM,
    plan: Plan,
    output: Path,
    *,
    generate: GenerateConfig,
    batch_tokens: int | None = None,
    max_memory: int | None = None,
    cache_dir: Path | None = None,
    workers: int = 2,
    progress: Progress | None = None,
    exports: bool = True,
    warn: Callable[[str], None] = lambda text: None,
) -> RunSummary:
    """Answer all cells of a plan that have no answer in `output` yet.

    output: a folder, or the file of the answers itself where the name ends in .jsonl; there is no
        copy in the reference's layout then
    generate: how answers are decoded; its `merging_alpha` plays no part, cells have their own α
    batch_tokens, workers: change the speed and never an answer
    max_memory: bytes that batches and kept embeddings may take beside the model's weights
    cache_dir: folder of audio embeddings; None takes that of the environment, if there is one
    progress: told where the run stands after every answer
    exports: whether the reference's files are written at the end
    warn: told where memory runs out and how the run goes on

    Raises OutputError for answers of other settings, or a folder that another run writes to.
    """
    from NatureLM.generation.audio_cache import make_embedding_cache
    from NatureLM.generation.engine import Engine, fold_if_single_alpha

    engine = Engine(
        model,
        _options(generate),
        batch_tokens=batch_tokens,
        max_memory=max_memory,
        workers=workers,
        embeddings=make_embedding_cache(cache_dir, warn, max_memory=max_memory),
        note=warn,
    )
    settings = run_settings(model, plan, generate)
    path, ears = answers_path(output), ClipLoader(model)
    with TrialStore(path) as store:
        store.begin(settings, plan.cells())
        tally = TrialProgress(total=len(plan), before=store.answers)
        report = progress if progress is not None else lambda _: None
        report(tally)
        if tally.done < tally.total:
            with fold_if_single_alpha(model, plan.alphas):
                _ask(engine, ears, plan, store, tally, report)
        made = export(path, output / EXPORT) if exports and path != output else []
        return RunSummary(
            answers=tally.answers,
            errors=tally.errors,
            before=tally.before,
            encoded=engine.encoded,
            seconds=tally.seconds,
            accuracy=tally.accuracy(),
            path=path,
            exported=tuple(made),
            cut=ears.cut,
        )


def _ask(
    engine: Any,
    load: ClipLoader,
    plan: Plan,
    store: TrialStore,
    tally: TrialProgress,
    report: Progress,
) -> None:
    is_right = Correctness(plan)
    for answer in engine.run(_requests(plan, store, load), load):
        cell = cast(Trial, answer.key)
        if answer.error is not None:
            store.add_error(cell, answer.error)
            tally.errors += 1
        else:
            store.add(cell, answer.text)
            tally.count(cell, is_right(cell, answer.text))
        report(tally)


def _requests(plan: Plan, store: TrialStore, load: ClipLoader) -> Iterator[Request]:
    from NatureLM.generation.request import Request

    for cell in plan.cells():
        if not store.is_done(cell):
            load.know(cell.audios)
            yield Request(
                key=cell,
                prompt=cell.prompt,
                audios=tuple(clip.key for clip in cell.audios),
                alpha=cell.alpha,
                stream=int(cell.id[:7], 16),
            )


def _options(generate: GenerateConfig) -> Any:
    from NatureLM.generation.request import GenerationOptions

    return GenerationOptions(**generate.model_dump(exclude={"merging_alpha"}))
