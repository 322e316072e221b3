"""Result files: every result that is kept on disk is written here."""

from __future__ import annotations

from NatureLM.outputs.errors import OutputError
from NatureLM.outputs.rows import SCHEMA_VERSION, ErrorRow, WindowRow, read_rows
from NatureLM.outputs.settings import RunSettings
from NatureLM.outputs.store import ResultStore, Resumed

__all__ = [
    "SCHEMA_VERSION",
    "ErrorRow",
    "OutputError",
    "ResultStore",
    "Resumed",
    "RunSettings",
    "WindowRow",
    "read_rows",
]
