"""Notifications, with a server of our own on a session bus of our own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from dbus_fast import Message, MessageType, NameFlag
from dbus_fast.aio.message_bus import MessageBus

from cryptbackd.agent.desktop import Desktop
from tests.unit.private_bus import client, gone, private_bus
from tests.unit.test_news import IDLE, RESULT, at

NAME = "org.freedesktop.Notifications"
PATH = "/org/freedesktop/Notifications"


@attrs.frozen
class Shown:
    """What Notify was told, and its number."""

    number: int
    replaces: int
    summary: str
    body: str
    actions: list[str]
    value: int | None
    timeout: int


@attrs.define
class Server:
    """A notification server that remembers; one that does not replace has *replaces* unset."""

    bus: MessageBus
    capabilities: tuple[str, ...] = ("body", "actions")
    replaces: bool = True
    next: int = 1
    shown: list[Shown] = attrs.field(factory=list)
    closed: list[int] = attrs.field(factory=list)

    async def come(self) -> None:
        """Take the name, from another one if need be."""
        self.bus.add_message_handler(self._received)
        flags = NameFlag.REPLACE_EXISTING | NameFlag.ALLOW_REPLACEMENT
        await self.bus.request_name(NAME, flags)

    def tell(self, member: str, signature: str, *body: Any) -> None:
        """Send a signal."""
        self.bus.send(
            Message(
                message_type=MessageType.SIGNAL,
                path=PATH,
                interface=NAME,
                member=member,
                signature=signature,
                body=list(body),
            )
        )

    async def has(self, number: int) -> list[Shown]:
        """What was shown, once it is so many."""
        async with asyncio.timeout(10):
            while len(self.shown) < number:
                await asyncio.sleep(0.01)
        return self.shown

    async def has_closed(self, *numbers: int) -> None:
        """Wait until these were closed, and no others."""
        async with asyncio.timeout(10):
            while len(self.closed) < len(numbers):
                await asyncio.sleep(0.01)
        assert self.closed == list(numbers)

    def _received(self, message: Message) -> Message | None:
        if message.message_type is not MessageType.METHOD_CALL or message.interface != NAME:
            return None
        match message.member:
            case "GetCapabilities":
                return Message.new_method_return(message, "as", [list(self.capabilities)])
            case "CloseNotification":
                self.closed += message.body
                self.tell("NotificationClosed", "uu", message.body[0], 3)
                return Message.new_method_return(message)
            case _:
                return Message.new_method_return(message, "u", [self._notified(message.body)])

    def _notified(self, told: list[Any]) -> int:
        _app, replaces, _icon, summary, body, actions, hints, timeout = told
        number: int = replaces
        if not replaces or not self.replaces:
            number, self.next = self.next, self.next + 1
        value = hints["value"].value if "value" in hints else None
        self.shown.append(Shown(number, replaces, summary, body, actions, value, timeout))
        return number


@attrs.define
class World:
    """The agent's side, a server, and the verbs that buttons have asked for."""

    desktop: Desktop
    server: Server
    asked: list[tuple[str, str]]

    async def quiet(self) -> None:
        """Wait until all is told that is to be told."""
        async with asyncio.timeout(10):
            while self.desktop._queue.qsize():
                await asyncio.sleep(0.01)
            async with self.desktop._connecting:
                pass
        await asyncio.sleep(0.05)


Act = Callable[[Callable[[World], Awaitable[None]]], None]


