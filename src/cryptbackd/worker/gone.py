"""Waiting until the kernel has really let go of something.

``umount``, ``dmsetup remove`` and closing a loop device return before the device is gone.
The kernel announces the end with a uevent (netlink(7), NETLINK_KOBJECT_UEVENT); a condition
is looked at again whenever one arrives.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_EVENTS = 1
_LOOK_AGAIN = 0.2
"""Seconds; sysfs entries vanish a moment after their event was sent."""


class Watch:
    """Kernel events since the watch began."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def until(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Whether *condition* came true within *deadline* seconds."""
        end = time.monotonic() + deadline
        while not condition():
            left = end - time.monotonic()
            if left <= 0:
                return False
            if select.select([self._sock], [], [], min(left, _LOOK_AGAIN))[0]:
                # What happened doesn't matter, nor that the kernel dropped some (ENOBUFS).
                try:
                    self._sock.recv(65_536)
                except OSError:
                    continue
        return True


@contextmanager
def watch() -> Iterator[Watch]:
    """Begin to watch *before* doing what makes the thing go."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_KOBJECT_UEVENT) as sock:
        sock.bind((0, _KERNEL_EVENTS))
        yield Watch(sock)
