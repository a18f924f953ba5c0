"""Waiting until the kernel has really let go of something.

``umount``, ``dmsetup remove`` and closing a loop device return before the device is gone, mostly
by a few milliseconds.  The kernel's events would tell the end of most of these, but for them the
service would need netlink sockets: so it is looked at again and again, and less and less often.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_FIRST, _LONGEST = 0.002, 0.1
"""Seconds between two looks."""


def until(condition: Callable[[], bool], deadline: float) -> bool:
    """Whether *condition* came true within *deadline* seconds."""
    end = time.monotonic() + deadline
    pause = _FIRST
    while not condition():
        left = end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(left, pause))
        pause = min(2 * pause, _LONGEST)
    return True
