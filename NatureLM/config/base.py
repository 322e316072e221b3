"""What all sections of a configuration share: the base class and a few kinds of values."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A section of the configuration: unknown keys are refused, values are never changed later.

    Types are strict (`"2"` is no integer), NaN and infinity are no numbers. A field's
    `json_schema_extra` may hold `ignored` (why the key has no effect here) and `allowed` (what a
    message says is allowed, where type and bounds do not say it all).
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


Text = Annotated[str, Field(min_length=1)]
"""A string with at least one character."""

Share = Annotated[float, Field(ge=0, le=1)]
"""A probability or a part of a whole."""


def ignored(reason: str) -> Any:
    """A key of the reference's files without effect here: accepted, and named in one warning."""
    return Field(default=None, json_schema_extra={"ignored": reason})


class TableSource(Section):
    """One source of labelled clips."""

    path: Text
    audio_root: Text | None = None
    """Folder that relative audio paths start from; the table's own folder if null."""
    columns: dict[str, str] = Field(default={})
    """Our column name to the table's, such as `answer: common_name`."""
    where: dict[str, str | list[str]] = Field(default={})
    """Only rows whose column has this value or one of these."""
