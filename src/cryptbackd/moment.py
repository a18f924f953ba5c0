"""Which version somebody means who says "yesterday", "2 days ago" or a piece of its name.  Pure.

A day, a week or a month means its last moment, for whoever asks is after what was there then:
"yesterday" is the newest version that was made before today began.  Days and hours are those
of the time zone that is given, or the computer's; the names of versions are UTC.

A version's place in the order is its number's and not its clock's.  But who names a moment
asks the clock: then the version with the latest time is meant, and of two with the same time
the one with the higher number.  So one that was made while the clock was wrong harms only
questions about the time that it showed.
"""

from __future__ import annotations

import calendar
import math
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta, tzinfo

import attrs

from .errors import Refused
from .text import printable

NAME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
"""What a version is called after: the time at which it was made, in UTC."""
LONGEST = 256
"""Characters in which every time and version can be said."""
NEWEST = ("now", "newest", "latest", "last")
OLDEST = ("oldest", "first")
HINT = (
    'Say for instance "yesterday", "2 days ago", "3 hours ago", "last week", "2026-11-20",'
    ' "2026-11-20 18:00", or the name of a version.'
)

_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}
_AGO = re.compile(
    r"(?P<number>\d{1,6}|a|an|one|two|three) (?P<unit>minute|min|hour|day|week|month|year)s? ago"
)
_EXACT_UNITS = {"minute": 60, "min": 60, "hour": 3600}
_DAY_UNITS = {"day": 1, "week": 7}
_WEEKDAY = re.compile(rf"(?:last )?(?P<day>{'|'.join(calendar.day_name).lower()})")
_DATE = re.compile(r"(?P<year>\d{4})-(?P<month>\d{1,2})-(?P<day>\d{1,2})")
_MONTH = re.compile(r"(?P<year>\d{4})-(?P<month>\d{1,2})")
_TIME = re.compile(
    r"(?:(?P<day>.*?\S)(?: at |[ t]))?(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2}))?"
    r"(?P<utc> ?z| utc)?"
)


@attrs.frozen
class Made:
    """A version: its name, when it was made (Unix time; None: not known), and its number."""

    name: str
    time: float | None
    sequence: int

    @staticmethod
    def named(name: str, sequence: int) -> Made:
        """The version *name*, whose time is the one in its name."""
        return Made(name, time_of(name), sequence)


def time_of(name: str) -> float | None:
    """When the version *name* was made (Unix time); None where its name tells no time."""
    try:
        return datetime.strptime(name, NAME_FORMAT).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def choose(when: str, versions: Iterable[Made], now: float, zone: tzinfo | None = None) -> Made:
    """The one of *versions* that *when* means, said at *now* (Unix time).

    *zone* None is the computer's time zone.  Empty, *when* means the newest.  Raises Refused
    when it isn't understood, or there is no such version.
    """
    found = sorted(versions, key=lambda version: version.sequence)
    if not found:
        raise Refused("There is no version on it yet.", "`cryptback run` makes the first one.")
    for version in found:
        if version.name == when.strip():
            return version
    said = " ".join(when.lower().replace(",", " ").split())
    if not said or said in NEWEST:
        return found[-1]
    if said in OLDEST:
        return found[0]
    # A time with a "T" in it is more likely a piece of a name than a time of day here.
    prefixed = [version for version in found if version.name.lower().startswith(said)]
    bound = _bound(said, now, zone)
    if len(prefixed) == 1 and (bound is None or "t" in said):
        return prefixed[0]
    if bound is None:
        raise _not_understood(when, prefixed)
    known = [(v.time, v.sequence, v) for v in found if v.time is not None and v.time < bound]
    if not known:
        raise _too_early(when, found, zone)
    return max(known)[2]


def want_short(when: str) -> None:
    """Raise Refused for what is too long to be a time or a version."""
    if len(when) > LONGEST:
        raise Refused("That is neither a time nor a version.", HINT)


def _not_understood(when: str, prefixed: list[Made]) -> Refused:
    shown = f'"{printable(when, 60)}"'
    if not prefixed:
        return Refused(f"{shown} is neither a time nor a version.", HINT)
    names = ", ".join(printable(version.name, 40) for version in prefixed[:3])
    rest = len(prefixed) - 3
    more = f" and {rest} more" if rest > 0 else ""
    return Refused(
        f"{shown} begins the names of {len(prefixed)} versions: {names}{more}.",
        "Say more of the name.",
    )


