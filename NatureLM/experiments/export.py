"""Answers in the files that the reference writes: one for each dataset, query and α.

`beans_zero_eval_<dataset>_query<number>_lora<α>.jsonl`, rows sorted by sample id. α stands in data
and name as exactly as it was asked for: 0.57 is 0.57, where the reference makes it 56.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

from NatureLM.experiments.store import read_cells
from NatureLM.outputs import OutputError
from NatureLM.outputs.rows import json_line
from NatureLM.whole import whole_file

KEYS = (
    *("prediction", "label", "id", "dataset_name", "prompt", "lora_scale", "query", "cluster"),
    "task",
)
"""What the files hold of a row, so far as it is there."""

_Group: TypeAlias = tuple[str, int, float]


def export(answers: Path, folder: Path) -> list[Path]:
    """Write the files of a run's answers to a folder; what is there by these names is replaced.

    Cells without an answer are left out. Memory holds one place in the file for each row, and the
    rows of one file.

    Raises OutputError.
    """
    groups: dict[_Group, list[tuple[str, int, int]]] = {}
    for offset, length, row in read_cells(answers):
        if "error" not in row:
            group = (row["dataset_name"], row["query"], float(row["lora_scale"]))
            groups.setdefault(group, []).append((str(row["id"]), offset, length))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [
            _write(answers, folder / file_name(*group), sorted(rows))
            for group, rows in sorted(groups.items())
        ]
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror}") from None


def file_name(dataset: str, query: int, alpha: float) -> str:
    """Name of the file of a dataset, a query and an α."""
    return f"beans_zero_eval_{quote(dataset, safe=' ')}_query{query}_lora{alpha!r}.jsonl"


def _write(answers: Path, target: Path, rows: list[tuple[str, int, int]]) -> Path:
    """Copy rows, named by place and length, to a file that is there whole or not at all."""
    with (
        whole_file(target, alone=True) as unfinished,
        open(answers, "rb") as source,
        open(unfinished, "wb") as out,
    ):
        for _, offset, length in rows:
            source.seek(offset)
            row = json.loads(source.read(length))
            out.write(json_line({key: row[key] for key in KEYS if key in row}))
    return target
