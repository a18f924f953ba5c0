"""What is due by the clock: a run again while the drive stays in, a reminder.  Pure.

Times are Unix times.  A clock may be set, back or forth, between two of them.  So a time that
was written down is never counted on as it is: as a :class:`Moment` it lies in the past of the
clock of now, whatever happened to that clock.  Nothing is then waited for longer than it
should, and nothing that was done is due again at once.
"""

from __future__ import annotations

import attrs

DAY = 86_400
"""The least time between two reminders, in seconds."""


@attrs.frozen
class Moment:
    """When something was: as it was written down, and as it counts (0: never)."""

    said: float
    counts: float


def moment(said: float, now: float, before: Moment | None = None) -> Moment:
    """The moment that was written down as *said*, by a clock that shows *now*.

    One that lies ahead (the clock was set back since) counts from when that was first seen:
    *before* is what this function said then.
    """
    if said <= now:
        return Moment(said, said)
    seen = before.counts if before is not None and before.said == said else now
    return Moment(said, min(seen, now))


def run_again(ended: float, repeat: float, at_most: float | None = None) -> float:
    """When a drive that stays in is backed up to again, whose last run *ended* then.

    A run that failed counts, too: else it would be due again at once.
    """
    return ended + max(repeat, at_most or 0)


def reminder(success: float, told: float, remind: float) -> float:
    """When to say that the last *success* (or, without one, the first sight of the entry) is
    too old; *told* is when that was said last.
    """
    return max(success + remind, told + DAY if told else 0.0)


def days(success: float, now: float) -> int:
    """The whole days since *success*."""
    return max(0, int((now - success) // DAY))