def _too_early(when: str, found: list[Made], zone: tzinfo | None) -> Refused:
    shown = f'"{printable(when, 60)}"'
    dated = [(v.time, v.sequence, v) for v in found if v.time is not None]
    if not dated:
        return Refused("The versions have names that tell no time.", "Say the name of a version.")
    first = min(dated)[2]
    return Refused(
        f"There is no version from {shown} or before: the first one is {spoken(first, zone)}.",
        '"oldest" means that one.',
    )


def spoken(version: Made, zone: tzinfo | None = None) -> str:
    """The version's name, and its time in the time zone *zone* (None: the computer's)."""
    name = printable(version.name, 40)
    if version.time is None:
        return name
    try:
        local = datetime.fromtimestamp(version.time, UTC).astimezone(zone)
    except OverflowError:  # the last hours of the year 9999, which a version may be called after
        return name
    return f"{name} ({local:%Y-%m-%d %H:%M:%S})"


def _bound(said: str, now: float, zone: tzinfo | None) -> float | None:
    """The first moment that is after what *said* means; None when that isn't a time."""
    today = _today(now, zone)
    try:
        return _point(said, now, today, zone) or _period(said, today, zone)
    except (ValueError, OverflowError, OSError):  # the 31st of February, the year 0
        return None


def _point(said: str, now: float, today: date, zone: tzinfo | None) -> float | None:
    """As :func:`_bound`, for what means a minute or a second."""
    ago = _AGO.fullmatch(said)
    if ago is not None and ago["unit"] in _EXACT_UNITS:
        return math.floor(now) - _number(ago["number"]) * _EXACT_UNITS[ago["unit"]] + 1
    clock = _TIME.fullmatch(said)
    if clock is None:
        return None
    if clock["utc"]:
        zone, today = UTC, _today(now, UTC)
    day = today if clock["day"] is None else _day(clock["day"], today)
    if day is None:
        return None
    second = clock["second"]
    moment = datetime(
        day.year, day.month, day.day, int(clock["hour"]), int(clock["minute"]), int(second or 0)
    )
    return _latest(moment, zone) + (60 if second is None else 1)


def _period(said: str, today: date, zone: tzinfo | None) -> float | None:
    """As :func:`_bound`, for what means a day or more."""
    after: date | None
    if said == "last week":
        after = today - timedelta(today.weekday())
    elif said == "last month":
        after = today.replace(day=1)
    elif said == "last year":
        after = today.replace(month=1, day=1)
    elif month := _MONTH.fullmatch(said):
        after = _months_later(date(int(month["year"]), int(month["month"]), 1), 1)
    else:
        day = _day(said, today)
        after = None if day is None else day + timedelta(1)
    if after is None:
        return None
    # Where midnight comes twice the day begins with the first one; where it doesn't come at
    # all, this is the moment at which the clock was put on.
    return _stamp(datetime(after.year, after.month, after.day), zone)


def _day(said: str, today: date) -> date | None:
    """The day that *said* means; None when it isn't one.  Raises ValueError, OverflowError."""
    said = said.removeprefix("on ").removeprefix("the ")
    days = {"today": 0, "yesterday": 1, "day before yesterday": 2}
    if said in days:
        return today - timedelta(days[said])
    if match := _DATE.fullmatch(said):
        return date(int(match["year"]), int(match["month"]), int(match["day"]))
    if match := _WEEKDAY.fullmatch(said):
        weekday = [name.lower() for name in calendar.day_name].index(match["day"])
        return today - timedelta((today.weekday() - weekday - 1) % 7 + 1)
    match = _AGO.fullmatch(said)
    if match is None or match["unit"] in _EXACT_UNITS:
        return None
    number = _number(match["number"])
    if match["unit"] in _DAY_UNITS:
        return today - timedelta(number * _DAY_UNITS[match["unit"]])
    return _months_later(today, -number * (12 if match["unit"] == "year" else 1))


def _number(word: str) -> int:
    return _NUMBERS[word] if word in _NUMBERS else int(word)


def _months_later(day: date, months: int) -> date:
    """The same day so many months later, or the last one of a month that is too short."""
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    last = calendar.monthrange(year, month + 1)[1]
    return date(year, month + 1, min(day.day, last))


def _today(now: float, zone: tzinfo | None) -> date:
    return datetime.fromtimestamp(now, UTC).astimezone(zone).date()


def _stamp(moment: datetime, zone: tzinfo | None) -> float:
    """The Unix time at which a clock in *zone* shows *moment*."""
    return moment.replace(tzinfo=zone).timestamp()


def _latest(moment: datetime, zone: tzinfo | None) -> float:
    """As :func:`_stamp`; of two such times, when the clock was put back, the later one."""
    return max(_stamp(moment, zone), _stamp(moment.replace(fold=1), zone))
