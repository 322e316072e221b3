"""The training loop: plain, the same for every objective, from one process to many.

A step is one update: `accum_grad_iters` micro-batches on every process, whose summed losses are
divided by the number of answer tokens of all of them, so that how a batch is split never matters.
Everything random is seeded by the step, so that a resumed run repeats what an unbroken one does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from NatureLM.config.schema import Config, DatasetsConfig, RunConfig
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.evaluation.metrics import accuracy, clustered_interval, macro_accuracy
from NatureLM.evaluation.protocols import caseless
from NatureLM.progress import printable
from NatureLM.training.build import make_objective
from NatureLM.training.data import Data, load_data, make_order
from NatureLM.training.objectives import DistillationTargets, Objective
from NatureLM.training.optim import (
    MovingAverage,
    check_shardable,
    finish_gradients,
    full_tensors,
    learning_rate,
    make_accelerator,
    make_optimizer,
    parallelize,
    trainable,
)
from NatureLM.training.outputs import (
    AVERAGE,
    HIGH,
    LOW,
    OPTIMIZER,
    WEIGHTS,
    Checkpoint,
    RunLog,
    check_adapter,
    check_same,
    checkpoints,
    clean,
    load_optimizer,
    load_weights,
    optimizer_tensors,
    run_settings,
    write_adapter,
    write_checkpoint,
    write_result,
)
from NatureLM.training.samples import (
    BatchLayout,
    BatchSource,
    DataLoader,
    Sample,
    SampleBuilder,
    make_builders,
    plain_batches,
)
from NatureLM.util import derive_seed

_RESAMPLES = 500  # of clusters, for an interval: half a second for a thousand answers

Scorer = Callable[[str, Sample], bool]


class Pace:
    """How fast the second half of the warm-up is: the first steps also wait for libraries.

    first, last: the steps between which the rate is still rising
    """

    def __init__(self, first: int, last: int) -> None:
        self._half, self._last = (first + last) // 2, last
        self._begun = self._at_half = time.monotonic()

    def ends_at(self, done: int) -> bool:
        """Whether the warm-up ends with this many steps done."""
        if done == self._half:
            self._at_half = time.monotonic()
        return done == self._last

    def steps_within(self, limit: float) -> int:
        """How many steps, those of the warm-up included, fit into so many seconds."""
        now = time.monotonic()
        step = (now - self._at_half) / max(self._last - self._half, 1)
        return self._last + max(1, int((self._begun + limit - now) / max(step, 1e-6)))


class ScoredAnswer(NamedTuple):
    """A generated answer: of which row, right or not, the right label, the row's cluster."""

    id: str
    correct: bool
    label: str
    cluster: str


def answer_scores(answered: Sequence[ScoredAnswer]) -> dict[str, float]:
    """Accuracy and macro accuracy (over the true answers) with 95 % intervals over clusters.

    Clips of one recording (`group`) succeed or fail together, so clusters are resampled. Empty
    where nothing was answered.
    """
    if not answered:
        return {}
    rows = sorted(answered)  # so that processes and batches do not matter
    correct = np.array([row.correct for row in rows], dtype=np.float64)
    labels = np.array([row.label for row in rows])
    clusters = [row.cluster for row in rows]
    statistics = {
        "accuracy": lambda weights: accuracy(correct, weights),
        "macro_accuracy": lambda weights: macro_accuracy(correct, labels, weights),  # type: ignore[arg-type]
    }
    scores: dict[str, float] = {}
    for name, statistic in statistics.items():
        found = clustered_interval(statistic, clusters, repeats=_RESAMPLES)
        scores |= {name: found.value, name + LOW: found.low, name + HIGH: found.high}
    return scores


def same_text(answer: str, sample: Sample) -> bool:
    """Whether an answer is the expected one, but for case, blanks, ways to type and a full stop."""
    one, other = (caseless(text.strip().rstrip(".")) for text in (answer, sample.answer))
    return one == other


def is_decoded(number: int, ratio: float) -> bool:
    """Whether answers of a batch are generated, for a ratio of the batches.

    Every batch for 1, every second for 0.5, none for 0; the first one for all but 0.
    """
    return math.ceil((number + 1) * ratio - 1e-9) > math.ceil(number * ratio - 1e-9)


@dataclass(frozen=True)
class TrainResult:
    """Where a run ended: its folder, updates done, and the last scores on the validation table."""

    folder: Path
    steps: int
    scores: dict[str, float]


