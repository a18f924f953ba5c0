"""One worker from its start to its end, as the daemon sees it.

The process started is a stub that waits for the real worker, its only child and PID 1 of a
PID namespace; the kernel lets the stub end only when the whole namespace is gone.  To kill a
worker therefore means: SIGKILL to the child, wait for the stub.  The stub itself is killed
only while it has no child.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable

from .. import protocol, run
from ..errors import ToolFailed
from . import children


class WorkerProcess:
    """A running worker.  *heard* gets each of its messages, in order.

    Raises ToolFailed where it can't be started.
    """

    def __init__(
        self,
        heard: Callable[[protocol.Message], None],
        broke_off: Callable[[protocol.ProtocolError], None],
    ) -> None:
        self._heard = heard
        self._broke_off = broke_off
        try:
            ours, theirs = socket.socketpair(
                socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
            )
        except OSError as exc:
            raise run.not_started("A worker", exc) from exc
        # The worker's code is synchronous: only our end does not block.
        theirs.setblocking(True)
        try:
            self._stub = run.spawn(
                [
                    "/usr/bin/python3", "-I", "-m", "cryptbackd.worker",
                    "--socket", str(theirs.fileno()),
                ],
                stdout=subprocess.DEVNULL,
                stderr=None,
                pass_fds=(theirs.fileno(),),
            )  # fmt: skip
        except ToolFailed:
            ours.close()
            raise
        finally:
            theirs.close()
        self._socket: socket.socket | None = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self.drain)

    def send(self, message: protocol.Message, fd: int | None = None) -> None:
        """Send *message*; to a worker that is gone already it is lost."""
        if self._socket is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                protocol.send(self._socket, message, fd)

    def drain(self) -> None:
        """Take in everything that it has said until now."""
        while self._socket is not None:
            try:
                received = protocol.receive(self._socket)
            except BlockingIOError:
                return
            except ConnectionResetError:
                # It ended without reading a stop of ours. This is told once, and before what
                # it had said last (unix(7)).
                continue
            except protocol.ProtocolError as exc:
                self._hang_up()
                self._broke_off(exc)
                return
            if received is None:
                self._hang_up()
                return
            message, fd = received
            if fd is not None:
                os.close(fd)  # a worker has none to give
            self._heard(message)

    def kill(self) -> None:
        """Kill it, whatever it does; :meth:`ended` tells when it is really gone.

        Hanging up comes last and is for a child that was just being made: end of file means
        to a worker that it must go.
        """
        # The number of a stub that is gone may be somebody else's by now.
        worker = self._child() if self._stub.poll() is None else None
        if worker is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        elif self._stub.poll() is None:
            self._stub.kill()
        self._hang_up()

    async def ended(self) -> int:
        """Wait until nothing of it is left; the stub's exit status (see ``Popen``).

        Everything that it said was heard by then.
        """
        status = await children.ended(self._stub)
        self.drain()
        self._hang_up()
        return status

    def _child(self) -> int | None:
        pid = self._stub.pid
        try:
            with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
                words = file.read().split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return int(words[0]) if words else None

    def _hang_up(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
