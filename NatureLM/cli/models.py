"""`naturelm models`: what can be named with --model."""

from __future__ import annotations

import typer


def models() -> None:
    """List the models that can be named: size, license, and whether they are on this machine."""
    from NatureLM.cli.tables import print_table
    from NatureLM.models.registry import list_models

    print_table(
        ["name", "on this machine", "parameters", "size", "license", "description"],
        [
            [
                entry.name,
                "no" if entry.folder is None else "yes",
                entry.parameters,
                _size(entry.size_bytes),
                entry.license,
                entry.description,
            ]
            for entry in list_models()
        ],
        right={"size"},
    )
    typer.echo(
        "\n--model takes one of these names, an id on the Hugging Face Hub (owner/name), "
        "or a folder."
    )


def _size(size: int | None) -> str:
    if size is None:
        return "-"
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"
