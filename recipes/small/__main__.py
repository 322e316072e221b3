"""`python -m recipes.small`: make naturelm-small from the data folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from NatureLM.errors import NatureLMError


def main(arguments: Sequence[str] | None = None) -> int:
    from recipes.small.recipe import BASE, STAGES, Recipe, Run

    parser = argparse.ArgumentParser(
        prog="python -m recipes.small",
        description="Make naturelm-small, stage by stage. Finished stages are reused.",
    )
    parser.add_argument("--data-path", type=Path, required=True, help="holds animals/ and esc10/")
    parser.add_argument("--output-path", type=Path, required=True)
    parser.add_argument("--configs", type=Path, default=Path("configs/small"))
    parser.add_argument("--base", default=BASE, help="folder of the language model, or its id")
    parser.add_argument("--texts", type=Path, help="table of replayed answers that was made before")
    parser.add_argument("--seconds", type=float, help="that all updates together may take")
    parser.add_argument("--steps", type=int, help="updates of each stage")
    parser.add_argument("--batch", type=int, help="clips of a step")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--stage", choices=STAGES, help="make only this one")
    options = parser.parse_args(arguments)
    recipe = Recipe(
        base=options.base,
        texts=options.texts,
        steps=options.steps,
        seconds=options.seconds,
        device=options.device,
        batch=options.batch,
    )
    try:
        run = Run(recipe, options.data_path, options.output_path, options.configs)
        if options.stage:
            run.stage(options.stage)
            return 0
        folder = run.run()
    except NatureLMError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"The model is in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
