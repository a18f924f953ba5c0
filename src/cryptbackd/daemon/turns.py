"""Calls from many senders, begun one at a time and in turn, so that none keeps others waiting.

Each sender has a queue of bounded length, and what is beyond is not taken.  A call that waits
for something (a person, a worker) lets the next one begin.  It lives as long as the bus.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import attrs

from .tasks import Tasks

MOST = 32
"""Calls of one sender that wait or are being answered."""

_Work = Callable[[], Coroutine[Any, Any, None]]


@attrs.define
class Turns:
    """Give it calls by :meth:`take`."""

    _tasks: Tasks = attrs.field(factory=Tasks)
    _queues: dict[str, deque[_Work]] = attrs.field(factory=dict)
    _counts: dict[str, int] = attrs.field(factory=dict)
    _serving: bool = False

    def take(self, sender: str, work: _Work) -> bool:
        """Do *work* when it is its turn; whether the sender has not asked for too much."""
        count = self._counts.get(sender, 0)
        if count >= MOST:
            return False
        self._counts[sender] = count + 1
        self._queues.setdefault(sender, deque()).append(work)
        if not self._serving:
            self._serving = True
            asyncio.get_running_loop().call_soon(self._next)
        return True

    def _next(self) -> None:
        sender, queue = next(iter(self._queues.items()))
        del self._queues[sender]
        self._tasks.start(self._do(sender, queue.popleft()))
        if queue:
            self._queues[sender] = queue  # behind all others
        self._serving = bool(self._queues)
        if self._serving:
            asyncio.get_running_loop().call_soon(self._next)

    async def _do(self, sender: str, work: _Work) -> None:
        try:
            await work()
        finally:
            self._counts[sender] -= 1
            if not self._counts[sender]:
                del self._counts[sender]
