"""Where files are restored to: the directory that is opened for it, and what goes into it.

A :class:`Group` is one copy: paths that go into the same directory, which is held as long as
:func:`opened`'s block.

It is opened with the rights of whoever calls.  Root follows no symbolic link on the way but
root's own, and none at all beneath: whoever owns a directory there can't lead root elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import attrs

from .. import kernel, trusted
from ..errors import Refused
from ..restoring import MAX_PACKET
from ..text import printable

FAT_LIMIT = 1 << 32
"""Bytes that no file on a FAT has."""
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_MOST = MAX_PACKET // 8
"""Characters of paths that one copy may have: each can take six bytes in a packet."""


@attrs.frozen
class Group:
    """Paths in the version, each with a ``/./``, whose rest is made beneath ``directory``."""

    directory: str
    paths: tuple[str, ...]


def groups(paths: Sequence[str], to: str | None) -> list[Group]:
    """What is copied for absolute *paths*, into the directory *to* or back to where they were.

    Raises Refused.
    """
    found: dict[str, list[str]] = {}
    if to is None:
        for path in paths:
            above = _existing(os.path.dirname(path))
            found.setdefault(above, []).append(_marked(path, above))
    else:
        _want_usable(to)
        names: dict[str, str] = {}
        for path in paths:
            other = names.setdefault(os.path.basename(path), path)
            if other != path:
                raise Refused(
                    f"{printable(other)} and {printable(path)} would go to the same place.",
                    "Restore one after the other, each --to a directory of its own.",
                )
            found.setdefault(to, []).append(_marked(path, os.path.dirname(path)))
    return [
        Group(directory, part) for directory, marked in found.items() for part in _parts(marked)
    ]


def _want_usable(to: str) -> None:
    """Raise Refused where *to* is there and no directory that can be opened."""
    try:
        os.close(_open(to))
    except FileNotFoundError:
        return
    except OSError as exc:
        raise _unusable(to, exc) from exc


def _marked(path: str, above: str) -> str:
    """*path*, of which what is below *above* is made again."""
    rest = path[len(above) :].lstrip("/")
    return f"{above.rstrip('/')}/./{rest}"


def _parts(paths: list[str]) -> Iterator[tuple[str, ...]]:
    """*paths* in parts of which each fits into a packet."""
    part: list[str] = []
    length = 0
    for path in paths:
        if part and length + len(path) > _MOST:
            yield tuple(part)
            part, length = [], 0
        part.append(path)
        length += len(path) + 8
    yield tuple(part)


def _existing(path: str) -> str:
    """The lowest directory above what is restored that is there."""
    while True:
        try:
            os.close(_open(path))
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENOTDIR) or path == "/":
                raise _unusable(path, exc) from exc
            path = os.path.dirname(path)
        else:
            return path


def _open(path: str) -> int:
    if os.geteuid() != 0:
        return os.open(path, _DIRECTORY)
    fd = trusted.open_as_root(path)
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    return fd


def _unusable(path: str, exc: OSError) -> Refused:
    return Refused(
        f"{printable(path)} can't be restored to: {exc.strerror}.", "Choose another place by --to."
    )


def is_on_fat(path: bytes, table: str = "/proc/self/mountinfo") -> bool:
    """Whether what gets that name is on a FAT; directories above it may not be there yet."""
    try:
        device = os.lstat(path).st_dev
    except (FileNotFoundError, NotADirectoryError):
        return is_on_fat(os.path.dirname(path), table)
    except OSError:
        return False  # rsync will tell it
    number = b"%d:%d" % (os.major(device), os.minor(device))
    with open(table, "rb") as file:
        mounts = [line.split(b" ") for line in file]
    types = {mount[2]: mount[mount.index(b"-") + 1] for mount in mounts}
    return types.get(number) in (b"vfat", b"msdos")


@contextmanager
def opened(path: str, *, dry: bool) -> Iterator[str]:
    """Where to write so that it gets into the directory *path*, which is made if need be.

    *dry*: an empty one in the place of one that would be made.  Raises Refused.
    """
    with ExitStack() as stack:
        try:
            fd = _open(path)
        except FileNotFoundError as exc:
            if dry:
                yield stack.enter_context(tempfile.TemporaryDirectory())
                return
            fd = _made(path, exc)
        except OSError as exc:
            raise _unusable(path, exc) from exc
        stack.callback(os.close, fd)
        yield os.path.realpath(path) if os.geteuid() else stack.enter_context(_view(fd))


def _made(path: str, missing: OSError) -> int:
    """Make the directory *path* in one that is there."""
    above, name = os.path.split(path)
    try:
        fd = _open(above)
        try:
            os.mkdir(name, 0o755, dir_fd=fd)
            return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
    except OSError as exc:
        raise _unusable(path, exc) from missing


@contextmanager
def _view(fd: int) -> Iterator[str]:
    """The directory *fd*, at a place that only root can change, and without symbolic links.

    rsync looks its target up by name: by this one nobody can lead it elsewhere.
    """
    point = tempfile.mkdtemp(prefix="cryptback-restore.", dir="/run")
    try:
        try:
            kernel.bind_without_links(fd, point)
        except OSError as exc:
            raise Refused(
                f"The place to restore to can't be guarded: {exc.strerror}.",
                "Restore as an ordinary user, or outside of a container.",
            ) from exc
        try:
            yield point
        finally:
            kernel.detach(point)
    finally:
        os.rmdir(point)


def seclude() -> None:
    """Have what this thread and its children mount seen by nobody else; for root, first.

    Raises Refused.
    """
    if os.geteuid() == 0:
        try:
            kernel.unshare(kernel.CLONE_NEWNS)
            kernel.set_propagation("/", kernel.MS_REC | kernel.MS_SLAVE)
        except OSError as exc:
            raise Refused(
                f"Files can't be restored here by root: {exc.strerror}.",
                "Restore as an ordinary user, or outside of a container.",
            ) from exc
