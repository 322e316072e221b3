"""Errors about indexes."""

from __future__ import annotations

from NatureLM.errors import UsageError


class VectorIndexError(UsageError):
    """An index cannot be read, written, gone on with, or searched with this model."""
