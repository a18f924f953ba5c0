"""The container's files as block devices.

A loop device is born with ``LO_FLAGS_AUTOCLEAR``: the kernel unbinds it when its last user
closes it, so from the first moment on it can't outlive us.  Until dm-crypt has it, our
descriptor is that user (loop(4), LOOP_CONFIGURE: Linux 5.8).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from ...errors import DriveFailed, ForgedDrive
from ..gone import until

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_SET_CAPACITY = 0x4C07
_LO_FLAGS_AUTOCLEAR = 4
_LO_FLAGS_DIRECT_IO = 16
_INFO = struct.Struct("=QQQQQIIII64s64s32s2Q")
_CONFIG_HEAD = struct.Struct("=II")
_CONFIG_TAIL = bytes(64)
_BLOCK_SIZE = 4096
_TRIES = 64
"""How often somebody else may take the free loop device before us."""
_WHO_HAS_THEM = "`losetup --all` lists those that are in use."


@attrs.define
class Loop:
    """A bound loop device; ``direct_io`` is read back, not assumed."""

    node: str
    fd: int
    direct_io: bool

    def hand_over(self) -> None:
        """Something else holds the device open now: let go, so that it goes with that."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def take_in(self) -> None:
        """The file has another length: have the device show it (loop(4), LOOP_SET_CAPACITY)."""
        fd = os.open(self.node, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _LOOP_SET_CAPACITY, 0)
        finally:
            os.close(fd)


@contextmanager
def loops(files: Sequence[int]) -> Iterator[list[Loop]]:
    """Bind a loop device to each of the container's opened *files* while the block runs.

    Raises DriveFailed when one can't be had, or is still bound afterwards.
    """
    devices: list[Loop] = []
    try:
        for file in files:
            devices.append(bind(file))  # noqa: PERF401 - those before a failure count
        yield devices
    finally:
        for device in devices:
            device.hand_over()
        for device in devices:
            backing = Path("/sys/class/block", Path(device.node).name, "loop/backing_file")
            if not until(lambda: not backing.exists(), 10):  # noqa: B023
                raise DriveFailed(
                    f"{device.node} is still bound to the container.",
                    "Something else opened it; `lsof` may tell.",
                )


@contextmanager
def loop(file: int) -> Iterator[Loop]:
    """Bind a loop device to one *file*; see :func:`loops`."""
    with loops([file]) as (device,):
        yield device


def bind(file: int) -> Loop:
    """A loop device for one *file*; whoever gets it sees to it that it goes."""
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise DriveFailed(
            f"The kernel has no loop devices: {exc.strerror}.",
            "`modprobe loop` tells why. After an update of the kernel, restart the computer.",
        ) from exc
    try:
        for _ in range(_TRIES):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            node = f"/dev/loop{number}"
            fd = os.open(node, os.O_RDWR | os.O_CLOEXEC)
            try:
                _configure(fd, file)
                _check_backing(fd, file)
                return Loop(node, fd, _flags(fd) & _LO_FLAGS_DIRECT_IO != 0)
            except OSError as exc:
                os.close(fd)
                if exc.errno != errno.EBUSY:
                    raise DriveFailed(
                        f"No loop device could be bound to the container: {exc.strerror}."
                    ) from exc
            except BaseException:
                os.close(fd)
                raise
    except OSError as exc:
        raise DriveFailed(f"No loop device is to be had: {exc.strerror}.", _WHO_HAS_THEM) from exc
    finally:
        os.close(control)
    raise DriveFailed("No loop device is to be had: others took each one first.", _WHO_HAS_THEM)


def _configure(fd: int, file: int) -> None:
    name = b"cryptbackd"
    flags = _LO_FLAGS_AUTOCLEAR | _LO_FLAGS_DIRECT_IO
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
    config = bytearray(_CONFIG_HEAD.pack(file, _BLOCK_SIZE) + info + _CONFIG_TAIL)
    fcntl.ioctl(fd, _LOOP_CONFIGURE, config)


def _status(fd: int) -> tuple[int, int, int]:
    fields = _INFO.unpack(fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_INFO.size)))
    return fields[0], fields[1], fields[8]


def _flags(fd: int) -> int:
    return _status(fd)[2]


def _check_backing(fd: int, file: int) -> None:
    device, inode, _flags = _status(fd)
    status = os.fstat(file)
    if (device, inode) != (_huge_encode(status.st_dev), status.st_ino):
        raise ForgedDrive("The loop device is bound to another file than the container.")


def _huge_encode(dev: int) -> int:
    """A device number as the kernel writes it in ``lo_device`` (linux/kdev_t.h)."""
    major, minor = os.major(dev), os.minor(dev)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
