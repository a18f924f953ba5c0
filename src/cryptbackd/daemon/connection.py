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
import contextlib
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
_NOBODY_THERE = (BrokenPipeError, ConnectionResetError)


class _Socket:
    """A socket that seems to be empty now and then, and sends nothing while it is full.

    What is sent when nobody is there any more is lost: dbus-fast would tell whoever sent it,
    though few wait for that, and reading tells it anyway.
    """

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

    def recv(self, size: int) -> bytes:
        """Read what is said before the first message; dbus-fast would wait for more for ever."""
        data = self._sock.recv(size)
        if not data:
            raise EOFError("it was closed")
        return data

    def sendmsg(self, buffers: Sequence[Any], ancillary: Sequence[Any]) -> int:
        """Send what fits in; 0 when nothing does, and the descriptors go with the next."""
        try:
            return self._sock.sendmsg(buffers, ancillary)
        except BlockingIOError:
            self._owed = ancillary
            return 0
        except _NOBODY_THERE:
            return sum(map(len, buffers))

    def send(self, data: Any) -> int:
        """Send what fits in; 0 when nothing does."""
        try:
            sent = self._sock.sendmsg([data], self._owed)
        except BlockingIOError:
            return 0
        except _NOBODY_THERE:
            return len(data)
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
    bus = MessageBus.__new__(MessageBus)
    inside: Any = bus
    try:
        inside.__init__(bus_type=BusType.SYSTEM, negotiate_unix_fd=True)
    except InvalidAddressError as exc:
        raise OSError(str(exc)) from exc
    except OSError:
        _close(bus)  # which nobody else does: there will be many tries
        raise
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
    named: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()

    def heard(reply: Message | None, _error: Exception | None) -> None:
        if not named.done():
            named.set_result(reply)

    inside: Any = bus
    inside._method_return_handlers[request.serial] = heard
    inside._stream = _Stream(inside._stream, bytes(request._marshall(False)))
    try:
        await bus.connect()
    except (AuthError, EOFError) as exc:
        raise OSError(str(exc) or "it was closed") from exc
    reply = await named
    if reply is None:
        raise OSError("it was closed")
    if reply.body != [RequestNameReply.PRIMARY_OWNER.value]:
        raise OSError(f"the name {name} was refused: {reply.body}")


def leave(bus: MessageBus) -> None:
    """Leave the bus at once, and keep no descriptor of it; it may be gone already."""
    inside: Any = bus
    inside._finalize(None)  # first: its number would be watched that is somebody else's by then
    if not inside._user_disconnect:
        bus.disconnect()
    writer = inside._writer
    for sent in (writer.fut, *(each[-1] for each in writer.messages)):
        if sent is not None and not sent.done():
            sent.set_result(None)
    _close(bus)


def _close(bus: MessageBus) -> None:
    inside: Any = bus
    for part in (getattr(inside, "_stream", None), getattr(inside, "_sock", None)):
        if part is not None:  # there may have been no descriptor for it
            with contextlib.suppress(OSError):
                part.close()


def _name_everything() -> None:
    """Give dbus-fast a name for all that a message's first bytes can say."""
    for number in range(256):
        constants.MESSAGE_FLAG_MAP.setdefault(number, MessageFlag(number))
        # Of a kind that is not known: to be ignored, as a signal is that nobody waits for.
        constants.MESSAGE_TYPE_MAP.setdefault(number, MessageType.SIGNAL)
