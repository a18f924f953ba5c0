"""What the service manager is told: ready, alive, status, stopping (sd_notify(3)).

The watchdog's ping is the one thing that an idle daemon wakes up for; it also refreshes the
status line, so that "2 h ago" stays true.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import sdnotify


class ServiceManager:
    """The connection to systemd; says nothing where there is none."""

    def __init__(self) -> None:
        self._notifier = sdnotify.SystemdNotifier()
        self._status = ""
        self._timer: asyncio.TimerHandle | None = None

    def ready(self) -> None:
        """The service has started; from here on nothing is missed."""
        self._notifier.notify("READY=1")

    def stopping(self) -> None:
        """The service ends its jobs in order and will be gone."""
        self._notifier.notify("STOPPING=1")

    def status(self, line: str) -> None:
        """Show *line* in ``systemctl status``; ASCII, since sdnotify drops what is not Latin-1."""
        if line != self._status:
            self._status = line
            self._notifier.notify(f"STATUS={line}")

    def keep_alive(self, tick: Callable[[], None]) -> None:
        """Ping the watchdog, if the unit has one, twice as often as it wants; call *tick* each
        time.
        """
        interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
        wanted_of = os.environ.get("WATCHDOG_PID", str(os.getpid()))
        if interval > 0 and int(wanted_of) == os.getpid():
            self._ping(interval, tick)

    def _ping(self, interval: float, tick: Callable[[], None]) -> None:
        self._notifier.notify("WATCHDOG=1")
        tick()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(interval, self._ping, interval, tick)
