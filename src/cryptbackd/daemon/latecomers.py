"""A backup for which nobody could be asked begins again when somebody comes who can be.

A computer is switched on with its drive in, and only then does its user log in, whose keyring has
the passphrase: without this such a drive would never be backed up to.  What somebody was asked
for, and did not give, is not asked for anew.  It lives as long as the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import attrs

from ..errors import CryptbackError
from ..model import JobKind, RunResult
from . import journal
from .agents import Agents
from .jobs import Job
from .tasks import Tasks

LOOKS = (20.0, 40.0, 60.0)
"""Seconds before each look at who can be asked, after an agent has come.

A session's agent is there before its display and its keyring are, or before it is in front.
"""


@attrs.define
class Latecomers:
    """Call :meth:`came` when an agent has registered, and :meth:`job_ended` always.

    *take_up* gets each job that is to be done again.
    """

    agents: Agents
    take_up: Callable[[Job], None]
    _waiting: dict[str, Job] = attrs.field(factory=dict)
    """Those for which nobody could be asked, by the names of their drives."""
    _looking: asyncio.Task[None] | None = None
    _tasks: Tasks = attrs.field(factory=Tasks)

    def came(self) -> None:
        """There is an agent more."""
        if not self._waiting:
            return
        if self._looking is not None:
            self._looking.cancel()
        self._looking = self._tasks.start(self._look())

    def job_ended(self, job: Job, result: RunResult) -> None:
        """Take in that *job* is over."""
        if job.kind is not JobKind.BACKUP:
            return
        unasked = self.agents.was_nobody_there(job.name)
        if unasked and result.error == "WrongPassphrase":
            self._waiting[job.name] = job
            if self.agents.any():
                self.came()  # while others were asked
        else:
            self._waiting.pop(job.name, None)

    def forget(self, diskseq: int) -> None:
        """Take up nothing on this disk: it was ejected."""
        for name, job in list(self._waiting.items()):
            if job.device.diskseq == diskseq:
                del self._waiting[name]

    async def _look(self) -> None:
        for pause in LOOKS:
            await asyncio.sleep(pause)
            for name, job in list(self._waiting.items()):
                if await self._can_be_asked(job) and self._waiting.get(name) is job:
                    del self._waiting[name]
                    journal.log(
                        f"{name}: somebody is here now who can be asked for the passphrase.",
                        drive=name,
                    )
                    self.take_up(job)

    async def _can_be_asked(self, job: Job) -> bool:
        assert job.entry is not None
        with contextlib.suppress(CryptbackError):
            return bool(await self.agents.for_entry(job.entry))
        return False
