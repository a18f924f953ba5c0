"""Names below a directory, looked at and removed without leaving it by a symbolic link.

A :class:`Within` holds a descriptor of the directory while its block runs.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ... import kernel
from ...run import Interrupt
from ..versions.tree import remove_tree

_RESOLVE = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Within:
    """A directory; see :func:`within`.  Paths are relative to it."""

    def __init__(self, root: int) -> None:
        self._root = root

    @property
    def number(self) -> int:
        """Its descriptor."""
        return self._root

    @contextmanager
    def parent(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """A descriptor of the directory that *path* is in, and its name there."""
        directory, name = os.path.split(path)
        fd = kernel.openat2(self._root, os.fsdecode(directory) or ".", _DIRECTORY, _RESOLVE)
        try:
            yield fd, name
        finally:
            os.close(fd)

    def status(self, path: bytes) -> os.stat_result | None:
        """As lstat(2); None where there is nothing, or nothing that can be reached."""
        try:
            with self.parent(path) as (directory, name):
                return os.stat(name, dir_fd=directory, follow_symlinks=False)
        except OSError:
            return None

    def target(self, path: bytes) -> bytes:
        """Where a symbolic link leads."""
        with self.parent(path) as (directory, name):
            return os.readlink(name, dir_fd=directory)

    def attributes(self, path: bytes) -> dict[str, bytes]:
        """The extended attributes of a directory, ACLs included."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return attributes(fd)
        finally:
            os.close(fd)

    def open(self, path: bytes, flags: int) -> int:
        """A descriptor of a file, the caller's to close."""
        return kernel.openat2(self._root, os.fsdecode(path), flags | os.O_NOFOLLOW, _RESOLVE)

    def remove(self, path: bytes, interrupt: Interrupt) -> None:
        """Remove what is there, if anything, with all below it.

        Raises OSError, and what ``remove_tree`` does.
        """
        status = self.status(path)
        if status is None:
            return
        with self.parent(path) as (directory, name):
            if stat.S_ISDIR(status.st_mode):
                there = Path(f"/proc/self/fd/{directory}", os.fsdecode(name))
                remove_tree(there, interrupt, pass_fds=[directory])
            else:
                os.unlink(name, dir_fd=directory)


def attributes(file: int | bytes) -> dict[str, bytes]:
    """The extended attributes of what a descriptor, or a path that is no link, stands for."""
    return {name: os.getxattr(file, name) for name in os.listxattr(file)}


@contextmanager
def within(directory: Path) -> Iterator[Within]:
    """Hold *directory* open."""
    fd = os.open(directory, _DIRECTORY)
    try:
        yield Within(fd)
    finally:
        os.close(fd)
