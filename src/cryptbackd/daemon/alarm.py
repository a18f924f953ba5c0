"""A call at a time of day, which sleep of the computer and a clock that is set don't delay.

asyncio's own timers stand still while the computer sleeps.  Nothing wakes up before the time
has come, unless somebody sets the clock: then what is due must be judged anew.  The descriptor
exists only as long as something is to come.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable

import attrs

from .. import kernel

GRACE = 0.001
"""Seconds later than asked: a float may show a moment before it."""


@attrs.define
class Alarm:
    """Calls *ring* at the time that it was set to, or when the clock was set meanwhile."""

    ring: Callable[[], None]
    _fd: int | None = None

    def set(self, when: float | None) -> None:
        """Ring at *when* (Unix time) and at no other time; None: not at all."""
        if when is None:
            self.close()
            return
        loop = asyncio.get_running_loop()
        if self._fd is None:
            self._fd = kernel.timer()
            loop.add_reader(self._fd, self._rung)
        try:
            kernel.set_timer(self._fd, when + GRACE)
        except OSError as exc:
            if exc.errno != errno.ECANCELED:
                raise
            # It is set nevertheless, but *when* was reckoned by the clock as it was before.
            loop.call_soon(self.ring)

    def close(self) -> None:
        """Don't ring any more."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)

    def _rung(self) -> None:
        assert self._fd is not None
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # it was set anew since
        except OSError as exc:
            if exc.errno != errno.ECANCELED:
                raise
        self.ring()
