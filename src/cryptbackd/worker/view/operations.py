"""The kernel's questions (FUSE) about the tree of versions, answered one after the other.

A handle is a file's descriptor, or the number of a directory's list: each lives until its
release.  The kernel refuses whatever writes before it asks, as the mount is read-only.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyfuse3

from .tree import ROOT, Tree

_FOR_EVER = 86_400.0
"""Seconds for which the kernel may keep what it was told: nothing changes meanwhile."""


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise pyfuse3.FUSEError(exc.errno or errno.EIO) from exc
    except KeyError:
        raise pyfuse3.FUSEError(errno.ESTALE) from None


def _attributes(number: int, status: os.stat_result) -> Any:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = number
    entry.entry_timeout = entry.attr_timeout = _FOR_EVER
    for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size"):
        setattr(entry, name, getattr(status, name))
    if number == ROOT:
        moment = int(status.st_mtime) * 1_000_000_000
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = moment
        return entry
    for name in ("st_rdev", "st_blksize", "st_blocks", "st_atime_ns", "st_mtime_ns", "st_ctime_ns"):
        setattr(entry, name, getattr(status, name))
    return entry


class Operations(pyfuse3.Operations):  # type: ignore[misc]
    """See ``pyfuse3.Operations``, whose methods these are."""

    supports_dot_lookup = False
    enable_acl = True

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self._tree = tree
        self._lists: dict[int, tuple[int, Sequence[bytes]]] = {}
        self._handles = itertools.count()

    async def lookup(self, parent: int, name: bytes, _context: Any = None) -> Any:
        """The entry *name* of a directory."""
        with _told():
            return _attributes(*self._tree.lookup(parent, name))

    async def forget(self, numbers: Sequence[tuple[int, int]]) -> None:
        """The kernel knows these no longer."""
        for number, lookups in numbers:
            self._tree.forget(number, lookups)

    async def getattr(self, number: int, _context: Any = None) -> Any:
        """The status of a file."""
        with _told():
            return _attributes(number, self._tree.status(number))

    async def readlink(self, number: int, _context: Any = None) -> bytes:
        """Where a link leads; whoever asked follows it, on their own."""
        with _told():
            return self._tree.link(number)

    async def opendir(self, number: int, _context: Any = None) -> int:
        """Take down what is in a directory."""
        with _told():
            names = self._tree.names(number)
        handle = next(self._handles)
        self._lists[handle] = number, names
        return handle

    async def readdir(self, handle: int, start: int, token: Any) -> None:
        """A part of that, from *start* on."""
        number, names = self._lists[handle]
        for at in range(start, len(names)):
            try:
                child, status = self._tree.lookup(number, names[at])
            except OSError:
                continue  # damaged on the drive, or not for this user to see
            if not pyfuse3.readdir_reply(token, names[at], _attributes(child, status), at + 1):
                self._tree.forget(child, 1)
                break

    async def releasedir(self, handle: int) -> None:
        """It is not wanted any more."""
        del self._lists[handle]

    async def open(self, number: int, flags: int, _context: Any = None) -> Any:
        """Open a file to read."""
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            raise pyfuse3.FUSEError(errno.EROFS)
        with _told():
            return pyfuse3.FileInfo(fh=self._tree.file(number), keep_cache=True)

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        """A part of a file."""
        with _told():
            return os.pread(handle, size, offset)

    async def release(self, handle: int) -> None:
        """Close a file."""
        os.close(handle)

    async def statfs(self, _context: Any = None) -> Any:
        """How much room there is: none, since nothing can be written."""
        with _told():
            room = self._tree.room()
        told = pyfuse3.StatvfsData()
        for name in ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax"):
            setattr(told, name, getattr(room, name))
        return told

    async def getxattr(self, number: int, name: bytes, _context: Any = None) -> bytes:
        """An extended attribute."""
        with _told():
            return self._tree.attribute(number, os.fsdecode(name))

    async def listxattr(self, number: int, _context: Any = None) -> Sequence[bytes]:
        """Their names."""
        with _told():
            return [os.fsencode(name) for name in self._tree.attributes(number)]
