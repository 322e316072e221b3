"""`naturelm search`: the windows of an index that sound most like a clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from NatureLM.cli import model_options as of_model


def search(
    query_clip: Annotated[Path, typer.Argument(metavar="QUERY_CLIP", help="What to look for.")],
    index: Annotated[
        Path,
        typer.Option("--index", "-i", help="An index that `naturelm embed` made."),
    ],
    top_k: Annotated[int, typer.Option(help="How many windows to show.")] = 20,
    start: Annotated[float, typer.Option(help="Seconds in the clip to begin at.")] = 0.0,
    end: Annotated[
        float | None,
        typer.Option(help="Seconds in the clip to end at.", show_default="the end of the clip"),
    ] = None,
    others_only: Annotated[
        bool, typer.Option("--others-only", help="Leave out windows of the clip's own file.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON lines in place of a table.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="The model, if it is called otherwise here.", show_default="the index's"),
    ] = None,
    device: of_model.Device = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="auto|float32|bfloat16|float16",
            help="Precision of the weights, that of the index.",
        ),
    ] = "auto",
) -> None:
    """Find the windows of an index that sound most like a clip.

    naturelm search call.wav --index recordings.npz --top-k 20

    Similarity is the cosine of two vectors, 1 for the same direction. Every window is looked at.
    """
    from NatureLM.cli.embedding import load_embedder
    from NatureLM.cli.request import device_option, dtype_option
    from NatureLM.cli.tables import print_table
    from NatureLM.embeddings.index import open_index
    from NatureLM.embeddings.nearest import nearest, same_recording
    from NatureLM.embeddings.query import query_windows, refuse_other_model
    from NatureLM.errors import UsageError

    if top_k < 1:
        raise UsageError(f"--top-k is {top_k}, and it must be at least 1")
    device, dtype = device_option(device), dtype_option(dtype)
    opened = open_index(index)
    windows = query_windows(query_clip, opened.settings, start=start, end=end)
    embedder = load_embedder(model or opened.settings.model, opened.settings.layer, device, dtype)
    refuse_other_model(opened, embedder)
    own = same_recording(query_clip)
    matches = nearest(
        opened,
        embedder.vectors(windows),
        top_k,
        is_wanted=(lambda file: not own(file)) if others_only else None,
    )
    if as_json:
        for rank, match in enumerate(matches, start=1):
            row = match.row
            typer.echo(
                json.dumps(
                    {
                        "rank": rank,
                        "similarity": round(match.similarity, 6),
                        "audio_path": row.file,
                        "start": row.start,
                        "end": row.end,
                    },
                    ensure_ascii=False,
                )
            )
        return
    print_table(
        ["rank", "similarity", "file", "start", "end"],
        [
            [
                str(rank),
                f"{match.similarity:.4f}",
                match.row.file,
                f"{match.row.start:.2f}s",
                f"{match.row.end:.2f}s",
            ]
            for rank, match in enumerate(matches, start=1)
        ],
        right={"rank", "similarity", "start", "end"},
    )
