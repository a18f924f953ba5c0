"""Questions about the catalogue: a child each, which answers into a pipe that the asker reads.

A child lives until it has answered, its asker has closed the pipe, or its time is over.  What it
says is never read here, so that no answer makes the daemon wait or grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from typing import Any

import attrs

from .. import run
from ..errors import Refused
from . import children
from .tasks import Tasks

_COMMAND = ["/usr/bin/python3", "-I", "-m", "cryptbackd.query"]
_MOST = 3
"""Questions of one user that may be answered at a time."""
_MOST_IN_ALL = 8
"""Beside those of root."""
_PATIENCE = 600.0
"""Seconds that an answer may take, reading it included."""


@attrs.define
class Queries:
    """The questions that are being answered."""

    _open: dict[int, int] = attrs.field(factory=dict)
    _tasks: Tasks = attrs.field(factory=Tasks)

    def ask(self, uid: int, question: dict[str, Any]) -> int:
        """Have a question of the user *uid* answered; the pipe to read, the caller's to close.

        Raises Refused when there are too many, and ToolFailed.
        """
        others = sum(number for user, number in self._open.items() if user != 0)
        if self._open.get(uid, 0) >= _MOST or (uid != 0 and others >= _MOST_IN_ALL):
            raise Refused("Too many questions are being answered already.", "Try it again later.")
        asked = os.memfd_create("question", os.MFD_CLOEXEC)
        try:
            os.write(asked, json.dumps({**question, "uid": uid}).encode())
            os.lseek(asked, 0, os.SEEK_SET)
            ours, theirs = os.pipe2(os.O_CLOEXEC)
            try:
                child = run.spawn(_COMMAND, stdin=asked, stdout=theirs, stderr=None)
            except BaseException:
                os.close(ours)
                raise
            finally:
                os.close(theirs)
        finally:
            os.close(asked)
        self._open[uid] = self._open.get(uid, 0) + 1
        self._tasks.start(self._mind(uid, child))
        return ours

    def open(self) -> int:
        """How many are being answered."""
        return sum(self._open.values())

    async def _mind(self, uid: int, child: subprocess.Popen[bytes]) -> None:
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await children.ended(child)
        finally:
            children.abandon(child)
            self._open[uid] -= 1
            if not self._open[uid]:
                del self._open[uid]
