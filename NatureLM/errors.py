"""The errors that people see: every exception of the project derives from `NatureLMError`.

A message says what happened, with which file, key or value, and what to do. The command line prints
the message without a stack trace and ends with the error's `exit_code`.
"""

from __future__ import annotations


class NatureLMError(Exception):
    """Base of all errors that the project raises on purpose."""

    exit_code = 1


class UsageError(NatureLMError):
    """The request itself is wrong: a path that is not there, values that exclude each other."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file or override holds an unknown key or a value that is not allowed."""
