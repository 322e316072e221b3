"""`python -m recipes.tiny`: make the embedded model from the data folder."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from recipes import Arguments, make, program, stages_parser

if TYPE_CHECKING:
    from argparse import Namespace

    from recipes.tiny.recipe import Run

STAGES = ("text", "teachers", "encoder", "audio", "polish", "context")


@program
def main(arguments: Arguments) -> None:
    parser = stages_parser("tiny", "the embedded model")
    parser.add_argument("--short", action="store_true", help="two minutes, to see that it works")
    parser.add_argument("--held-out", help="keep this training fold (such as fold3) for choosing")
    parser.add_argument("--threads", type=int, default=2)
    make(parser, arguments, STAGES, _run)


def _run(options: Namespace) -> Run:
    import torch

    from recipes.tiny.recipe import Recipe, Run

    recipe = (
        Recipe.short()
        if options.short
        else Recipe(held_out=options.held_out, measured=options.held_out is None)
    )
    if options.stage:
        torch.set_num_threads(options.threads)
    return Run(recipe, options.data_path, options.output_path, options.configs, options.threads)


if __name__ == "__main__":
    sys.exit(main())
