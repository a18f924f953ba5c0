"""Reading a file as the drive has it, past whatever the computer remembers of it.

Three caches lie between a program and the drive.  That of the filesystem in the container is
gone past by direct I/O (O_DIRECT, open(2)); btrfs decompresses into it, so there its pages of
the file are dropped first.  The loop device reads directly where the drive's filesystem can;
else that one's pages of the container are dropped, too.  dm-crypt has none.  What the drive
itself remembers is out of reach, but for a plug that was pulled.

A descriptor is open only within the function that opens it; a :class:`Readback` holds one
buffer for as long as it lives.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import stat
from collections.abc import Callable, Sequence

from .. import kernel

_CHUNK = 2 << 20
_SECTOR = 4096
_BENEATH = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_XDEV
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PROBES = 4


class Readback:
    """Reads files of a filesystem of type *fstype* back; *passed* is told the bytes as they come.
    ``size`` has all bytes so far.

    *beneath* are the descriptors of the container's files, if it has any.
    """

    def __init__(self, fstype: str, beneath: Sequence[int], passed: Callable[[int], None]) -> None:
        self._direct = 0 if fstype == "btrfs" else os.O_DIRECT
        self.passed = passed
        self.size = 0
        self._buffer = mmap.mmap(-1, _CHUNK)  # direct I/O wants whole pages
        for fd in beneath:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def digest(self, root: int, path: bytes) -> bytes:
        """The xxh128 of the content of the regular file *path* below *root*; raises OSError."""
        from xxhash import xxh128  # late: nothing but this needs it

        fd = self._open(root, path)
        try:
            content = xxh128()
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            while length := os.readv(fd, [self._buffer]):
                content.update(memoryview(self._buffer)[:length])
                self.size += length
                self.passed(length)
                if length < _CHUNK:
                    break
            # Nobody needs it in memory, and the computer has better uses for that.
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return content.digest()
        finally:
            os.close(fd)

    def _open(self, root: int, path: bytes) -> int:
        flags = os.O_RDONLY | _OPEN
        name = os.fsdecode(path)
        if self._direct:
            try:
                return kernel.openat2(root, name, flags | self._direct, _BENEATH)
            except OSError as exc:
                if exc.errno != errno.EINVAL:
                    raise
        return kernel.openat2(root, name, flags, _BENEATH)


def look(root: int, path: bytes) -> os.stat_result:
    """What stands at *path* below *root*, no link followed and nothing opened; raises OSError."""
    fd = kernel.openat2(root, os.fsdecode(path), os.O_PATH | os.O_NOFOLLOW, _BENEATH)
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def directory(root: int, path: bytes) -> dict[bytes, os.stat_result]:
    """What is in the directory *path* below *root* ("" is that itself), no link followed.

    Raises OSError.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    fd = kernel.openat2(root, os.fsdecode(path) or ".", flags, _BENEATH)
    try:
        return {os.fsencode(name): os.lstat(name, dir_fd=fd) for name in os.listdir(fd)}
    finally:
        os.close(fd)


def kind(status: os.stat_result) -> str:
    """The letter that a manifest has for this kind of file."""
    letters = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFIFO: "p"}
    letters |= {stat.S_IFSOCK: "s", stat.S_IFBLK: "b", stat.S_IFCHR: "c"}
    return letters.get(stat.S_IFMT(status.st_mode), "?")


def answers(node: str) -> bool:
    """Whether the device *node* can be read at all: at one of a few places, past the cache."""
    try:
        fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        return False
    try:
        sectors = os.lseek(fd, 0, os.SEEK_END) // _SECTOR
        places = [0, *(random.randrange(sectors) for _ in range(_PROBES))]  # noqa: S311
        with mmap.mmap(-1, _SECTOR) as buffer:
            return any(_reads(fd, buffer, place * _SECTOR) for place in places)
    except (OSError, ValueError):
        return False
    finally:
        os.close(fd)


def _reads(fd: int, buffer: mmap.mmap, offset: int) -> bool:
    try:
        return os.preadv(fd, [buffer], offset) > 0
    except OSError:
        return False
