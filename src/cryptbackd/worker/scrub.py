"""A scrub of btrfs: the kernel reads every block in use, and checks it by its checksum.

It is asked for one device extent after the other (BTRFS_IOC_SCRUB, linux/btrfs.h), at most a
gigabyte or so at a time: a scrub that was begun can't be interrupted by a signal, and in
between the job can be stopped, and a killed worker ends.  Nothing is repaired, as the scrub is
a read-only one.  Nothing outlives a call.
"""

from __future__ import annotations

import errno
import fcntl
import struct

import attrs

from ..errors import DriveFailed
from .control import Control, Meter
from .layers.mounted import Mounted

_IOC_SCRUB = 0xC400941B
_IOC_TREE_SEARCH = 0xD0009411
_READONLY = 1
_DEV_TREE = 4
_DEV_EXTENT_KEY = 204
_ARGUMENTS = struct.Struct("=QQQQ15Q")
_SCRUB_SIZE = 1024
_KEY = struct.Struct("=QQQQQQQIII4x32x")
_HEADER = struct.Struct("=QQQII")
_DEV_EXTENT = struct.Struct("=QQQQ16s")
_SEARCH_SIZE = 4096
_END = (1 << 64) - 1


@attrs.define
class Scrubbed:
    """What a scrub found."""

    size: int = 0
    """Bytes that were read."""
    unreadable: int = 0
    wrong: int = 0
    """Blocks with another checksum, or of metadata that make no sense."""
    superblocks: int = 0
    uncorrectable: int = 0
    """Of all these, those of which there is no other copy that is good."""

    @property
    def errors(self) -> int:
        """All that is wrong."""
        return self.unreadable + self.wrong + self.superblocks


def scrub(tree: Mounted, control: Control) -> Scrubbed:
    """Scrub the btrfs *tree*; raises DriveFailed and Cancelled."""
    found = Scrubbed()
    try:
        extents = _extents(tree.fd)
        meter = Meter(control, sum(length for _device, _start, length in extents))
        done = 0
        for device, start, length in extents:
            control.check()
            _scrub(tree.fd, device, start, start + length, found)
            done += length
            meter.at(done)
    except OSError as exc:
        raise DriveFailed(f"{tree.what} could not be scrubbed: {exc.strerror}.") from exc
    return found


def _scrub(fd: int, device: int, start: int, end: int, found: Scrubbed) -> None:
    arguments = bytearray(_SCRUB_SIZE)
    _ARGUMENTS.pack_into(arguments, 0, device, start, end, _READONLY, *[0] * 15)
    fcntl.ioctl(fd, _IOC_SCRUB, arguments, True)
    told = _ARGUMENTS.unpack_from(arguments)[4:]
    found.size += told[2] + told[3]
    found.unreadable += told[4]
    found.wrong += told[5] + told[6]
    found.superblocks = max(found.superblocks, told[9])  # each call looks at all of them
    found.uncorrectable += told[11]


def _extents(fd: int) -> list[tuple[int, int, int]]:
    """Device, start and length of each extent that is in use (BTRFS_IOC_TREE_SEARCH)."""
    found: list[tuple[int, int, int]] = []
    device, offset = 1, 0
    while True:
        arguments = bytearray(_SEARCH_SIZE)
        kinds = (_DEV_EXTENT_KEY, _DEV_EXTENT_KEY)
        _KEY.pack_into(
            arguments, 0, _DEV_TREE, device, _END, offset, _END, 0, _END, *kinds, 1 << 12
        )
        try:
            fcntl.ioctl(fd, _IOC_TREE_SEARCH, arguments, True)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                return found
            raise
        number = _KEY.unpack_from(arguments)[-1]
        if number == 0:
            return found
        at = _KEY.size
        for _ in range(number):
            _transaction, device, offset, key, length = _HEADER.unpack_from(arguments, at)
            at += _HEADER.size
            if key == _DEV_EXTENT_KEY:
                found.append((device, offset, _DEV_EXTENT.unpack_from(arguments, at)[3]))
            at += length
        offset += 1
