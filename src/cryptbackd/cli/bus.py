"""The connection of one command to the daemon.

Errors of the daemon come out as the exceptions that they were over there
(``cryptbackd.errors``); whatever else goes wrong becomes a sentence, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from dbus_fast import BusType, Message, MessageFlag, MessageType, Variant
from dbus_fast.aio.message_bus import MessageBus
from dbus_fast.errors import AuthError, InvalidAddressError

from ..dbus_text import is_text, sendable
from ..errors import BY_NAME, CryptbackError, Refused

_NAME = "org.cryptback1"
_PATH = "/org/cryptback1"
_INTERFACE = "org.cryptback1.Manager"
_ERROR = "org.cryptback1.Error."
_BUS = "org.freedesktop.DBus"
_TOO_MANY = "org.freedesktop.DBus.Error.LimitsExceeded"
_DENIED = "org.freedesktop.DBus.Error.AccessDenied"

Values = dict[str, Any]
"""The values of a drive, run or result, by their names on the bus."""


class Client:
    """Calls the daemon, and hears what it tells once :meth:`listen` was called."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus
        self._heard: asyncio.Queue[tuple[str, Values] | CryptbackError] = asyncio.Queue()
        self._minding: asyncio.Task[None] | None = None
        self._owner = ""
        """The daemon's unique name, while there is a daemon."""

    async def call(self, member: str, signature: str = "", *body: Any) -> list[Any]:
        """The answer of a method of the daemon; raises CryptbackError."""
        return (await self._call(member, signature, list(body)))[0]

    async def call_for_fd(self, member: str, signature: str, *body: Any) -> int:
        """The descriptor that a method of the daemon answers with, the caller's to close."""
        _handle, (fd,) = await self._call(member, signature, list(body))
        return fd

    async def answer_and_fd(self, member: str, signature: str, *body: Any) -> tuple[Any, int]:
        """What a method answers, and the descriptor that goes with it, the caller's to close."""
        (answer, _handle), (fd,) = await self._call(member, signature, list(body))
        return answer, fd

    async def listen(self) -> None:
        """Hear the daemon's signals from now on, its death, and the loss of the bus."""
        self._bus.add_message_handler(self._received)
        self._minding = asyncio.get_running_loop().create_task(self._mind_connection())
        for rule in (
            f"type='signal',sender='{_NAME}',interface='{_INTERFACE}'",
            f"type='signal',sender='{_BUS}',member='NameOwnerChanged',arg0='{_NAME}'",
        ):
            await self._ask(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", "s", [rule])
        with suppress(CryptbackError):  # it doesn't run yet: then the bus tells when it does
            asked = (_BUS, "/org/freedesktop/DBus", _BUS, "GetNameOwner", "s", [_NAME])
            self._owner = str((await self._ask(*asked)).body[0])

    async def news(self) -> tuple[str, Values]:
        """The next signal: its name and its values; raises CryptbackError when the daemon is
        gone, or the bus.
        """
        item = await self._heard.get()
        if isinstance(item, CryptbackError):
            raise item
        what, values = item
        if values.get("withheld"):
            await self._complete(what, values)
        return item

    async def _complete(self, what: str, values: Values) -> None:
        """Add the texts that a signal has not, where the user may know them."""
        try:
            if what == "JobFinished":
                (now,) = await self.call("GetResult", "s", values["id"])
                values.update(now)
            elif values["warned"]:
                (now,) = await self.call("GetDrive", "s", values["name"])
                if now["run"] == values["run"]:
                    values.update({key: now[key] for key in ("warned", "warnings", "withheld")})
        except CryptbackError:
            pass  # then it is as it was told to everybody

    async def _mind_connection(self) -> None:
        """Without a bus no news would ever come, and no end of what is waited for."""
        with suppress(EOFError, OSError):
            await self._bus.wait_for_disconnect()  # type: ignore[no-untyped-call]
        self._heard.put_nowait(_lost())

    def _received(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.member == "NameOwnerChanged" and message.sender == _BUS:
            if message.body[0] == _NAME:
                self._owner = str(message.body[2])
                if not self._owner:
                    self._heard.put_nowait(_ended())
            return
        # The bus lets anybody send the like to this connection, whatever was asked of it.
        if not self._owner or message.sender != self._owner:
            return
        if message.interface == _INTERFACE and message.signature == "sa{sv}":
            self._heard.put_nowait((str(message.member), plain(message.body[1])))

    async def _call(
        self, member: str, signature: str, body: list[Any]
    ) -> tuple[list[Any], list[int]]:
        reply = await self._ask(_NAME, _PATH, _INTERFACE, member, signature, body)
        return [plain(value) for value in reply.body], list(reply.unix_fds)

    async def _ask(
        self,
        name: str,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: list[Any],
    ) -> Message:
        if not is_text(body):
            raise Refused(
                "The service can't be told of a name that is not in UTF-8.",
                'For `find`, say "?" or "*" in the place of such characters; for `init`, name what'
                " is to be backed up in a list (--include-from).",
            )
        if sendable(body) != body:
            raise Refused(
                "This version of dbus-fast sends no other characters than those of ASCII.",
                "Name them in the entry itself, or use a later Debian than 12.",
            )
        message = Message(
            destination=name,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=body,
            # Where an administrator must allow it, polkit may ask for one.
            flags=MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION,
        )
        try:
            reply = await self._bus.call(message)
        except (EOFError, OSError) as exc:
            raise _lost() from exc
        if reply is None:
            raise CryptbackError("The system bus gave no answer.")
        if reply.message_type is MessageType.ERROR:
            raise _error(reply)
        return reply


@asynccontextmanager
async def connected(*, fds: bool = True) -> AsyncIterator[Client]:
    """A client for the time of the block; raises CryptbackError when there is no bus.

    Who needs none says no to *fds*: then nobody can send one that keeps this process from
    ending, such as one of a FUSE filesystem of theirs (see ``closing``).
    """
    try:
        bus = MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=fds)
        await bus.connect()
    except (OSError, EOFError, AuthError, InvalidAddressError) as exc:
        raise CryptbackError(
            "The system bus can't be reached.", "Is dbus running? See: systemctl status dbus"
        ) from exc
    try:
        yield Client(bus)
    finally:
        bus.disconnect()


def plain(value: Any) -> Any:
    """*value* without the variants of D-Bus."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def options(**values: bool | int | float | str | list[str] | None) -> dict[str, Variant]:
    """*values* as D-Bus options; None is left out, which means the default."""
    signatures = {bool: "b", int: "t", float: "d", str: "s", list: "as"}
    return {
        key: Variant(signatures[type(value)], value)
        for key, value in values.items()
        if value is not None
    }


def _ended() -> CryptbackError:
    return CryptbackError(
        "The service cryptbackd ended in the middle.",
        "What was going on is taken up when it starts again; see `journalctl -u cryptbackd`.",
    )


def _lost() -> CryptbackError:
    return CryptbackError(
        "The connection to the system bus was lost.",
        "`journalctl -u cryptbackd` tells how it went.",
    )


def _error(reply: Message) -> CryptbackError:
    name = str(reply.error_name or "")
    text = str(reply.body[0]) if reply.body else name
    if name.startswith(_ERROR):
        sentence, _newline, hint = text.partition("\n")
        return BY_NAME.get(name.removeprefix(_ERROR), CryptbackError)(sentence, hint)
    if name == _DENIED:
        return Refused("Only root may ask for that.", "Try it with sudo.")
    if name == _TOO_MANY:
        return CryptbackError("The service cryptbackd is busy with too many requests.", text)
    if name.endswith((".UnknownMethod", ".UnknownInterface", ".UnknownObject", ".InternalError")):
        return CryptbackError(
            f"The service cryptbackd does not understand this command: {text}",
            "Is it of another version? systemctl restart cryptbackd",
        )
    # The bus could not reach or start it: ServiceUnknown, NameHasNoOwner, Spawn.*, NoSuchUnit, …
    return CryptbackError("The service cryptbackd is not running.", "systemctl start cryptbackd")
