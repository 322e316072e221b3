"""The answers of an experiment on disk: a resumable JSONL file, and its copy for the reference.

A row is the answer to one trial of the plan. Its keys are ``prediction`` and those of
`trial_values`; ``audio_digest``, the hash of the file of each clip in the prompt, where they are
files; ``cell``, the id of the trial; and ``run``, the fingerprint of model and decoding. Where a
clip could not be read, ``error`` (the message) and ``error_type`` stand in place of the prediction.
There are no times, so the same run gives the same rows on any day, in whatever order.

A run may ask for more than the file holds. One that leaves out trials that have an answer, has
other settings, or is about recordings or labels that have changed, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from NatureLM.data.sample import FileSource
from NatureLM.experiments.plan import Trial
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
from NatureLM.util import atomic_write, parse_json


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


EXPORTED = (
    *("prediction", "label", "id", "dataset_name", "prompt", "lora_scale", "query", "cluster"),
    "task",
)
"""What the files of the reference hold of a row, so far as it is there."""


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
