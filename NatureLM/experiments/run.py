"""Running a plan: trials without an answer go through the engine into a file that is resumed.

Each clip is encoded once, and α are rows of a batch. `run_experiment` answers a whole plan and
resumes; `Answerer` answers the same trials again and again at other α, for tuning. `export` copies
answers into the files of the reference.

A row of the file is the answer to one trial of the plan. Its keys are ``prediction`` and those of
`trial_values`; ``audio_digest``, the hash of the file of each clip in the prompt, where they are
files; ``cell``, the id of the trial; and ``run``, the fingerprint of model and decoding. Where a
clip could not be read, ``error`` (the message) and ``error_type`` stand in place of the prediction.
There are no times, so the same run gives the same rows on any day, in whatever order.

A run may ask for more than the file holds. One that leaves out trials that have an answer, has
other settings, or is about recordings or labels that have changed, is refused.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from NatureLM.data.sample import Clip, FileSource, read_window
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.experiments.plan import Plan, Trial
from NatureLM.inference.loading import dtype_names, processor_of
from NatureLM.prompts import PromptTooLong, quoted
from NatureLM.results.rows import (
    OutputError,
    RunSettings,
    StoredRow,
    differences,
    json_line,
    read_lines,
    record_path,
)
from NatureLM.results.store import ResultStore
from NatureLM.util import atomic_write, digest, parse_json

if TYPE_CHECKING:
    from NatureLM.config import GenerateConfig
    from NatureLM.generation.audio_cache import EncodedClip, PaddedClip
    from NatureLM.generation.engine import Engine, Request
    from NatureLM.models import NatureLM

ANSWERS = "answers.jsonl"
EXPORT = "reference_layout"
EXPORTED = (
    *("prediction", "label", "id", "dataset_name", "prompt", "lora_scale", "query", "cluster"),
    "task",
)
"""What the files of the reference hold of a row, so far as it is there."""


@dataclass(frozen=True)
class TrialRow(StoredRow):
    """What a stored row says of its trial; digests are those of its clips."""

    run: str
    cell: str
    label: str
    cluster: str
    digests: list[str | None]
    is_error: bool = False


def trial_values(trial: Trial) -> dict[str, Any]:
    """What a row says of the trial itself, in the order in which it is written.

    `prompt` is the complete one, `lora_scale` is α, samples of one recording share a `cluster`.
    """
    return {
        "label": trial.label,
        "id": trial.sample_id,
        "dataset_name": trial.dataset_name,
        "prompt": trial.prompt,
        "query": trial.query,
        "lora_scale": trial.alpha,
        "cluster": trial.cluster,
        **({"task": trial.task} if trial.task else {}),
    }


class TrialStore(ResultStore[TrialRow]):
    """An open file of answers to trials. Use it as a context manager.

    Raises OutputError where the file cannot be written, holds something else, or is in use.
    """

    OTHERWISE = "give another --output-path"
    PADS = False

    def _forget(self) -> None:
        super()._forget()
        self._rows: dict[str, TrialRow] = {}
        self._has_errors = False

    def begin(self, settings: RunSettings, trials: Iterable[Trial] = ()) -> None:
        """Start a run, or resume it; a torn line and errors of before are taken out.

        trials: what the run asks: all that has an answer, about the same recordings, and more

        Raises OutputError, and leaves the file as it is, if it holds answers of other settings,
        about recordings that have changed, or to trials that are not asked.
        """
        if self._run not in (None, settings.run):
            raise self._settings_refusal(settings)
        self._refuse_other_revisions(settings)
        unasked = set(self._rows)
        for trial in trials if unasked else ():
            if trial.id in self._rows:
                self._refuse_changed(self._rows[trial.id], trial)
            unasked.discard(trial.id)
        if unasked:
            raise self._unasked_refusal(settings, len(unasked))
        self._start(settings, _answers_only if self._has_errors else None)

    def is_done(self, trial: Trial) -> bool:
        """Whether the file has an answer to the trial."""
        return trial.id in self._done

    def add(self, trial: Trial, prediction: str) -> None:
        """Write an answer."""
        self._append(trial, {"prediction": prediction})
        self._done.add(trial.id)

    def add_error(self, trial: Trial, error: Exception) -> None:
        """Write why a trial has no answer."""
        kind = getattr(error, "kind", type(error).__name__)
        self._append(trial, {"error": str(error), "error_type": kind})

    def _append(self, trial: Trial, result: dict[str, Any]) -> None:
        digests = _digests(trial)
        values = {
            **result,
            **trial_values(trial),
            **({"audio_digest": digests} if digests else {}),
            "cell": trial.id,
            "run": self._settings.run,
        }
        self._file.append(json_line(values))

    def _refuse_foreign(self, first_line: bytes) -> None:
        """A first line without an end may be a row that was cut off, or of something else."""
        starts = (b'{"prediction"', b'{"error"')
        if not first_line.endswith(b"\n") and not any(
            first_line.startswith(start[: len(first_line)]) for start in starts
        ):
            _parsed(first_line, str(self.path), 1)

    def _parse(self, line: bytes, number: int) -> TrialRow:
        row = _parsed(line, str(self.path), number)
        return TrialRow(
            run=row["run"],
            cell=row["cell"],
            label=str(row.get("label")),
            cluster=str(row.get("cluster")),
            digests=row.get("audio_digest") or [],
            is_error="error" in row,
        )

    def _take(self, row: TrialRow) -> None:
        if row.is_error:
            self._has_errors = True
        else:
            self._done.add(row.cell)
            self._rows[row.cell] = row

    def _refuse_changed(self, before: TrialRow, trial: Trial) -> None:
        advice = f"{self.OTHERWISE.capitalize()}."
        for clip, old, new in zip(trial.audios, before.digests, _digests(trial), strict=False):
            if None not in (old, new) and old != new:
                raise OutputError(
                    f"{self.path}: holds answers about {clip.key}, which has changed since. "
                    f"{advice}"
                )
        for name in ("label", "cluster"):
            old, new = getattr(before, name), getattr(trial, name)
            if old != new:
                raise OutputError(
                    f"{self.path}: holds an answer to {trial.sample_id!r} of "
                    f"{trial.dataset_name}, whose {name} was {old!r} and is {new!r} now. {advice}"
                )

    def _settings_refusal(self, settings: RunSettings) -> OutputError:
        record = self._record()
        if record is not None:
            found = differences(record.values, settings.values)
            found = found or ["they were made by another version of the program"]
        else:
            missing = record_path(self.path).name
            found = [f"what differs cannot be told, because {missing} is missing or damaged"]
        return self._refusal(
            "holds answers of another model or other settings, and these are not mixed", found
        )

    def _unasked_refusal(self, settings: RunSettings, count: int) -> OutputError:
        record = self._record()
        found = [] if record is None else differences(record.asked, settings.asked)
        # A hash says nothing to people where something else does.
        found = [line for line in found if not line.startswith("plan: ")]
        return self._refusal(
            f"holds answers that this run does not ask for ({count} of {self.answers}), and what "
            "is asked may only grow",
            found or ["other samples, or other text around the questions"],
            f"Ask for them, too, or {self.OTHERWISE}.",
        )


def _digests(trial: Trial) -> list[str | None]:
    """Hashes of the files of a trial's clips; empty where none is a file."""
    sources = [clip.source for clip in trial.audios]
    found = [one.digest if isinstance(one, FileSource) else None for one in sources]
    return found if any(digest is not None for digest in found) else []


