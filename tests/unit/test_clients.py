"""Jobs that end with whoever asked for them."""

from __future__ import annotations

import asyncio
import time

import pytest

from cryptbackd.daemon import jobs
from cryptbackd.daemon.clients import Clients
from cryptbackd.daemon.jobs import Job
from cryptbackd.daemon.watch import Seen
from cryptbackd.errors import Refused
from cryptbackd.model import Device, JobKind
from tests.unit.test_agents import Bus


class Deaf(Bus):
    """A bus that does not answer."""

    async def mind(self, name: str) -> bool:
        """Raise what it raises then."""
        raise Refused(f"The bus did not answer ({name}).")


def restore() -> Job:
    seen = Seen(Device("/dev/sdx1", 8, 1, "/dev/sdx", 7))
    over = asyncio.get_running_loop().create_future()
    return Job(jobs.new_id(time.time()), JobKind.RESTORE, "home", seen, over)


def test_a_job_whose_asker_cannot_be_minded_ends_and_is_forgotten() -> None:
    async def scene() -> None:
        ended: list[Job] = []
        clients = Clients(Deaf(), ended.append)
        job = restore()
        with pytest.raises(Refused, match="did not answer"):
            await clients.mind(":1.7", job)
        assert ended == [job]
        assert clients._jobs == {}
        with pytest.raises(Refused):
            clients.want_asker(":1.7", job.id)

    asyncio.run(scene())


def test_a_job_is_known_until_it_is_over() -> None:
    async def scene() -> None:
        ended: list[Job] = []
        bus = Bus()
        clients = Clients(bus, ended.append)
        job, other = restore(), restore()
        for each in (job, other):
            await clients.mind(":1.7", each)
        clients.want_asker(":1.7", job.id)
        for each in (job, other):
            each.over.set_result(jobs.cancelled_result(""))
        await asyncio.sleep(0.01)
        clients.left(":1.7")
        assert ended == []
        assert (clients._jobs, bus.minded) == ({}, [])

    asyncio.run(scene())
