"""Tasks that nobody awaits: kept alive until they end, and heard when they fail."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import attrs


@attrs.define
class Tasks:
    """Background work of one owner."""

    _running: set[asyncio.Task[None]] = attrs.field(factory=set)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do *work*; an exception in it goes to the loop's exception handler at once."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def all_ended(self) -> None:
        """Wait until no work is left, whatever is added meanwhile."""
        while self._running:
            await asyncio.wait(self._running)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            task.get_loop().call_exception_handler(
                {"message": "A task failed.", "exception": exc, "task": task}
            )
