"""How long before or after sunrise and sunset a moment is, at a place."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from functools import lru_cache
from importlib.util import find_spec

WITHOUT_ASTRAL = (
    "hours after sunrise and sunset are left out: they need astral "
    "(pip install 'naturelm-audio[field]')"
)
_HALF_DAY = 45_000.0  # seconds: sunrises are up to half an hour more than a day apart


def has_astral() -> bool:
    """Whether the library is there that knows where the sun is."""
    return find_spec("astral") is not None


def hours_after(
    latitude: float, longitude: float, moment: datetime
) -> tuple[float | None, float | None]:
    """Hours after the nearest sunrise and sunset, from -12 to 12; None on polar days and nights.

    latitude, longitude: degrees
    moment: with a zone

    Needs astral, see `has_astral`.
    """
    seconds = moment.timestamp()
    # Days of the sun, of which no sunrise or sunset falls into two but near the poles.
    day = datetime.fromtimestamp(seconds + longitude * 240, timezone.utc).date()
    rises, sets = _around(latitude, longitude, day)
    return _nearest(seconds, rises), _nearest(seconds, sets)


def _nearest(seconds: float, events: tuple[float, ...]) -> float | None:
    after = min((seconds - event for event in events), key=abs, default=None)
    if after is None or abs(after) > _HALF_DAY:
        return None
    return round(after / 3600, 2)


@lru_cache(maxsize=1 << 14)
def _around(
    latitude: float, longitude: float, day: date
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Sunrises and sunsets of the day, the one before and the one after, in seconds since 1970."""
    days = [_of_day(latitude, longitude, day + timedelta(days=shift)) for shift in (-1, 0, 1)]
    rises, sets = zip(*days, strict=True)
    return (
        tuple(one for one in rises if one is not None),
        tuple(one for one in sets if one is not None),
    )


@lru_cache(maxsize=1 << 14)
def _of_day(latitude: float, longitude: float, day: date) -> tuple[float | None, float | None]:
    from astral import Observer
    from astral.sun import sunrise, sunset

    observer = Observer(latitude, longitude)
    zone = timezone(timedelta(minutes=round(longitude * 4)))  # the sun's own time, to the minute

    def event(of: Callable[..., datetime]) -> float | None:
        try:
            return of(observer, day, tzinfo=zone).timestamp()
        except ValueError:  # the sun stays above or below the horizon
            return None

    return event(sunrise), event(sunset)
