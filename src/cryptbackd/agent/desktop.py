"""The notifications of the session's desktop (org.freedesktop.Notifications).

One notification a drive, replaced as the news come.  A server that shows another one instead
is told no progress.  A session without a session bus or without a notification server is told
nothing, and that is no fault.  Lives as long as the agent; the connection to the session bus
is made when there is something to tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import os
import pwd
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import attrs
from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio.message_bus import MessageBus
from dbus_fast.errors import AuthError, InvalidAddressError

from ..dbus_text import sendable
from . import news
from .log import Priority, say
from .news import Notice, Values

_SERVER = "org.freedesktop.Notifications"
_PATH = "/org/freedesktop/Notifications"
_BUS = "org.freedesktop.DBus"
_AGAIN = 60.0
"""Seconds until a reminder that could not be shown is tried again."""
_AT_ONCE = 2.0
"""Seconds that the end of the agent may be kept up."""
_VERBS = {"run": "Run", "eject": "Eject"}
_SERVERS_CHOICE, _NEVER = -1, 0
"""When a notification goes by itself."""


class Nowhere(Exception):
    """There is no notification server."""


def reminders_file() -> str:
    """Where it is kept when a reminder of each drive was last shown."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(home, "cryptback", "reminded.json")


@attrs.define
class Desktop:
    """Feed it what the daemon says; *ask_for* calls a verb of the daemon for a button."""

    ask_for: Callable[[str, str], Awaitable[str]]
    user: str = attrs.field(factory=lambda: pwd.getpwuid(os.getuid()).pw_name)
    reminded: str = attrs.field(factory=reminders_file)
    _drives: dict[str, Values] = attrs.field(factory=dict)
    _bus: MessageBus | None = None
    _server: str = ""
    """The unique name of the server that the rest is about; empty: it is another since."""
    _capabilities: frozenset[str] = frozenset()
    _replaces: bool = True
    """Whether it replaces a notification when it is told to."""
    _shown: dict[str, int] = attrs.field(factory=dict)
    """The server's number of the notification of each drive."""
    _passing: set[str] = attrs.field(factory=set)
    """The drives whose notification is to go when that is over of which it tells."""
    _due: set[str] = attrs.field(factory=set)
    """The drives of which a reminder is to be shown."""
    _is_due: asyncio.Event = attrs.field(factory=asyncio.Event)
    _queue: asyncio.Queue[Notice | str] = attrs.field(factory=asyncio.Queue)
    _connecting: asyncio.Lock = attrs.field(factory=asyncio.Lock)
    _tasks: list[asyncio.Task[None]] = attrs.field(factory=list)
    _pressed: set[asyncio.Task[None]] = attrs.field(factory=set)

    def known(self, drives: Iterable[Values]) -> None:
        """How every drive is, as the daemon has just started (or we have)."""
        before, self._drives = self._drives, {}
        for drive in drives:
            name = str(drive["name"])
            self._drives[name] = before.get(name, {})
            self.changed(drive)
        shown = self._reminded()
        for name, drive in self._drives.items():
            if news.missed(drive, time.time(), shown.get(name, 0.0)):
                self.reminder(name)
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._show()), asyncio.create_task(self._remind())]

    def changed(self, drive: Values) -> None:
        """Something about a drive is new."""
        name = str(drive["name"])
        before = self._drives.get(name, {})
        self._drives[name] = drive
        if name in self._due:
            self._is_due.set()
        if news.is_ours(drive, self.user):
            self._put(news.changed(before, drive))

    def reminder(self, name: str, _days: int = 0) -> None:
        """The daemon reminds of a drive."""
        self._due.add(name)
        self._is_due.set()

    def finished(self, result: Values) -> None:
        """A job is over."""
        name = str(result["name"])
        if news.is_ours(self._drives.get(name, {}), self.user):
            self._put(news.finished(result) or name)

    def lost(self) -> None:
        """The daemon is gone: nothing goes on any more."""
        for name, drive in self._drives.items():
            self._drives[name] = {**drive, "run": ""}
            self._put(name)

    async def close(self) -> None:
        """Tell nothing any more, and leave nothing that would be wrong soon."""
        for task in (*self._tasks, *self._pressed):
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AT_ONCE), self._connecting:
                for name in list(self._passing):
                    await self._take_back(name)
        if self._bus is not None:
            self._bus.disconnect()

    def _put(self, what: Notice | str | None) -> None:
        """Show a notice, or take back what is passing about the drive of that name."""
        if what is not None:
            self._queue.put_nowait(what)

    async def _show(self) -> None:
        while True:
            what = await self._queue.get()
            if isinstance(what, Notice):
                await self._notified(what)
            else:
                async with self._connecting:
                    await self._take_back(what)

    async def _notified(self, notice: Notice) -> bool:
        """Show it; whether there was anywhere to."""
        async with self._connecting:
            try:
                await self._notify(notice)
            except Nowhere:
                self._leave()
                return False
        return True

    async def _take_back(self, name: str) -> None:
        if name in self._passing and name in self._shown:
            try:
                await self._ask("CloseNotification", "u", [self._shown[name]])
            except Nowhere:
                self._leave()
        self._passing.discard(name)

    async def _remind(self) -> None:
        while True:
            await self._is_due.wait()
            self._is_due.clear()
            for name in sorted(self._due):
                drive = self._drives.get(name)
                if drive is None:
                    continue  # its news are under way
                if not news.is_ours(drive, self.user):
                    self._due.discard(name)
                    continue
                notice = news.overdue(drive, time.time())
                # A session that has just begun may have no notification server yet.
                if notice is None or await self._notified(notice):
                    self._due.discard(name)
                    self._was_reminded(name)
            if self._due:
                asyncio.get_running_loop().call_later(_AGAIN, self._is_due.set)

    def _reminded(self) -> dict[str, float]:
        try:
            with open(self.reminded, encoding="utf-8") as file:
                return {str(name): float(when) for name, when in json.load(file).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _was_reminded(self, name: str) -> None:
        fresh = f"{self.reminded}.new"
        try:
            os.makedirs(os.path.dirname(self.reminded), mode=0o700, exist_ok=True)
            with open(fresh, "w", encoding="utf-8") as file:
                json.dump({**self._reminded(), name: time.time()}, file)
            os.replace(fresh, self.reminded)
        except OSError as exc:
            say(f"{self.reminded} can't be written: {exc.strerror}.", Priority.WARNING)

    async def _notify(self, notice: Notice) -> None:
        await self._connect()
        before = self._shown.get(notice.name, 0)
        if notice.update and not (before and self._replaces):
            return
        hints = {"urgency": Variant("y", int(notice.urgency))}
        if notice.progress is not None:
            hints["value"] = Variant("i", notice.progress)
        buttons = notice.actions if "actions" in self._capabilities else ()
        markup = "body-markup" in self._capabilities
        body = html.escape(notice.body, quote=False) if markup else notice.body
        told: list[Any] = [
            "Backup", before, "drive-removable-media", notice.summary, body,
            [word for button in buttons for word in button], hints,
            _NEVER if notice.passing else _SERVERS_CHOICE,
        ]  # fmt: skip
        reply = await self._ask("Notify", "susssasa{sv}i", sendable(told))
        if reply.sender != self._server:
            self._forget()  # it has gone meanwhile, and what it showed with it
            return
        (number,) = reply.body
        # What was closed meanwhile may be replaced by another one.
        if before and number != before and self._shown.get(notice.name) == before:
            self._replaces = False
            await self._ask("CloseNotification", "u", [before])
        self._shown[notice.name] = number
        self._passing.discard(notice.name)
        if notice.passing:
            self._passing.add(notice.name)

    async def _connect(self) -> None:
        if self._bus is None or not self._bus.connected:
            self._forget()
            try:
                self._bus = await MessageBus(bus_type=BusType.SESSION).connect()
            except (OSError, EOFError, AuthError, InvalidAddressError) as exc:
                raise Nowhere(str(exc)) from exc
            self._bus.add_message_handler(self._received)
            for rule in (
                f"type='signal',sender='{_SERVER}',interface='{_SERVER}'",
                f"type='signal',sender='{_BUS}',member='NameOwnerChanged',arg0='{_SERVER}'",
            ):
                await self._call(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", "s", [rule])
        if not self._server:
            reply = await self._ask("GetCapabilities", "", [])
            self._server, self._capabilities = str(reply.sender), frozenset(reply.body[0])

    def _leave(self) -> None:
        if self._bus is not None:
            self._bus.disconnect()
        self._bus = None

    def _forget(self) -> None:
        """The server is another: its numbers mean nothing to it, or something else."""
        self._server, self._replaces = "", True
        self._shown.clear()
        self._passing.clear()

    async def _ask(self, member: str, signature: str, body: list[Any]) -> Message:
        return await self._call(_SERVER, _PATH, _SERVER, member, signature, body)

    async def _call(
        self, name: str, path: str, interface: str, member: str, signature: str, body: list[Any]
    ) -> Message:
        if self._bus is None:
            raise Nowhere("there is no connection")
        message = Message(
            destination=name,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=body,
        )
        try:
            async with asyncio.timeout(30):
                reply = await self._bus.call(message)
        except (OSError, EOFError, TimeoutError) as exc:
            raise Nowhere(str(exc)) from exc
        if reply is None or reply.message_type is MessageType.ERROR:
            raise Nowhere("no reply" if reply is None else str(reply.error_name))
        return reply

    def _received(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.sender == _BUS and message.member == "NameOwnerChanged":
            if message.body[0] == _SERVER:
                self._forget()
            return
        # Others in the session could send the like to this connection.
        if message.interface != _SERVER or message.sender != self._server:
            return
        match message.member, message.signature:
            case "NotificationClosed", "uu":
                number = message.body[0]
                self._shown = {name: n for name, n in self._shown.items() if n != number}
            case "ActionInvoked", "us":
                number, key = message.body
                for name, shown in self._shown.items():
                    if shown == number and key in _VERBS:
                        task = asyncio.create_task(self._press(key, name))
                        self._pressed.add(task)
                        task.add_done_callback(self._pressed.discard)
            case _:
                pass

    async def _press(self, verb: str, name: str) -> None:
        why = await self.ask_for(_VERBS[verb], name)
        if why:
            say(f"{name}: {verb} was refused: {why}", Priority.WARNING)
            self._put(news.refused(verb, name, why))
