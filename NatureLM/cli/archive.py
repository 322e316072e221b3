"""Archives: lists of recordings (`manifest`), answers of shards as one file (`merge-runs`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from NatureLM.cli import options as of
from NatureLM.cli.terminal import RESUMES, SOME_FAILED, stop_message
from NatureLM.errors import UsageError
from NatureLM.progress import ProgressBar, printable, say
from NatureLM.storage import AnyPath, local_only

if TYPE_CHECKING:
    from NatureLM.results.shards import Merged

_NAMED = 10  # recordings that could not be read


def manifest(
    recordings: list[AnyPath] = of.argument(..., "Recordings, or folders with recordings."),
    *,
    output_path: AnyPath = of.option(
        Path("manifest.csv"),
        "The manifest. One that was made before is brought up to date. Parquet needs pyarrow.",
        None,
        *of.OUTPUT_NAMES,
        metavar="X.csv|X.parquet|X.txt",
    ),
    deployments: Path | None = of.DEPLOYMENTS,
    file_times: Path | None = of.FILE_TIMES,
    workers: int = of.option(
        8, "Threads that read headers; more pay where the disk is far away.", None
    ),
    overwrite: bool = of.option(False, "Measure all recordings anew.", None),
) -> None:
    """List recordings with what their headers say: length, rate, channels, clock and site.

    naturelm manifest recordings/ --output-path manifest.csv

    A run that was stopped goes on where it stopped when the same command is given again.
    """
    from NatureLM.cli.runs import Listed, field_clock
    from NatureLM.results.manifest import Entry, check_suffix, make_manifest
    from NatureLM.results.uploads import local_output, working_path
    from NatureLM.util import check_place, check_range, digest, format_bytes, format_duration

    check_suffix(output_path, "--output-path")
    check_place(working_path(output_path), "--output-path")
    check_range("--workers", workers, 1, 1024)
    found = Listed.read(recordings, None, None).recordings
    here = next((one for one in found if isinstance(one, Path)), None)
    if here is not None and not isinstance(output_path, Path):
        raise UsageError(
            f"{output_path}: a list elsewhere may not name files of this machine, such as {here}; "
            "give an --output-path on this machine"
        )
    clock = field_clock(deployments, file_times, found)
    tables = [digest(one.read_bytes()).hex() for one in (deployments, file_times) if one]
    bad = 0

    def told(entry: Entry) -> None:
        nonlocal bad
        bar.advance()
        if entry.error:
            bad += 1
            if bad <= _NAMED:
                say(f"{printable(entry.path)}: {printable(entry.error)}")

    columns = ("bar", "{task.completed}/{task.total} recordings,", "eta", "left")
    with (
        stop_message(f"Stopped. What was found is kept; {RESUMES}"),
        local_output(output_path, is_read=not overwrite) as target,
        ProgressBar(*columns, total=len(found)) as bar,
    ):
        made = make_manifest(
            found,
            target,
            clock,
            workers=workers,
            tables=" ".join(tables),
            overwrite=overwrite,
            told=told,
        )
    if bad > _NAMED:
        say(f"and {bad - _NAMED} more that could not be read; the column error says why")
    parts = [
        f"{made.recordings} recording{'' if made.recordings == 1 else 's'}",
        f"{format_duration(made.seconds)} of sound",
        format_bytes(made.size),
        *([f"{made.kept} measured before"] if made.kept else []),
        *([f"{made.errors} error{'' if made.errors == 1 else 's'}"] if made.errors else []),
    ]
    say(f"{output_path}: {', '.join(parts)}")
    if made.errors:
        raise typer.Exit(SOME_FAILED)


def merge_runs(
    runs: list[AnyPath] = of.argument(
        ...,
        "Answers of `naturelm infer` or `naturelm survey`, indexes of `naturelm embed`, or folders "
        "with the files of shards.",
        "RUN...",
    ),
    *,
    output_path: AnyPath = of.option(
        ...,
        "The file with all answers, or the index. One that was merged earlier is replaced.",
        None,
        *of.OUTPUT_NAMES,
        metavar="X.jsonl|X.npz|X.parquet",
    ),
    manifest: AnyPath | None = of.option(
        None,
        "The list of what was to be asked about: recordings without answers are named, and rows "
        "come in its order.",
        of.ARCHIVE,
        metavar="LIST.csv|LIST.parquet|LIST.txt",
    ),
    audio_path: list[AnyPath] | None = of.option(
        None,
        "Recordings or folders that were to be asked about. May be given several times.",
        of.ARCHIVE,
        *("--audio-path", "--audio", "-a"),
    ),
    overwrite: bool = of.option(False, "Replace another file of that name.", None),
) -> None:
    """Join the answers of shards into one file, and name what is there twice or not at all.

    naturelm merge-runs answers/ --manifest manifest.csv --output-path answers.jsonl

    Where the name of the output is that of an index, the indexes of shards are joined.

    A merge of answers that was stopped goes on where it stopped when the same command is given
    again.
    """
    from NatureLM.results.shards import merge_runs as merge
    from NatureLM.results.uploads import local_output, local_runs, working_path
    from NatureLM.search.index import SUFFIXES
    from NatureLM.util import check_place

    check_place(working_path(output_path), "--output-path")
    is_index = output_path.suffix.lower() in SUFFIXES
    listed = _listed(manifest, audio_path or ()) if audio_path or manifest is not None else None
    columns = ("bar", "size", "eta", "left")
    if is_index:
        from NatureLM.search.merge import merge_indexes

        output = local_only(output_path, "--output-path")
        files = _files_of([local_only(one, "RUN") for one in runs], are_indexes=True)
        with stop_message("Stopped before the index was whole; nothing was written."):
            merged = merge_indexes(files, output, listed=listed, overwrite=overwrite)
        _say_what_was_merged(merged, output_path, "windows")
        return
    with (
        stop_message(f"Stopped. What was joined is kept; {RESUMES}"),
        local_output(output_path, is_read=False) as here,
        local_runs(runs) as copies,
        ProgressBar(*columns) as bar,
    ):
        merged = merge(
            _files_of(copies, are_indexes=False),
            here,
            listed=listed,
            overwrite=overwrite,
            told=lambda done, total: bar.update(done, total=total),
        )
    _say_what_was_merged(merged, output_path, "rows")


def _listed(
    manifest: AnyPath | None, audio_paths: Sequence[AnyPath]
) -> Iterator[tuple[AnyPath, float | None]]:
    """Recordings that were to be asked about, and their lengths; a manifest is read on the way."""
    from NatureLM.audio.files import find_anywhere
    from NatureLM.results.manifest import listed_in

    if manifest is not None:
        yield from ((path, entry.seconds) for path, entry in listed_in(manifest))
    if audio_paths:
        yield from ((path, None) for path in find_anywhere(audio_paths))


def _files_of(runs: list[Path], *, are_indexes: bool) -> list[Path]:
    """The files that are named, and folders of parts; of another folder those of shards in it."""
    from NatureLM.results.parts import SUFFIX, is_parts
    from NatureLM.search.index import SUFFIXES

    endings = SUFFIXES if are_indexes else (".jsonl", SUFFIX)
    files: list[Path] = []
    for one in runs:
        if one.suffix.lower() == ".npz" and not are_indexes:
            raise UsageError(f"{one}: is an index; name an --output-path that ends in .npz, too")
        if not one.is_dir() or is_parts(one):
            files.append(one)
            continue
        found = [path for end in endings for path in sorted(one.glob(f"*.shard-*-of-*{end}"))]
        if not found:
            what = (
                "indexes of shards (*.shard-1-of-4.npz)"
                if are_indexes
                else "answers of shards (*.shard-1-of-4.jsonl), and no parts (part-*.parquet)"
            )
            raise UsageError(f"{one}: has no {what}; name the files themselves")
        files += found
    return files


def _say_what_was_merged(merged: Merged, output: AnyPath, unit: str) -> None:
    """Name what is not there and what is there twice. Ends the program where something is not."""
    for what, found in (
        ("shards that are not there", merged.shards),
        ("shards that are not at their end", merged.unfinished),
        ("recordings without a row", merged.missing),
        ("recordings with too few windows for their length", merged.short),
        ("recordings that could not be read", merged.unread),
    ):
        if found:
            say(f"Gap: {what}: {found}")
    if merged.duplicates:
        say(f"Note: rows that were there again and are written once: {merged.duplicates}")
    if merged.other:
        say(f"Note: of them with another answer; the run named first counts: {merged.other}")
    if merged.unlisted:
        say(f"Note: recordings that the list does not name, at the end: {merged.unlisted}")
    say(f"{output}: {merged.recordings} recordings, {merged.rows} {unit}")
    if merged.has_gaps:
        raise typer.Exit(SOME_FAILED)
