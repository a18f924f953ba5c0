"""Browsing: whose it is, where it is shown, and when it ends."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import MessageType, Variant
from dbus_fast.aio.message_bus import MessageBus

from cryptbackd import kernel
from cryptbackd.daemon import browsing, mounts, sessions, supervisor
from cryptbackd.daemon.bus import Bus
from cryptbackd.errors import Refused
from cryptbackd.model import JobKind, Outcome, Phase
from tests.unit.private_bus import ask, client, gone
from tests.unit.test_bus import Act, act, nobody_asks  # noqa: F401
from tests.unit.test_service import World, play, stick  # noqa: F401

pytestmark = pytest.mark.usefixtures("fake_worker", "as_root")

SCRIPT: list[Any] = [["phase", "browsing"], ["mount"], ["stop"]]


@pytest.fixture
def fuse(tmp_path: Path) -> str:
    """A device with the number of /dev/fuse."""
    path = tmp_path / "fuse"
    os.mknod(path, 0o600 | 0o020000, os.makedev(10, 229))
    return str(path)


async def hand(bus: MessageBus, run: str, *fds: int) -> str:
    """Hand over these descriptors; in which words that was refused, or empty: they were taken."""
    reply = await ask(bus, "HandOver", "ss", run, "mount")
    if reply.message_type is MessageType.ERROR:
        return str(reply.body[0])
    with socket.socket(fileno=reply.unix_fds[0]) as way:
        socket.send_fds(way, [b"mount"], fds)
        taken = await asyncio.to_thread(way.recv, 1)
    return "" if taken else "hung up"


async def told(world: World, words: str) -> None:
    """Wait until something is said."""
    async with asyncio.timeout(10):
        while not any(words in line for line in world.said.texts()):
            await asyncio.sleep(0.02)


async def nobody_waits(world: World) -> None:
    """Wait until no child is left that takes a mount."""
    async with asyncio.timeout(20):
        while world.service.requests._mounts._open:
            await asyncio.sleep(0.02)


async def idle(world: World, script: list[Any]) -> None:
    """The stick is in, and its backup is over."""
    world.service.resync([stick()])
    await world.result()
    world.script = script


async def begin(world: World, bus: MessageBus) -> str:
    """Ask for the versions, until they could be mounted; the id of the run."""
    (run,) = (await ask(bus, "Browse", "sa{sv}", "home", {})).body
    await world.phase(Phase.BROWSING)
    return str(run)


def test_it_is_shown_where_who_asked_says_and_closed(act: Act, fuse: str) -> None:  # noqa: F811
    async def scene(world: World, _bus: Bus) -> None:
        await idle(world, SCRIPT)
        fd = os.open(fuse, os.O_PATH)
        async with client() as one, client() as other:
            run = await begin(world, one)
            (drive,) = (await ask(other, "GetDrive", "s", "home")).body
            assert drive["shown_to"].value == "root"
            assert drive["job"].value == "browse"
            assert "Nothing is wanted from you" in await hand(other, run, fd)
            assert "Nothing is wanted from you" in await hand(one, "another", fd)
            assert await hand(one, run, fd) == ""
            await told(world, "got 10:229")
            assert "is wanted for that (any more)" in await hand(one, run, fd)  # given already
            assert (await ask(other, "Close", "s", "home")).body == [[run]]
            await world.result(1)
            job, result = world.ends[1]
            assert (job.kind, result.safe) == (JobKind.BROWSE, True)
            refused = await ask(one, "Close", "s", "home")
            assert "home is not open for browsing." in refused.body[0]
        os.close(fd)
        await nobody_waits(world)

    act(scene)


def test_it_ends_with_the_bus_by_which_nobody_would_be_heard_to_leave(
    act: Act,  # noqa: F811
    fuse: str,
) -> None:
    async def scene(world: World, served: Bus) -> None:
        await idle(world, SCRIPT)
        fd = os.open(fuse, os.O_PATH)
        async with client() as one:
            assert await hand(one, await begin(world, one), fd) == ""
            await told(world, "got 10:229")
            inside = served._bus
            assert inside is not None
            inside.disconnect()
            await world.result(1)
            assert world.ends[1][0].kind is JobKind.BROWSE
            await gone(inside)
        os.close(fd)
        await nobody_waits(world)

    act(scene)


@pytest.mark.parametrize("what", ["another file", "nothing"])
def test_what_is_no_mount_is_not_taken(act: Act, what: str) -> None:  # noqa: F811
    async def scene(world: World, _bus: Bus) -> None:
        await idle(world, SCRIPT)
        before = len(os.listdir("/proc/self/fd"))
        async with client() as one:
            run = await begin(world, one)
            with open(os.devnull, "rb") as wrong:
                fds = [wrong.fileno()] if what == "another file" else []
                assert await hand(one, run, *fds) == "hung up"
            assert "is wanted for that (any more)" in await hand(one, run)
            assert (await ask(one, "Close", "s", "home")).body == [[run]]
            await world.result(1)
        await nobody_waits(world)
        assert len(os.listdir("/proc/self/fd")) == before

    act(scene)


def test_those_who_hand_over_nothing_are_not_served_without_end(
    act: Act,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mounts, "_MOST", 1)

    async def scene(world: World, _bus: Bus) -> None:
        await idle(world, SCRIPT)
        async with client() as one:
            run = await begin(world, one)
            waiting = (await ask(one, "HandOver", "ss", run, "mount")).unix_fds[0]
            (job,) = world.service.supervisor.jobs()
            job.mounting = False
            assert "Too many mounts are waited for" in await hand(one, run)
            await ask(one, "Close", "s", "home")
            await world.result(1)
            await nobody_waits(world)  # the child ends with the job
            with socket.socket(fileno=waiting) as way:
                assert await asyncio.to_thread(way.recv, 1) == b""

    act(scene)


def test_it_ends_with_who_asked(act: Act, fuse: str) -> None:  # noqa: F811
    async def scene(world: World, _bus: Bus) -> None:
        await idle(world, SCRIPT)
        fd = os.open(fuse, os.O_PATH)
        async with client() as one:
            await hand(one, await begin(world, one), fd)
            await told(world, "got 10:229")
        os.close(fd)
        assert (await world.result(1)).outcome is Outcome.CANCELLED
        await nobody_waits(world)

    act(scene)


def test_who_never_mounts_is_not_waited_for(
    act: Act,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "_MOUNTING", 0.2)

    async def scene(world: World, _bus: Bus) -> None:
        await idle(world, SCRIPT)
        async with client() as one:
            await begin(world, one)
            await told(world, "Nobody mounted it in time.")
            await world.result(1)

    act(scene)


def test_a_stranger_may_not(act: Act) -> None:  # noqa: F811
    async def scene(_world: World, _bus: Bus) -> None:
        assert "Only root may ask for that." in await nobody_asks("Browse")
        assert "Only root may ask for that." in await nobody_asks("Close")

    act(scene)


# Who they are.


def test_devices_are_told_from_files(fuse: str, tmp_path: Path) -> None:
    fd = os.open(fuse, os.O_PATH)
    assert kernel.device_number(fd) == (10, 229)
    os.close(fd)
    fd = os.open(tmp_path, os.O_RDONLY)
    assert kernel.device_number(fd) is None
    os.close(fd)
    with pytest.raises(OSError, match="statx"):
        kernel.device_number(fd)


def test_the_main_group_comes_first() -> None:
    assert browsing.groups_of(0, [7, 0, 5]) == [0, 5, 7]
    assert browsing.groups_of(0, [7, 5]) == [7, 5]
    assert browsing.groups_of(0, None)[0] == 0
    assert browsing.groups_of(4_000_000, [12]) == [12]
    with pytest.raises(Refused):
        browsing.groups_of(4_000_000, None)
    with pytest.raises(Refused):
        browsing.groups_of(0, [])


class Logins:
    """Logind's answers: sessions by path, with user, state and class; and processes in them."""

    def __init__(self) -> None:
        self.sessions: dict[str, tuple[int, str, str]] = {}
        self.processes: dict[int, str] = {}

    async def ask(
        self, path: str, _interface: str, member: str, _signature: str, body: list[Any]
    ) -> list[Any]:
        match member:
            case "ListSessions":
                return [[["", uid, "", "", path] for path, (uid, *_) in self.sessions.items()]]
            case "GetSessionByPID" if body[0] in self.processes:
                return [self.processes[body[0]]]
            case "GetAll" if path in self.sessions:
                _uid, state, kind = self.sessions[path]
                return [{"State": Variant("s", state), "Class": Variant("s", kind)}]
        raise Refused("There is no such thing.")


