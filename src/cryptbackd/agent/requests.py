"""The daemon's requests: each is looked up in the keyring, else asked for, by children.

What a child writes into the request's pipe is an answer once nobody holds that pipe any more:
so it is closed here as soon as a child has it.  A child that asked stays until the daemon says
what became of the answer, and then offers to remember it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Mapping
from typing import Any

import attrs

from .. import lookup, run
from ..errors import ToolFailed
from ..text import printable
from . import child, surroundings
from .ask import WANTED
from .log import Priority, say

PATIENCE = 120.0
"""Seconds after which the daemon takes no answer any more."""
KEYRING_PATIENCE = 25.0
"""Seconds that a keyring may take: unlocking it may need a person, or never end."""
ASK = ("/usr/bin/python3", "-I", "-m", "cryptbackd.agent.ask")


@attrs.define(eq=False)
class _Request:
    id: str
    name: str
    uuid: str
    fd: int
    """The write end of its pipe; owned, -1 once a child has it alone."""
    purpose: str
    """What is wanted: see :data:`ask.WANTED`."""
    wrong: str
    """What the last answer in this run was that was wrong: see :data:`ask.WRONG`."""
    task: asyncio.Task[None] | None = None
    asking: subprocess.Popen[bytes] | None = None
    from_keyring: bool = False

    def hang_up(self) -> None:
        """Let go of the pipe."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@attrs.define
class Requests:
    """All requests of one agent that are not over."""

    _open: dict[str, _Request] = attrs.field(factory=dict)
    _wrong: dict[str, str] = attrs.field(factory=dict)
    """What the last answer about each volume was, where it was wrong."""

    def begin(self, fd: int, values: Mapping[str, Any]) -> None:
        """Serve a request; *fd* is the write end of its pipe and becomes ours."""
        name, uuid = str(values.get("name", "")), str(values.get("uuid", ""))
        last = self._wrong.pop(uuid, "answer")
        wrong = last if values.get("wrong") else ""
        purpose = str(values.get("purpose", "open"))
        request = _Request(str(values.get("request", "")), name, uuid, fd, purpose, wrong)
        if request.id in self._open or purpose not in WANTED:
            request.hang_up()
            return
        self._open[request.id] = request
        request.task = asyncio.create_task(self._serve(request))

    def end(self, request_id: str, how: str) -> None:
        """The daemon said what became of the answer: Opened, Refused or Cancel."""
        request = self._open.get(request_id)
        if request is None:
            return
        if how == "Refused":
            self._wrong[request.uuid] = "keyring" if request.from_keyring else "answer"
        if how == "Opened" and request.asking is not None:
            assert request.asking.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                request.asking.stdin.write(b"opened\n")
                request.asking.stdin.close()
            return
        del self._open[request_id]
        if request.task is not None:
            request.task.cancel()

    def end_all(self) -> None:
        """The daemon is gone, or we go: nobody waits for an answer any more."""
        for request_id in list(self._open):
            self.end(request_id, "Cancel")

    async def _serve(self, request: _Request) -> None:
        started = asyncio.get_running_loop().time()
        try:
            around = await surroundings.environment()
            if not request.wrong and await self._from_keyring(request, around):
                request.from_keyring = True
                request.hang_up()
                await asyncio.Event().wait()  # for the verdict, which ends this
            if not surroundings.can_ask(around):
                say(
                    f"{request.name}: this session has no display and no terminal to ask on.",
                    Priority.WARNING,
                )
                return
            passed = asyncio.get_running_loop().time() - started
            await self._ask(request, around, PATIENCE - passed)
        finally:
            request.hang_up()
            if self._open.get(request.id) is request:
                del self._open[request.id]

    async def _from_keyring(self, request: _Request, around: Mapping[str, str]) -> bool:
        """Whether the keyring had an answer."""
        if not request.uuid:
            return False
        try:
            process = run.spawn(
                [*lookup.COMMAND, request.uuid], stdout=request.fd, stderr=None, environment=around
            )
            async with asyncio.timeout(KEYRING_PATIENCE):
                status = await child.ended(process)
        except TimeoutError:
            say(
                f"{request.name}: the keyring did not answer within {KEYRING_PATIENCE:.0f} seconds;"
                " it may be locked.",
                Priority.WARNING,
            )
            return False
        except ToolFailed as exc:
            say(f"{request.name}: the keyring can't be used: {exc}", Priority.WARNING)
            return False
        if status == lookup.FOUND:
            say(f"{request.name}: answered from the keyring.")
        elif status == lookup.NOTHING:
            say(f"{request.name}: the keyring has no passphrase of this drive.")
        elif status != lookup.UNUSABLE:  # then the child has said why
            say(f"{request.name}: the lookup in the keyring died ({status}).", Priority.WARNING)
        return status == lookup.FOUND

    async def _ask(self, request: _Request, around: Mapping[str, str], seconds: float) -> None:
        """Ask the person; returns when the child that did is gone."""
        argv = [*ASK, f"--seconds={max(1, round(seconds))}", f"--wrong={request.wrong}"]
        argv += [f"--purpose={request.purpose}", "--", printable(request.name, 40), request.uuid]
        try:
            request.asking = process = run.spawn(
                argv, stdin=subprocess.PIPE, stdout=request.fd, stderr=None, environment=around
            )
        except ToolFailed as exc:
            say(f"{request.name}: nobody can be asked: {exc}", Priority.WARNING)
            return
        request.hang_up()
        try:
            status = await child.ended(process)
        finally:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        if status != 0:
            say(f"{request.name}: the child that asked died ({status}).", Priority.WARNING)
