"""A mounted filesystem: what the outer and the inner one have in common.

Lives in the worker's mount namespace from ``mount`` to ``umount`` (never lazy).  Before the
unmount it is made sure that every write reached the layer below: a descriptor opened before
the first write sees the first write-back error (syncfs(2)), and a filesystem that turned
read-only after an error is found out.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from ... import kernel
from ...errors import DriveFailed, ForgedDrive, ToolFailed
from ...run import run
from ...text import printable
from ..mountinfo import mount_points

MOUNT = "/usr/bin/mount"
UMOUNT = "/usr/bin/umount"
_PROBE = ".cryptback-probe"


@attrs.frozen
class Mounted:
    """Where a filesystem is, and a descriptor of its root."""

    path: Path
    fd: int
    fstype: str
    what: str
    beneath: tuple[int, ...] = ()
    """Descriptors of the container's files that it lies in, where it does in any."""

    def free(self) -> int:
        """Bytes that can still be written, roughly (statvfs(3))."""
        status = os.fstatvfs(self.fd)
        return status.f_bavail * status.f_frsize

    def sync(self) -> None:
        """Write everything out; raises DriveFailed if anything was lost since the mount."""
        try:
            kernel.syncfs(self.fd)
        except OSError as exc:
            raise _lost(
                f"{self.what} could not write everything out: {exc.strerror}.",
                "What was written in this run can't be trusted.",
            ) from exc
        if os.fstatvfs(self.fd).f_flag & os.ST_RDONLY:
            raise _lost(
                f"{self.what} turned read-only in the middle, as after an error.",
                "Look at the kernel's messages (journalctl -k) and check the drive.",
            )

    def prove_writable(self) -> None:
        """Write and read back a last small file, past the cache; raises DriveFailed."""
        try:
            fd = os.open(
                _PROBE, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self.fd
            )
            try:
                os.write(fd, os.urandom(4096))
                os.fsync(fd)
            finally:
                os.close(fd)
            os.unlink(_PROBE, dir_fd=self.fd)
        except OSError as exc:
            # Full is not broken: what stands there was still written.
            if exc.errno != errno.ENOSPC:
                raise _lost(f"{self.what} did not take a last small file: {exc.strerror}.") from exc


def _lost(sentence: str, hint: str = "") -> DriveFailed:
    error = DriveFailed(sentence, hint)
    error.lost_writes = True
    return error


@contextmanager
def mounted(
    node: str, devno: str, where: Path, fstype: str, options: str, what: str, hint: str = ""
) -> Iterator[Mounted]:
    """Mount *node*, known to be the device *devno*, at *where* while the block runs.

    *what* names the filesystem in sentences, *hint* says what to do where it can't be mounted.
    Raises DriveFailed then, and when leaving can't be proven, and ForgedDrive when something else
    turns out to be mounted there.
    """
    where.mkdir(mode=0o700)
    try:
        what_and_where = ["--source", node, "--target", str(where)]
        run([MOUNT, "--types", fstype, "--options", options, *what_and_where], deadline=120)
    except ToolFailed as exc:
        raise DriveFailed(f"{what} can't be mounted: {exc.sentence}", hint) from exc
    read_only = "ro" in options.split(",")
    try:
        fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if str(where) not in mount_points(devno):
                raise ForgedDrive(f"{what} is not what the kernel mounted for {printable(node)}.")
            if fstype == "btrfs":
                want_alone(kernel.btrfs_devices(fd), what)
            if not read_only and os.fstatvfs(fd).f_flag & os.ST_RDONLY:
                raise DriveFailed(
                    f"{what} can only be read.",
                    "Is there a write-protect switch, or an error in the kernel's messages?",
                )
            filesystem = Mounted(where, fd, fstype, what)
            try:
                yield filesystem
            finally:
                if not read_only:
                    filesystem.sync()
        finally:
            os.close(fd)
    finally:
        _unmount(where, what)


def want_alone(devices: int, what: str) -> None:
    """Raise ForgedDrive unless a btrfs lies on one device: all of it is to be on this drive."""
    if devices != 1:
        raise ForgedDrive(
            f"{what} spans {devices} devices, and would be written on all of them.",
            "Use a drive whose filesystem is on it alone.",
        )


def _unmount(where: Path, what: str) -> None:
    try:
        run([UMOUNT, str(where)], deadline=600)
    except ToolFailed as exc:
        raise DriveFailed(f"{what} can't be unmounted: {exc.sentence}") from exc
    where.rmdir()