def test_a_login_is_over_when_its_session_is() -> None:
    async def scene() -> None:
        logins = Logins()
        logins.sessions = {"/1": (5, "active", "user"), "/2": (5, "online", "user")}
        logins.processes = {100: "/1"}
        login = await browsing.Login.of(logins.ask, 5, 100)
        assert not await login.is_over(logins.ask)
        logins.sessions["/1"] = (5, "closing", "user")  # something was left running in it
        assert await login.is_over(logins.ask)
        del logins.sessions["/1"]
        assert await login.is_over(logins.ask)

    asyncio.run(scene())


def test_outside_of_a_session_the_last_one_counts() -> None:
    """As of what a desktop starts, by the user's own service manager."""

    async def scene() -> None:
        logins = Logins()
        logins.sessions = {
            "/1": (5, "active", "user"), "/2": (5, "active", "manager"), "/3": (6, "active", "user")
        }  # fmt: skip
        logins.processes = {100: "/2"}
        login = await browsing.Login.of(logins.ask, 5, 100)
        assert login == browsing.Login(5, "", True)
        assert not await login.is_over(logins.ask)
        del logins.sessions["/1"]
        assert await login.is_over(logins.ask)
        # Somebody who had no login can't log out.
        without = await browsing.Login.of(logins.ask, 5, 101)
        assert not await without.is_over(logins.ask)

    asyncio.run(scene())


def test_a_session_without_a_state_is_one() -> None:
    assert sessions.is_login({})
