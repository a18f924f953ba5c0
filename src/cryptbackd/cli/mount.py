"""The user's side of browsing: a mount that only this user can enter.

fusermount3 makes and removes it; its descriptor, :func:`mount`'s to give, is the caller's to
close.  The mount stays until :func:`unmount`, whatever becomes of the descriptor: whoever
serves it may end first, and then it leads to nothing.  With the last descriptor of it, those
who have something open there get errors.
"""

from __future__ import annotations

import errno
import os
import pwd
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import CryptbackError, Refused, ToolFailed
from ..run import ENVIRONMENT, run
from ..text import printable

FUSERMOUNT = "/usr/bin/fusermount3"
_OF_ROOT = Path("/run/cryptback-browse")
_OF_USERS = Path("/run/user")
_OPTIONS = "ro,nosuid,nodev,noexec,default_permissions,subtype=cryptback"


def me() -> str:
    """The name of whoever runs this."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def home() -> Path:
    """The directory that the mounts are in; it vanishes with the user's last login."""
    if os.getuid() == 0:
        return _OF_ROOT
    return Path(os.environ.get("XDG_RUNTIME_DIR") or _OF_USERS / str(os.getuid()), "cryptback")


def place(name: str) -> Path:
    """Make the directory for the mount of the drive *name*; raises Refused."""
    above = home()
    try:
        above.mkdir(mode=0o700, exist_ok=True)
        status = os.lstat(above)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise Refused(f"{printable(str(above))} is not a directory of yours.")
        where = above / name
        if is_dead(where):
            unmount(where)
        where.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise Refused(
            f"{printable(str(above))} can't be made: {exc.strerror}.",
            "Browsing needs the directory of a login (XDG_RUNTIME_DIR).",
        ) from exc
    return where


def want_tool() -> None:
    """Raise Refused where nothing can be mounted."""
    if not os.path.exists(FUSERMOUNT):
        raise Refused(f"Browsing needs {FUSERMOUNT}, which is not installed.", "apt install fuse3")


def mount(where: Path, name: str) -> int:
    """Mount there, and give the descriptor on which it is to be served.

    Nobody can look at it before that is done.  Raises CryptbackError.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        # The program's own way to hand it back (libfuse).
        around = {**ENVIRONMENT, "_FUSE_COMMFD": str(theirs.fileno())}
        options = f"{_OPTIONS},fsname=cryptback-{name}"
        command = [FUSERMOUNT, "-o", options, "--", str(where)]
        try:
            run(command, pass_fds=[theirs.fileno()], environment=around)
        except ToolFailed as exc:
            raise CryptbackError(
                f"{printable(str(where))} can't be mounted: {exc.sentence}",
                "Is the module fuse there (/dev/fuse)?",
            ) from exc
        theirs.close()
        _byte, fds, _flags, _address = socket.recv_fds(ours, 1, 1)
        if not fds:
            raise CryptbackError(f"{FUSERMOUNT} gave no descriptor of the mount.")
        os.set_inheritable(fds[0], False)
        return fds[0]


def unmount(where: Path) -> None:
    """Take the mount away, whatever has something open on it; it may be gone already."""
    run([FUSERMOUNT, "-u", "-q", "-z", "--", str(where)], ok=None)
    try:
        where.rmdir()
    except OSError:
        return  # somebody else's by now, or not empty: it is only a directory


def is_dead(where: Path) -> bool:
    """Whether nobody serves the mount there any more."""
    try:
        # What its root is like the kernel may still know; what is in it, it must ask.
        os.scandir(where).close()
    except OSError as exc:
        return exc.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def dead() -> Iterator[Path]:
    """The mounts of this user that nobody serves any more."""
    try:
        names = os.listdir(home())
    except OSError:
        return
    for name in names:
        if is_dead(home() / name):
            yield home() / name
