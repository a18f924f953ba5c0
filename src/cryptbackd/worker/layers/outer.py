"""The filesystem of the drive as it came from the shop, with the container in it.

Lives from the mount to the unmount, in the worker's namespace.  Its bytes are a stranger's:
its type is from a list, nothing on it is followed, executed or used as a device.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from ... import kernel
from ...errors import DriveFailed, ForgedDrive, Refused
from ...model import Device
from ...text import printable
from ..device import cap_dirty_pages, probe
from .mounted import Mounted, mounted

_SAFE = "nosuid,nodev,noexec,nosymfollow,noatime"
OPTIONS = {
    "ext4": f"{_SAFE},errors=remount-ro",
    "xfs": _SAFE,
    "btrfs": _SAFE,
    "vfat": f"{_SAFE},umask=0077,errors=remount-ro",
    "exfat": f"{_SAFE},umask=0077,errors=remount-ro",
}
"""The filesystem types that a drive may have, with how each is mounted."""

_LOOK_ONLY = {
    "ext4": f"ro,noload,{_SAFE}",
    "xfs": f"ro,norecovery,{_SAFE}",
    "btrfs": f"ro,rescue=nologreplay,{_SAFE}",
    "vfat": f"ro,{_SAFE}",
    "exfat": f"ro,{_SAFE}",
}

_BENEATH = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_XDEV


@attrs.frozen
class Outer:
    """The mounted outer filesystem."""

    filesystem: Mounted

    def open(self, path: str, flags: int = os.O_RDWR, mode: int = 0) -> int:
        """Open the file *path* beneath the drive's root, never out of it (openat2(2)).

        Raises OSError, and ForgedDrive unless it is a regular file with one name.
        """
        fd = kernel.openat2(
            self.filesystem.fd, path, flags | os.O_NONBLOCK | os.O_NOFOLLOW, _BENEATH, mode
        )
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            os.close(fd)
            raise _not_a_plain_file(path)
        return fd


def _not_a_plain_file(path: str) -> ForgedDrive:
    return ForgedDrive(f'"{printable(path)}" on the drive is not a regular file with one name.')


def check_filesystem(device: Device) -> str:
    """The type of the filesystem that is on *device* now; raises ForgedDrive and Refused."""
    found = probe(device.node)
    if device.uuid and found.get("UUID", "") != device.uuid:
        raise ForgedDrive(
            f"{device.node} showed the filesystem UUID {printable(device.uuid)} when it was"
            f" plugged in and shows {printable(found.get('UUID', 'none'))} now."
        )
    fstype = found.get("TYPE", "")
    if fstype not in OPTIONS:
        raise Refused(
            f"{device.node} holds {printable(fstype) or 'no filesystem'}, which can't hold a"
            " container.",
            "These can: " + ", ".join(sorted(OPTIONS)) + ".",
        )
    return fstype


@contextmanager
def outer(device: Device, where: Path, *, look_only: bool = False) -> Iterator[Outer]:
    """Mount the filesystem on *device* at *where* while the block runs."""
    fstype = check_filesystem(device)
    options = (_LOOK_ONLY if look_only else OPTIONS)[fstype]
    what = f"The {fstype} filesystem of the drive"
    with mounted(device.node, device.devno, where, fstype, options, what) as filesystem:
        if not look_only:
            cap_dirty_pages(_bdi(filesystem, device))
        yield Outer(filesystem)


def _bdi(filesystem: Mounted, device: Device) -> str:
    if filesystem.fstype == "btrfs" and device.uuid:
        link = Path("/sys/fs/btrfs", device.uuid, "bdi")
        if link.exists():
            return link.resolve().name
    status = os.stat(device.disk)
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


@contextmanager
def container(drive: Outer, path: str, flags: int = os.O_RDWR) -> Iterator[int]:
    """The opened container file *path* on the drive; raises DriveFailed when it is not there."""
    try:
        fd = drive.open(path, flags)
    except FileNotFoundError:
        raise DriveFailed(
            f'There is no container "{printable(path)}" on the drive.',
            "Was it moved or renamed? Put it back, or change `container` in the entry.",
        ) from None
    except OSError as exc:
        if exc.errno in (errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENXIO):
            raise _not_a_plain_file(path) from exc
        raise DriveFailed(
            f'The container "{printable(path)}" can\'t be opened: {exc.strerror}.'
        ) from exc
    try:
        yield fd
    finally:
        os.close(fd)