def _answers_only(line: bytes, number: int) -> bytes | None:
    return line if b'"error"' not in line or "error" not in json.loads(line) else None


def _parsed(line: bytes, name: str, number: int) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not {"cell", "run", "id"} <= row.keys():
        raise OutputError(
            f"{name}, line {number}: this is no row of an experiment, so the file is left as it "
            f"is; {TrialStore.OTHERWISE}"
        )
    return row


def export(answers: Path, folder: Path) -> list[Path]:
    """Write answers in the files that the reference writes: one a dataset, query and α.

    `beans_zero_eval_<dataset>_query<number>_lora<α>.jsonl`, rows sorted by sample id. α stands in
    data and name as exactly as it was asked for: 0.57 is 0.57, where the reference makes it 56.
    Trials without an answer are left out, and files of these names are replaced. Memory holds one
    place in the file for each row, and one row.

    Raises OutputError.
    """
    groups: dict[tuple[str, int, float], list[tuple[str, int, int]]] = {}
    offset = 0
    for number, line in enumerate(read_lines(answers), start=1):
        row = _parsed(line, str(answers), number)
        if "error" not in row:
            group = (row["dataset_name"], row["query"], float(row["lora_scale"]))
            groups.setdefault(group, []).append((str(row["id"]), offset, len(line)))
        offset += len(line)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for (dataset, query, alpha), rows in sorted(groups.items()):
            of_group = f"{quote(dataset, safe=' ')}_query{query}_lora{alpha!r}"
            target = folder / f"beans_zero_eval_{of_group}.jsonl"
            written.append(_write(answers, target, sorted(rows)))
        return written
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from None


