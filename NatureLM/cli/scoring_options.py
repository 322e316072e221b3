"""Options of verbs that score answers, and what they mean for the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from NatureLM.errors import UsageError

if TYPE_CHECKING:
    from NatureLM.beans.scoring.answers import Reading
    from NatureLM.beans.scoring.evaluate import Evaluation

By = Annotated[
    str | None,
    typer.Option(
        help="Columns that make groups, besides the data set, set off by commas.",
        show_default="query,lora_scale, as far as rows have them",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        help="File of the labels that may be answered, one a line.",
        show_default="the labels that occur",
    ),
]
ScientificNames = Annotated[
    Path | None,
    typer.Option(help="JSON file from common to scientific name.", show_default=False),
]
Names = Annotated[
    list[str] | None,
    typer.Option(
        help="Names of labels where a column has a value: query=1:scientific (or :both, :common). "
        "May be given several times.",
        show_default=False,
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        metavar="classification|detection|captioning",
        help="Task of data sets that are no component of BEANS-Zero.",
        show_default="the rows' key task",
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        help="Column of what intervals resample as a whole.",
        show_default="cluster, family or recording, as far as rows have them",
    ),
]
OnError = Annotated[
    str,
    typer.Option(metavar="fail|skip", help="At a line that cannot be scored: stop, or count it."),
]
Resamples = Annotated[int, typer.Option(min=1, help="Resamples of the bootstrap.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the bootstrap and of random answers.")]


@dataclass(frozen=True)
class ScoringOptions:
    """The options that `beans score`, `beans compare` and `report` share, in the order of the help.

    The methods raise UsageError for values that cannot be.
    """

    by: By = None
    labels: Labels = None
    scientific_names: ScientificNames = None
    names: Names = None
    task: Task = None
    cluster: Cluster = None
    on_error: OnError = "fail"
    resamples: Resamples = 1000
    seed: Seed = 0

    def reading(self) -> Reading:
        """How rows are read."""
        return make_reading(
            self.by, self.labels, self.scientific_names, self.names, self.task, self.cluster
        )

    def evaluation(self) -> Evaluation:
        """How intervals are made."""
        return make_evaluation(self.resamples, self.seed)

    def at_errors(self) -> Any:
        """What happens at a line that cannot be scored: "fail" or "skip"."""
        return one_of("--on-error", self.on_error, ("fail", "skip"))


def make_reading(
    by: str | None,
    labels: Path | None,
    scientific_names: Path | None,
    names: Sequence[str] | None,
    task: str | None,
    cluster: str | None,
) -> Reading:
    """How rows are read; raises UsageError for options that do not go together."""
    from NatureLM.beans.scoring.answers import Reading
    from NatureLM.beans.scoring.names import parse_rules, read_labels, read_map

    rules = parse_rules(names or ())
    if scientific_names is None and any(rule.kind != "common" for rule in rules):
        raise UsageError("--names needs --scientific-names, a JSON file from common name to it")
    if scientific_names is not None and not rules:
        raise UsageError("--scientific-names needs --names, such as --names query=1:scientific")
    columns = None if by is None else columns_of(by)
    for rule in rules:
        if columns is not None and rule.column not in (*columns, "dataset_name"):
            raise UsageError(f"--names {rule}: {rule.column!r} is not among the columns of --by")
    return Reading(
        by=columns,
        labels=None if labels is None else read_labels(labels),
        rules=rules,
        scientific={} if scientific_names is None else read_map(scientific_names),
        cluster=cluster,
        task=one_of("--task", task, ("classification", "detection", "captioning")),
    )


def make_evaluation(resamples: int, seed: int) -> Evaluation:
    """How intervals are made."""
    from NatureLM.beans.scoring.evaluate import Evaluation

    return Evaluation(resamples=resamples, seed=seed)


def columns_of(by: str) -> tuple[str, ...]:
    """The columns of --by; the data set is one always."""
    columns = [column.strip() for column in by.split(",")]
    columns = [column for column in columns if column and column not in ("dataset", "dataset_name")]
    for column in columns:
        if columns.count(column) > 1:
            raise UsageError(f"--by {by}: {column!r} is named twice")
        if column in ("id", "prediction", "label"):
            raise UsageError(f"--by {by}: {column!r} cannot make groups")
    return tuple(columns)


def listed(option: str, value: str) -> list[str]:
    """The names of an option that takes several, set off by commas, each once."""
    names = list(dict.fromkeys(name for name in map(str.strip, value.split(",")) if name))
    if not names:
        raise UsageError(f"{option} is empty: give a name, or several with commas between")
    return names


def one_of(option: str, value: str | None, allowed: Sequence[str]) -> Any:
    """The value; raises UsageError where it is not one of the allowed ones."""
    if value is not None and value not in allowed:
        raise UsageError(f"{option} {value}: take one of {', '.join(allowed)}")
    return value