def train(
    config: Config,
    *,
    resume: bool = False,
    scorer: Scorer = same_text,
    data: Data | None = None,
    soft: DistillationTargets | None = None,
) -> TrainResult:
    """Run what the configuration says; `<output_dir>/final` is the result.

    resume: from the latest checkpoint in `output_dir`, if there is one
    scorer: what counts as a right answer in evaluation
    data: rows to train on; those of the configuration's tables if None
    soft: a classifier's answers for the whole model to learn
    """
    return Trainer(config, data, scorer, soft).run(resume=resume)


class Trainer:
    """A run with everything it holds.

    objective: what is learned; None takes what `run.task` says
    loader: where batches come from; None draws them from `data`
    """

    def __init__(
        self,
        config: Config,
        data: Data | None = None,
        scorer: Scorer = same_text,
        soft: DistillationTargets | None = None,
        *,
        objective: Objective | None = None,
        loader: BatchSource | None = None,
    ) -> None:
        self.config = config
        self.settings = config.run or RunConfig()
        self.scorer = scorer
        self.folder = Path(self.settings.output_dir)
        datasets = config.datasets or DatasetsConfig()
        if data is None:
            data = load_data(datasets, self.settings) if loader is None else Data()
        self.data = data
        self.accelerator = make_accelerator(self.settings)
        self.objective = objective or make_objective(
            config, data.train, self.accelerator.device, soft
        )
        check_adapter(config, self.objective)
        self.builder, self.valid, self.test, self.bad = make_builders(
            data,
            datasets,
            self.settings,
            template=self.objective.template,
            sample_rate=self.objective.sample_rate,
            window_samples=self.objective.window_samples,
        )
        self.loader = loader or self._make_loader(datasets)
        self.epoch_steps = self.loader.epoch_steps
        self.total = self.settings.max_steps or (self.settings.optims.max_epoch * self.epoch_steps)
        check_shardable(self.accelerator, self.settings, datasets)
        self.parallel = parallelize(self.accelerator, self.objective)
        self.parameters = trainable(self.objective)
        self.optimizer = make_optimizer(self.parameters, self.settings.optims)
        self.average = (
            MovingAverage(self.parameters, self.settings.ema_decay)
            if self.settings.ema_decay > 0
            else None
        )
        self.best: tuple[float, int] | None = None
        self.scores: dict[str, float] = {}
        self._reported = 0  # unusable files that were named so far

    def _make_loader(self, datasets: DatasetsConfig) -> DataLoader:
        layout = BatchLayout(
            self.settings.batch_size_train,
            self.settings.accum_grad_iters,
            self.accelerator.num_processes,
        )
        lengths = [self.objective.length(example) for example in self.data.train]
        return DataLoader(
            self.builder,
            make_order(self.data, datasets, self.settings, layout.step_size),
            layout,
            self.bad,
            process=self.accelerator.process_index,
            workers=self.settings.num_workers,
            lengths=[n for n in lengths if n is not None] if None not in lengths else None,
        )

    def run(self, *, resume: bool) -> TrainResult:
        """Train to the end (or only evaluate) and write the result."""
        first = self._begin(resume)
        self.log = RunLog(
            self.folder,
            step=first,
            total=self.total,
            trackers=self.settings.trackers,
            main=self.accelerator.is_main_process,
        )
        if self.settings.evaluate:
            self.scores = self._evaluate(self.test, first, "test")
            return TrainResult(self.folder, first, self.scores)
        numbers = sum(p.numel() for _, p in self.parameters)
        self.log.say(
            f"{numbers:,} parameters learn from {len(self.data.train):,} rows in {self.total:,} "
            f"steps of {self.loader.layout.step_size} samples"
            + (f", going on after step {first:,}" if first else "")
        )
        with self.log.running():
            self._train(first)
        self._finish()
        return TrainResult(self.folder, self.total, self.scores)

    def _train(self, first: int) -> None:
        updates: list[Tensor] = []
        since = time.monotonic()
        warm = Pace(first, min(first + self.settings.optims.warmup_steps, self.total))
        for step, batches in enumerate(self.loader.steps(first, self.total), start=first):
            updates.append(self._update(step, batches))
            done = step + 1
            self.log.step(done)
            if self.settings.max_seconds is not None and warm.ends_at(done):
                self._settle_length(done, warm.steps_within(self.settings.max_seconds))
            if done % self.settings.log_freq == 0 or done == self.total:
                self._tell(done, updates, time.monotonic() - since)
                updates, since = [], time.monotonic()
            self._evaluate_and_save(done)
            if done == self.total:
                return

    def _settle_length(self, done: int, steps: int) -> None:
        """From here on the run has so many steps, if that is fewer; on all processes the same."""
        mean = self.accelerator.reduce(
            torch.tensor(float(steps), device=self.accelerator.device), reduction="mean"
        )
        self.total = min(self.total, int(mean))
        self.log.settle(done, self.total)

    def _tell(self, done: int, updates: list[Tensor], seconds: float) -> None:
        """Means over some updates, and the files that were found to be unusable since last time."""
        loss, count, correct, norm = sum(updates[1:], updates[0]).tolist()
        if not math.isfinite(loss / count):
            raise NatureLMError(
                f"the loss is {loss / count} at step {done}; a lower "
                "run.optims.init_lr or a longer warm-up may help"
            )
        numbers = {
            "loss": loss / count,
            "token_accuracy": correct / count,
            "gradient_norm": norm / len(updates),
            "learning_rate": learning_rate(done - 1, self.total, self.settings.optims),
            "samples_per_second": len(updates) * self.loader.layout.step_size / max(seconds, 1e-9),
            "bad_files": len(self.bad.reasons),
        }
        self.log.train(done, numbers)
        for path, reason in list(self.bad.reasons.items())[self._reported :]:
            self.log.say(f"left out: {printable(path)}: {reason}")
            self._reported += 1

    def _update(self, step: int, batches: list[list[Any]]) -> Tensor:
        """One update; the sums of loss, answer tokens, right ones, and the gradient norm, (4,)."""
        from accelerate.utils import (  # type: ignore[import-untyped, unused-ignore]
            send_to_device,
        )

        optims = self.settings.optims
        rate = learning_rate(step, self.total, optims)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self.objective.train()
        device = self.accelerator.device
        sums = torch.zeros(3, device=device)
        for number, samples in enumerate(batches):
            # Dropout and layer drop depend on where a micro-batch is in the run only.
            place = (step, number, self.accelerator.process_index)
            torch.manual_seed(derive_seed(self.settings.seed, "step", *place))
            with self.parallel.accumulate(number == len(batches) - 1):
                batch = send_to_device(self.objective.collate(samples), device)
                out = self.parallel.module(batch)
                self.accelerator.backward(out.loss)
            sums += torch.stack([value.detach().float() for value in out])
        sums = self.accelerator.reduce(sums)
        # Gradients are sums on one process and means of sums over several.
        scale = self.accelerator.num_processes / sums[1]
        norm = finish_gradients([p for _, p in self.parameters], scale, optims)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(step)
        return torch.cat([sums, norm[None]])

    def _evaluate_and_save(self, done: int) -> None:
        run = self.settings
        at_end = done == self.total
        save = at_end or done % (run.save_every or self.epoch_steps) == 0
        if self.valid.examples and (at_end or done % (run.eval_every or self.epoch_steps) == 0):
            self.scores = self._evaluate(self.valid, done, "valid")
            save = self._is_best(done) or save
        if save:
            self._save(done)

    def _evaluate(self, builder: SampleBuilder, done: int, name: str) -> dict[str, float]:
        if not builder.examples:
            raise UsageError(f"there is no {name} table to evaluate on (datasets.{name})")
        with self._averaged(), self.parallel.summon_full_params():
            scores = self._scores(builder)
        self.log.evaluation(done, scores, name)
        return scores

    def _scores(self, builder: SampleBuilder) -> dict[str, float]:
        """Mean loss and token accuracy of all rows; `answer_scores` where answers are generated."""
        from accelerate.utils import (  # type: ignore[import-untyped, unused-ignore]
            gather_object,
            send_to_device,
        )

        accelerator, ratio = self.accelerator, self.settings.decode_ratio
        device, processes = accelerator.device, accelerator.num_processes
        sums = torch.zeros(3, dtype=torch.float64)
        answered: list[ScoredAnswer] = []
        batches = plain_batches(
            builder,
            self.settings.batch_size_eval,
            self.bad,
            process=accelerator.process_index,
            processes=processes,
        )
        self.parallel.evaluated.eval()
        for number, samples in enumerate(batches):
            with torch.inference_mode(), accelerator.autocast():
                batch = send_to_device(self.objective.collate(samples), device)
                out = self.parallel.evaluated(batch)
            sums += torch.stack([value.double().cpu() for value in out])
            if is_decoded(number, ratio):
                with accelerator.autocast():
                    answers = self.objective.answers(samples)
                for answer, sample in zip(answers, samples, strict=True):
                    correct = bool(self.scorer(answer, sample))
                    answered.append(ScoredAnswer(sample.id, correct, sample.answer, sample.group))
        loss, count, correct_tokens = accelerator.reduce(
            sums.to(device, torch.float32 if device.type == "mps" else None)
        ).tolist()
        scores = {"loss": loss / max(count, 1), "token_accuracy": correct_tokens / max(count, 1)}
        if ratio > 0:
            if processes > 1:
                answered = [ScoredAnswer(*row) for row in gather_object(answered)]
            scores |= answer_scores(answered)
        return scores

    def _is_best(self, done: int) -> bool:
        by = self.settings.best_by
        if by not in self.scores:
            raise UsageError(f"run.best_by is {by}, which needs run.decode_ratio above 0")
        value = -self.scores[by] if by == "loss" else self.scores[by]
        if self.best is None or value > self.best[0]:
            self.best = (value, done)
            return True
        return False

    def _averaged(self) -> AbstractContextManager[None]:
        return self.average.in_place() if self.average is not None else nullcontext()

    def _begin(self, resume: bool) -> int:
        """The step to start from; weights and optimiser are put back when there is a checkpoint."""
        found = checkpoints(self.folder / "checkpoints")
        if not found:
            if self.accelerator.is_main_process:
                clean(self.folder / "checkpoints", keep=1)
            return 0
        if not resume and not self.settings.evaluate:
            raise UsageError(
                f"{self.folder} holds checkpoints of a run (last step {found[-1].step}); go on "
                "with --resume, or give another run.output_dir"
            )
        if self.settings.max_seconds is not None and not self.settings.evaluate:
            raise UsageError(
                f"{self.folder} holds a run whose length run.max_seconds decides, and such a run "
                "cannot go on: set max_seconds to null and max_steps to the steps of its log"
            )
        self._load(found[-1])
        state = found[-1].state()
        self.bad.restore(state["bad_files"], state.get("files_tried", 0))
        self._reported = len(self.bad.reasons)
        return found[-1].step

    def _load(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state()
        if not self.settings.evaluate:
            now, then = self._run_settings(), state["run"]
            known = now.keys() - (self.objective.revisions.keys() - then.keys())
            check_same(then, {name: now[name] for name in known}, checkpoint.folder)
        load_weights(self.parameters, checkpoint.tensors(WEIGHTS), checkpoint.folder)
        load_optimizer(self.optimizer, self.parameters, checkpoint.tensors(OPTIMIZER))
        if self.average is not None:
            self.average.load(checkpoint.tensors(AVERAGE))
        self.best = tuple(state["best"]) if state["best"] else None
        self.scores = state["scores"]

    def _save(self, done: int) -> None:
        """A checkpoint after `done` updates."""
        folder = self.folder / "checkpoints"
        self.accelerator.wait_for_everyone()
        main = self.accelerator.is_main_process
        parts = {
            WEIGHTS: {name: p.detach() for name, p in self.parameters},
            OPTIMIZER: optimizer_tensors(self.optimizer, self.parameters),
        }
        if self.average is not None:
            parts[AVERAGE] = self.average.values
        tensors = {name: full_tensors(held, keep=main) for name, held in parts.items()}
        if not main:
            return
        if not all(bool(value.isfinite().all()) for value in tensors[WEIGHTS].values()):
            raise NatureLMError(f"weights are no longer finite after step {done}; none were saved")
        state = {
            "step": done,
            "best": self.best,
            "scores": self.scores,
            "bad_files": self.bad.reasons,
            "files_tried": self.bad.tried_so_far,
            "run": self._run_settings(),
        }
        write_checkpoint(folder, done, tensors, state)
        clean(folder, self.settings.keep_checkpoints, also=[self.best[1]] if self.best else [])

    def _run_settings(self) -> dict[str, Any]:
        processes = self.accelerator.num_processes
        settings = run_settings(self.config, data=self.data.fingerprint(), processes=processes)
        return {**settings, **self.objective.revisions}

    def _finish(self) -> None:
        """Write `final`: averaged weights if there are any, those of the best step if asked for."""
        self.accelerator.wait_for_everyone()  # until the last checkpoint is written
        if self.settings.use_best and self.best is not None:
            found = checkpoints(self.folder / "checkpoints")
            self._load(next(c for c in found if c.step == self.best[1]))
        with self._averaged(), self.parallel.summon_full_params():
            if self.accelerator.is_main_process:
                self._write()
        self.accelerator.wait_for_everyone()

    def _write(self) -> None:
        final = write_result(
            self.folder, self.objective, self.config, self.data, self.scores, self.total
        )
        self.log.say(f"Result: {final}")
        if self.settings.save_adapter:
            adapter, left_out = write_adapter(
                self.folder, self.objective, self.parameters, self.config
            )
            rest = f", without what else learned: {', '.join(left_out)}" if left_out else ""
            self.log.say(f"Adapter: {adapter}{rest}")
