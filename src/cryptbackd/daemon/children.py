"""Waiting for child processes without a thread and without blocking the loop.

A child is watched through a pidfd: it can be waited for by exactly one waiter, and its
number can't be taken by somebody else before we have its status.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

from .. import run
from ..errors import ToolFailed
from .tasks import Tasks

MAX_OUTPUT = 1 << 20
"""Bytes that are kept of what a program prints; what is beyond is read and dropped."""

_abandoned = Tasks()


async def ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for *process* to end; its exit status, or minus the number of the signal."""
    if process.returncode is not None:
        return process.returncode
    pidfd = os.pidfd_open(process.pid)
    try:
        await readable(pidfd)
    finally:
        os.close(pidfd)
    return process.wait()


async def readable(fd: int) -> None:
    """Wait until *fd* can be read."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _resolve, future)
    try:
        await future
    finally:
        loop.remove_reader(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def read_to_end(fd: int) -> bytes:
    """What comes out of the pipe *fd* until its other end is closed."""
    chunks: list[bytes] = []
    length = 0
    while True:
        await readable(fd)
        chunk = os.read(fd, 65_536)
        if not chunk:
            return b"".join(chunks)
        if length < MAX_OUTPUT:
            chunks.append(chunk)
            length += len(chunk)


def abandon(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """Send *process* a signal, and reap it whenever it ends."""
    if process.poll() is not None:
        return
    process.send_signal(number)
    _abandoned.start(_reap(process))


async def _reap(process: subprocess.Popen[bytes]) -> None:
    await ended(process)


async def output(
    argv: Sequence[str],
    *,
    deadline: float,
    stdout: int | None = None,
    on_cancel: int = signal.SIGKILL,
    environment: Mapping[str, str] | None = None,
) -> run.Ended:
    """Run a program to its end and return what it said.

    *stdout* is a descriptor that its standard output goes to instead, unread by us.
    *deadline* is in seconds; when it passes, or the waiting task is cancelled, the program
    gets the signal *on_cancel*.  Raises ToolFailed when it isn't installed or too slow.
    """
    process = run.spawn(
        argv,
        stdout=subprocess.PIPE if stdout is None else stdout,
        environment=environment,
    )
    try:
        async with asyncio.timeout(deadline):
            async with asyncio.TaskGroup() as group:
                out = group.create_task(_drain(process.stdout))
                err = group.create_task(_drain(process.stderr))
            status = await ended(process)
    except TimeoutError as exc:
        raise ToolFailed(f"{argv[0]} did not end within {deadline:.0f} seconds.") from exc
    finally:
        abandon(process, on_cancel)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    return run.Ended(tuple(argv), status, out.result(), err.result())


async def _drain(stream: IO[bytes] | None) -> bytes:
    return b"" if stream is None else await read_to_end(stream.fileno())
