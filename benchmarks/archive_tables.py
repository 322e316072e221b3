"""Memory and time of what archives need beside the model: manifests listed, shards merged.

    python benchmarks/archive_tables.py [--recordings 10000 100000 1000000] [--json FILE]

The recordings are names and numbers only: nothing of them is opened. Each figure is of a fresh
process, the peak is what the kernel counted (VmHWM), so this needs Linux.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from measure import PEAK, machine, options_for, python, write_figures

SHARDS = 4
MOST_GROWTH = 50.0  # MB of merging, from the fewest recordings to the most
SUFFIXES = ("csv", "parquet", "txt")
HEADER = json.dumps(
    {
        "comment": "Recorded at 05:30:00 10/05/2024 (UTC) by AudioMoth 24F319055FDF2F5B at medium "
        "gain while battery was 4.2V and temperature was 19.3C.",
        "artist": "AudioMoth 24F319055FDF2F5B",
    }
)
_DONE = """
def done(begun, **more):
    print(json.dumps({"mb": peak() / 1e6, "seconds": time.perf_counter() - begun, **more}))
"""
_LIST = f"""{PEAK}{_DONE}
from pathlib import Path
from NatureLM.cli.runs import Listed
begun = time.perf_counter()
listed = Listed.read((), Path(sys.argv[1]), sys.argv[2] or None)
done(begun, recordings=len(listed.recordings))
"""
_MERGE = f"""{PEAK}{_DONE}
from pathlib import Path
from NatureLM.results.manifest import listed_in
from NatureLM.results.shards import merge_runs
folder, output = Path(sys.argv[1]), Path(sys.argv[2])
begun = time.perf_counter()
listed = ((path, entry.seconds) for path, entry in listed_in(folder / "list.csv"))
merged = merge_runs(sorted(folder.glob("*.shard-*.jsonl")), output, listed=listed)
done(begun, rows=merged.rows, recordings=merged.recordings, gaps=merged.has_gaps)
"""


def main() -> None:
    """Measure, and print."""
    parser = options_for(__doc__, "json")
    parser.add_argument("--recordings", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    given = parser.parse_args()
    report = {"machine": machine(), "runs": [measured(count) for count in given.recordings]}
    print(markdown(report))
    write_figures(given.json, report)


def measured(count: int) -> dict[str, Any]:
    """What so many recordings take."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_manifests(folder, count)
        _write_shards(folder, count)
        lists = {
            f"{suffix} {shard or 'all'}": python(_LIST, folder / f"list.{suffix}", shard)
            for suffix in SUFFIXES
            for shard in ("", "1/64")
        }
        merged = python(_MERGE, folder, folder / "all.jsonl")
        rows = sum(one.stat().st_size for one in folder.glob("*.shard-*.jsonl"))
        return {
            "recordings": count,
            "bytes_of_a_row": rows / count,
            "bytes_of_a_line": {
                one: (folder / f"list.{one}").stat().st_size / count for one in SUFFIXES
            },
            "lists": lists,
            "merged": merged,
        }


def name_of(number: int) -> str:
    """As a recorder names its files."""
    day, minute = divmod(number // 40, 1440)
    date = f"{2024 + day // 336}{1 + day // 28 % 12:02}{1 + day % 28:02}"
    return f"site{number % 40:02}/card1/{date}_{minute // 60:02}{minute % 60:02}00.WAV"


def _write_manifests(folder: Path, count: int) -> None:
    from NatureLM.results.manifest import Entry, write_manifest

    def entries() -> Iterator[Entry]:
        for number in range(count):
            name = name_of(number)
            day = f"{name[-19:-15]}-{name[-15:-13]}-{name[-13:-11]}"
            time = f"{day}T{name[-10:-8]}:{name[-8:-6]}:00"
            yield Entry(
                *(f"archive/{name}", 1_920_044, "2024-11-01T12:00:00.000000Z", 20.0, 48_000.0, 1),
                *(time, "", "name", name[:6], HEADER),
            )

    for suffix in SUFFIXES:
        write_manifest(entries(), folder / f"list.{suffix}")


def _write_shards(folder: Path, count: int) -> None:
    """Answers of one window of each recording."""
    from NatureLM.results.rows import RunSettings, WindowRow, to_line, write_record
    from NatureLM.results.shards import Shard, shard_of

    settings = RunSettings({"model": "m", "queries": ["What calls?"], "merging_alpha": 1.0})
    shards = [Shard(number, SHARDS) for number in range(1, SHARDS + 1)]
    sizes = [0] * SHARDS
    files = [open(one.file(folder / "x.jsonl"), "wb") for one in shards]  # noqa: SIM115
    for number in range(count):
        name = name_of(number)
        row = WindowRow(
            *(f"{folder}/archive/{name}", 0.0, 10.0, "What calls?", "Common Cuckoo", 1.0, 0.8125),
            model="m",
            run=settings.run,
            audio_bytes=1_920_044,
            audio_modified="2024-11-01T12:00:00.000000Z",
            audio_digest="0123456789abcdef" * 3,
            context={"local_time": "2024-05-10T05:30:00", "clock_source": "name"},
        )
        which = shard_of(f"archive/{name}", SHARDS) - 1
        sizes[which] += 1
        files[which].write(to_line(row))
    for shard, file in zip(shards, files, strict=True):
        file.close()
        asked = dict(zip(shard.RECORDED, (str(shard), sizes), strict=True))
        write_record(Path(file.name), RunSettings(settings.values, asked))


def markdown(report: dict[str, Any]) -> str:
    """Tables of a report: what merging takes, and what listing takes."""
    lines = ["| recordings | merged in | peak | rows a second |", "|--:|--:|--:|--:|"]
    for run in report["runs"]:
        one = run["merged"]
        pace = one["rows"] / one["seconds"]
        lines.append(
            f"| {run['recordings']:,} | {one['seconds']:.1f} s | {one['mb']:.0f} MB | {pace:,.0f} |"
        )
    lines += ["", "| recordings | manifest | bytes a line | all | peak | 1/64 | peak |"]
    lines.append("|--:|---|--:|--:|--:|--:|--:|")
    for run in report["runs"]:
        for suffix in SUFFIXES:
            times = _times(run["lists"][f"{suffix} {which}"] for which in ("all", "1/64"))
            size = run["bytes_of_a_line"][suffix]
            lines.append(f"| {run['recordings']:,} | {suffix} | {size:.0f} | {' | '.join(times)} |")
    return "\n".join(lines)


def _times(runs: Iterator[dict[str, float]] | Sequence[dict[str, float]]) -> list[str]:
    return [text for one in runs for text in (f"{one['seconds']:.1f} s", f"{one['mb']:.0f} MB")]


def growth(report: dict[str, Any]) -> float:
    """MB that merging takes more of the most recordings than of the fewest."""
    peaks = [run["merged"]["mb"] for run in report["runs"]]
    return float(max(peaks) - min(peaks))


if __name__ == "__main__":
    main()
