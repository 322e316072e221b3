"""`python -m recipes.tiny`: make the embedded model from the data folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from NatureLM.errors import NatureLMError

STAGES = ("text", "teachers", "encoder", "audio", "polish", "context")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.tiny",
        description="Make the embedded model, stage by stage. Finished stages are reused.",
    )
    parser.add_argument("--data-path", type=Path, required=True, help="holds animals/ and esc10/")
    parser.add_argument("--output-path", type=Path, required=True)
    parser.add_argument("--configs", type=Path, default=Path("configs/tiny"))
    parser.add_argument("--short", action="store_true", help="two minutes, to see that it works")
    parser.add_argument("--held-out", help="keep this training fold (such as fold3) for choosing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stage", choices=STAGES, help="make only this one")
    options = parser.parse_args(arguments)

    import torch

    from recipes.tiny.recipe import Recipe, Run

    recipe = (
        Recipe.short()
        if options.short
        else Recipe(held_out=options.held_out, measured=options.held_out is None)
    )
    try:
        run = Run(recipe, options.data_path, options.output_path, options.configs, options.threads)
        if options.stage:
            torch.set_num_threads(options.threads)
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
