"""Reaching a path without ever asking a user's own server: that of a FUSE filesystem.

Whoever asks one that does not answer waits for ever, and can't be killed; and a PID namespace
does not end before all that is in it.  So who may mount on the way to a path (fusermount3(1)) is
not to decide when a worker ends.  What root has mounted, a FUSE filesystem or another one, is
trusted to answer.

The descriptor that comes out is the caller's to close; nothing else is left.
"""

from __future__ import annotations

import errno
import os
import stat

from .. import kernel
from .mountinfo import of_descriptor

_MAX_LINKS = 40
_HERE = kernel.RESOLVE_NO_XDEV | kernel.RESOLVE_NO_MAGICLINKS


class ServedByUser(Exception):
    """It lies on a filesystem that a user serves."""


class LinkOfUser(Exception):
    """A symbolic link of *user*, which is not root, leads there."""

    def __init__(self, user: int) -> None:
        super().__init__(user)
        self.user = user


def walk(path: str, *, trusting: bool = True) -> int:
    """An O_PATH descriptor of the absolute *path*, following links; raises OSError and
    ServedByUser.

    What the caller may not pass is not passed.  Links of /proc are refused; where the caller is not
    *trusting* a link that isn't root's raises LinkOfUser.
    """
    here = _root()
    rest = _parts(path)
    links = 0
    try:
        while rest:
            there = _step(here, rest.pop(0))
            status = os.fstat(there)
            if not stat.S_ISLNK(status.st_mode):
                os.close(here)
                here = there
                continue
            try:
                if status.st_uid != 0 and not trusting:
                    raise LinkOfUser(status.st_uid)
                target = _target(there)
            finally:
                os.close(there)
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith("/"):
                os.close(here)
                here = _root()
            rest = _parts(target) + rest
    except BaseException:
        os.close(here)
        raise
    return here


def _root() -> int:
    return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _step(here: int, name: str) -> int:
    """What *name* is in the directory *here*, a link itself too."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return kernel.openat2(here, name, flags, _HERE)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
    # The root of a mount: to have it, nobody is asked.
    there = os.open(name, flags, dir_fd=here)
    try:
        if of_descriptor(there).served_by_user:
            raise ServedByUser
    except BaseException:
        os.close(there)
        raise
    return there


def _target(link: int) -> str:
    if of_descriptor(link).fstype == "proc":
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return os.readlink("", dir_fd=link)
