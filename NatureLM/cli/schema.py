"""`naturelm schema`: the JSON Schema of configuration files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def schema(
    output_path: Annotated[
        Path | None, typer.Option(help="File for the schema.", show_default="printed")
    ] = None,
) -> None:
    """Print the JSON Schema of configuration files, for editors and checkers.

    An editor that knows it completes keys, and marks those that are wrong while you type.
    """
    import json

    from NatureLM.config import json_schema
    from NatureLM.errors import UsageError

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    if output_path is None:
        typer.echo(text)
        return
    try:
        output_path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{output_path}: cannot be written: {error.strerror}") from None
    typer.echo(f"Wrote {output_path}")
