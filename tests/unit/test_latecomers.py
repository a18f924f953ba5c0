"""Drives for which nobody could be asked, with a worker that only speaks."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import pytest

from cryptbackd.daemon import latecomers
from cryptbackd.daemon.keys.agent import Agent
from cryptbackd.model import Outcome
from tests.unit.test_agents import Bus, says
from tests.unit.test_service import Play, Secret, World, play, stick  # noqa: F401

pytestmark = pytest.mark.usefixtures("fake_worker", "as_root")

LOCKED: list[Any] = [["phase", "unlocking"], ["key", "open", ""], ["fail", "WrongPassphrase"]]


@attrs.define
class Login:
    """Agents of the user 1000, who may sit at the computer."""

    world: World
    bus: Bus = attrs.field(factory=lambda: Bus(acts={":1": says(b"secret\n")}))

    def __attrs_post_init__(self) -> None:
        self.world.service.agents.link = self.bus
        self.world.sources = [Agent(self.world.service.agents)]
        self.world.script = LOCKED

    async def happens(self) -> None:
        """The user logs in, and sits there; what is begun then succeeds."""
        self.world.script = None
        jobs = [*self.world.service.supervisor.jobs(), *(job for job, _result in self.world.ends)]
        for job in jobs:
            job.options = {}
        self.bus.sitting = frozenset({1000})
        await self.world.service.agents.register(":1")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latecomers, "LOOKS", (0.1, 0.1, 0.1))


def test_a_drive_that_was_in_before_anybody_logged_in(play: Play) -> None:  # noqa: F811
    async def scene(world: World) -> None:
        login = Login(world)
        world.service.arrived(stick())
        assert (await world.result()).outcome is Outcome.FAILED
        await login.happens()
        assert (await world.result(1)).outcome is Outcome.DONE
        assert "home: got secret from agent" in world.said.texts()
        await asyncio.sleep(0.4)
        assert len(world.ends) == 2

    play(scene)


def test_who_logs_in_while_others_are_asked(play: Play) -> None:  # noqa: F811
    async def scene(world: World) -> None:
        login = Login(world)
        world.script = [*LOCKED[:2], ["sleep", 0.3], LOCKED[2]]
        world.service.arrived(stick())
        await world.until(lambda: "home: no key" in "\n".join(world.said.texts()))
        await login.happens()
        assert (await world.result()).outcome is Outcome.FAILED
        assert (await world.result(1)).outcome is Outcome.DONE

    play(scene)


def test_who_comes_to_the_front_a_little_later(play: Play) -> None:  # noqa: F811
    async def scene(world: World) -> None:
        login = Login(world)
        world.service.arrived(stick())
        await world.result()
        await login.happens()
        login.bus.sitting = frozenset()
        await asyncio.sleep(0.15)
        login.bus.sitting = frozenset({1000})
        assert (await world.result(1)).outcome is Outcome.DONE

    play(scene)


@pytest.mark.parametrize("what", ["was asked", "other error", "ejected", "pulled", "done since"])
def test_what_is_not_asked_for_anew(play: Play, what: str) -> None:  # noqa: F811
    async def scene(world: World) -> None:
        login = Login(world)
        if what == "was asked":
            login.bus.acts.clear()
            await login.happens()
        if what == "other error":
            world.script = [*LOCKED[:2], ["fail", "DriveFull"]]
        world.service.arrived(stick())
        await world.result()
        world.script = None
        if what == "ejected":
            world.service.requests.eject("home")
            await world.result(1)
        elif what == "pulled":
            world.service.left("/dev/sdx")
            world.service.arrived(stick("EEEE-FFFF"))
        elif what == "done since":
            world.sources = [Secret()]
            world.service.requests.run("home")
            await world.result(1)
        ends = len(world.ends)
        await world.service.agents.register(":2")
        await login.happens()
        await asyncio.sleep(0.5)
        assert len(world.ends) == ends

    play(scene)
