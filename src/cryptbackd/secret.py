"""A passphrase that is handed on unread: moved by the kernel from a pipe into a memfd.

Unlike the pipe, the memfd can be read by more than one program, one after the other, and
from its beginning each time.  It lives as long as the ``with`` block; its bytes are never in
our own memory, nor in a core of ours.  The few processes that must know a passphrase, and all
that live beside it, are :func:`secretive`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import kernel
from .errors import Refused

LONGEST = 512
"""Bytes that cryptsetup reads of a line."""


def secretive() -> None:
    """Leave no core, and let no other process of this user look inside.

    A program that is started from here is like any other again, but for its core file.
    """
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        kernel.forbid_dump()


@contextmanager
def kept(
    source: int,
    *,
    patience: float = 600.0,
    interrupt: tuple[int, Callable[[], None]] | None = None,
) -> Iterator[int]:
    """A memfd with all that comes out of *source* (a pipe or a file) until it ends.

    *patience* is in seconds.  *interrupt* is a descriptor to watch meanwhile and what to call
    when it can be read.  Raises Refused when nothing comes, or more than a passphrase, or when
    *source* is nothing that the kernel takes one from: not open, a terminal, a socket.
    """
    _want_open(source)
    fd = os.memfd_create("passphrase", os.MFD_CLOEXEC)
    try:
        os.fchmod(fd, 0o600)
        length = _move(source, fd, time.monotonic() + patience, interrupt)
        if length == 0:
            raise Refused("No passphrase came; nothing was changed.")
        if length > LONGEST:
            raise Refused(f"A passphrase has at most {LONGEST} bytes; nothing was changed.")
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def _want_open(source: int) -> None:
    try:
        os.fstat(source)
    except (OSError, OverflowError) as exc:
        raise Refused(
            f"There is no descriptor {source} from which a passphrase could come; nothing was"
            " changed."
        ) from exc


def _move(
    source: int,
    target: int,
    deadline: float,
    interrupt: tuple[int, Callable[[], None]] | None,
) -> int:
    length = 0
    while length <= LONGEST:
        watched = [source] if interrupt is None else [source, interrupt[0]]
        ready, _, _ = select.select(watched, [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise Refused("Nobody gave the passphrase; nothing was changed.")
        if interrupt is not None and interrupt[0] in ready:
            interrupt[1]()
        if source in ready:
            moved = _hand_on(source, target, LONGEST + 1 - length)
            if moved == 0:
                break
            length += moved
    return length


def _hand_on(source: int, target: int, most: int) -> int:
    try:
        if stat.S_ISREG(os.fstat(source).st_mode):
            return os.sendfile(target, source, None, most)
        return os.splice(source, target, most)
    except OSError as exc:
        raise Refused(
            f"The passphrase can't be taken from there: {exc.strerror}; nothing was changed.",
            "Hand it over through a pipe, or from a file that is open for reading.",
        ) from exc


def name(fd: int) -> str:
    """Under which a program that inherits *fd* opens it, at its beginning."""
    return f"/proc/self/fd/{fd}"
