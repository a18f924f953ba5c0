"""A connection to the system bus that strangers can neither end nor keep busy.

dbus-fast ends the connection for flags or a kind of message that it has no name for, and when
more is to be sent than fits in at the moment; and it reads for as long as there is anything to
read, while nothing else is done.  Everybody on the computer can bring about each of these.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

from dbus_fast import BusType, MessageFlag, MessageType, constants
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


async def connect() -> MessageBus:
    """A connection of one's own; raises OSError when there is no bus."""
    _name_everything()
    try:
        bus = MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True)
        inside: Any = bus
        inside._sock = inside._writer.sock = _Socket(inside._sock)
        inside._writer.messages = _InOrder()
        return await bus.connect()
    except (AuthError, InvalidAddressError, EOFError) as exc:
        raise OSError(str(exc)) from exc


def _name_everything() -> None:
    """Give dbus-fast a name for all that a message's first bytes can say."""
    for number in range(256):
        constants.MESSAGE_FLAG_MAP.setdefault(number, MessageFlag(number))
        # Of a kind that is not known: to be ignored, as a signal is that nobody waits for.
        constants.MESSAGE_TYPE_MAP.setdefault(number, MessageType.SIGNAL)
