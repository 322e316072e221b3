"""What can be wrong with a job."""

from __future__ import annotations

from NatureLM.errors import UsageError


class JobError(UsageError):
    """A job cannot be made, found, started or gone on with."""
