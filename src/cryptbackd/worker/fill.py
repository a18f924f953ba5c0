"""Giving a container its place on the drive: every byte of it there, and valid, to the end.

What is made here is a longer file; whoever began that undoes it.
"""

from __future__ import annotations

import fcntl
import os
import struct

from .. import kernel
from .control import Control, Meter

NTFS = "ntfs3"
ZEROED_LATER = ("exfat", "vfat", NTFS)
"""Outer filesystems that allocate now and zero later, or can't allocate without zeroing."""
STEP = 8 << 20
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_NOCOW_FL = 0x00800000
_FLAGS = struct.Struct("=i4x")
"""A long by the ioctl's number, of which the kernel uses an int (ioctl_iflags(2))."""


def no_copy_on_write(fd: int) -> None:
    """Copy on write below copy on write scatters the container over the drive: without it here.

    For a file on btrfs that is still empty.
    """
    (flags,) = _FLAGS.unpack(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(_FLAGS.size)))
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, _FLAGS.pack(flags | _FS_NOCOW_FL))


def fill(
    fd: int,
    start: int,
    end: int,
    fstype: str,
    control: Control,
    *,
    random: bool = False,
    meter: Meter | None = None,
    done: int = 0,
) -> None:
    """Have the file *fd* on a *fstype* go to *end* bytes; up to *start* it is valid already.

    With *random* bytes, where nothing is to show what is used.  It is a part of what *meter*
    tells of, if that is given, of which *done* bytes were made before.  Raises OSError and
    Cancelled, in the middle of it.
    """
    meter = meter or Meter(control, end - start)
    zeros = bytes(STEP)
    for offset in range(start, end, STEP):
        control.check()
        part = min(STEP, end - offset)
        if fstype == NTFS:
            _lengthen(fd, offset + part)
        if random or fstype in ZEROED_LATER:
            _write(fd, os.urandom(part) if random else zeros[:part], offset)
            os.fdatasync(fd)
        else:
            os.posix_fallocate(fd, offset, part)
        meter.at(done + offset + part - start)
    os.fsync(fd)


def _lengthen(fd: int, length: int) -> None:
    """While a file gets longer an NTFS is marked as dirty, until all is written out (ntfs3,
    ntfs_set_state): not while the long writing goes on, or a drive that is pulled in it is refused.
    """
    if os.fstat(fd).st_size < length:
        os.ftruncate(fd, length)
    kernel.syncfs(fd)


def _write(fd: int, data: bytes, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done
