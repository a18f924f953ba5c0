"""The container's files on the drive: one, or several where none may be large enough.

Opened, they live as long as their ``with`` block.  ``backup.luks`` is either a file of that
name or the files ``backup.luks.000``, ``backup.luks.001``, and so on, all of one length but the
last, which may be shorter.  Which of the two it is, the drive tells; anything in between is
refused: it could only be guessed what of it belongs together.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ...errors import DriveFailed, ForgedDrive
from ...sizes import LARGEST_FILE, MIB
from ...text import printable, size
from .outer import Outer, not_a_plain_file

PART = 4095 * MIB
"""Bytes of each file but the last, of a container that takes several."""
BLOCK = 4096
"""What the length of each file is a multiple of: the sectors of the volume."""
_MOST = 1000


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
    if len(found) > _MOST:
        raise DriveFailed(f"A container of {size(total)} takes more than {_MOST} files.")
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
    if base in names:
        if 0 in there:
            raise ForgedDrive(
                f'There are both "{printable(path)}" and "{printable(part(path, 0))}" on the drive,'
                " and only one of them can be the container.",
                "Rename the one that isn't.",
            )
        return [path]
    missing = sorted(set(range(max(there, default=-1))) - set(there))
    if missing:
        raise ForgedDrive(
            f'The file "{printable(part(path, missing[0]))}" of the container is missing; there is'
            f' "{printable(part(path, there[-1]))}".',
            "Was it moved or renamed? Put it back.",
        )
    return [part(path, number) for number in there]


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


@contextmanager
def container(drive: Outer, path: str, flags: int = os.O_RDWR) -> Iterator[list[int]]:
    """The opened files of the container *path*, in order; its header is in the first.

    Raises DriveFailed when it is not there, and ForgedDrive when it is not what it must be.
    """
    with ExitStack() as stack:
        names = _found(drive, path)
        files = []
        for name in names:
            files.append(_opened(drive, name, flags))
            stack.callback(os.close, files[-1])
        judge(names, [os.fstat(file).st_size for file in files])
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
