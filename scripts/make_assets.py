"""Makes the sample clips of ``assets/`` and their table, or checks the ones that are there.

    python scripts/make_assets.py                    # writes assets/synthetic_* and samples.csv
    python scripts/make_assets.py --check            # compares, changes nothing; 1 if they differ

All clips are synthesised from published descriptions; no recording goes into them. With the same
versions of numpy and libsndfile the files come out byte for byte the same. Other versions may
round or compress differently, so ``--check`` compares the decoded sound, not the bytes.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from assets_synthesis.clips import CLIPS, Clip, table_row, write

DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "assets"
LOSSLESS_TOLERANCE = 2.0 / 32768.0
"""Largest difference of a sample: two steps of 16 bits, for another machine's rounding."""
LOSSY_TOLERANCE = 0.05
"""Largest deviation of an mp3 (rms, relative to the sound), for another encoder's choices."""


def table() -> str:
    """The text of ``samples.csv``."""
    rows = [table_row(clip) for clip in CLIPS]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def make(folder: Path) -> None:
    """Writes all clips and the table into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for clip in CLIPS:
        path = folder / clip.file
        write(clip, path)
        print(f"{path}  {clip.seconds:g} s  {path.stat().st_size / 1024:.0f} KiB")
    (folder / "samples.csv").write_text(table(), encoding="utf-8", newline="\n")


def difference(clip: Clip, path: Path, fresh: Path) -> str | None:
    """Says how the clip at ``path`` differs from the one just made, or None if it does not."""
    try:
        there, rate = soundfile.read(path, always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        return f"cannot be read ({error})"
    wanted, wanted_rate = soundfile.read(fresh, always_2d=True)
    if (rate, there.shape) != (wanted_rate, wanted.shape):
        return (
            f"is {there.shape[0]} frames of {there.shape[1]} channel(s) at {rate} Hz, "
            f"not {wanted.shape[0]} of {wanted.shape[1]} at {wanted_rate} Hz"
        )
    if clip.lossy:
        found = float(np.std(there - wanted) / np.std(wanted))
        allowed, measure = LOSSY_TOLERANCE, "relative rms difference"
    else:
        found = float(np.max(np.abs(there - wanted)))
        allowed, measure = LOSSLESS_TOLERANCE, "largest difference"
    if found > allowed:
        return f"is not what this script makes ({measure} {found:.2g}, at most {allowed:.2g})"
    return None


def check(folder: Path) -> list[str]:
    """All that is missing, different or too much in ``folder``."""
    problems = []
    with tempfile.TemporaryDirectory() as scratch:
        for clip in CLIPS:
            path = folder / clip.file
            if not path.is_file():
                problems.append(f"{path}: is missing")
                continue
            fresh = Path(scratch) / clip.file
            write(clip, fresh)
            if (what := difference(clip, path, fresh)) is not None:
                problems.append(f"{path}: {what}")
    listed = folder / "samples.csv"
    if not listed.is_file() or listed.read_text(encoding="utf-8") != table():
        problems.append(f"{listed}: is not the table that this script writes")
    known = {clip.file for clip in CLIPS}
    problems += [
        f"{path}: is no clip of this script"
        for path in sorted(folder.glob("synthetic_*"))
        if path.name not in known
    ]
    return problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-path", type=Path, default=DEFAULT_FOLDER, help="folder of clips")
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    options = parser.parse_args(arguments)
    if not options.check:
        make(options.output_path)
        return 0
    problems = check(options.output_path)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print("To make them anew: python scripts/make_assets.py", file=sys.stderr)
        return 1
    print(f"{len(CLIPS)} clips in {options.output_path} are as this script makes them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
