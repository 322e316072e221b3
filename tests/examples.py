"""How many examples a property is tried on where each takes its time."""

from __future__ import annotations

from hypothesis import settings

_MORE = 10


def examples(few: int) -> settings:
    """So many of them, and ten times as many in the profile of `make test-slow`."""
    is_thorough = settings.get_current_profile_name() == "thorough"
    return settings(max_examples=few * _MORE if is_thorough else few)
