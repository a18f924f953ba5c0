"""Large files that are written in place, so that a version of them costs what has changed.

On btrfs alone: elsewhere a version's files are links, which must not be written to.
"""

from __future__ import annotations

import mmap
import os
import re
import stat
from pathlib import Path

from ..changing import change
from ..control import Control
from .within import Within

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
