"""Does what the clock asks for: runs again while a drive stays in, and reminders.

It looks when something has changed, and when the next thing is due; between the two it lets
the daemon sleep.  What it must remember across restarts is in the history.  It lives as long
as the daemon.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import attrs

from ..config import Entry
from . import schedule
from .alarm import Alarm
from .entries import EntryStore
from .history import History
from .policy import Again
from .schedule import DAY, Moment

_PATIENCE = DAY
"""Seconds that something may go on with a drive before its owner is reminded all the same: a backup
that goes well is over by then, and what hangs, or is left open, keeps all others waiting."""


@attrs.define
class Timetable:
    """Call :meth:`soon` when something has changed that it may depend on.

    *again* tells whether the clock may begin a run of an entry, and *run* begins it; *busy*
    tells whether something goes on with an entry, *remind* gets its name and the days since
    its last success.
    """

    history: History
    store: EntryStore
    again: Callable[[str, Entry], Again]
    run: Callable[[str, Entry], None]
    busy: Callable[[str], bool]
    remind: Callable[[str, int], None]
    clock: Callable[[], float] = time.time
    _alarm: Alarm = attrs.field(init=False)
    _handle: asyncio.Handle | None = None
    _busy_since: dict[str, float] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self._alarm = Alarm(self.soon)

    def soon(self) -> None:
        """Look, once the loop is done with what it is at."""
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_soon(self._look)

    def close(self) -> None:
        """Do nothing any more."""
        if self._handle is not None:
            self._handle.cancel()
        self._alarm.close()

    def reminded(self, name: str) -> float:
        """When *name* was last reminded of, if no backup has succeeded since; else 0."""
        told = self.history.moment(name, "reminded")
        if told is None:
            return 0.0
        # By a clock that was wrong the success may have been written down as one to come.
        before = self.history.moment(name, "success")
        success = schedule.moment(self.history.last_success(name), self.clock(), before)
        later = (told.counts, told.said) >= (success.counts, success.said)
        return told.counts if later else 0.0

    def _look(self) -> None:
        self._handle = None
        now = self.clock()
        coming = []
        for name, entry in sorted(self.store.now().good.items()):
            patient = self._patient(name, now)
            # The end of what goes on is a change.
            if entry.when.repeat is not None and not patient:
                coming.append(self._repeat(name, entry, entry.when.repeat, now))
            if entry.when.remind is not None:
                coming.append(self._remind(name, entry.when.remind, now, patient))
        self._alarm.set(min((when for when in coming if when is not None), default=None))

    def _patient(self, name: str, now: float) -> float:
        """Until when nobody is reminded of *name*, as something goes on with it; else 0."""
        if not self.busy(name):
            self._busy_since.pop(name, None)
            return 0.0
        since = self._busy_since[name] = min(now, self._busy_since.get(name, now))
        return since + _PATIENCE

    def _repeat(self, name: str, entry: Entry, repeat: int, now: float) -> float | None:
        """Run *name* again, if that is due; when it will be due otherwise."""
        again = self.again(name, entry)
        if again is Again.NOT:
            return None
        ended = self._moment(name, "attempt", self.history.last_attempt(name), now)
        due = schedule.run_again(ended, repeat, entry.when.at_most)
        if again is Again.WHEN_DUE and due > now:
            return due
        self.run(name, entry)
        return None

    def _remind(self, name: str, remind: int, now: float, patient: float) -> float:
        """Remind of *name*, if that is due, and not before *patient*; when it will be due next."""
        success = self.history.last_success(name)
        if success:
            since = self._moment(name, "success", success, now)
        else:
            known = self.history.moment(name, "known")
            since = self._moment(name, "known", known.said if known else now, now)
        before = self.history.moment(name, "reminded")
        told = self._moment(name, "reminded", before.said, now) if before else 0.0
        due = max(schedule.reminder(since, told, remind), patient)
        if due > now:
            return due
        self.history.keep_moment(name, "reminded", Moment(now, now))
        self.remind(name, schedule.days(since, now))
        return schedule.reminder(since, now, remind)

    def _moment(self, name: str, what: str, said: float, now: float) -> float:
        """When it counts as having been; what must be remembered of that is kept."""
        before = self.history.moment(name, what)
        moment = schedule.moment(said, now, before)
        # One that counts as it was written down needs to be kept only in its own place.
        if moment != before and (moment.counts != said or before is not None or what == "known"):
            self.history.keep_moment(name, what, moment)
        return moment.counts
