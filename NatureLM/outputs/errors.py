"""Errors about result files."""

from __future__ import annotations

from NatureLM.errors import NatureLMError, UsageError


class OutputError(UsageError):
    """A result file cannot be written, read, or gone on with; the message says why."""


class WriteError(NatureLMError):
    """A row could not be written in the middle of a run, such as on a full disk."""