def _write(answers: Path, target: Path, rows: list[tuple[str, int, int]]) -> Path:
    """Copy rows, named by place and length, to a file that is there whole or not at all."""
    with (
        atomic_write(target, alone=True) as unfinished,
        open(answers, "rb") as source,
        open(unfinished, "wb") as out,
    ):
        for _, offset, length in rows:
            source.seek(offset)
            row = json.loads(source.read(length))
            out.write(json_line({key: row[key] for key in EXPORTED if key in row}))
    return target


# The run


@dataclass
class TrialProgress:
    """Counts of a run, as it goes.

    total: trials of the plan; before: those that had an answer already
    answers, errors: what was done since
    right: right answers, and all that were given, at each α
    """

    total: int
    before: int = 0
    answers: int = 0
    errors: int = 0
    right: dict[float, tuple[int, int]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        """Trials that need nothing more in this run."""
        return self.before + self.answers + self.errors

    @property
    def rate(self) -> float:
        """Answers a second."""
        return (self.answers + self.errors) / max(time.monotonic() - self.started, 1e-6)

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None before the first answer."""
        return max(0, self.total - self.done) / self.rate if self.answers + self.errors else None

    def accuracy(self) -> dict[float, float]:
        """Share of right answers of this run so far, by α in order."""
        return {alpha: right / count for alpha, (right, count) in sorted(self.right.items())}

    def count(self, trial: Trial, is_right: bool) -> None:
        """Count an answer."""
        right, count = self.right.get(trial.alpha, (0, 0))
        self.right[trial.alpha] = (right + is_right, count + 1)
        self.answers += 1


@dataclass(frozen=True)
class RunSummary:
    """What a run did, in words when it is printed.

    progress: its counts at the end
    encoded: windows that went through the encoder
    path: the file of answers; exported: the files in the reference's layout
    cut: clips that are longer than what is read of them
    """

    progress: TrialProgress
    seconds: float
    encoded: int
    path: Path
    exported: tuple[Path, ...] = ()
    cut: int = 0

    def __str__(self) -> str:
        counts = self.progress
        there = f" ({counts.before} more from before)" if counts.before else ""
        failed = f", {counts.errors} without an answer" if counts.errors else ""
        text = (
            f"{counts.answers} answers{there}{failed} in {self.seconds:.1f} s, "
            f"{self.encoded} windows encoded\nAnswers: {self.path}"
        )
        if self.cut:
            clips = "1 clip is" if self.cut == 1 else f"{self.cut} clips are"
            text += f"\n{clips} longer than the window: only the beginning was heard"
        if self.exported:
            text += f"\nIn the reference's layout: {self.exported[0].parent}"
        return text


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
    progress: Callable[[TrialProgress], None] = lambda _: None,
) -> RunSummary:
    """Answer all trials of a plan that have no answer in `output` yet.

    output: a folder, or the file of the answers itself where the name ends in .jsonl; there is no
        copy in the reference's layout then
    generate: how answers are decoded; its `merging_alpha` plays no part, trials have their own α
    batch_tokens, workers: change the speed and never an answer
    max_memory: bytes that batches and kept embeddings may take beside the model's weights
    cache_dir: folder of audio embeddings; None takes that of the environment, if there is one
    progress: called after every answer and error, and once before the first

    Raises OutputError for answers of other settings, or a folder that another run writes to, and
    UsageError for a query that is too long for the language model with every sample.
    """
    from NatureLM.generation.engine import fold_if_single_alpha

    batching: dict[str, Any] = {"batch_tokens": batch_tokens, "workers": workers}
    engine = _engine(model, _decoding(generate), max_memory, cache_dir, **batching)
    path, load, is_right = answers_path(output), ClipLoader(model), Correctness(plan)
    _check_queries(engine, plan)
    with TrialStore(path) as store:
        store.begin(run_settings(model, plan, generate), plan.trials())
        counts = TrialProgress(total=len(plan), before=store.answers)

        def requests() -> Iterator[Request]:
            for trial in plan.trials():
                if not store.is_done(trial):
                    load.add(trial.audios)
                    yield _request(trial, trial)

        progress(counts)
        if counts.done < counts.total:
            with fold_if_single_alpha(model, plan.alphas):
                for answer in engine.run(requests(), load):
                    trial = cast(Trial, answer.key)
                    if answer.text is None:
                        store.add_error(trial, _named(cast(Exception, answer.error), plan, trial))
                        counts.errors += 1
                    else:
                        store.add(trial, answer.text)
                        counts.count(trial, is_right(trial, answer.text))
                    progress(counts)
        exported = export(path, output / EXPORT) if path != output else []
        seconds = time.monotonic() - counts.started
        return RunSummary(counts, seconds, engine.encoded, path, tuple(exported), load.cut)


def _engine(
    model: NatureLM,
    generation: dict[str, Any],
    max_memory: int | None,
    cache_dir: Path | None,
    **batching: Any,
) -> Engine:
    from NatureLM.generation.audio_cache import make_embedding_cache
    from NatureLM.generation.engine import Engine, GenerationOptions

    embeddings = make_embedding_cache(cache_dir, max_memory=max_memory)
    options = GenerationOptions(**generation)
    return Engine(model, options, max_memory=max_memory, embeddings=embeddings, **batching)


def _request(key: Any, trial: Trial) -> Request:
    from NatureLM.generation.engine import Request

    audios = tuple(clip.key for clip in trial.audios)
    return Request(key, trial.prompt, audios, trial.alpha, stream=int(trial.id[:7], 16))


def _too_long(engine: Engine, trial: Trial) -> UsageError | None:
    """What keeps a trial from an answer before its sound is read."""
    positions = cast("NatureLM", engine.model).config.audio_positions
    sound = sum(positions(clip.window) for clip in trial.audios)
    return engine.problem_of(_request(trial, trial), sound)


def _check_queries(engine: Engine, plan: Plan) -> None:
    """Raise UsageError for a query that cannot be asked of any sample."""
    problems: dict[int, Exception] = {}
    fitting: set[int] = set()
    for sample in plan.samples:
        for trial in plan.trials_of(sample):
            if trial.query not in fitting:
                problem = _too_long(engine, trial)
                if problem is None:
                    fitting.add(trial.query)
                else:
                    problems.setdefault(trial.query, _named(problem, plan, trial))
        if len(fitting) == plan.n_queries:
            return
    for query, error in sorted(problems.items()):
        if query not in fitting:
            raise error


def _named(error: Exception, plan: Plan, trial: Trial) -> Exception:
    """The error of a trial; one of a prompt that is too long names the query."""
    if not isinstance(error, PromptTooLong):
        return error
    if plan.queries is None:
        return error.about(f"the question of sample {trial.sample_id!r}")
    return error.about(f"extended.queries, {quoted(plan.queries[trial.query])}")


def run_settings(model: NatureLM, plan: Plan, generate: GenerateConfig) -> RunSettings:
    """The settings of a run; batch size, threads, device and paths are none, they change nothing.

    What is asked of which samples is none either: trials have ids of their own, so a run that asks
    for more may be resumed.
    """
    return RunSettings(
        {
            "weights": weights_of(model),
            "dtype": dtype_names(model),
            "prompt_template": model.processor.prompt_template if model.processor else None,
            "generate": _decoding(generate),
        },
        asked={
            "lora_scales": list(plan.alphas),
            "queries": None if plan.queries is None else list(plan.queries),
            "datasets": Counter(sample.dataset_name for sample in plan.samples),
            "plan": plan.fingerprint(),
        },
        revisions=model.revisions,
    )


def weights_of(model: NatureLM) -> str:
    """Name of exact weights: that of the files they came from, or of the tensors themselves."""
    if model.fingerprint is not None:
        return model.fingerprint
    import torch

    def contents() -> Iterator[str | bytes]:
        for name, parameter in sorted(model.named_parameters()):
            yield f"{name} {tuple(parameter.shape)}"
            yield parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()

    return digest(contents(), size=8).hex()


def _decoding(generate: GenerateConfig) -> dict[str, Any]:
    """The options of decoding: α is each trial's own."""
    return generate.model_dump(exclude={"merging_alpha"})


class Correctness:
    """Whether an answer stands for its label: the nearest label of the dataset, as when scored.

    Without rapidfuzz: the same string but for case. This is for watching a run; scoring is done
    afterwards, with intervals.
    """

    def __init__(self, plan: Plan) -> None:
        labels: dict[str, set[str]] = {}
        for sample in plan.samples:
            labels.setdefault(sample.dataset_name, set()).add(sample.label)
        self._labels = {name: sorted(found) for name, found in labels.items()}
        self._known: dict[tuple[str, str], str] = {}

    def __call__(self, trial: Trial, prediction: str) -> bool:
        """Whether it is right."""
        what = (trial.dataset_name, prediction)
        if what not in self._known:
            self._known[what] = _nearest(prediction.strip(), self._labels[trial.dataset_name])
        return self._known[what] == trial.label


def _nearest(text: str, labels: Sequence[str]) -> str:
    from NatureLM.evaluation.protocols import nearest

    try:
        return labels[int(nearest([text], labels)[0])]
    except UsageError:  # rapidfuzz is not installed
        folded = text.casefold()
        return next((one for one in labels if one.strip().casefold() == folded), "")


class ClipLoader:
    """Reads clips by key, for the threads of the engine.

    A component whose clips are shorter than the model's window is read in windows of that length,
    as the reference does; a clip that is longer is cut, and counted.

    Raises UsageError for a model without a processor.
    """

    def __init__(self, model: NatureLM, clips: Iterable[Clip] = ()) -> None:
        processor = processor_of(model)
        self._rate, self._seconds = processor.sample_rate, processor.window_seconds
        self._clips: dict[str, Clip] = {}
        self._cut: set[str] = set()
        self.add(clips)

    @property
    def cut(self) -> int:
        """Clips that were longer than their window."""
        return len(self._cut)

    def add(self, clips: Iterable[Clip]) -> None:
        """Clips that will be asked for."""
        self._clips.update((clip.key, clip) for clip in clips)

    def __call__(self, key: str) -> PaddedClip:
        """The sound of a clip; raises AudioError."""
        from NatureLM.generation.audio_cache import PaddedClip

        audio = read_window(self._clips[key], self._rate, self._seconds)
        if audio.is_cut:
            self._cut.add(key)
        return PaddedClip(audio.samples, audio.seconds)


class Answerer:
    """Answers the same trials again and again at other α.

    The sound of all trials is read and encoded when this is made, and kept (29 vectors for ten
    seconds in the published model: half a megabyte for a clip).

    rows: most answers that are decoded at once
    max_memory: bytes that batches and kept embeddings may take beside the model's weights
    cache_dir: folder of audio embeddings; None takes that of the environment, if there is one
    report: told how many answers of how many are there
    left_out: what is wrong with the clips that cannot be read and the samples whose prompts are
        too long; their trials are not answered

    Raises NatureLMError where no trial is left.
    """

    def __init__(
        self,
        model: NatureLM,
        trials: Sequence[Trial],
        *,
        rows: int = 32,
        max_memory: int | None = None,
        cache_dir: Path | None = None,
        report: Callable[[int, int], None] = lambda done, total: None,
        **generation: Any,
    ) -> None:
        self._report = report
        self._engine = _engine(model, generation, max_memory, cache_dir, batch_rows=rows)
        self.left_out: dict[str, str] = {}
        fitting: list[Trial] = []
        for trial in trials:
            if problem := _too_long(self._engine, trial):
                self.left_out[trial.id] = f"sample {trial.sample_id!r}: {problem}"
            else:
                fitting.append(trial)
        clips = {clip.key: clip for trial in fitting for clip in trial.audios}
        encoded = self._engine.encode(clips, ClipLoader(model, clips.values()))
        self._clips: dict[str, EncodedClip] = {}
        for key, one in encoded.items():
            if isinstance(one, Exception):
                self.left_out[key] = str(one)
            else:
                self._clips[key] = one
        heard = self._clips.keys()
        self.trials = [one for one in fitting if heard >= {clip.key for clip in one.audios}]
        if not self.trials:
            why = "; ".join(list(self.left_out.values())[:3]) or "there are no samples"
            raise NatureLMError(f"there is nothing to answer: {why}")

    def __call__(self, alphas: Sequence[float]) -> list[dict[str, Any]]:
        """A row for every trial at every α, as `beans score` reads them."""
        asked = [replace(trial, alpha=alpha) for trial in self.trials for alpha in alphas]
        requests = [_request(place, trial) for place, trial in enumerate(asked)]
        texts: dict[Any, str | None] = {}
        for answer in self._engine.run(requests, self._clips.__getitem__):
            if answer.error is not None:
                raise answer.error
            texts[answer.key] = answer.text
            self._report(len(texts), len(asked))
        rows = ({"prediction": texts[n], **trial_values(one)} for n, one in enumerate(asked))
        return [{key: row[key] for key in EXPORTED if key != "task"} for row in rows]
