"""The lock that has the computer wait for the end of jobs before it sleeps or shuts down.

logind gives it as a descriptor, which is held while a job is there and closed when the last
one is over (https://systemd.io/INHIBITOR_LOCKS/).  logind waits for it as long as
its configuration says, and no longer.  Without logind nothing is held, and jobs go on.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from dbus_fast import Message, MessageType

from .tasks import Tasks

_LOGIND = "org.freedesktop.login1"
_PATH = "/org/freedesktop/login1"
_MANAGER = "org.freedesktop.login1.Manager"
_SIGNALS = ("PrepareForSleep", "PrepareForShutdown")
RULES = tuple(
    f"type='signal',sender='{_LOGIND}',path='{_PATH}',interface='{_MANAGER}',member='{member}'"
    for member in _SIGNALS
)
"""What must be listened to for :meth:`Inhibitor.heard`."""
_DELAY = 5.0
"""Seconds that logind waits where it doesn't say (InhibitDelayMaxSec=, logind.conf(5))."""


@attrs.define
class Inhibitor:
    """Tell it by :meth:`want` whether there are jobs.

    *ask* sends a call on the system bus, and gives the reply, with its descriptors, or None.
    *sleeps* is called with the seconds that are left, *wakes* when the computer is back.
    """

    ask: Callable[[Message], Awaitable[Message | None]]
    sleeps: Callable[[float], None]
    wakes: Callable[[], None]
    _lock: int | None = None
    _wanted: bool = False
    _asking: bool = False
    _delay: float = _DELAY
    _tasks: Tasks = attrs.field(factory=Tasks)

    @property
    def held(self) -> bool:
        """Whether the computer would wait."""
        return self._lock is not None

    def want(self, wanted: bool) -> None:
        """Hold the lock from now on, or let it go."""
        self._wanted = wanted
        if not wanted and self._lock is not None:
            lock, self._lock = self._lock, None
            os.close(lock)
        elif wanted and self._lock is None and not self._asking:
            self._asking = True
            self._tasks.start(self._take())

    async def renew(self) -> None:
        """Take the lock anew on a new connection: logind may have been started anew, too.

        That the computer is back may have been told in the meantime.
        """
        if self._wanted and not self._asking:
            before, self._lock = self._lock, None
            self._asking = True
            try:
                await self._take()
            finally:
                if self._lock is None and self._wanted:
                    self._lock = before
                elif before is not None:
                    os.close(before)
        if not await self._is_about_to():
            self.wakes()

    def heard(self, signal: Message) -> None:
        """Take in a signal; one that was sent to us alone is not logind's."""
        if (
            signal.destination is not None
            or signal.interface != _MANAGER
            or signal.member not in _SIGNALS
            or signal.signature != "b"
        ):
            return
        if signal.body[0]:
            self.sleeps(self._delay)
        else:
            self.wakes()

    async def _take(self) -> None:
        try:
            lock = await self._inhibit()
        finally:
            self._asking = False
        if lock is not None and self._wanted:
            self._lock = lock
            self._delay = await self._ask_delay()
        elif lock is not None:
            os.close(lock)  # the jobs were over first

    async def _inhibit(self) -> int | None:
        what = ["sleep:shutdown", "cryptbackd", "A backup is locked and proven first", "delay"]
        reply = await self.ask(_call(_MANAGER, "Inhibit", "ssss", what))
        if reply is None or reply.message_type is MessageType.ERROR or not reply.unix_fds:
            return None
        return reply.unix_fds[0]

    async def _ask_delay(self) -> float:
        delay = await self._property("InhibitDelayMaxUSec")
        return _DELAY if delay is None else int(delay) / 1e6

    async def _is_about_to(self) -> bool:
        """Whether the computer sleeps or shuts down at this moment."""
        for what in ("PreparingForSleep", "PreparingForShutdown"):
            if await self._property(what) is True:
                return True
        return False

    async def _property(self, name: str) -> Any:
        """What logind tells; None when it doesn't."""
        what = [_MANAGER, name]
        reply = await self.ask(_call("org.freedesktop.DBus.Properties", "Get", "ss", what))
        if reply is None or reply.message_type is MessageType.ERROR or reply.signature != "v":
            return None
        return reply.body[0].value


def _call(interface: str, member: str, signature: str, body: list[str]) -> Message:
    return Message(
        destination=_LOGIND,
        path=_PATH,
        interface=interface,
        member=member,
        signature=signature,
        body=list(body),
    )
