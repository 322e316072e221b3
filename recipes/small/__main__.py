"""`python -m recipes.small`: make naturelm-small from the data folder."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from recipes import Arguments, make, program, stages_parser


@program
def main(arguments: Arguments) -> None:
    from recipes.small.recipe import BASE, STAGES, Recipe, Run

    parser = stages_parser("small", "naturelm-small")
    parser.add_argument("--base", default=BASE, help="folder of the language model, or its id")
    parser.add_argument("--texts", type=Path, help="table of replayed answers that was made before")
    parser.add_argument("--seconds", type=float, help="that all updates together may take")
    parser.add_argument("--steps", type=int, help="updates of each stage")
    parser.add_argument("--batch", type=int, help="clips of a step")
    parser.add_argument("--device", default="auto")

    def run(options: Namespace) -> Run:
        recipe = Recipe(
            base=options.base,
            texts=options.texts,
            steps=options.steps,
            seconds=options.seconds,
            device=options.device,
            batch=options.batch,
        )
        return Run(recipe, options.data_path, options.output_path, options.configs)

    make(parser, arguments, STAGES, run)


if __name__ == "__main__":
    sys.exit(main())
