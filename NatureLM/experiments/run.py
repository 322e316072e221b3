"""A plan becomes answers: what has none yet goes through the engine into the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from NatureLM.experiments.export import export
from NatureLM.experiments.hearing import Ears
from NatureLM.experiments.plan import Cell, Plan
from NatureLM.experiments.settings import run_settings
from NatureLM.experiments.store import CellStore
from NatureLM.experiments.tally import Progress, RightOrWrong, Tally

if TYPE_CHECKING:
    from NatureLM.config import GenerateConfig
    from NatureLM.generation.requests import Request
    from NatureLM.models import NatureLM

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
    from NatureLM.generation.embedding_files import kept_embeddings
    from NatureLM.generation.engine import Engine, one_alpha

    engine = Engine(
        model,
        _options(generate),
        batch_tokens=batch_tokens,
        max_memory=max_memory,
        workers=workers,
        embeddings=kept_embeddings(cache_dir, warn, max_memory=max_memory),
        note=warn,
    )
    settings = run_settings(model, plan, generate)
    path, ears = answers_path(output), Ears(model)
    with CellStore(path) as store:
        store.begin(settings, plan.cells())
        tally = Tally(total=len(plan), before=store.answers)
        report = progress if progress is not None else lambda _: None
        report(tally)
        if tally.done < tally.total:
            with one_alpha(model, plan.alphas):
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
    engine: Any, load: Ears, plan: Plan, store: CellStore, tally: Tally, report: Progress
) -> None:
    is_right = RightOrWrong(plan)
    for answer in engine.run(_requests(plan, store, load), load):
        cell = cast(Cell, answer.key)
        if answer.error is not None:
            store.add_error(cell, answer.error)
            tally.errors += 1
        else:
            store.add(cell, answer.text)
            tally.count(cell, is_right(cell, answer.text))
        report(tally)


def _requests(plan: Plan, store: CellStore, load: Ears) -> Iterator[Request]:
    from NatureLM.generation.requests import Request

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
    from NatureLM.generation.options import GenerationOptions

    return GenerationOptions(**generate.model_dump(exclude={"merging_alpha"}))
