"""Where an ext4 has the directories of its newest version, so that they are read at one go.

A version on ext4 is linked against the one before, whose directories are all looked up, each by
a request of its own; yet they mostly lie side by side.  So the computer notes where, once a
version is made, and has the kernel read these blocks ahead the next time.  It is a hint and no
more: what is not there, or another's by now, costs nothing but the reading.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress

from ... import catalogue, foreign, paths
from ...errors import CryptbackError
from ...run import run
from ..control import Control
from .record import Version

FIND = "/usr/bin/find"
_FILE = ".directories"
_FS_IOC_FIEMAP = 0xC020660B
_HEAD = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQ")
_EXTENT_SIZE = 56
_MOST_EXTENTS = 16
_GAP = 64 << 10
"""Bytes between two directories that are rather read than left out."""
_MOST = 64 << 20
"""Bytes that are read ahead: they have to stay in memory until they are wanted."""
_STEP = 1 << 20


def note(name: str, version: Version, fstype: str, control: Control) -> None:
    """Note where the directories of the newest *version* of the entry *name* lie, if on ext4."""
    if fstype != "ext4":
        return
    with suppress(OSError, CryptbackError):
        argv = [FIND, str(version.path), "-type", "d", "-print0"]
        found = run(argv, deadline=3600, interrupt=control.interrupt).out
        extents = (extent for path in found[:-1].split(b"\0") for extent in _extents(path))
        told = {"nonce": version.record["nonce"], "ranges": list(merged(extents))}
        file = catalogue.make(name) / _FILE
        fresh = file.with_name(f"{_FILE}.new")
        fresh.write_text(json.dumps(told))
        fresh.rename(file)


def read_ahead(name: str, last: Version) -> None:
    """Have the kernel read the directories of the version *last*, if it is known where they are."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        told = foreign.loads((paths.catalogue(name) / _FILE).read_bytes())
        if told["nonce"] != last.record["nonce"]:
            return
        fd = os.open(f"/dev/mapper/{paths.mapping(name)}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            left = _MOST
            for start, end in told["ranges"]:
                for at in range(start, min(end, start + left), _STEP):
                    size = min(_STEP, end - at)
                    os.posix_fadvise(fd, at, size, os.POSIX_FADV_WILLNEED)
                left -= end - start
                if left <= 0:
                    break
        finally:
            os.close(fd)


def _extents(directory: bytes) -> Iterator[tuple[int, int]]:
    """Where a directory lies on its device: from and to (Documentation/filesystems/fiemap)."""
    asked = bytearray(_HEAD.size + _MOST_EXTENTS * _EXTENT_SIZE)
    _HEAD.pack_into(asked, 0, 0, 2**64 - 1, 0, 0, _MOST_EXTENTS, 0)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, asked)
    finally:
        os.close(fd)
    for number in range(_HEAD.unpack_from(asked)[3]):
        _logical, start, size = _EXTENT.unpack_from(asked, _HEAD.size + number * _EXTENT_SIZE)
        yield start, start + size


def merged(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The ranges in order, those that lie close together as one."""
    current: tuple[int, int] | None = None
    for start, end in sorted(ranges):
        if current is not None and start <= current[1] + _GAP:
            current = (current[0], max(current[1], end))
        else:
            if current is not None:
                yield current
            current = (start, end)
    if current is not None:
        yield current
