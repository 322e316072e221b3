"""Recipes of artefacts that the package ships, and what their programs share."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from NatureLM.errors import NatureLMError

Arguments = Sequence[str] | None
"""Of a program; None are those of the command line."""


def program(main: Callable[[Arguments], None]) -> Callable[..., int]:
    """A main that returns 0, or says what went wrong and returns the number of the error."""

    @wraps(main)
    def run(arguments: Arguments = None) -> int:
        try:
            main(arguments)
        except (NatureLMError, OSError) as error:
            print(f"Error: {error}", file=sys.stderr)
            return getattr(error, "exit_code", 2)
        return 0

    return run


def stages_parser(folder: str, doc: str) -> ArgumentParser:
    """Options of a recipe in stages whose configurations are in configs/`folder`."""
    parser = ArgumentParser(
        prog=f"python -m recipes.{folder}",
        description=f"Make {doc}, stage by stage. Finished stages are reused.",
    )
    parser.add_argument("--data-path", type=Path, required=True, help="holds animals/ and esc10/")
    parser.add_argument("--output-path", type=Path, required=True)
    parser.add_argument("--configs", type=Path, default=Path("configs") / folder)
    return parser


def make(
    parser: ArgumentParser,
    arguments: Arguments,
    stages: Sequence[str],
    run_of: Callable[[Namespace], Any],
) -> None:
    """Make the model that the options ask for, or the one stage of it."""
    parser.add_argument("--stage", choices=stages, help="make only this one")
    options = parser.parse_args(arguments)
    run = run_of(options)
    if options.stage:
        run.stage(options.stage)
    else:
        print(f"The model is in {run.run()}")
