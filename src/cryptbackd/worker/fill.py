"""Giving a container its place on the drive: every byte of it there, and valid, to the end.

What is made here is a longer file; whoever began that undoes it.
"""

from __future__ import annotations

import fcntl
import os
import struct

from .control import Control, Meter

_ZEROED_LATER = ("exfat", "vfat")
"""Outer filesystems that allocate now and zero later, or can't allocate without zeroing."""
_STEP = 8 << 20
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_NOCOW_FL = 0x00800000


def no_copy_on_write(fd: int) -> None:
    """Copy on write below copy on write scatters the container over the drive: without it here.

    For a file on btrfs that is still empty.
    """
    flags = struct.unpack("=l", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8))[:8])[0]
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("=l", flags | _FS_NOCOW_FL))


def fill(
    fd: int, start: int, end: int, fstype: str, control: Control, *, random: bool = False
) -> None:
    """Have the file *fd* on a *fstype* go to *end* bytes; up to *start* it is valid already.

    With *random* bytes, where nothing is to show what is used.  Raises OSError and Cancelled,
    in the middle of it.
    """
    meter = Meter(control, end - start)
    zeros = bytes(_STEP)
    for offset in range(start, end, _STEP):
        control.check()
        part = min(_STEP, end - offset)
        if random or fstype in _ZEROED_LATER:
            _write(fd, os.urandom(part) if random else zeros[:part], offset)
            os.fdatasync(fd)
        else:
            os.posix_fallocate(fd, offset, part)
        meter.at(offset + part - start)
    os.fsync(fd)


def _write(fd: int, data: bytes, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done
