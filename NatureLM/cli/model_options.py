"""Options about the model and the windows of recordings, which several verbs share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from NatureLM.config import Config

MODEL = "Model"
AUDIO = "Windows and audio"

_MODEL_NAME = typer.Option(
    help="A name from `naturelm models`, an id on the Hugging Face Hub, or a folder.",
    show_default="naturelm-tiny",
    rich_help_panel=MODEL,
)
ModelName = Annotated[str, _MODEL_NAME]
OptionalModelName = Annotated[str | None, _MODEL_NAME]
"""The same where a configuration may name the model, too."""
Adapter = Annotated[
    str | None,
    typer.Option(
        help="A LoRA adapter in PEFT's format (a folder) in place of the model's own.",
        show_default="the model's own",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[
    str, typer.Option(metavar="auto|cpu|cuda|mps", help="Device.", rich_help_panel=MODEL)
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="auto|float32|bfloat16|float16",
        help="Precision of the weights.",
        rich_help_panel=MODEL,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory that batches may take beside the model, such as 4GB.",
        show_default="chosen for the device",
        rich_help_panel=MODEL,
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder where audio embeddings are kept, so that sound heard before is not encoded "
        "again (`naturelm cache` shows and clears it).",
        show_default="the environment variable NATURELM_CACHE, else none",
        rich_help_panel=MODEL,
    ),
]
CfgPath = Annotated[
    Path | None,
    typer.Option(
        help="Configuration file, such as configs/inference.yml.",
        show_default="built-in settings",
        rich_help_panel=MODEL,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY.SUB=VALUE",
        help="Change a value of the configuration, such as generate.num_beams=1. May be given "
        "several times.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
WindowLength = Annotated[float, typer.Option(help="Length of a window.", rich_help_panel=AUDIO)]
HopLength = Annotated[
    float, typer.Option(help="From one start to the next.", rich_help_panel=AUDIO)
]
Channel = Annotated[
    str,
    typer.Option(
        metavar="mean|1|2|...",
        help="Channel to listen to; mean mixes them all.",
        rich_help_panel=AUDIO,
    ),
]
TimeExpansion = Annotated[
    float,
    typer.Option(
        help="Slow the sound down so many times; 10 makes bats audible. Times stay true.",
        rich_help_panel=AUDIO,
    ),
]


@dataclass(frozen=True)
class ModelChoice:
    """Which model to load, as `NatureLM.cli.asking.load_model` wants to know it."""

    model: str
    adapter: str | None
    device: str
    dtype: str
    config: Config
