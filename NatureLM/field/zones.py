"""Zones of clocks: how people write them, and what a local time is in them.

A zone is one of the time zone database (`Europe/London`), with its summer time, or an offset from
UTC that never changes (`UTC+1`, `+10:00`, `Z`), as recorders have.
"""

from __future__ import annotations

import difflib
import re
from datetime import datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

UTC = timezone.utc
WRITTEN = "Europe/London, UTC+1, +10:00 or Z"
"""How a zone may be written, for messages."""
OFFSET = r"[+\-−]\d{1,2}(?::?[0-5]\d)?"
"""Hours, or hours and minutes, from UTC."""

_FIXED = re.compile(rf"(?:Z|(?:UTC|GMT)\s*({OFFSET})?|({OFFSET}))", re.ASCII | re.IGNORECASE)
_MOST_HOURS = 14


def parse_zone(text: str) -> tzinfo:
    """The zone that is meant. Raises ValueError with what is allowed."""
    found = _FIXED.fullmatch(text.strip())
    if found:
        return fixed_zone(found[1] or found[2] or "+0")
    return _named_zone(text.strip())


def fixed_zone(text: str) -> timezone:
    """The zone of an offset: `+1`, `-3:30`, `+1000`. Raises ValueError for more than 14 hours."""
    digits = text[1:].replace(":", "")
    hours, minutes = (digits[:-2], digits[-2:]) if len(digits) > 2 else (digits, "0")
    if int(hours) * 60 + int(minutes) > _MOST_HOURS * 60:
        raise ValueError(f"no place is {text} hours from UTC")
    shift = timedelta(hours=int(hours), minutes=int(minutes))
    return timezone(shift if text[0] == "+" else -shift)


@lru_cache(maxsize=256)
def _named_zone(text: str) -> ZoneInfo:
    names = _zone_names()
    if not names:
        raise ValueError(
            "this machine has no time zone database: pip install 'naturelm-audio[field]'"
        )
    name = names.get(text.casefold())
    try:
        if name is not None:
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    close = difflib.get_close_matches(text.casefold(), names, n=1, cutoff=0.6)
    meant = f"; did you mean {names[close[0]]}?" if close else ""
    raise ValueError(f"write a zone as {WRITTEN}{meant}")


@lru_cache(maxsize=1)
def _zone_names() -> dict[str, str]:
    return {name.casefold(): name for name in available_timezones() - {"localtime", "Factory"}}


def zone_text(zone: tzinfo | None) -> str:
    """The zone as rows have it: its name, or `UTC+01:00`; "" where there is none."""
    if zone is None:
        return ""
    if isinstance(zone, ZoneInfo):
        return zone.key
    shift = zone.utcoffset(None)
    return offset_text(shift) if shift is not None else str(zone)


def offset_text(shift: timedelta) -> str:
    """`UTC`, `UTC+01:00`, `UTC-03:30`."""
    minutes = round(shift.total_seconds() / 60)
    sign = "-" if minutes < 0 else "+"
    return f"UTC{sign}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}" if minutes else "UTC"


def to_utc(local: datetime, zone: tzinfo) -> tuple[datetime | None, str]:
    """The moment of a clock's local time in a zone, in UTC; or None, and why it is not known.

    local: without a zone of its own

    Where clocks are set back an hour comes twice, and which one is meant nobody can say; where they
    are set forward an hour does not exist, and a recorder that shows it was not set.
    """
    first = local.replace(tzinfo=zone, fold=0)
    if first.utcoffset() == local.replace(tzinfo=zone, fold=1).utcoffset():
        return first.astimezone(UTC), ""
    name = zone_text(zone)
    if first.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != local:
        return None, (
            f"{local} does not exist in {name}, where clocks were set forward then: the recorder's "
            "clock did not follow, so UTC is not known"
        )
    return None, (
        f"{local} comes twice in {name}, where clocks were set back then, so UTC is not known"
    )
