"""Which versions the rules of ``[keep]`` hold.  Pure: from the versions' times to reasons.

Order is the sequence number's.  A clock that was set can therefore mislead a rule, but never
delete for it: a version whose time contradicts the order of another one, or lies in the future,
is held for that reason.

The rules mean what those of ``restic forget`` mean; docs/retention.md has the differences, and
those to ``borg prune``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, tzinfo

import attrs

from ...config import Keep


@attrs.frozen
class Dated:
    """A complete version: its number in the order, and when it was finished (Unix time)."""

    sequence: int
    finished: float


@attrs.frozen
class Decision:
    """Why a version is held; nothing holds one without reasons."""

    version: Dated
    reasons: tuple[str, ...]


_Period = tuple[object, ...]


def _hour(local: datetime) -> _Period:
    # By what the clock was ahead, too: in autumn two hours have one name.
    return local.date(), local.hour, local.utcoffset()


def _week(local: datetime) -> _Period:
    return tuple(local.isocalendar())[:2]


_PERIODS: dict[str, Callable[[datetime], _Period]] = {
    "hourly": _hour,
    "daily": lambda local: (local.date(),),
    "weekly": _week,
    "monthly": lambda local: (local.year, local.month),
    "yearly": lambda local: (local.year,),
}


def decide(
    versions: Iterable[Dated], rules: Keep, *, now: float, zone: tzinfo | None = None
) -> list[Decision]:
    """What becomes of each version, oldest first.

    *now* is Unix time; days begin when they do in *zone* (None: that of this computer).
    Without any rule everything is held.
    """
    ordered = sorted(versions, key=lambda version: version.sequence)
    reasons: dict[int, list[str]] = {version.sequence: [] for version in ordered}
    for version in ordered[-1:]:
        reasons[version.sequence].append("newest")
    if rules == Keep():
        for version in ordered[:-1]:
            reasons[version.sequence].append("no rules")
    for version in _doubtful(ordered, now):
        reasons[version.sequence].append("the clock was set")
    for version in ordered[len(ordered) - min(rules.last, len(ordered)) :]:
        reasons[version.sequence].append("last")
    for rule, period in _PERIODS.items():
        for version in _newest_of_each(ordered, period, getattr(rules, rule), zone):
            reasons[version.sequence].append(rule)
    return [Decision(version, tuple(reasons[version.sequence])) for version in ordered]


def _doubtful(ordered: Sequence[Dated], now: float) -> list[Dated]:
    """Those whose time is not between the times of all before and all after, or is to come."""
    latest_before = []
    latest = float("-inf")
    for version in ordered:
        latest_before.append(latest)
        latest = max(latest, version.finished)
    found = []
    earliest = now
    for version, before in zip(reversed(ordered), reversed(latest_before), strict=True):
        if version.finished > earliest or version.finished < before:
            found.append(version)
        earliest = min(earliest, version.finished)
    return found


def _newest_of_each(
    ordered: Sequence[Dated],
    period: Callable[[datetime], _Period],
    count: int,
    zone: tzinfo | None,
) -> list[Dated]:
    """The newest version of each of the last *count* periods that have one."""
    seen: set[_Period] = set()
    found = []
    for version in reversed(ordered):
        if len(seen) == count:
            break
        key = period(_local(version.finished, zone))
        if key not in seen:
            seen.add(key)
            found.append(version)
    return found


def _local(finished: float, zone: tzinfo | None) -> datetime:
    """Its time on the clock on the wall; one that no calendar has counts as the first of all."""
    try:
        return datetime.fromtimestamp(finished, UTC).astimezone(zone)
    except (OverflowError, OSError, ValueError):
        return datetime.min.replace(tzinfo=UTC)
