"""The bus goes away, and comes back: what goes on without it, and what is told to the next one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cryptbackd.daemon import bus as buses
from cryptbackd.daemon import connection
from cryptbackd.daemon.bus import Bus
from cryptbackd.model import Outcome, Phase
from tests.unit.private_bus import Logind, PrivateBus, ask, client, private_bus, served
from tests.unit.test_bus import until
from tests.unit.test_service import WAIT, Play, World, play, stick  # noqa: F401

pytestmark = pytest.mark.usefixtures("fake_worker", "as_root")

Act = Callable[[Callable[[World, Bus, PrivateBus], Awaitable[None]]], None]
LOST, BACK = "The connection to the system bus is lost", "The system bus is there again"


@pytest.fixture
def act(play: Play, monkeypatch: pytest.MonkeyPatch) -> Act:  # noqa: F811
    """Play a scene with the service on a bus that can be restarted."""
    monkeypatch.setattr(buses, "_PAUSES", (0.3, 0.6))

    def run(scene: Callable[[World, Bus, PrivateBus], Awaitable[None]]) -> None:
        async def on_a_bus(world: World) -> None:
            async with private_bus(monkeypatch) as there, served(world.service) as bus:
                await scene(world, bus, there)

        play(on_a_bus)

    return run


def said(world: World, what: str) -> int:
    return sum(text.startswith(what) for text in world.said.texts())


def test_a_run_goes_on_and_the_next_bus_is_told_all(act: Act) -> None:
    async def scene(world: World, bus: Bus, there: PrivateBus) -> None:
        world.service.arrived(stick("CCCC-DDDD", 8, "/dev/sdy1"))
        await world.result()
        world.script = WAIT
        async with client() as asker, client() as logind:
            before = Logind(logind)
            await before.come()
            assert (await ask(asker, "RegisterAgent")).signature == ""
            assert (await ask(asker, "Adopt", "s", "work")).signature == "s"
            world.service.arrived(stick())
            await world.phase(Phase.SYNCING)
            await until(lambda: bus._inhibitor.held)
            await there.stop()
            await until(lambda: said(world, LOST))
            # Who asked for it can't hand over anything any more.
            assert (await world.result(1)).outcome is Outcome.CANCELLED
            assert not bus.service.agents.any()
            assert bus._clients._jobs == {}
        world.service.drive_changed("home")  # there is nobody to be told
        bus.drive_changed("home")
        assert bus._inhibitor.held
        await there.start()
        async with client() as logind, client() as asker:
            after = Logind(logind)
            await after.come()
            await until(lambda: said(world, BACK))
            assert (await ask(asker, "ListDrives")).signature == "aa{sv}"
            assert (await ask(asker, "RegisterAgent")).signature == ""
            assert bus.service.agents.any()
            await until(lambda: len(after.locks) == 1)
            await asyncio.sleep(0.3)  # the fake one has closed its own copy
            assert (before.held(), after.held()) == (0, 1)
            assert world.service.views.of("home").phase is Phase.SYNCING
            assert (await ask(asker, "Cancel", "s", "home")).signature == "as"
            assert (await world.result(2)).outcome is Outcome.CANCELLED
            await until(lambda: after.held() == 0)
        for lock in (*before.locks, *after.locks):
            os.close(lock)

    act(scene)


def test_it_tries_until_there_is_a_bus(act: Act) -> None:
    async def scene(world: World, bus: Bus, there: PrivateBus) -> None:
        for times in (1, 2):
            await there.stop()
            await until(lambda: bus._bus is None)
            await asyncio.sleep(1)
            assert (said(world, LOST), said(world, BACK)) == (times, times - 1)
            await there.start()
            while said(world, BACK) < times:
                await asyncio.sleep(0.05)
            async with client() as asker:
                assert (await ask(asker, "ListDrives")).signature == "aa{sv}"

    act(scene)


def test_waking_that_was_told_to_nobody_is_no_sleep_for_ever(act: Act) -> None:
    async def scene(world: World, bus: Bus, there: PrivateBus) -> None:
        async with client() as logind:
            before = Logind(logind)
            await before.come()
            world.script = WAIT
            world.service.arrived(stick())
            await world.phase(Phase.SYNCING)
            await until(lambda: bus._inhibitor.held)
            before.prepare("PrepareForSleep", True)
            assert (await world.result()).outcome is Outcome.CANCELLED
            await there.stop()
            await until(lambda: bus._bus is None)
        await there.start()
        await world.phase(Phase.SYNCING)
        assert said(world, BACK)
        for lock in before.locks:
            os.close(lock)

    act(scene)


def test_a_bus_that_hangs_up_in_the_greeting_keeps_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = f"{tmp_path}/socket"

    async def main() -> None:
        mistakes: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: mistakes.append(context))
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(place)
            listening.listen()
            descriptors = len(os.listdir("/proc/self/fd"))
            for said in (b"", b"OK 1234\r\n", b"OK 1234\r\nAGREE_UNIX_FD\r\n"):
                bus = connection.make()
                joining = asyncio.create_task(connection.join(bus, "org.cryptback1"))
                peer, _address = listening.accept()
                with peer:
                    await asyncio.sleep(0.05)
                    peer.recv(1000)
                    peer.send(said)
                    await asyncio.sleep(0.05)
                    peer.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        peer.recv(1000)  # else it would be told as an error
                with pytest.raises(OSError, match="it was closed"):
                    await asyncio.wait_for(joining, 5)
                connection.leave(bus)
            assert len(os.listdir("/proc/self/fd")) == descriptors
        del bus, joining
        await asyncio.sleep(0)
        assert mistakes == []

    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={place}")
    asyncio.run(main())


def test_what_is_sent_to_a_bus_that_is_gone_is_no_mistake(act: Act) -> None:
    async def scene(world: World, bus: Bus, there: PrivateBus) -> None:
        assert there._daemon is not None
        there._daemon.terminate()
        time.sleep(0.5)  # before the loop comes to read that it is gone
        bus._tell("home")
        bus.service.agents.link.tell(":1.7", "Cancel", "x")  # type: ignore[union-attr]
        assert await bus._ask(buses._to_agent(":1.7", "Opened", "s", ["x"])) is None
        await until(lambda: said(world, LOST))
        await there.stop()
        await there.start()
        await until(lambda: said(world, BACK))

    act(scene)
