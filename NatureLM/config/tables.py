"""A table of labelled clips: where it is, which columns it has, which of its rows count."""

from __future__ import annotations

from pydantic import Field

from NatureLM.config.section import Section, Text


class TableSource(Section):
    """One source of labelled clips."""

    path: Text
    audio_root: Text | None = None
    """Folder that relative audio paths start from; the table's own folder if null."""
    columns: dict[str, str] = Field(default={})
    """Our column name to the table's, such as `answer: common_name`."""
    where: dict[str, str | list[str]] = Field(default={})
    """Only rows whose column has this value or one of these."""
