"""New files that nobody else reads, made with the rights of whoever calls.

A file is reserved before anything else is done, so that what can't be written is known in
time.  It is made exclusively: no link is followed, and nothing is replaced but what somebody
agreed to lose.  Unless it was kept, it is removed with its block.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from ..errors import Refused
from ..text import printable


@attrs.define
class NewFile:
    """A file in the making; ``path`` is what it is called in the end."""

    path: Path
    _directory: int
    _fd: int
    _name: str
    kept: bool = False

    def write(self, content: bytes) -> None:
        """Make *content* what it holds, on the disk; raises Refused."""
        try:
            os.ftruncate(self._fd, 0)
            view = memoryview(content)
            at = 0
            while at < len(view):
                at += os.pwrite(self._fd, view[at:], at)
            os.fsync(self._fd)
        except OSError as exc:
            raise _failed(self.path, exc) from exc

    def keep(self) -> None:
        """Let it stay, under its name."""
        try:
            if self._name != self.path.name:
                name, final = self._name, self.path.name
                os.replace(name, final, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            self.kept = True
            os.fsync(self._directory)
        except OSError as exc:
            raise _failed(self.path, exc) from exc

    def take_back(self) -> None:
        """Remove it, though it was kept."""
        self.kept = False
        with suppress(OSError):
            os.unlink(self.path.name, dir_fd=self._directory)


@contextmanager
def reserved(path: Path, length: int, may_replace: Callable[[Path], bool]) -> Iterator[NewFile]:
    """A new file *path* with room for *length* bytes, readable by its owner alone.

    *may_replace* is asked where there is one of that name already.  Raises Refused.
    """
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise _failed(path.parent, exc) from exc
    try:
        name = path.name
        if _exists(directory, name):
            if not may_replace(path):
                raise Refused(
                    f"There is a file {printable(str(path))} already; nothing was changed.",
                    "Name another directory, or move it away.",
                )
            name = f".{name}.{secrets.token_hex(4)}"
        new = _created(path, directory, name)
        try:
            _allocate(new, length)
            yield new
        finally:
            os.close(new._fd)
            if not new.kept:
                with suppress(OSError):
                    os.unlink(name, dir_fd=directory)
    finally:
        os.close(directory)


def _created(path: Path, directory: int, name: str) -> NewFile:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return NewFile(path, directory, os.open(name, flags, 0o600, dir_fd=directory), name)
    except OSError as exc:
        raise _failed(path, exc) from exc


def _allocate(new: NewFile, length: int) -> None:
    try:
        os.posix_fallocate(new._fd, 0, length)
    except OSError as exc:
        raise _failed(new.path, exc) from exc


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return True


def _failed(path: Path, exc: OSError) -> Refused:
    return Refused(
        f"{printable(str(path))} can't be written: {exc.strerror}.",
        "Name a directory that you may write to, and that has room.",
    )
