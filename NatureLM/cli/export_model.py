"""Models as folders of other programs: `naturelm export --to vllm`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from NatureLM.cli import options as of
from NatureLM.errors import UsageError
from NatureLM.progress import show

TARGETS = ("vllm",)
_PANEL = "Models for other programs (--to)"


@dataclass
class ModelExport:
    """Options of an exported model; `to` says for which program."""

    to: str | None = of.option(
        None,
        "Write a model in place of answers: for vLLM and transformers, into the folder that is "
        "named in place of ANSWERS.",
        _PANEL,
        metavar="vllm",
    )
    model: str | None = of.option(None, of.MODEL_TEXT, _PANEL, show_default="naturelm-tiny")
    revision: str | None = of.option(
        None, "Revision of the model on the Hub.", _PANEL, metavar="COMMIT|TAG|BRANCH"
    )
    weights_hash: str | None = of.option(
        None, "Refuse other weights than those with this hash.", _PANEL, metavar="HASH"
    )
    adapter: str | None = of.option(
        None, "Folder with an adapter in PEFT's format, in place of the model's own.", _PANEL
    )
    llama_path: str | None = of.option(
        None, "Base language model, where it is not where the checkpoint says.", _PANEL
    )
    alpha: str | None = of.option(
        None,
        "Shares of the adapter that can be asked for; each becomes an adapter of its own.",
        _PANEL,
        metavar="NUMBER[,NUMBER...]",
        show_default="1.0",
    )
    fold: bool = of.option(False, "Write the only α into the weights, and no adapter.", _PANEL)
    dtype: str = of.option(
        "auto",
        "Precision of the language model's weights; auto keeps what each is stored in.",
        _PANEL,
        metavar="|".join(of.DTYPES),
    )
    max_shard_size: str = of.option("5GB", "Largest file, such as 500MB.", _PANEL)
    overwrite: bool = of.option(False, "Replace the model in that folder.", _PANEL)

    def check_unused(self) -> None:
        """Raise UsageError for options of models where a table is asked for."""
        default = ModelExport()
        for name, value in vars(self).items():
            if value != getattr(default, name):
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} is for models: say which program with --to vllm")


def export_model(output: Path, options: ModelExport) -> None:
    """Write the folder and say how it is served. Raises UsageError."""
    from NatureLM.util import check_place

    of.check_choice("--to", options.to or "", TARGETS)
    of.check_choice("--dtype", options.dtype, of.DTYPES)
    size = options.max_shard_size.strip()
    if not re.fullmatch(r"[1-9]\d*\s*[KMGT]?B", size, re.IGNORECASE):
        raise UsageError(
            f"--max-shard-size is {options.max_shard_size!r}, and it must be a size such as 500MB "
            "or 5GB"
        )
    alphas = _alphas(options.alpha)
    for place in (output, output.resolve().parent):  # it is built beside its place
        check_place(place, "OUT", folder=True)

    import torch

    from NatureLM.vllm.export import export_for_vllm

    exported = export_for_vllm(
        options.model or "naturelm-tiny",
        output,
        alphas=alphas,
        fold=options.fold,
        adapter=options.adapter,
        llama_path=options.llama_path,
        revision=options.revision,
        weights_hash=options.weights_hash,
        dtype=None if options.dtype == "auto" else getattr(torch, options.dtype),
        max_shard_size=size.replace(" ", "").upper(),
        overwrite=options.overwrite,
        report=lambda line: show(line, err=True),
    )
    show(f"{output}: a model for vLLM and transformers. Serve it with:")
    show(exported.command(output))


def _alphas(text: str | None) -> list[float]:
    if text is None:
        return [1.0]
    try:
        return [float(one) for one in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--alpha is {text!r}, and it must be numbers with commas between them, such as 0.4,1.0"
        ) from None
