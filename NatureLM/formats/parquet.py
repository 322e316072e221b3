"""Parquet: the same columns as the CSV, typed, small and quickly read by pandas, R and DuckDB."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from NatureLM.data.table import DataError
from NatureLM.formats import wide
from NatureLM.results.detections import Detection, ResultFile
from NatureLM.results.rows import value_text
from NatureLM.results.tables import arrow_and_parquet, write_parquet

_AT_A_TIME = 10_000  # rows that are held
_ABOUT = b"naturelm"


def write(answers: ResultFile, target: Path) -> int:
    """All rows of the answers; the number of lines. Raises OutputError."""
    arrow, _ = arrow_and_parquet()
    columns = wide.columns_for(answers)
    about = {"columns": list(answers.columns), "settings": dict(answers.settings)}
    schema = _schema(arrow, columns, {_ABOUT: json.dumps(about).encode()})
    rows = map(columns.cells, answers.rows())
    array = partial(_array, arrow)
    return write_parquet(target, schema, rows, at_a_time=_AT_A_TIME, array=array)


def _schema(arrow: Any, columns: wide.Columns, about: Mapping[bytes, bytes]) -> Any:
    text, share = arrow.string(), arrow.float64()
    pair = arrow.struct([("label", text), ("confidence", share)])
    types = {
        **dict.fromkeys((*wide.BEFORE, *wide.ANSWER, *wide.AFTER), text),
        **dict.fromkeys(("start", "end", "merging_alpha", *columns.shares), share),
        **{"alternatives": arrow.list_(pair), "windows": arrow.int64()},
    }
    kinds = {at: _type(arrow, found) for at, found in columns.kinds.items()}
    return arrow.schema(
        [(name, kinds.get(at, types.get(name, text))) for at, name in enumerate(columns.names)],
        metadata=about,
    )


def _type(arrow: Any, kinds: set[type]) -> Any:
    """The type that holds all values: what is mixed is text."""
    kinds = kinds - {type(None)}
    if kinds == {bool}:
        return arrow.bool_()
    if kinds == {int}:
        return arrow.int64()
    if kinds and kinds <= {int, float}:
        return arrow.float64()
    return arrow.list_(arrow.string()) if kinds == {list} else arrow.string()


def _array(arrow: Any, kind: Any, values: Sequence[Any]) -> Any:
    made: list[Any]
    if arrow.types.is_string(kind):
        made = [None if one is None else _text(one) for one in values]
    elif not arrow.types.is_list(kind):
        made = list(values)
    elif arrow.types.is_struct(kind.value_type):
        made = [
            None if one is None else [{"label": _text(a), "confidence": b} for a, b in one]
            for one in values
        ]
    else:
        made = [None if one is None else [_text(part) for part in one] for one in values]
    return arrow.array(made, type=kind)


def _text(value: Any) -> str:
    """As text without halves of characters, which names of files may have."""
    return value_text(value).encode("utf-8", "backslashreplace").decode()


def read(path: Path) -> Iterator[Detection]:
    """What a table says that is a detection. Raises DataError."""
    arrow, parquet = arrow_and_parquet()
    try:
        with parquet.ParquetFile(path) as file:
            about = json.loads((file.schema_arrow.metadata or {}).get(_ABOUT, b"{}"))
            missing = [name for name in wide.BEFORE if name not in file.schema_arrow.names]
            if missing:
                raise DataError(f"{path}: has no column {', '.join(missing)}")
            choices = about.get("columns")
            if choices is None:
                choices = wide.choices_in(file.read().to_pylist())
            for batch in file.iter_batches(_AT_A_TIME):
                yield from wide.detections(batch.to_pylist(), path, choices, _pairs)
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from None


def _pairs(cell: Any) -> tuple[tuple[str, float], ...]:
    return tuple((one["label"], one["confidence"]) for one in cell)
