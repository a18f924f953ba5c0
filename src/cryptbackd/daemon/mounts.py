"""Taking the mount of whoever browses, the descriptor of ``/dev/fuse``: by a child.

What is handed over may be anything.  A process that has a descriptor of a filesystem that a user
serves can't be rid of it, nor be killed, until that user lets it: so it is taken by a child that
has nothing else, over a socket of its own, and only what is a mount is passed on to us.  A child
lives until it has done that or the job is over, unless it can't end; when there are
:data:`_MOST` that don't, nobody can browse until one does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from typing import Any

import attrs

from .. import run
from ..errors import Refused
from . import children
from .jobs import Job
from .tasks import Tasks

_COMMAND = ["/usr/bin/python3", "-I", "-m", "cryptbackd.daemon.doorkeeper"]
_MOST = 8


@attrs.define
class Mounts:
    """The children that wait for a mount, or can't end."""

    _open: int = 0
    _tasks: Tasks = attrs.field(factory=Tasks)

    def take(self, job: Job, mount: asyncio.Future[int]) -> int:
        """The socket by which *mount*, that *job* waits for, is handed over; the caller's to
        close.  Raises Refused and ToolFailed.
        """
        if self._open >= _MOST:
            raise Refused(
                "Too many mounts are waited for, or were none and can't be let go.",
                "Who serves a FUSE filesystem whose descriptor was handed over must end first.",
            )
        pair = (socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs, childs = socket.socketpair(*pair)
        ours, told = socket.socketpair(*pair)
        try:
            with childs, told:
                child = run.spawn(
                    _COMMAND, stdin=childs.fileno(), stdout=told.fileno(), stderr=None
                )
        except BaseException:
            ours.close()
            theirs.close()
            raise
        self._open += 1
        self._tasks.start(self._mind(job, mount, child, ours))
        return theirs.detach()

    async def _mind(
        self,
        job: Job,
        mount: asyncio.Future[int],
        child: subprocess.Popen[bytes],
        ours: socket.socket,
    ) -> None:
        try:
            with ours:
                heard = asyncio.ensure_future(children.readable(ours.fileno()))
                first: list[asyncio.Future[Any]] = [heard, job.over]
                await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
                if heard.cancel():
                    await asyncio.wait([heard])
                    child.send_signal(signal.SIGKILL)
                else:
                    _pass_on(ours, mount)
            await children.ended(child)
        finally:
            self._open -= 1


def _pass_on(ours: socket.socket, mount: asyncio.Future[int]) -> None:
    """Take what the child has to give: a descriptor of /dev/fuse, or its end."""
    _word, fds, _flags, _address = socket.recv_fds(ours, 1, 1)
    for fd in fds:
        if mount.done():
            os.close(fd)
        else:
            os.set_inheritable(fd, False)
            mount.set_result(fd)
