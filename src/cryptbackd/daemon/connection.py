"""A connection to the system bus that strangers can neither end nor keep busy.

The bus keeps their descriptors from whoever has our name (``systemd/dbus/org.cryptback1.conf``): so
the name is asked for in the same breath as the connection itself, and no time is left in which
they could send one to a connection that has no name yet.

dbus-fast ends the connection for flags or a kind of message that it has no name for, and when
more is to be sent than fits in at the moment; and it reads for as long as there is anything to
read, while nothing else is done.  Everybody on the computer can bring about each of these.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

from dbus_fast import (
    BusType,
    Message,
    MessageFlag,
    MessageType,
    NameFlag,
    RequestNameReply,
    constants,
)
from dbus_fast.aio.message_bus import MessageBus
from dbus_fast.errors import AuthError, InvalidAddressError

_PORTION = 256
"""Reads (two a message) after which the loop gets its turn."""


class _Socket:
    """A socket that seems to be empty now and then, and sends nothing while it is full."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._left = _PORTION
        self._owed: Sequence[Any] = ()

    def recvmsg(self, *how: int) -> tuple[bytes, list[Any], int, Any]:
        """Read, or say that there is nothing to read: the loop comes back to it at once."""
        if self._left == 0:
            self._left = _PORTION
            raise BlockingIOError(errno.EAGAIN, "enough for now")
        self._left -= 1
        return self._sock.recvmsg(*how)

    def sendmsg(self, buffers: Sequence[Any], ancillary: Sequence[Any]) -> int:
        """Send what fits in; 0 when nothing does, and the descriptors go with the next."""
        try:
            return self._sock.sendmsg(buffers, ancillary)
        except BlockingIOError:
            self._owed = ancillary
            return 0

    def send(self, data: Any) -> int:
        """Send what fits in; 0 when nothing does."""
        try:
            sent = self._sock.sendmsg([data], self._owed)
        except BlockingIOError:
            return 0
        self._owed = ()
        return sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class _InOrder(deque[Any]):
    """What is to be sent; Debian 12's dbus-fast would take the last first."""

    pop = deque.popleft


class _Stream:
    """What the greeting is written to, and nothing else; something follows it at once."""

    def __init__(self, stream: Any, follows: bytes) -> None:
        self._stream = stream
        self._follows = follows

    def write(self, greeting: bytes) -> None:
        """Write the greeting."""
        self._stream.write(greeting + self._follows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make() -> MessageBus:
    """A connection of one's own that is still to be joined; raises OSError when there is no bus."""
    _name_everything()
    try:
        bus = MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True)
    except InvalidAddressError as exc:
        raise OSError(str(exc)) from exc
    inside: Any = bus
    inside._sock = inside._writer.sock = _Socket(inside._sock)
    inside._writer.messages = _InOrder()
    return bus


async def join(bus: MessageBus, name: str) -> None:
    """Connect it under this name; raises OSError, also when the name is taken."""
    request = Message(
        destination="org.freedesktop.DBus",
        path="/org/freedesktop/DBus",
        interface="org.freedesktop.DBus",
        member="RequestName",
        signature="su",
        body=[name, NameFlag.DO_NOT_QUEUE.value],
        serial=bus.next_serial(),
    )
    named: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    def heard(reply: Message | None, error: Exception | None) -> None:
        if named.done():
            return
        if reply is None:
            named.set_exception(OSError(str(error)))
        else:
            named.set_result(reply)

    inside: Any = bus
    inside._method_return_handlers[request.serial] = heard
    inside._stream = _Stream(inside._stream, bytes(request._marshall(False)))
    try:
        await bus.connect()
    except (AuthError, EOFError) as exc:
        named.cancel()
        raise OSError(str(exc)) from exc
    reply = await named
    if reply.body != [RequestNameReply.PRIMARY_OWNER.value]:
        raise OSError(f"the name {name} was refused: {reply.body}")


def _name_everything() -> None:
    """Give dbus-fast a name for all that a message's first bytes can say."""
    for number in range(256):
        constants.MESSAGE_FLAG_MAP.setdefault(number, MessageFlag(number))
        # Of a kind that is not known: to be ignored, as a signal is that nobody waits for.
        constants.MESSAGE_TYPE_MAP.setdefault(number, MessageType.SIGNAL)
