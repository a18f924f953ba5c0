"""Waiting for a child without a thread and without blocking the loop, through a pidfd."""

from __future__ import annotations

import asyncio
import os
import subprocess


async def ended(process: subprocess.Popen[bytes]) -> int:
    """Wait for *process* to end; its exit status, or minus the number of the signal.

    When the waiting is cancelled the process is killed.
    """
    loop = asyncio.get_running_loop()
    gone: asyncio.Future[None] = loop.create_future()
    pidfd = os.pidfd_open(process.pid)
    try:
        loop.add_reader(pidfd, _resolve, gone)
        await gone
    except asyncio.CancelledError:
        process.kill()
        raise
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        process.wait()
    return process.wait()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
