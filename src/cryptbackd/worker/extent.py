"""The container's files made longer: the last one up to what a file may have, then further ones.

At every moment they are a container, and one that is as long as before or longer.  Whoever
begins it has noted that on the computer, and it is undone where it is cut off
(``worker.unfinished``).
"""

from __future__ import annotations

import os

from ..errors import Refused
from ..sizes import LARGEST_FILE
from ..text import printable
from .control import Control, Meter
from .fill import ZEROED_LATER, fill, no_copy_on_write
from .layers.files import BLOCK, MOST, PART, Files, lengths


def most(files: Files) -> int | None:
    """Bytes that the container can have at most, whatever is free; None: as many as one likes."""
    each = _each(files)
    return None if each is None else each * MOST


def taken(files: Files) -> int:
    """Bytes of the container that have their place on the drive: a copy of it may have holes."""
    return sum(map(_taken, files.fds))


def plan(files: Files, target: int) -> list[int]:
    """How long each file is to be when all of them have *target* bytes; raises Refused."""
    each = _each(files)
    if each is None or target <= each:
        return [target]
    first = files.sizes()[0]
    if first > each:
        raise Refused(
            f'The file "{printable(files.names[0])}" has {first} bytes, which is no multiple of'
            f" {BLOCK}: it can't go on in another one.",
            "Copy the container to a drive with another filesystem, such as exFAT.",
        )
    return lengths(target, each)


def lengthen(files: Files, wanted: list[int], control: Control, *, random: bool) -> None:
    """Give the files these lengths, each of them there to its end and on the drive.

    With *random* bytes, see ``worker.fill``.  Raises OSError, DriveFailed and Cancelled, in the
    middle of it.
    """
    fstype = files.drive.filesystem.fstype
    begin = [_valid(fd, fstype, random=random) for fd in files.fds]
    begin += [0] * (len(wanted) - len(begin))
    meter = Meter(control, sum(wanted) - sum(begin))
    done = 0
    for number, (start, end) in enumerate(zip(begin, wanted, strict=True)):
        if number == len(files.fds):
            fd = files.add()
            if fstype == "btrfs":
                no_copy_on_write(fd)
        fill(files.fds[number], start, end, fstype, control, random=random, meter=meter, done=done)
        done += end - start
    files.drive.filesystem.sync()


def _each(files: Files) -> int | None:
    """Bytes that each file has at most; None: one alone may have as many as it likes."""
    sizes = files.sizes()
    if len(sizes) > 1:
        return sizes[0]
    if LARGEST_FILE.get(files.drive.filesystem.fstype) is None:
        return None
    return max(PART, sizes[0] // BLOCK * BLOCK)


def _taken(fd: int) -> int:
    status = os.fstat(fd)
    return min(status.st_blocks * 512, status.st_size)


def _valid(fd: int, fstype: str, *, random: bool) -> int:
    """Where to begin: what has holes gets them filled, where that writes nothing over."""
    length = os.fstat(fd).st_size
    return length if random or fstype in ZEROED_LATER or _taken(fd) >= length else 0
