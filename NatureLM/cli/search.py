"""`naturelm embed`: recordings as an index of vectors. `naturelm search`: windows like a clip."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from NatureLM.cli import options as of
from NatureLM.cli.errors import RESUMES, SOME_FAILED, error_text, stop_message
from NatureLM.progress import printable, say
from NatureLM.storage import AnyPath

if TYPE_CHECKING:
    from NatureLM.inference.windows import RecordingError
    from NatureLM.search.build import Embedder
    from NatureLM.search.index import IndexSettings


logger = logging.getLogger(__name__)
_OUTPUT = "Output"


@dataclass(frozen=True)
class EmbedRequest:
    """The options of `naturelm embed`."""

    recordings: list[AnyPath] | None = of.argument(None, "Recordings, or folders with recordings.")
    manifest: AnyPath | None = of.MANIFEST
    shard: str | None = of.SHARD
    output_path: Path = of.option(
        Path("embeddings.npz"),
        "The index. One that exists is added to. Parquet needs pyarrow.",
        _OUTPUT,
        *("--output-path", "--output", "-o"),
        metavar="X.npz|X.parquet",
    )
    model: str = of.MODEL_NAME
    revision: str | None = of.REVISION
    weights_hash: str | None = of.WEIGHTS_HASH
    layer: str = of.option(
        "encoder",
        "What is averaged over a window: what the audio encoder hears, or what the language model "
        "is told of it.",
        of.MODEL,
        metavar="encoder|projected",
    )
    device: str = of.DEVICE
    dtype: str = of.DTYPE
    batch_size: int = of.option(16, "Windows at a time.", of.MODEL)
    window_length_seconds: float = of.WINDOW_LENGTH
    hop_length_seconds: float = of.HOP_LENGTH
    channel: str = of.CHANNEL
    time_expansion: float = of.TIME_EXPANSION
    overwrite: bool = of.option(False, "Start the index anew.", _OUTPUT)

    def settings(self, embedder: Embedder) -> IndexSettings:
        """Of the index. Raises UsageError for windows that the model cannot hear."""
        from NatureLM.search.index import IndexSettings

        of.check_window(self.window_length_seconds, embedder.model, self.model)
        return IndexSettings(
            model=self.model,
            fingerprint=embedder.fingerprint,
            layer=embedder.layer,
            width=embedder.width,
            sample_rate=embedder.model.config.sample_rate,
            window_seconds=self.window_length_seconds,
            hop_seconds=self.hop_length_seconds,
            channel=self.channel,
            time_expansion=self.time_expansion,
            revision=embedder.model.revisions.get("revision"),
        )


def embed(request: EmbedRequest) -> None:
    """Turn every window of recordings into a vector, and write them to an index.

    naturelm embed recordings/ --output recordings.npz

    A run that was stopped, however it was, goes on where it stopped when the same command is given
    again.
    """
    from NatureLM.audio.windows import WindowPlan, parse_channel
    from NatureLM.cli.recordings import Listed, output_of_shard
    from NatureLM.search.build import make_index
    from NatureLM.search.index import writer_of
    from NatureLM.util import check_place, check_range

    # What cannot work is refused before the model is loaded.
    output = output_of_shard(request.output_path, request.shard)
    writer_of(output)
    check_place(output, "--output-path")
    cut = (request.window_length_seconds, request.hop_length_seconds, request.time_expansion)
    WindowPlan.of(16000, *cut)
    parse_channel(request.channel)
    check_range("--batch-size", request.batch_size, 1, of.MAX_BATCH)
    of.check_device(request.device, request.dtype)
    files = Listed.read(request.recordings or (), request.manifest, request.shard).recordings
    if not files:
        return
    say(f"Model: {request.model}")
    embedder = load_embedder(
        request.model,
        request.layer,
        request.device,
        request.dtype,
        batch=request.batch_size,
        revision=request.revision,
        weights_hash=request.weights_hash,
    )
    finished = to_do = 0

    def begun(rows: int, recordings: int) -> None:
        nonlocal to_do
        to_do = recordings
        if rows:
            logger.warning("%s: %d windows are there already; going on from there", output, rows)

    def report(file: str, result: int | RecordingError) -> None:
        nonlocal finished
        finished += 1
        if isinstance(result, int):
            windows = f"{result} window{'' if result == 1 else 's'}"
            say(f"[{finished}/{to_do}] {printable(file)}: {windows}")
        else:
            say(error_text(result.error), styled=True)

    with stop_message(f"Stopped. What was made is kept; {RESUMES}"):
        made = make_index(
            files,
            output,
            request.settings(embedder),
            embedder,
            overwrite=request.overwrite,
            begun=begun,
            report=report,
        )
    errors = f", {len(made.errors)} errors" if made.errors else ""
    say(f"{output}: {made.rows} windows, {made.new} of them new{errors}")
    if made.errors:
        raise typer.Exit(SOME_FAILED)


def search(
    *,
    query_clip: Path = of.argument(..., "What to look for.", "QUERY_CLIP"),
    index: Path = of.option(..., "An index that `naturelm embed` made.", None, "--index", "-i"),
    top_k: int = of.option(20, "How many windows to show."),
    start: float = of.option(0.0, "Seconds in the clip to begin at."),
    end: float | None = of.option(
        None, "Seconds in the clip to end at.", show_default="the end of the clip"
    ),
    others_only: bool = of.option(False, "Leave out windows of the clip's own file."),
    as_json: bool = of.option(False, "JSON lines in place of a table.", None, "--json"),
    model: str | None = of.option(
        None, "The model, if it is called otherwise here.", show_default="the index's"
    ),
    revision: str | None = of.option(
        None,
        "Revision of the model on the Hub.",
        metavar="COMMIT|TAG|BRANCH",
        show_default="the index's",
    ),
    weights_hash: str | None = of.option(
        None, "Refuse other weights than those of this hash.", metavar="HASH"
    ),
    device: str = of.DEVICE,
    dtype: str = of.option(
        "auto", "Precision of the weights, that of the index.", metavar="|".join(of.DTYPES)
    ),
) -> None:
    """Find the windows of an index that sound most like a clip.

    naturelm search call.wav --index recordings.npz --top-k 20

    Similarity is the cosine of two vectors, 1 for the same direction. Every window is looked at.
    """
    from NatureLM.search.index import (
        nearest,
        open_index,
        query_windows,
        refuse_other_model,
        same_recording,
    )
    from NatureLM.util import check_range

    check_range("--top-k", top_k, 1, 1_000_000)
    of.check_device(device, dtype)
    opened = open_index(index)
    windows = query_windows(query_clip, opened.settings, start=start, end=end)
    if model is None:
        model, revision = opened.settings.model, revision or opened.settings.revision
    embedder = load_embedder(
        model,
        opened.settings.layer,
        device,
        dtype,
        revision=revision,
        weights_hash=weights_hash,
    )
    refuse_other_model(opened, embedder.fingerprint)
    own = same_recording(query_clip, opened)
    matches = nearest(
        opened,
        embedder.vectors(windows),
        top_k,
        is_wanted=lambda file: not (others_only and own(file)),
    )
    if as_json:
        for rank, match in enumerate(matches, start=1):
            found = {
                "rank": rank,
                "similarity": round(match.similarity, 6),
                "audio_path": match.file,
                "start": match.start,
                "end": match.end,
            }
            text = json.dumps(found, ensure_ascii=False)
            typer.echo(text if text.isprintable() else json.dumps(found))
        return
    columns = ["rank", "similarity", "file", "start", "end"]
    rows = [
        [
            str(rank),
            f"{match.similarity:.4f}",
            match.file,
            f"{match.start:.2f}s",
            f"{match.end:.2f}s",
        ]
        for rank, match in enumerate(matches, start=1)
    ]
    of.print_table(columns, rows, right={*columns} - {"file"})


def load_embedder(
    model: str, layer: str, device: str, dtype: str, *, batch: int = 16, **pinned: Any
) -> Embedder:
    """The model of this name, as what makes vectors of a layer; its language model is not read."""
    loaded = of.load_model(model, device=device, dtype=dtype, audio_only=True, **pinned)
    from NatureLM.search.build import Embedder

    return Embedder(loaded, layer, batch=batch)
