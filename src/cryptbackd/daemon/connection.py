"""A connection to the system bus that strangers can neither end nor keep busy.

dbus-fast ends the connection for flags or a kind of message that it has no name for, and when
more is to be sent than fits in at the moment; it reads for as long as there is anything to
read, while nothing else is done; and that of Debian 12 counts characters where bytes are
meant, for which the bus ends the connection.  Everybody on the computer can bring about each
of these.
"""

from __future__ import annotations

import errno
import functools
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

from dbus_fast import BusType, Message, MessageFlag, MessageType, Variant, constants
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


def sendable(value: Any) -> Any:
    """*value*, a body or a part of it, as this dbus-fast can send it: unchanged, or in ASCII."""
    if not _counts_characters():
        return value
    if isinstance(value, str):
        return value.encode("ascii", "backslashreplace").decode()
    if isinstance(value, Variant):
        return Variant(value.signature, sendable(value.value))
    if isinstance(value, dict):
        return {sendable(key): sendable(item) for key, item in value.items()}
    return [sendable(item) for item in value] if isinstance(value, list) else value


@functools.cache
def _counts_characters() -> bool:
    message = Message(
        message_type=MessageType.SIGNAL, path="/", interface="a.b", member="C", serial=1,
        signature="s", body=["\u00fc"],
    )  # fmt: skip
    return not bytes(message._marshall(False)).endswith(b"\x02\0\0\0\xc3\xbc\0")


def _name_everything() -> None:
    """Give dbus-fast a name for all that a message's first bytes can say."""
    for number in range(256):
        constants.MESSAGE_FLAG_MAP.setdefault(number, MessageFlag(number))
        # Of a kind that is not known: to be ignored, as a signal is that nobody waits for.
        constants.MESSAGE_TYPE_MAP.setdefault(number, MessageType.SIGNAL)
