"""Options of verbs that ask about samples, which several of them share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from NatureLM.errors import UsageError

_PANEL = "Experiments"

DataPath = Annotated[
    str | None,
    typer.Option(
        help="What is tested: BEANS-Zero on disk or its id on the Hub, or a table of your own.",
        show_default="extended.data.path of the configuration",
        rich_help_panel=_PANEL,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Show the plan and the first prompts; ask nothing.",
        rich_help_panel=_PANEL,
    ),
]
Workers = Annotated[
    int,
    typer.Option(help="Threads that decode ahead of the model.", rich_help_panel=_PANEL),
]

_ANSWERS = "Recordings with known answers"
Column = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OURS=THEIRS",
        help="Name of a column, such as label=common_name. May be given several times.",
        show_default=False,
        rich_help_panel=_ANSWERS,
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COLUMN=VALUE",
        help="Only rows with this value, such as split=valid. May be given several times.",
        show_default=False,
        rich_help_panel=_ANSWERS,
    ),
]


def with_data_path(options: Sequence[str] | None, data_path: str | None) -> list[str]:
    """The overrides, before which `--data-path` stands where they name other keys of the data."""
    given = list(options or ())
    if data_path is not None and any(one.strip().startswith("extended.data.") for one in given):
        return [f"extended.data.path={as_yaml(data_path)}", *given]
    return given


def as_yaml(value: Any) -> str:
    """A value as an override holds it."""
    return json.dumps(value, ensure_ascii=False)


def refuse_without_experiment(data_path: str | None, dry_run: bool, cfg_path: Path | None) -> None:
    """Raise UsageError for options of experiments where the configuration is none."""
    for option, is_given in (("--data-path", data_path is not None), ("--dry-run", dry_run)):
        if is_given:
            raise UsageError(
                f"{option} is for experiments, and {cfg_path or 'the built-in configuration'} has "
                "no section `extended`; recordings are named with --audio-path, and `beans run` "
                "asks every sample its own question"
            )
