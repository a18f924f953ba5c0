"""Large files that are written in place, so that a version of them costs what has changed.

On btrfs alone: elsewhere a version's files are links, which must not be written to.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from ..changing import change
from ..control import Control
from ..listing import records
from ..reader import FIND
from .within import Within, within

FALLOCATE = "/usr/bin/fallocate"
LARGE = 16 << 20
"""Bytes from which on a file is large."""
_LARGE_RECORD = re.compile(rb"//f [0-7]+ [0-9]+ [0-9]+ 1 ([0-9]{8,}) ")
_PATIENCE = 6 * 3600.0


def large_files(listing: Path) -> dict[bytes, bytes]:
    """The large files with one name in a sorted listing, path to record."""
    found: dict[bytes, bytes] = {}
    if listing.stat().st_size == 0:
        return found
    with listing.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as text:
        for match in _LARGE_RECORD.finditer(text):
            if int(match[1]) >= LARGE:
                start = text.rfind(b"\0", 0, match.start()) + 1
                record = text[start : text.find(b"\0", match.end())]
                found[text[start : match.start()]] = record
    return found


def half_written(
    target: Within,
    where: Path,
    last: Path,
    kept: Iterable[str],
    whole: Mapping[bytes, tuple[int, int]],
    control: Control,
) -> list[bytes]:
    """The large files of the sources *kept* in the *target* (at *where*) that an interrupted run
    has not written to their end.

    Their size and time are neither those of the version *last*, nor those of what was copied
    *whole*.  Raises ToolFailed and Cancelled.
    """
    found: list[bytes] = []
    for source in kept:
        top = os.fsencode(source.strip("/"))
        if target.status(top or b".") is None:
            continue
        argv = [FIND, os.fsdecode(os.path.join(os.fsencode(where), top)), "-type", "f"]
        argv += ["-size", f"+{LARGE - 1}c", "-printf", r"%P\0"]
        with records(argv, None, control) as lines:
            for line in lines:
                path = b"/".join(filter(None, (top, line)))
                status = target.status(path)
                if status is None:
                    continue
                here = status.st_size, status.st_mtime_ns
                if here not in (whole.get(path), _size_and_time(last, path)):
                    found.append(path)
    return found


def _size_and_time(tree: Path, path: bytes) -> tuple[int, int] | None:
    with suppress(OSError), within(tree) as root:
        status = root.status(path)
        if status is not None and stat.S_ISREG(status.st_mode):
            return status.st_size, status.st_mtime_ns
    return None


def grow(target: Within, path: bytes, size: int) -> None:
    """Make a file as long as its source: what is a hole there costs nothing then."""
    fd = target.open(path, os.O_WRONLY)
    try:
        if os.fstat(fd).st_size < size:
            os.ftruncate(fd, size)
    finally:
        os.close(fd)


def dig_holes(original: bytes, target: Within, path: bytes, control: Control) -> None:
    """Make holes of the zeros of a file whose *original* has holes, where it has fewer.

    rsync doesn't do it while it writes in place.  A file with several names is left alone.
    """
    try:
        source = os.lstat(original)
    except OSError:
        return
    copy = target.status(path)
    if copy is None or not stat.S_ISREG(source.st_mode) or not stat.S_ISREG(copy.st_mode):
        return
    if source.st_blocks >= copy.st_blocks or copy.st_nlink > 1:
        return
    if source.st_blocks * 512 >= source.st_size:
        return
    fd = target.open(path, os.O_RDWR)
    try:
        times = os.fstat(fd)
        argv = [FALLOCATE, "--dig-holes", f"/proc/self/fd/{fd}"]
        change(
            argv,
            "Holes could not be made in a file",
            pass_fds=[fd],
            deadline=_PATIENCE,
            interrupt=control.interrupt,
        )
        os.utime(fd, ns=(times.st_atime_ns, times.st_mtime_ns))
    finally:
        os.close(fd)
