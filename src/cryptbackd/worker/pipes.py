"""Headers through a pipe of whoever asked for a job, who may be slow, or gone.

Neither function outlives its call, nor closes the pipe.  A passphrase never goes this way: see
``cryptbackd.secret``.
"""

from __future__ import annotations

import os
import select
import time

from ..errors import Refused
from .control import Control

PATIENCE = 600.0
"""Seconds in which somebody writes 16 MiB onto whatever they have."""
_AT_ONCE = 64 * 1024


def send(fd: int, data: bytes, control: Control) -> bool:
    """Write all of *data* to the pipe; whether somebody took it.  Raises Cancelled."""
    os.set_blocking(fd, False)
    end = time.monotonic() + PATIENCE
    view = memoryview(data)
    while view:
        if not _ready([], [fd], end, control):
            return False
        try:
            view = view[os.write(fd, view[:_AT_ONCE]) :]
        except BrokenPipeError:
            return False
    return True


def receive(fd: int, most: int, control: Control) -> bytes:
    """What comes out of the pipe until its end; raises Refused when that doesn't come, or when
    it is more than *most* bytes, and Cancelled.
    """
    end = time.monotonic() + PATIENCE
    parts: list[bytes] = []
    length = 0
    while length <= most:
        if not _ready([fd], [], end, control):
            break
        part = os.read(fd, _AT_ONCE)
        if not part:
            return b"".join(parts)
        parts.append(part)
        length += len(part)
    raise Refused("What was handed over did not come to an end; nothing was changed.")


def _ready(reading: list[int], writing: list[int], end: float, control: Control) -> bool:
    """Wait until one of these can go on; False: not in time."""
    watched, check = control.interrupt
    while True:
        left = max(0.0, end - time.monotonic())
        readable, writable, _ = select.select([*reading, watched], writing, [], left)
        if watched in readable:
            check()
        if writable or set(readable) - {watched}:
            return True
        if not readable:
            return False
