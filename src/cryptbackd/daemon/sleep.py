"""The computer goes to sleep, or shuts down: jobs end in order before, and go on after.

What was interrupted for it is done again on waking, if its drive is still in.  Where the time
that logind gives did not suffice, that is said on waking: the volume was unlocked meanwhile.
It lives as long as the daemon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import attrs

from ..model import JobKind, Outcome, RunResult, StopReason
from . import journal
from .jobs import Job
from .supervisor import Supervisor


@attrs.define
class Sleep:
    """Call :meth:`begins` and :meth:`ends` as logind tells, and :meth:`job_ended` always.

    *take_up* gets each backup, and each enrolment that may have been in the middle of its first
    one, that was interrupted; *look* is called after waking, since drives may have come meanwhile.
    """

    supervisor: Supervisor
    take_up: Callable[[Job], None]
    look: Callable[[], None]
    _asleep: bool = False
    _since: float = 0.0
    _delay: float = 0.0
    _interrupted: list[Job] = attrs.field(factory=list)
    _late: list[Job] = attrs.field(factory=list)

    def begins(self, delay: float) -> None:
        """Stop everything; the computer sleeps in *delay* seconds at the latest."""
        self._asleep = True
        self._since = asyncio.get_running_loop().time()
        self._delay = delay
        # Those of the sleep before may not have come to their end yet.
        self._interrupted += [
            job
            for job in self.supervisor.jobs()
            if job.kind in (JobKind.BACKUP, JobKind.INIT) and not job.stop
        ]
        self.supervisor.fall_asleep()

    def ends(self) -> None:
        """Say what was not locked in time, and go on."""
        if not self._asleep:
            return
        self._asleep = False
        self._late += [job for job in self.supervisor.running() if job not in self._late]
        for job in self._late:
            journal.log(
                f"{job.name}: the computer went to sleep before everything was locked: that took"
                f" longer than the {self._delay:.0f} seconds that it waits.",
                journal.Priority.WARNING,
                message="slept_unlocked",
                drive=job.name,
            )
        self._late.clear()
        self.supervisor.wake_up()
        over = [job for job in self._interrupted if job.over.done()]
        self._interrupted = [job for job in self._interrupted if job not in over]
        for job in over:
            self.take_up(job)
        self.look()

    def forget(self, diskseq: int) -> None:
        """Take up nothing on this disk: it was ejected."""
        self._interrupted = [job for job in self._interrupted if job.device.diskseq != diskseq]

    def job_ended(self, job: Job, result: RunResult) -> None:
        """Take in that *job* is over."""
        # This clock stands still while the computer sleeps.
        took = asyncio.get_running_loop().time() - self._since
        if self._asleep and job.stop is StopReason.SLEEP and took > self._delay:
            self._late.append(job)
        if job not in self._interrupted:
            return
        if result.outcome is not Outcome.CANCELLED:
            self._interrupted.remove(job)  # it came to its end, or its drive is gone
        elif not self._asleep:
            self._interrupted.remove(job)
            # Not at once: those that wait for this disk come first.
            asyncio.get_running_loop().call_soon(self.take_up, job)
