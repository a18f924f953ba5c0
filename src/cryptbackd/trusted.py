"""Opening a path on behalf of root, when others may write on the way to it."""

from __future__ import annotations

import errno
import os
import stat

from . import kernel

_NO_LINKS = kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_MAGICLINKS
_MAX_LINKS = 40


def open_as_root(path: str) -> int:
    """An O_PATH descriptor of the absolute *path*; raises OSError.

    A symbolic link on the way is followed only if it is root's: whoever else can put one
    there would decide what root reads or writes.
    """
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            return kernel.openat2(root, path.strip("/") or ".", os.O_PATH, _NO_LINKS)
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
        real = _follow_links_of_root(path)
        return kernel.openat2(root, real.strip("/") or ".", os.O_PATH, _NO_LINKS)
    finally:
        os.close(root)


def _follow_links_of_root(path: str) -> str:
    done, rest = "/", [part for part in path.split("/") if part]
    links = 0
    while rest:
        here = os.path.normpath(os.path.join(done, rest.pop(0)))
        status = os.lstat(here)
        if not stat.S_ISLNK(status.st_mode):
            done = here
            continue
        links += 1
        if links > _MAX_LINKS or status.st_uid != 0:
            raise OSError(
                errno.ELOOP, "a symbolic link on the way to it does not belong to root", here
            )
        target = os.readlink(here)
        if target.startswith("/"):
            done = "/"
        rest = [part for part in target.split("/") if part] + rest
    return done
