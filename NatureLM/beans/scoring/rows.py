"""The values that scoring takes out of a row; each raises Unusable for what cannot be used."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

from NatureLM.beans.scoring.answers import CLUSTER_COLUMNS, Value
from NatureLM.beans.scoring.problems import Unusable

# Rows of `naturelm infer` and of the benchmark's own data name some things differently.
_OTHER_NAMES = {"prediction": "text", "label": "output", "lora_scale": "merging_alpha"}


def has(row: Mapping[str, Any], key: str) -> bool:
    """Whether the row has the key, under this name or the other one."""
    return key in row or _OTHER_NAMES.get(key) in row


def text_of(row: Mapping[str, Any], key: str) -> str:
    """A text that is not blank."""
    found = _get(row, key)
    if isinstance(found, str) and found.strip():
        return found
    what = "empty" if isinstance(found, str) else "null" if found is None else f"{found!r:.60}"
    raise Unusable("wrong value", f"{key} is {what}; a text is needed")


def answer_of(row: Mapping[str, Any]) -> str:
    """The answer, which may be empty."""
    if "error" in row and not (row.get("prediction") or row.get("text")):
        raise Unusable("no answer", f"the run has no answer here: {row['error']!s:.200}")
    found = _get(row, "prediction")
    if found is None:
        raise Unusable("null answer", "the answer is null; a text is needed, which may be empty")
    if not isinstance(found, str):
        raise Unusable("wrong value", f"the answer is {found!r:.60}; a text is needed")
    return found


def value_of(row: Mapping[str, Any], key: str) -> Value:
    """A text, a finite number or null: what groups are made by; an α in quotes is a number."""
    found: Any = _get(row, key)
    if key == "lora_scale" and isinstance(found, str):
        with contextlib.suppress(ValueError):
            found = float(found)
    if found is None or isinstance(found, str):
        return found
    if type(found) in (int, float) and abs(found) <= sys.float_info.max:
        return found  # type: ignore[no-any-return]
    raise Unusable("wrong value", f"{key} is {found!r:.60}; a number or a text is needed")


def identity_of(row: Mapping[str, Any]) -> str:
    """The id as a text."""
    found = _get(row, "id")
    if isinstance(found, str) and found.strip():
        return found
    if type(found) is int:
        return str(found)
    raise Unusable("wrong value", f"id is {found!r:.60}; a text or a whole number is needed")


def prompt_of(row: Mapping[str, Any]) -> str | None:
    """What was asked, if the row tells: the complete prompt, else a query in words."""
    for key in ("prompt", "query"):
        found = row.get(key)
        if isinstance(found, str) and found.strip():
            return found
    return None


def cluster_of(row: Mapping[str, Any], column: str | None) -> str | None:
    """Column and value of the row's cluster; without a column, of the first there is, or None."""
    for name in (column,) if column else CLUSTER_COLUMNS:
        found = row.get(name)
        if isinstance(found, (str, int, float)):
            return f"{name}\n{found}"
    if column:
        raise Unusable("missing key", f"the column {column!r} of --cluster has no value here")
    return None


def _get(row: Mapping[str, Any], key: str) -> Any:
    if key in row:
        return row[key]
    other = _OTHER_NAMES.get(key)
    if other is not None and other in row:
        return row[other]
    raise Unusable("missing key", f"the key {key!r} is missing")
