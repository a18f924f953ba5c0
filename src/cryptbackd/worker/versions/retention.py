"""Which versions stay: the rules of ``[keep]``.  Pure; docs/retention.md is for people.

The rules are those of ``borg prune`` (1.2 and later).  ``last`` keeps the newest versions;
``hourly`` to ``yearly`` keep the newest version of each of so many periods that have one, by
local time, weeks from Monday.  They are applied in that order, and what one of them holds
counts for none after it.  A rule that finds fewer versions than it asks for holds the oldest
one, too, so that there will be one of that age.

Nothing is reckoned by age.  Order is the sequence number's, and a time is believed only as
far as it agrees with that order; see :func:`plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, tzinfo

import attrs

from ...config import Keep

NO_RULES = "no rules"
NEWEST = "newest"
IN_DOUBT = "its time is in doubt"

_TIMES = range(253_402_128_000)
"""Unix times for which there is a date in every zone: until two days before the year 10000."""


@attrs.frozen
class Dated:
    """What the rules go by: a complete version's number, name, and when it was finished.

    ``finished`` is a Unix time; -1 where the record has none.
    """

    sequence: int
    name: str
    finished: int


@attrs.frozen
class Plan:
    """What becomes of each version."""

    held: Mapping[Dated, str]
    """Why each that stays does: ``daily 3`` (the third that this rule holds), ``yearly 1,
    oldest``, or one of the words above."""
    goes: tuple[Dated, ...]
    """What no rule holds, oldest first."""
    spare: tuple[Dated, ...]
    """What may go when space is needed, oldest first: ``goes``, and what stays for no rule's
    sake.  Never the newest."""


def plan(versions: Iterable[Dated], keep: Keep, now: int, zone: tzinfo | None = None) -> Plan:
    """Apply the rules *keep* to complete *versions*, in whatever order they come.

    *now* is a Unix time; *zone* None is that of this computer.

    The newest, by its number, stays.  In doubt is each version whose time lies after *now*
    or after that of a version that was made later: the clock was set in between, and it can't
    be told which of the two was right.  Such a version stays and counts for no rule.  When
    what cast the doubt goes, so does the doubt: hence it is gone through again until nothing
    more goes, and a second call would find nothing, either.
    """
    every = sorted(set(versions), key=lambda version: (version.sequence, version.name))
    staying = every
    while True:
        held = _held(staying, keep, now, zone)
        if len(held) == len(staying):
            break
        staying = [version for version in staying if version in held]
    goes = tuple(version for version in every if version not in held)
    no_rule = {version for version, why in held.items() if why in (NO_RULES, IN_DOUBT)}
    return Plan(
        {version: held[version] for version in staying},
        goes,
        tuple(version for version in every[:-1] if version in no_rule.union(goes)),
    )


def _held(versions: Sequence[Dated], keep: Keep, now: int, zone: tzinfo | None) -> dict[Dated, str]:
    """What stays of *versions* (oldest first) if all is gone through once, and why."""
    if keep == Keep():
        return dict.fromkeys(versions, NO_RULES)
    sound = _sound(versions, now)
    held: dict[Dated, str] = {}
    for rule, period in _RULES.items():
        wanted = getattr(keep, rule)
        found = 0
        seen = set()
        for version in reversed(sound):
            if found == wanted:
                break
            moment = period(version, datetime.fromtimestamp(version.finished, zone))
            if moment in seen:
                continue
            seen.add(moment)
            if version not in held:
                found += 1
                held[version] = f"{rule} {found}"
        if found < wanted and sound:
            held.setdefault(sound[0], f"{rule} {found + 1}, oldest")
    for version in set(versions).difference(sound):
        held[version] = IN_DOUBT
    for version in versions[-1:]:
        if held.get(version, IN_DOUBT) == IN_DOUBT:
            held[version] = NEWEST
    return held


def _sound(versions: Sequence[Dated], now: int) -> list[Dated]:
    """Those whose time lies after neither *now* nor that of a later one; oldest first."""
    sound = []
    latest = now
    for version in reversed(versions):
        if version.finished in _TIMES and version.finished <= latest:
            latest = version.finished
            sound.append(version)
    return sound[::-1]


_Period = Callable[[Dated, datetime], object]

_RULES: Mapping[str, _Period] = {
    "last": lambda version, _local: version,
    # An hour that comes twice, when the clocks go back, is two hours: fold tells them apart.
    "hourly": lambda _version, local: (local.date(), local.hour, local.fold),
    "daily": lambda _version, local: local.date(),
    "weekly": lambda _version, local: local.isocalendar()[:2],
    "monthly": lambda _version, local: (local.year, local.month),
    "yearly": lambda _version, local: local.year,
}
"""Each rule of ``config.Keep``, in the order in which they are applied, and its period."""
