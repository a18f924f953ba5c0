"""The container's files on the drive: one, or several where none may be large enough.

Opened, they live as long as their ``with`` block.  ``backup.luks`` is either a file of that
name or the files ``backup.luks.000``, ``backup.luks.001``, and so on, all of one length but the
last, which may be shorter.  Which of the two it is, the drive tells; anything in between is
refused: it could only be guessed what of it belongs together.

A container that was one file and has become longer than a FAT allows keeps its name, and
``backup.luks.001`` follows on it: so it never has to be renamed.  An empty file at the end is
one that was about to be filled, and no part of it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import attrs

from ...errors import DriveFailed, ForgedDrive
from ...sizes import LARGEST_FILE, MIB
from ...text import printable, size
from .outer import Outer, not_a_plain_file

PART = 4095 * MIB
"""Bytes of each file but the last, of a container that takes several."""
BLOCK = 4096
"""What the length of each file is a multiple of: the sectors of the volume."""
MOST = 1000
"""Files that a container consists of at most."""


def part(path: str, number: int) -> str:
    """The name of a container's file, of those that are several."""
    return f"{path}.{number:03}"


def numbers(path: str, names: Iterable[str]) -> list[int]:
    """Which of a container's several files are among the *names* of a directory; pure."""
    pattern = re.compile(re.escape(os.path.basename(path)) + r"\.([0-9]{3})", re.DOTALL)
    return sorted(int(found[1]) for name in names if (found := pattern.fullmatch(name)))


def lengths(total: int, each: int) -> list[int]:
    """How long the files are that make up *total* bytes, when none has more than *each*; pure."""
    whole, rest = divmod(total, each)
    found = [each] * whole + [rest] * (rest > 0)
    if len(found) > MOST:
        raise DriveFailed(f"A container of {size(total)} takes more than {MOST} files.")
    return found


def several(fstype: str, total: int, each: int | None = None) -> list[int] | None:
    """The lengths of a new container's files on a filesystem; None when one will do; pure."""
    if each is None and total <= LARGEST_FILE.get(fstype, total):
        return None
    return lengths(total, each or PART)


def found(drive: Outer, path: str) -> list[str]:
    """The files that the container *path* consists of, in order; none when it is not there.

    Raises ForgedDrive when it is not plain which they are, and OSError.
    """
    directory, base = os.path.split(path)
    names = drive.names(directory)
    there = numbers(path, names)
    first = part(path, 0)
    if base in names:
        if 0 in there:
            raise ForgedDrive(
                f'There are both "{printable(path)}" and "{printable(part(path, 0))}" on the drive,'
                " and only one of them can be the container.",
                "Rename the one that isn't.",
            )
        if 1 not in there or not _goes_on(drive, path):
            return [path]
        there, first = [0, *there], path
    missing = sorted(set(range(max(there, default=-1))) - set(there))
    if missing:
        raise ForgedDrive(
            f'The file "{printable(part(path, missing[0]))}" of the container is missing; there is'
            f' "{printable(part(path, there[-1]))}".',
            "Was it moved or renamed? Put it back.",
        )
    return [part(path, number) if number else first for number in there]


def _goes_on(drive: Outer, path: str) -> bool:
    """Whether the one file *path* is as long as it is when others follow on it."""
    fd = drive.open(path, os.O_RDONLY)
    try:
        return PART <= os.fstat(fd).st_size <= LARGEST_FILE["vfat"]
    finally:
        os.close(fd)


def judge(names: Sequence[str], sizes: Sequence[int]) -> None:
    """Raise ForgedDrive unless files of these *sizes* can make up a container; pure."""
    if len(sizes) == 1:
        return
    for name, length in zip(names, sizes, strict=True):
        last = name == names[-1]
        good = 0 < length <= sizes[0] if last else length == sizes[0]
        if not good or length % BLOCK:
            raise ForgedDrive(
                f'The file "{printable(name)}" of the container has {length} bytes, which doesn\'t'
                f' fit to the {sizes[0]} of "{printable(names[0])}".',
                "Was it cut short, or is it another container's? What is missing can't be brought"
                " back from this drive.",
            )


@attrs.define
class Files:
    """The opened files ``fds`` of a container, in order; its header is in the first."""

    drive: Outer
    path: str
    names: list[str]
    fds: list[int]
    _stack: ExitStack

    def sizes(self) -> list[int]:
        """Bytes of each."""
        return [os.fstat(fd).st_size for fd in self.fds]

    @property
    def length(self) -> int:
        """Bytes of all."""
        return sum(self.sizes())

    def add(self) -> int:
        """Make the next file, which is empty, durably; raises OSError and DriveFailed."""
        name = part(self.path, len(self.fds))
        fd = self.drive.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        self._stack.callback(os.close, fd)
        self.names.append(name)
        self.fds.append(fd)
        self.drive.filesystem.sync()
        return fd

    def cut(self, length: int) -> None:
        """Cut off what is behind the first *length* bytes, and empty files; raises OSError.

        It is a container at every moment, and all of it is on the drive when this returns.
        """
        while True:
            there = self.sizes()
            keep = max(0, there[-1] - max(0, sum(there) - length))
            if keep < there[-1]:
                os.ftruncate(self.fds[-1], keep)
                os.fsync(self.fds[-1])
            if keep or len(self.fds) == 1:
                return
            self.drive.remove(self.leave_out_last())

    def leave_out_last(self) -> str:
        """The name of the last file, which is no part of the container any more."""
        self.fds.pop()
        return self.names.pop()


@contextmanager
def container(drive: Outer, path: str, flags: int = os.O_RDWR) -> Iterator[Files]:
    """The opened files of the container *path*.

    Raises DriveFailed when it is not there, and ForgedDrive when it is not what it must be.
    """
    with ExitStack() as stack:
        names = _found(drive, path)
        files = Files(drive, path, names, [], stack)
        for name in names:
            files.fds.append(_opened(drive, name, flags))
            stack.callback(os.close, files.fds[-1])
        sizes = files.sizes()
        if len(sizes) > 1 and not sizes[-1]:
            begun = files.leave_out_last()
            sizes.pop()
            if flags & os.O_ACCMODE != os.O_RDONLY:
                with suppress(OSError):
                    drive.remove(begun)
        judge(names, sizes)
        yield files


def _found(drive: Outer, path: str) -> list[str]:
    try:
        names = found(drive, path)
    except FileNotFoundError:
        names = []
    except OSError as exc:
        raise _cannot(path, exc) from exc
    if not names:
        raise DriveFailed(
            f'There is no container "{printable(path)}" on the drive.',
            "Was it moved or renamed? Put it back, or change `container` in the entry.",
        )
    return names


def _opened(drive: Outer, name: str, flags: int) -> int:
    try:
        return drive.open(name, flags)
    except OSError as exc:
        raise _cannot(name, exc) from exc


def _cannot(name: str, exc: OSError) -> DriveFailed | ForgedDrive:
    if exc.errno in (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
        return not_a_plain_file(name)
    return DriveFailed(f'The container "{printable(name)}" can\'t be opened: {exc.strerror}.')
