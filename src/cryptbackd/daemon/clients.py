"""Whoever asked for a job that ends with them: when they leave the bus, it is over.

What is known of a client lives as long as its jobs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import attrs

from ..errors import CryptbackError, Refused
from .agents import Link
from .jobs import Job
from .tasks import Tasks


@attrs.define
class Clients:
    """The jobs that end with who asked for them; *ends* is called for each that does."""

    link: Link
    ends: Callable[[Job], None]
    _jobs: dict[str, list[Job]] = attrs.field(factory=dict)
    """By the unique bus names of those who asked."""
    _tasks: Tasks = attrs.field(factory=Tasks)

    async def mind(self, client: str, job: Job) -> None:
        """End *job* when *client* leaves the bus before the drive is enrolled."""
        try:
            await self._mind(client, job)
        except BaseException:
            self._forget(client, job)
            self.ends(job)
            raise

    async def _mind(self, client: str, job: Job) -> None:
        self._jobs.setdefault(client, []).append(job)
        if not await self.link.mind(client):
            self.left(client)

        async def forget() -> None:
            await job.over
            if not self._is_known(client, job):
                return
            with contextlib.suppress(CryptbackError):
                await self.link.unmind(client)
            self._forget(client, job)

        self._tasks.start(forget())

    def _is_known(self, client: str, job: Job) -> bool:
        return job in self._jobs.get(client, [])

    def _forget(self, client: str, job: Job) -> None:
        if not self._is_known(client, job):
            return
        self._jobs[client].remove(job)
        if not self._jobs[client]:
            del self._jobs[client]

    def want_asker(self, client: str, run: str) -> None:
        """Raise Refused unless *client* asked for the job *run*."""
        if all(job.id != run for job in self._jobs.get(client, [])):
            raise Refused("Nothing is wanted from you for that.")

    def all_left(self) -> None:
        """The bus is gone, and with it all clients; the next one gives their names to others."""
        for client in list(self._jobs):
            self.left(client)
        self._jobs.clear()

    def left(self, client: str) -> None:
        """The connection *client* is gone."""
        for job in self._jobs.get(client, []):
            self.ends(job)
