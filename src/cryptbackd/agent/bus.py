"""The agent's place on the system bus: it registers with the daemon, and hears its requests.

It registers again whenever the daemon appears, and never makes the bus start it.  What comes
from anybody but the owner of the daemon's name is refused.  Of a message's descriptors the one
of a request is taken, and all others are closed.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from dbus_fast import BusType, Message, MessageFlag, MessageType, Variant
from dbus_fast.aio.message_bus import MessageBus
from dbus_fast.errors import AuthError, InvalidAddressError

from ..closing import Closer
from .desktop import Desktop
from .log import Priority, say
from .requests import Requests

_NAME = "org.cryptback1"
_PATH = "/org/cryptback1"
_INTERFACE = "org.cryptback1.Manager"
_AGENT_PATH = "/org/cryptback1/Agent"
_AGENT = "org.cryptback1.Agent"
_BUS = "org.freedesktop.DBus"
_DENIED = "org.freedesktop.DBus.Error.AccessDenied"


class Lost(Exception):
    """The system bus can't be reached, or is lost; says so in a sentence."""


class Registration:
    """Connect it, then let it live until something ends it."""

    def __init__(self) -> None:
        self._bus: MessageBus | None = None
        self._owner = ""
        """The daemon's unique name, while there is a daemon."""
        self._closer = Closer()
        self._requests = Requests()
        self._desktop = Desktop(self._ask_for)
        self._registering: asyncio.Task[None] | None = None
        self._completing: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        """Connect, and register if the daemon is there; raises Lost."""
        try:
            self._bus = MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True)
            await self._bus.connect()
        except (OSError, EOFError, AuthError, InvalidAddressError) as exc:
            raise Lost(f"The system bus can't be reached: {exc}.") from exc
        self._bus.add_message_handler(self._received)
        for rule in (
            f"type='signal',sender='{_BUS}',member='NameOwnerChanged',arg0='{_NAME}'",
            f"type='signal',sender='{_NAME}',interface='{_INTERFACE}'",
        ):
            await self._call(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", "s", [rule])
        reply = await self._call(_BUS, "/org/freedesktop/DBus", _BUS, "GetNameOwner", "s", [_NAME])
        if reply.message_type is not MessageType.ERROR and not self._owner:
            self._appeared(str(reply.body[0]))

    async def until(self, stop: asyncio.Event) -> None:
        """Wait for *stop*; raises Lost when the bus goes first."""
        assert self._bus is not None
        lost = asyncio.ensure_future(self._bus.wait_for_disconnect())  # type: ignore[no-untyped-call]
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({lost, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if lost.done():
            why = f": {lost.exception()}" if lost.exception() is not None else ""
            raise Lost(f"The connection to the system bus is lost{why}.")
        lost.cancel()

    async def close(self) -> None:
        """Leave the bus, and end what is being asked."""
        self._requests.end_all()
        await self._desktop.close()
        if self._bus is not None:
            self._bus.disconnect()

    async def _call(
        self,
        name: str,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: list[Any],
        *,
        ask: bool = False,
    ) -> Message:
        """The reply; *ask*: polkit may ask the person.

        One flag alone, since Debian 12's dbus-fast dies of two.
        """
        assert self._bus is not None
        message = Message(
            destination=name,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=body,
            flags=MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if ask else MessageFlag.NO_AUTOSTART,
        )
        try:
            reply = await self._bus.call(message)
        except (EOFError, OSError) as exc:
            raise Lost(f"The connection to the system bus is lost: {exc}.") from exc
        if reply is None:
            raise Lost("The system bus gave no answer.")
        return reply

    def _appeared(self, owner: str) -> None:
        self._owner = owner
        self._registering = asyncio.create_task(self._register())

    async def _register(self) -> None:
        try:
            reply = await self._call(_NAME, _PATH, _INTERFACE, "RegisterAgent", "", [])
        except Lost:
            return  # which is told by :meth:`until`
        if reply.message_type is MessageType.ERROR:
            why = " ".join(str(part) for part in reply.body).strip() or reply.error_name
            say(f"cryptbackd does not take this agent: {why}", Priority.WARNING)
        else:
            say("Registered with cryptbackd.")
        await self._take_stock()

    async def _take_stock(self) -> None:
        """Learn how every drive is, before its news come."""
        try:
            reply = await self._call(_NAME, _PATH, _INTERFACE, "ListDrives", "", [])
        except Lost:
            return
        if reply.message_type is not MessageType.ERROR:
            self._desktop.known([_plain(drive) for drive in reply.body[0]])

    async def _ask_for(self, verb: str, name: str) -> str:
        """Call Run or Eject for a button; why not, where that was refused.

        By the unique name: a daemon that has just gone is not started.
        """
        if not self._owner:
            return "The service cryptbackd is not running."
        signature, body = ("sa{sv}", [name, {}]) if verb == "Run" else ("s", [name])
        try:
            reply = await self._call(
                self._owner, _PATH, _INTERFACE, verb, signature, body, ask=True
            )
        except Lost as exc:
            return str(exc)
        if reply.message_type is not MessageType.ERROR:
            return ""
        return " ".join(str(reply.body[0] if reply.body else reply.error_name).split())

    def _received(self, message: Message) -> Message | bool | None:
        fds = list(message.unix_fds)
        try:
            if message.message_type is MessageType.SIGNAL:
                self._maybe_owner_changed(message)
                self._maybe_news(message)
                return None
            if message.message_type is not MessageType.METHOD_CALL:
                return None
            if message.path != _AGENT_PATH or message.interface != _AGENT:
                return None
            if not self._owner or message.sender != self._owner:
                return Message.new_error(message, _DENIED, "This agent answers cryptbackd alone.")
            return self._requested(message, fds)
        finally:
            self._closer.close(fds)

    def _requested(self, message: Message, fds: list[int]) -> Message | bool | None:
        match message.member, message.signature:
            case "GetPassphrase", "ha{sv}":
                index, values = message.body
                if not 0 <= index < len(fds):
                    return Message.new_error(
                        message, f"{_NAME}.Error.Refused", "There is no such descriptor.\n"
                    )
                self._requests.begin(fds.pop(index), _plain(values))
            case ("Cancel" | "Opened" | "Refused") as member, "s":
                self._requests.end(message.body[0], member)
            case _:
                return None
        if message.flags & MessageFlag.NO_REPLY_EXPECTED:
            return True
        return Message.new_method_return(message)

    def _maybe_news(self, message: Message) -> None:
        if not self._owner or message.sender != self._owner:
            return
        match message.member, message.signature:
            case "DriveChanged", "sa{sv}":
                self._desktop.changed(_plain(message.body[1]))
            case "JobFinished", "sa{sv}":
                self._finished(_plain(message.body[1]))
            case "Reminder", "su":
                self._desktop.reminder(*message.body)
            case _:
                pass

    def _finished(self, result: dict[str, Any]) -> None:
        if result.get("withheld"):
            self._completing.add(task := asyncio.create_task(self._completed(result)))
            task.add_done_callback(self._completing.discard)
        else:
            self._desktop.finished(result)

    async def _completed(self, result: dict[str, Any]) -> None:
        """Tell of the end of a job with the texts that not everybody is told."""
        with contextlib.suppress(Lost):  # which is told by :meth:`until`
            body = [result["id"]]
            reply = await self._call(self._owner, _PATH, _INTERFACE, "GetResult", "s", body)
            if reply.message_type is not MessageType.ERROR:
                result |= _plain(reply.body[0])
        self._desktop.finished(result)

    def _maybe_owner_changed(self, message: Message) -> None:
        if message.member != "NameOwnerChanged" or message.sender != _BUS:
            return
        name, _before, now = message.body
        if name != _NAME or now == self._owner:
            return
        self._requests.end_all()
        if self._owner:
            self._desktop.lost()
        self._owner = ""
        if now:
            self._appeared(now)


def _plain(values: dict[str, Variant]) -> dict[str, Any]:
    return {key: variant.value for key, variant in values.items()}
