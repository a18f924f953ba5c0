"""Another user's rights, for what is done on that user's behalf.

Nothing here changes what the worker itself may do: paths are opened by a child process that
takes the rights on, gives up every capability and ends, and what comes back is descriptors.  So the
kernel decides whether the user could have opened a path, and no link leads further than the user
could have gone (credentials(7), path_resolution(7)).
"""

from __future__ import annotations

import errno
import os
import pwd
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress

import attrs

from .. import kernel
from . import careful

_MAX_PATHS = 64
"""Paths that one child opens: as many descriptors fit into one message (SCM_MAX_FD is 253)."""


_SERVED = 1_000_000
"""In the place of an error's number."""


@attrs.frozen
class Rights:
    """A user, as the kernel sees one."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def of(name: str) -> Rights:
    """The rights of the user *name*; raises KeyError when there is none."""
    return _rights(pwd.getpwnam(name))


def of_user(uid: int) -> Rights:
    """The rights of the user with this number; raises KeyError when there is none."""
    return _rights(pwd.getpwuid(uid))


def owner_of_home(path: str, likely: str | None = None) -> Rights | None:
    """Whose home directory *path* lies in; None: nobody's.

    Users that can't be listed (those of a directory service) are found if they are *likely*.
    System users don't count: their "homes" are root's directories.
    """
    users = pwd.getpwall()
    if likely is not None:
        with suppress(KeyError):
            users.append(pwd.getpwnam(likely))
    homes = [
        user
        for user in users
        if (user.pw_uid == 0 or user.pw_uid >= 1000)
        and user.pw_dir.strip("/")
        and path.startswith(user.pw_dir.rstrip("/") + "/")
    ]
    if not homes:
        return None
    return _rights(max(homes, key=lambda user: (len(user.pw_dir), user.pw_name == likely)))


def _rights(user: pwd.struct_passwd) -> Rights:
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    return Rights(user.pw_name, user.pw_uid, user.pw_gid, tuple(groups), user.pw_dir)


def opened(rights: Rights, paths: Sequence[str], flags: int) -> dict[str, int | OSError]:
    """Each path opened with these rights: a descriptor, the caller's to close, or why not.

    Symbolic links are followed, but for those of /proc.  Filesystems that a user serves are not
    asked for anything, see ``careful``.
    """
    paths = list(dict.fromkeys(paths))
    found: dict[str, int | OSError] = {}
    for start in range(0, len(paths), _MAX_PATHS):
        some = paths[start : start + _MAX_PATHS]
        try:
            found |= _opened(rights, some, flags)
        except OSError as exc:
            found |= dict.fromkeys(some, exc)
    return found


def _opened(rights: Rights, paths: Sequence[str], flags: int) -> dict[str, int | OSError]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            child = os.fork()
            if child == 0:
                try:
                    _take_on(rights)
                    _open_all(theirs, paths, flags)
                finally:
                    os._exit(1)
        # The child's answer, or the end of file when it is gone without one.
        answer, fds, _flags, _address = socket.recv_fds(ours, 16 * _MAX_PATHS, _MAX_PATHS)
    os.waitpid(child, 0)
    numbers = [int(number) for number in answer.split()]
    if len(numbers) != len(paths) or numbers.count(0) != len(fds):
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EPERM, f"the rights of {rights.name} could not be taken on")
    left = iter(fds)
    return {
        path: _error(number, path) if number else next(left)
        for path, number in zip(paths, numbers, strict=True)
    }


def _error(number: int, path: str) -> OSError:
    why = os.strerror(number) if number != _SERVED else "it lies on a user's own filesystem (FUSE)"
    return OSError(number, why, path)


def _take_on(rights: Rights) -> None:
    os.setgroups(rights.groups)
    os.setresgid(rights.gid, rights.gid, rights.gid)
    # What may be opened goes by the effective user alone.  By the others it goes who may send a
    # signal (kill(2)): one that the user had stopped would be waited for.
    os.setresuid(0, rights.uid, 0)
    kernel.limit_capabilities(())


def _open_all(answer_to: socket.socket, paths: Iterable[str], flags: int) -> None:
    numbers, fds = [], []
    for path in paths:
        try:
            found = careful.walk(path)
            if flags != os.O_PATH:
                found = os.open(f"/proc/self/fd/{found}", flags | os.O_CLOEXEC)
            fds.append(found)
            numbers.append(0)
        except careful.ServedByUser:
            numbers.append(_SERVED)
        except OSError as exc:
            numbers.append(exc.errno or errno.EIO)
    socket.send_fds(answer_to, [" ".join(map(str, numbers)).encode()], fds)
    os._exit(0)
