"""What kernel and udev tell of devices, out of a socket that the service manager opened.

The service has a network of its own, where they are not heard (systemd.exec(5), PrivateNetwork=),
and may open no netlink socket: ``cryptbackd.socket`` is bound to their events outside of it, and
handed in (sd_listen_fds(3)).  It lives as long as the service, and one that is started anew gets
what came meanwhile.

The kernel tells at once; udev when it is through with its rules, and what it found out by them.
A message of udev's is that of libudev's monitor (systemd, sd-device/device-monitor.c): a header
that begins with a text and a number by which it is known, then the device's properties.  The
kernel's are a line and properties (lib/kobject_uevent.c).
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress

import attrs

_KERNEL, _UDEV = 1, 2
"""The groups that they send to, as bits."""
_HEADER = struct.Struct("=8s4sIII")
"""prefix, magic, header_size, properties_off, properties_len."""
_PREFIX, _MAGIC = b"libudev\0", b"\xfe\xed\xca\xfe"
_LARGEST = 1 << 18
_CREDENTIALS = struct.Struct("=3i")

Properties = dict[str, str]


class Lost(Exception):
    """Events were lost: what is here must be looked at anew."""


@attrs.frozen
class Event:
    """What is told of a device, and whether the kernel tells it itself."""

    properties: Properties
    by_kernel: bool


class Uevents:
    """The events of block devices that come out of *sock*, which is closed with :meth:`close`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    def fileno(self) -> int:
        """What is readable when there are events."""
        return self._sock.fileno()

    def close(self) -> None:
        """Let go of the socket."""
        self._sock.close()

    def forget(self) -> None:
        """Drop what has come until now."""
        while True:
            with suppress(Lost):
                if self._message() is None:
                    return

    def next(self) -> Event | None:
        """The next event; None when there is none yet.  Raises Lost."""
        while (message := self._message()) is not None:
            group, words = message
            by_kernel = group == _KERNEL
            properties = parse_kernel(words) if by_kernel else parse(words)
            if properties.get("SUBSYSTEM") == "block":
                return Event(properties, by_kernel)
        return None

    def _message(self) -> tuple[int, bytes] | None:
        """The next message and its group; it is empty where it is neither's."""
        try:
            message, ancillary, flags, (port, group) = self._sock.recvmsg(
                _LARGEST, socket.CMSG_SPACE(_CREDENTIALS.size)
            )
        except BlockingIOError:
            return None
        except OSError as exc:  # ENOBUFS: netlink(7)
            raise Lost(os.strerror(exc.errno or 0)) from exc
        if flags & socket.MSG_TRUNC:
            raise Lost("an event was too long")
        senders = [
            _CREDENTIALS.unpack(data)[1]
            for level, kind, data in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
        ]
        # Whoever is root may send to either group; the kernel alone has no port.
        theirs = group == _UDEV or (group == _KERNEL and port == 0)
        return group, message if senders == [0] and theirs else b""


def parse(message: bytes) -> Properties:
    """The properties in a message of libudev's; none where it is something else; pure."""
    if len(message) < _HEADER.size:
        return {}
    prefix, magic, _size, start, length = _HEADER.unpack_from(message)
    if (prefix, magic) != (_PREFIX, _MAGIC) or start + length > len(message):
        return {}
    return _properties(message[start : start + length])


def parse_kernel(message: bytes) -> Properties:
    """The properties in a message of the kernel's; none where it is something else; pure."""
    line, _, words = message.partition(b"\0")
    return _properties(words) if b"@/" in line else {}


def _properties(words: bytes) -> Properties:
    return dict(word.split("=", 1) for word in os.fsdecode(words).split("\0") if "=" in word)


def handed_in() -> socket.socket:
    """The socket that the service manager gave us; raises RuntimeError where it didn't."""
    from systemd.daemon import listen_fds

    fds = listen_fds()
    if len(fds) != 1:
        raise RuntimeError("the service was not started with its socket")
    return socket.socket(fileno=fds[0])
