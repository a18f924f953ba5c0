"""Whom the daemon asks, and what it takes for an answer; the pipes are real."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptbackd.config import Entry, User, Uuid
from cryptbackd.daemon import agents
from cryptbackd.daemon.agents import (
    MAX_OF_A_USER,
    MAX_REQUESTS,
    MAX_UNREAD,
    WITHIN,
    Agents,
    Registered,
    Values,
)
from cryptbackd.daemon.keys import Key, Request
from cryptbackd.daemon.keys.agent import Agent
from cryptbackd.daemon.keys.stored import luks_uuid
from cryptbackd.daemon.sessions import is_active_local
from cryptbackd.errors import Refused
from tests.unit.conftest import Journal

ENTRY = Entry(uuid=Uuid("AAAA-BBBB"))


@attrs.define
class Bus:
    """A bus on which agents do what ``acts`` says: each gets the write end of its pipe."""

    acts: dict[str, Callable[[int], None]] = attrs.field(factory=dict)
    users: dict[str, int] = attrs.field(factory=dict)
    sitting: frozenset[int] = frozenset()
    deaf: set[str] = attrs.field(factory=set)
    gone: set[str] = attrs.field(factory=set)
    asked: list[tuple[str, Values]] = attrs.field(factory=list)
    told: list[tuple[str, str, str]] = attrs.field(factory=list)
    minded: list[str] = attrs.field(factory=list)

    async def user_of(self, name: str) -> int:
        await asyncio.sleep(0)
        return self.users.get(name, 1000)

    async def mind(self, name: str) -> bool:
        self.minded.append(name)
        await asyncio.sleep(0)
        return name not in self.gone

    async def unmind(self, name: str) -> None:
        self.minded.remove(name)

    async def local_users(self) -> frozenset[int]:
        return self.sitting

    async def ask(self, name: str, fd: int, values: Values, taken: Callable[[], None]) -> None:
        self.asked.append((name, values))
        if name not in self.deaf:
            taken()
        if name in self.acts:
            self.acts[name](os.dup(fd))

    def tell(self, name: str, member: str, request: str) -> None:
        self.told.append((name, member, request))


def says(data: bytes) -> Callable[[int], None]:
    """An agent that answers at once."""

    def act(fd: int) -> None:
        os.write(fd, data)
        os.close(fd)

    return act


HELD: list[int] = []


def holds(data: bytes) -> Callable[[int], None]:
    """An agent that writes what it can and keeps the pipe."""

    def act(fd: int) -> None:
        os.set_blocking(fd, False)
        os.write(fd, data)
        HELD.append(fd)

    return act


def play(bus: Bus, *names: str, entry: Entry = ENTRY) -> tuple[bytes | None, Agents]:
    """Ask the agents *names* about *entry*; the answer, and the registry."""
    registry = Agents(bus)

    async def scene() -> bytes | None:
        for name in names:
            await registry.register(name)
        who = await registry.for_entry(entry)
        answer = await registry.ask(who, {"name": "home"})
        await asyncio.sleep(0.01)
        if answer is None:
            return None
        data = os.read(answer.fd, 1000)
        assert os.read(answer.fd, 1000) == b""
        os.close(answer.fd)
        return data

    before = len(os.listdir("/proc/self/fd"))
    data = asyncio.run(scene())
    for fd in HELD:
        os.close(fd)
    HELD.clear()
    assert len(os.listdir("/proc/self/fd")) == before
    return data, registry


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "PATIENCE", 0.2)


def members(bus: Bus) -> list[tuple[str, str]]:
    return [(name, member) for name, member, _request in bus.told]


class TestAnswers:
    """What lies in the pipe when nobody can write any more."""

    @pytest.mark.parametrize("data", [b"x", b"secret", b"secret\n", b"y" * 513])
    def test_an_answer(self, data: bytes) -> None:
        bus = Bus({":1": says(data)}, sitting=frozenset({1000}))
        assert play(bus, ":1")[0] == data
        assert bus.told == []

    @pytest.mark.parametrize(
        "act",
        [says(b""), says(b"x" * 514), says(b"x" * 60_000), holds(b""), holds(b"x" * (1 << 20))],
        ids=["declined", "too long", "much too long", "silent", "for ever"],
    )
    def test_no_answer(self, act: Callable[[int], None]) -> None:
        bus = Bus({":1": act}, sitting=frozenset({1000}))
        assert play(bus, ":1")[0] is None
        assert members(bus) == [(":1", "Cancel")]

    def test_one_that_keeps_the_pipe_has_not_answered(self) -> None:
        bus = Bus({":1": holds(b"secret")}, sitting=frozenset({1000}))
        assert play(bus, ":1")[0] is None

    def test_one_that_cannot_be_reached(self) -> None:
        bus = Bus(sitting=frozenset({1000}))
        assert play(bus, ":1")[0] is None

    def test_the_first_wins_and_the_others_are_told(self) -> None:
        bus = Bus({":1": holds(b""), ":2": says(b"two")}, sitting=frozenset({1000}))
        assert play(bus, ":1", ":2")[0] == b"two"
        assert members(bus) == [(":1", "Cancel")]
        assert len({str(values["request"]) for _name, values in bus.asked}) == 2

    def test_of_two_at_once_one_is_closed_and_told(self) -> None:
        bus = Bus({":1": says(b"same"), ":2": says(b"same")}, sitting=frozenset({1000}))
        assert play(bus, ":1", ":2")[0] == b"same"
        assert [member for _name, member in members(bus)] == ["Cancel"]

    def test_one_who_declines_leaves_it_to_the_other(self) -> None:
        bus = Bus({":1": says(b""), ":2": says(b"two")}, sitting=frozenset({1000}))
        assert play(bus, ":1", ":2")[0] == b"two"

    def test_what_is_read_ends_whatever_the_agent_keeps(self) -> None:
        """The way back into the pipe that /proc gives leads to another pipe."""
        ways = []

        def act(fd: int) -> None:
            ways.append(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY))
            os.write(fd, b"secret")
            os.close(fd)

        async def scene() -> None:
            registry = Agents(Bus({":1": act}, sitting=frozenset({1000})))
            await registry.register(":1")
            answer = await registry.ask([":1"], {})
            assert answer is not None
            ways.append(os.open(f"/proc/self/fd/{ways[0]}", os.O_WRONLY))
            os.write(ways[1], b"more")
            assert os.read(answer.fd, 1000) == b"secret"
            assert os.read(answer.fd, 1000) == b""
            for fd in (*ways, answer.fd):
                os.close(fd)

        asyncio.run(scene())

    def test_nobody_waits_any_more(self) -> None:
        bus = Bus({":1": holds(b"")}, sitting=frozenset({1000}))

        async def scene() -> None:
            registry = Agents(bus)
            await registry.register(":1")
            task = asyncio.create_task(registry.ask([":1"], {}))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.sleep(0.01)

        before = len(os.listdir("/proc/self/fd"))
        asyncio.run(scene())
        assert members(bus) == [(":1", "Cancel")]
        os.close(HELD.pop())
        assert len(os.listdir("/proc/self/fd")) == before


class TestWhoIsAsked:
    """Never an agent of another user."""

    def ask(self, entry: Entry, sitting: set[int]) -> list[str]:
        users = {":root": 0, ":me": 1000, ":you": 1001}
        bus = Bus(users=users, sitting=frozenset(sitting))
        play(bus, *users, entry=entry)
        return [name for name, _values in bus.asked]

    def test_the_owner_alone(self) -> None:
        assert self.ask(attrs.evolve(ENTRY, owner=User("root")), {1000}) == [":root"]

    def test_an_owner_whom_nobody_knows(self, said: Journal) -> None:
        assert self.ask(attrs.evolve(ENTRY, owner=User("no-such-user")), {1000}) == []
        assert "is not known as a user" in said.texts()[0]

    def test_without_an_owner_who_sits_there(self) -> None:
        assert self.ask(ENTRY, {1001}) == [":you"]
        assert self.ask(ENTRY, set()) == []

    @pytest.mark.parametrize(
        ("change", "wanted"),
        [
            ({}, True),
            ({"Active": False}, False),
            ({"Remote": True}, False),
            ({"Seat": ("", "/")}, False),
            ({"Class": "greeter"}, False),
            ({"Class": "manager"}, False),
            ({"Class": "user-early"}, True),
        ],
    )
    def test_who_sits_there(self, change: dict[str, object], wanted: bool) -> None:
        seat = ("seat0", "/org/freedesktop/login1/seat/seat0")
        session = {"Active": True, "Remote": False, "Seat": seat, "Class": "user", **change}
        assert is_active_local(session) is wanted
        assert not is_active_local({})


class TestRegistration:
    """Few of them, and only while they are there."""

    def registered(self, bus: Bus, *names: str) -> list[str]:
        return list(play(bus, *names)[1]._known)

    def test_twice_is_once(self) -> None:
        bus = Bus()
        assert self.registered(bus, ":1", ":1") == [":1"]
        assert bus.minded == [":1"]

    def test_a_flood_is_one_at_a_time(self) -> None:
        bus = Bus()

        async def scene() -> None:
            registry = Agents(bus)
            await asyncio.gather(*(registry.register(":1") for _ in range(1000)))
            assert list(registry._known) == [":1"]

        asyncio.run(scene())
        assert bus.minded == [":1"]

    def test_not_more_than_a_few_of_one_user(self) -> None:
        names = [f":{number}" for number in range(MAX_OF_A_USER)]
        bus = Bus(users={":root": 0})
        assert self.registered(bus, *names, ":root") == [*names, ":root"]

        async def scene() -> None:
            registry = Agents(bus)
            every = [*names, ":a", ":b"]
            results = await asyncio.gather(
                *(registry.register(name) for name in every), return_exceptions=True
            )
            assert [type(result) for result in results[-2:]] == [Refused, Refused]
            registry.left(":0")
            await registry.register(":a")

        asyncio.run(scene())

    def test_one_that_left_meanwhile(self) -> None:
        bus = Bus(gone={":1"})
        assert self.registered(bus, ":1") == []
        assert bus.minded == []

    def test_one_that_leaves(self) -> None:
        bus = Bus()

        async def scene() -> None:
            registry = Agents(bus)
            await registry.register(":1")
            registry.left(":1")
            registry.left(":1")
            await asyncio.sleep(0.01)
            assert await registry.for_entry(attrs.evolve(ENTRY, owner=User("root"))) == []
            assert await registry.ask([":1"], {}) is None

        asyncio.run(scene())
        assert bus.minded == []
        assert bus.asked == []

    @given(st.lists(st.floats(0, 300), max_size=60))
    def test_not_more_than_a_few_requests_a_minute(self, steps: list[float]) -> None:
        agent, now, allowed = Registered(1000), 0.0, []
        for step in steps:
            now += step
            if agent.may_be_asked(now):
                allowed.append(now)
        for start in allowed:
            assert sum(start <= each < start + WITHIN for each in allowed) <= MAX_REQUESTS

    def test_one_that_takes_nothing_is_left_out(self, said: Journal) -> None:
        bus = Bus({":1": says(b"")}, deaf={":1"})

        async def scene() -> None:
            registry = Agents(bus)
            await registry.register(":1")
            for _ in range(MAX_UNREAD + 1):
                await registry.ask([":1"], {})

        asyncio.run(scene())
        assert len(bus.asked) == MAX_UNREAD
        assert "does not take what it is asked" in said.texts()[0]

    def test_one_too_many_is_told(self, said: Journal) -> None:
        bus = Bus({":1": says(b"")})

        async def scene() -> None:
            registry = Agents(bus)
            await registry.register(":1")
            for _ in range(MAX_REQUESTS + 1):
                await registry.ask([":1"], {})

        asyncio.run(scene())
        assert len(bus.asked) == MAX_REQUESTS
        assert "it is left out" in said.texts()[0]


class TestSource:
    """``keys.agent``."""

    def play(self, bus: Bus, scene: Callable[[Agent], Awaitable[None]]) -> None:
        async def main() -> None:
            registry = Agents(bus)
            await registry.register(":1")
            await scene(Agent(registry))

        asyncio.run(main())

    REQUEST = Request("home", ENTRY, "open", 1, frozenset(), "1234-abcd")

    def test_the_agent_hears_what_became_of_its_answer(self) -> None:
        bus = Bus({":1": says(b"secret")}, sitting=frozenset({1000}))

        async def scene(source: Agent) -> None:
            for opened in (False, True):
                key = await source.key(self.REQUEST)
                assert isinstance(key, Key)
                key.told(opened)
                key.close()

        self.play(bus, scene)
        assert members(bus) == [(":1", "Refused"), (":1", "Opened")]
        assert [request for _n, _m, request in bus.told] == [v["request"] for _n, v in bus.asked]
        assert {key: value for key, value in bus.asked[0][1].items() if key != "request"} == {
            "name": "home", "uuid": "1234-abcd", "purpose": "open", "attempt": 1, "wrong": False,
        }  # fmt: skip

    def test_for_a_pin_no_keyring_is_to_be_looked_into(self) -> None:
        bus = Bus({":1": says(b"4711")}, sitting=frozenset({1000}))

        async def scene(source: Agent) -> None:
            key = await source.key(attrs.evolve(self.REQUEST, purpose="tpm2-pin"))
            assert isinstance(key, Key)
            key.close()

        self.play(bus, scene)
        assert (bus.asked[0][1]["purpose"], bus.asked[0][1]["uuid"]) == ("tpm2-pin", "")

    def test_it_is_told_that_it_was_wrong(self) -> None:
        bus = Bus({":1": says(b"")}, sitting=frozenset({1000}))

        async def scene(source: Agent) -> None:
            await source.key(attrs.evolve(self.REQUEST, attempt=2, refused=frozenset({"agent"})))

        self.play(bus, scene)
        assert (bus.asked[0][1]["attempt"], bus.asked[0][1]["wrong"]) == (2, True)

    def test_once_dismissed_is_for_the_whole_run(self) -> None:
        bus = Bus({":1": says(b"")}, sitting=frozenset({1000}))

        async def scene(source: Agent) -> None:
            assert await source.key(self.REQUEST) is None
            assert await source.key(self.REQUEST) is None

        self.play(bus, scene)
        assert len(bus.asked) == 1

    def test_nobody_is_asked_while_a_drive_is_enrolled(self) -> None:
        bus = Bus({":1": says(b"secret")}, sitting=frozenset({1000}))

        async def scene(source: Agent) -> None:
            assert await source.key(attrs.evolve(self.REQUEST, entry=None)) is None

        self.play(bus, scene)
        assert bus.asked == []


def test_the_uuid_of_the_stored_header(tmp_path: Path) -> None:
    uuid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
    start = b"LUKS\xba\xbe\x00\x02".ljust(168, b"\0") + uuid.encode().ljust(40, b"\0")
    for name, content in {
        "home": start + bytes(4096),
        "short": start[:190],
        "other": b"LUKS\xba\xbe\x00\x01" + start[8:],
        "odd": start[:168] + b"../../etc/passwd".ljust(40, b"\0"),
    }.items():
        (tmp_path / name).write_bytes(content)
    found = {name: luks_uuid(name, tmp_path) for name in ("home", "short", "other", "odd", "none")}
    assert found == {"home": uuid, "short": "", "other": "", "odd": "", "none": ""}