@pytest.fixture
def act(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Act:
    """Play a scene."""

    async def main(scene: Callable[[World], Awaitable[None]]) -> None:
        async with private_bus(monkeypatch) as there, client() as bus:
            monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", there.address)
            asked: list[tuple[str, str]] = []

            async def ask_for(verb: str, name: str) -> str:
                asked.append((verb, name))
                return "" if verb == "Eject" else "It is not plugged in."

            server = Server(bus)
            await server.come()
            desktop = Desktop(ask_for, "me", str(tmp_path / "reminded.json"))
            desktop.known([{**IDLE, "reminded": 0}])
            try:
                await scene(World(desktop, server, asked))
            finally:
                inside = desktop._bus
                await desktop.close()
                if inside is not None:
                    await gone(inside)

    return lambda scene: asyncio.run(main(scene))


def test_a_backup_is_one_notification_from_its_beginning_to_its_end(act: Act) -> None:
    async def scene(world: World) -> None:
        for done in (0, 300, 301, 600):
            world.desktop.changed(at(done))
        world.desktop.finished(RESULT)
        shown = await world.server.has(4)
        assert [each.number for each in shown] == [1, 1, 1, 1]
        assert [each.replaces for each in shown] == [0, 1, 1, 1]
        assert [each.value for each in shown] == [0, 30, 60, None]
        assert [each.timeout for each in shown] == [0, 0, 0, -1]
        assert shown[0].actions == ["eject", "Eject"]
        assert shown[3].summary == "You can unplug home now"

    act(scene)


def test_a_server_that_does_not_replace_is_told_no_progress(act: Act) -> None:
    async def scene(world: World) -> None:
        world.server.replaces = False
        for done in (0, 300, 400, 500, 600):
            world.desktop.changed(at(done))
        world.desktop.finished(RESULT)
        shown = await world.server.has(3)
        await world.server.has_closed(1, 2)  # nothing that tells of a backup stays
        assert [each.value for each in shown] == [0, 30, None]

    act(scene)


def test_what_a_person_closed_is_told_again_at_the_end_alone(act: Act) -> None:
    async def scene(world: World) -> None:
        world.desktop.changed(at(0))
        await world.server.has(1)
        world.server.tell("NotificationClosed", "uu", 1, 2)
        await world.quiet()
        world.desktop.changed(at(500))
        world.desktop.finished(RESULT)
        shown = await world.server.has(2)
        await world.quiet()
        assert [each.replaces for each in shown] == [0, 0]
        assert shown[1].summary == "You can unplug home now"

    act(scene)


def test_another_server_hears_nothing_of_the_numbers_before(act: Act) -> None:
    async def scene(world: World) -> None:
        world.desktop.changed(at(0))
        await world.server.has(1)
        async with client() as bus:
            other = Server(bus, capabilities=("body", "body-markup"), next=7)
            await other.come()
            await world.quiet()
            world.desktop.changed(at(500))
            world.server.tell("ActionInvoked", "us", 1, "eject")
            world.desktop.finished({**RESULT, "outcome": "failed", "sentence": "<b>"})
            (shown,) = await other.has(1)
            await world.quiet()
            assert (shown.number, shown.replaces) == (7, 0)
            assert shown.actions == []  # it has no buttons
            assert shown.body.startswith("&lt;b&gt;")
        assert len(world.server.shown) == 1
        assert world.asked == []

    act(scene)


def test_a_button_asks_for_what_it_says(act: Act) -> None:
    async def scene(world: World) -> None:
        world.desktop.finished({**RESULT, "outcome": "failed", "sentence": "Why."})
        (shown,) = await world.server.has(1)
        assert shown.actions == ["run", "Back up now", "eject", "Eject", "later", "Not now"]
        for number, key in ((2, "eject"), (1, "later"), (1, "eject"), (1, "run")):
            world.server.tell("ActionInvoked", "us", number, key)
        shown = (await world.server.has(2))[1]
        assert world.asked == [("Eject", "home"), ("Run", "home")]
        assert shown.summary == "home can't be backed up to now"
        assert shown.body == "It is not plugged in."

    act(scene)


def test_nobody_but_the_server_presses_a_button(act: Act) -> None:
    async def scene(world: World) -> None:
        world.desktop.finished({**RESULT, "outcome": "failed", "sentence": "Why."})
        await world.server.has(1)
        inside = world.desktop._bus
        assert inside is not None
        async with client() as bus:
            bus.send(
                Message(
                    message_type=MessageType.SIGNAL,
                    destination=inside.unique_name,
                    path=PATH,
                    interface=NAME,
                    member="ActionInvoked",
                    signature="us",
                    body=[1, "eject"],
                )
            )
            await world.quiet()
        assert world.asked == []

    act(scene)


def test_nothing_tells_of_a_backup_when_the_daemon_or_the_agent_has_gone(act: Act) -> None:
    async def scene(world: World) -> None:
        world.desktop.changed(at(0))
        await world.server.has(1)
        world.desktop.lost()
        await world.server.has_closed(1)
        world.desktop.known([at(0)])  # it is back, and goes on with the run
        assert (await world.server.has(2))[1].summary == "Backing up to home"
        await world.desktop.close()
        assert world.server.closed == [1, 2]

    act(scene)


def test_other_peoples_drives_are_not_told_of(act: Act) -> None:
    async def scene(world: World) -> None:
        world.desktop.changed({**at(0), "owner": "you"})
        world.desktop.finished(RESULT)
        world.desktop.reminder("home")
        world.desktop.changed({**IDLE, "name": "work"})
        world.desktop.finished({**RESULT, "name": "work"})
        (shown,) = await world.server.has(1)
        assert shown.summary == "You can unplug work now"

    act(scene)


def test_a_reminder_is_shown(act: Act) -> None:
    async def scene(world: World) -> None:
        world.desktop.changed({**IDLE, "last_success": time.time() - 14.5 * 86_400})
        world.desktop.reminder("home", 14)
        world.desktop.reminder("work", 14)
        (shown,) = await world.server.has(1)
        assert shown.summary == "home has not been backed up for 14 days"
        assert shown.actions[::2] == ["run", "eject", "later"]
        world.desktop.changed({**IDLE, "name": "work", "state": "absent", "last_success": 0})
        assert (await world.server.has(2))[1].summary == "work has never been backed up"

    act(scene)
