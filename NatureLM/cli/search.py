"""`naturelm embed`: recordings as an index of vectors. `naturelm search`: windows like a clip."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from NatureLM.cli import options as of
from NatureLM.cli.errors import SOME_FAILED, Stopped, error_text
from NatureLM.errors import UsageError
from NatureLM.progress import say

if TYPE_CHECKING:
    from NatureLM.inference.windows import RecordingError
    from NatureLM.search.build import Embedder
    from NatureLM.search.index import IndexSettings


logger = logging.getLogger(__name__)
_OUTPUT = "Output"


def embed(
    recordings: Annotated[
        list[Path], typer.Argument(help="Recordings, or folders with recordings.")
    ],
    output_path: Annotated[
        Path,
        of.option(
            "The index. One that exists is added to. Parquet needs pyarrow.",
            _OUTPUT,
            names=("--output-path", "--output", "-o"),
            metavar="X.npz|X.parquet",
        ),
    ] = Path("embeddings.npz"),
    model: of.ModelName = "naturelm-tiny",
    layer: Annotated[
        str,
        of.option(
            "What is averaged over a window: what the audio encoder hears, or what the "
            "language model is told of it.",
            of.MODEL,
            metavar="encoder|projected",
        ),
    ] = "encoder",
    device: of.Device = "auto",
    dtype: of.Dtype = "auto",
    batch_size: Annotated[int, of.option("Windows at a time.", of.MODEL)] = 16,
    window_length_seconds: of.WindowLength = 10.0,
    hop_length_seconds: of.HopLength = 10.0,
    channel: of.Channel = "mean",
    time_expansion: of.TimeExpansion = 1.0,
    overwrite: Annotated[bool, of.option("Start the index anew.", _OUTPUT)] = False,
) -> None:
    """Turn every window of recordings into a vector, and write them to an index.

    naturelm embed recordings/ --output recordings.npz

    A run that was stopped, however it was, goes on where it stopped when the same command is given
    again.
    """
    from NatureLM.audio import find_recordings
    from NatureLM.audio.windows import WindowPlan, parse_channel
    from NatureLM.search.build import make_index
    from NatureLM.search.index import writer_of

    # What cannot work is refused before the model is loaded.
    writer_of(output_path)
    WindowPlan.of(16000, window_length_seconds, hop_length_seconds, time_expansion)
    parse_channel(channel)
    of.check_device(device, dtype)
    files = find_recordings(recordings)
    say(f"Model: {model}")
    embedder = load_embedder(model, layer, device, dtype, batch=batch_size)
    settings = settings_of(
        embedder,
        model,
        window_seconds=window_length_seconds,
        hop_seconds=hop_length_seconds,
        channel=channel,
        time_expansion=time_expansion,
    )
    finished = to_do = 0

    def begun(rows: int, recordings: int) -> None:
        nonlocal to_do
        to_do = recordings
        if rows:
            logger.warning(
                "%s: %d windows are there already; going on from there", output_path, rows
            )

    def report(file: str, result: int | RecordingError) -> None:
        nonlocal finished
        finished += 1
        if isinstance(result, int):
            windows = f"{result} window{'' if result == 1 else 's'}"
            say(f"[{finished}/{to_do}] {file}: {windows}")
        else:
            say(error_text(str(result.error)))

    try:
        made = make_index(
            files,
            output_path,
            settings,
            embedder,
            overwrite=overwrite,
            begun=begun,
            report=report,
        )
    except KeyboardInterrupt as interrupt:
        raise Stopped(
            "Stopped. What was made is kept; the same command goes on from there.", interrupt
        ) from None
    errors = f", {len(made.errors)} errors" if made.errors else ""
    say(f"{output_path}: {made.rows} windows, {made.new} of them new{errors}")
    if made.errors:
        raise typer.Exit(SOME_FAILED)


def search(
    query_clip: Annotated[Path, typer.Argument(metavar="QUERY_CLIP", help="What to look for.")],
    index: Annotated[
        Path,
        of.option("An index that `naturelm embed` made.", names=("--index", "-i")),
    ],
    top_k: Annotated[int, of.option("How many windows to show.")] = 20,
    start: Annotated[float, of.option("Seconds in the clip to begin at.")] = 0.0,
    end: Annotated[
        float | None,
        of.option("Seconds in the clip to end at.", show_default="the end of the clip"),
    ] = None,
    others_only: Annotated[bool, of.option("Leave out windows of the clip's own file.")] = False,
    as_json: Annotated[
        bool, of.option("JSON lines in place of a table.", names=("--json",))
    ] = False,
    model: Annotated[
        str | None,
        of.option("The model, if it is called otherwise here.", show_default="the index's"),
    ] = None,
    device: of.Device = "auto",
    dtype: Annotated[
        str,
        of.option(
            "Precision of the weights, that of the index.", metavar="auto|float32|bfloat16|float16"
        ),
    ] = "auto",
) -> None:
    """Find the windows of an index that sound most like a clip.

    naturelm search call.wav --index recordings.npz --top-k 20

    Similarity is the cosine of two vectors, 1 for the same direction. Every window is looked at.
    """
    from NatureLM.search.index import open_index
    from NatureLM.search.search import nearest, query_windows, refuse_other_model, same_recording

    if top_k < 1:
        raise UsageError(f"--top-k is {top_k}, and it must be at least 1")
    of.check_device(device, dtype)
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
    of.print_table(
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


def load_embedder(model: str, layer: str, device: str, dtype: str, *, batch: int = 16) -> Embedder:
    """The model of this name, as what makes vectors of a layer; its language model is not read."""
    loaded = of.load_model(model, device=device, dtype=dtype, audio_only=True)
    from NatureLM.search.build import Embedder

    return Embedder(loaded, layer, batch=batch)


def settings_of(
    embedder: Embedder,
    model: str,
    *,
    window_seconds: float,
    hop_seconds: float,
    channel: str | int,
    time_expansion: float,
) -> IndexSettings:
    """The settings of an index. Raises UsageError for windows that the model cannot hear."""
    from NatureLM.search.index import IndexSettings

    longest = embedder.model.config.window_seconds
    if window_seconds > longest:
        raise UsageError(
            f"--window-length-seconds is {window_seconds:g}, and {model} hears at most "
            f"{longest:g} s at once"
        )
    return IndexSettings(
        model=model,
        fingerprint=embedder.fingerprint,
        layer=embedder.layer,
        width=embedder.width,
        sample_rate=embedder.model.config.sample_rate,
        window_seconds=float(window_seconds),
        hop_seconds=float(hop_seconds),
        channel=channel,
        time_expansion=float(time_expansion),
    )
