"""The writing rsync: what it sees, and how it comes to a reader.

It writes to the drive with root's rights to files, and gets all that it writes from a reader that
may be anybody's.  So it has a root of its own, with ``/usr`` and the drive's tree in it, and can
read nothing else, whatever it is talked into.  :func:`confine` makes that, in the new process.

The reader is started by us, outside of all this: :func:`readers` serves those who ask for one by
``worker.handover`` as long as its block runs.  There must be no thread when the writer is started,
so the block begins after that.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .. import kernel
from ..errors import ToolFailed
from ..run import spawn
from . import shed

_LINKS = ("bin", "sbin", "lib", "lib32", "lib64")
_LONGEST = 1 << 16
_HANDOVER = f"/usr/bin/python3 -I -S {Path(__file__).with_name('handover.py')}"
"""A program of its own, which takes no time to find modules that it doesn't need."""
_NOT_STARTED = 127


def confine(tree: Path, room: Path) -> Callable[[], None]:
    """What makes a new process see nothing but ``/usr`` and *tree*, under the same path.

    *room* is an empty directory for its root to be mounted on.
    """
    room.mkdir(exist_ok=True)
    links = {name: os.readlink(f"/{name}") for name in _LINKS if os.path.islink(f"/{name}")}

    def confined() -> None:
        root = str(room)
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.set_propagation("/", kernel.MS_REC | kernel.MS_SLAVE)
        safe = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
        kernel.mount("tmpfs", root, safe, "size=64k,mode=0755")
        for path, bind in (("/usr", kernel.bind_programs), (str(tree), kernel.bind)):
            os.makedirs(root + path)
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            bind(fd, root + path)
            os.close(fd)
        for name, target in links.items():
            os.symlink(target, f"{root}/{name}")
        kernel.make_read_only(root)
        kernel.make_root(root)
        shed.keep(shed.WRITES)

    return confined


def shell(door: int) -> str:
    """What rsync is to start as a remote shell, when it inherits the descriptor *door*."""
    return f"{_HANDOVER} {door}"


@contextmanager
def readers(
    near: socket.socket, command: Sequence[str], pass_fds: Sequence[int]
) -> Iterator[Callable[[], None]]:
    """Start *command*, with what rsync wants, for each who asks at the other end of *near*.

    The block gets what it must call before it ends all of them.  Raises ToolFailed.
    """
    serving = threading.Thread(target=_serve, args=(near, command, pass_fds))
    try:
        serving.start()
    except RuntimeError as exc:
        raise ToolFailed(
            "No thread could be started.", "The computer may be short of memory or of processes."
        ) from exc

    def shut() -> None:
        near.shutdown(socket.SHUT_RDWR)

    try:
        yield shut
    finally:
        serving.join()


def _serve(near: socket.socket, command: Sequence[str], pass_fds: Sequence[int]) -> None:
    # Shut by whoever ends all of them, or gone.
    with suppress(OSError):
        while True:
            asked, fds, _flags, _address = socket.recv_fds(near, _LONGEST, 3)
            if not asked:
                break
            try:
                status = _read(asked, fds, command, pass_fds)
            finally:
                for fd in fds:
                    os.close(fd)
            near.send(str(status).encode())
    # Nobody is to wait for an answer any more.
    with suppress(OSError):
        near.shutdown(socket.SHUT_RDWR)


def _read(asked: bytes, fds: list[int], command: Sequence[str], pass_fds: Sequence[int]) -> int:
    """The exit status of a reader on the descriptors *fds*."""
    words = os.fsdecode(asked).split("\0")
    # A writer may have been talked into asking for something else.
    if len(fds) != 3 or words[1:3] != ["--server", "--sender"]:
        return _NOT_STARTED
    try:
        reader = spawn(
            [*command, *words[1:]], stdin=fds[0], stdout=fds[1], stderr=fds[2], pass_fds=pass_fds
        )
    except ToolFailed:
        return _NOT_STARTED
    # The descriptors are its alone from here on: who waits for their end must see it.
    while fds:
        os.close(fds.pop())
    status = reader.wait()
    return status if status >= 0 else 128 - status
