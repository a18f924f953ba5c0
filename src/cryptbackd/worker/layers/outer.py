"""The filesystem of the drive as it came from the shop, with the container in it.

Lives from the mount to the unmount, in the worker's namespace.  Its bytes are a stranger's:
its type is from a list, nothing on it is followed, executed or used as a device.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from ... import kernel
from ...errors import DriveFailed, ForgedDrive, Refused
from ...model import Device
from ...text import printable, size
from .. import superblock
from ..device import cap_dirty_pages, probe
from . import ntfs
from .mounted import Mounted, mounted, want_alone

_SAFE = "nosuid,nodev,noexec,nosymfollow,noatime"
OPTIONS = {
    "ext4": f"{_SAFE},errors=remount-ro",
    "xfs": _SAFE,
    "btrfs": _SAFE,
    "vfat": f"{_SAFE},umask=0077,errors=remount-ro",
    "exfat": f"{_SAFE},umask=0077,errors=remount-ro",
    "ntfs": f"{_SAFE},umask=0077",
    "f2fs": _SAFE,
}
"""The filesystem types that a drive may have, as libblkid calls them, with how each is mounted."""

_LOOK_ONLY = {
    "ext4": f"ro,noload,{_SAFE}",
    "xfs": f"ro,norecovery,{_SAFE}",
    "btrfs": f"ro,rescue=nologreplay,{_SAFE}",
    "vfat": f"ro,{_SAFE}",
    "exfat": f"ro,{_SAFE}",
    "ntfs": f"ro,{_SAFE}",
    "f2fs": f"ro,norecovery,{_SAFE}",
}

_DRIVERS = {"ntfs": "ntfs3"}
"""The kernel's name for a type, where that is another: never a FUSE helper of mount(8)."""

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
            raise not_a_plain_file(path)
        return fd

    def names(self, directory: str = "") -> list[str]:
        """The names in *directory* beneath the drive's root; raises OSError."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        fd = kernel.openat2(self.filesystem.fd, directory or ".", flags, _BENEATH)
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def remove(self, path: str) -> None:
        """Remove the file *path* beneath the drive's root, durably; raises OSError."""
        directory, base = os.path.split(path)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        fd = kernel.openat2(self.filesystem.fd, directory or ".", flags, _BENEATH)
        try:
            os.unlink(base, dir_fd=fd)
            os.fsync(fd)
        finally:
            os.close(fd)


def not_a_plain_file(path: str) -> ForgedDrive:
    """The error that says that *path* is something else than a container's file may be."""
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
    if fstype == "ntfs" and not look_only:
        ntfs.want_clean(device.node)
    if fstype in superblock.TYPES:
        found = superblock.read(device.node, fstype)
        # Before the kernel writes on others, and what it mounted is looked at as well.
        want_alone(found.devices, what)
        _check_length(device.node, found.length, what)
    driver = _DRIVERS.get(fstype, fstype)
    with mounted(device.node, device.devno, where, driver, options, what) as filesystem:
        if not look_only:
            cap_dirty_pages(_bdi(filesystem, device))
        yield Outer(filesystem)


def _check_length(node: str, wanted: int, what: str) -> None:
    """Raise DriveFailed where the device is too short: the kernel says only that it can't mount."""
    with open(node, "rb") as opened:
        there = kernel.device_size(opened.fileno())
    if there < wanted:
        raise DriveFailed(
            f"{what} takes {size(wanted)}, and {size(there)} of it are there.",
            "Was it copied to a smaller drive, or its partition made shorter? Then what is missing"
            " is where it came from.",
        )


def _bdi(filesystem: Mounted, device: Device) -> str:
    if filesystem.fstype == "btrfs" and device.uuid:
        link = Path("/sys/fs/btrfs", device.uuid, "bdi")
        if link.exists():
            return link.resolve().name
    status = os.stat(device.disk)
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
