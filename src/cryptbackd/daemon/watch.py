"""Block devices that come and go, as udev tells.

The monitor listens before the first enumeration, so that no event is lost between the two; it
lives as long as the daemon.  Its events become arrivals (a device that shows a filesystem
UUID) and removals (a node).  Loop devices, mappings and their like are never an arrival: they
are our own doing, or nobody's plug.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator

import attrs
import pyudev

from ..errors import Refused
from ..model import Device
from ..text import printable

_NOT_PLUGGED = re.compile(r"(dm-|loop|md|nbd|ram|zram)\d")
_SEQUENCE = re.compile(r"[0-9]{1,18}")


@attrs.frozen
class Seen:
    """A block device and what its maker calls it."""

    device: Device
    label: str = ""


class Watch:
    """The udev monitor.  Call :meth:`listen`, then :meth:`enumerate`."""

    def __init__(
        self,
        arrived: Callable[[Seen], None],
        left: Callable[[str], None],
        overflowed: Callable[[], None],
    ) -> None:
        self._context = pyudev.Context()
        self._monitor = pyudev.Monitor.from_netlink(self._context, source="udev")
        self._monitor.filter_by("block")
        self._arrived = arrived
        self._left = left
        self._overflowed = overflowed

    def listen(self) -> None:
        """Take in events from now on."""
        self._monitor.start()
        asyncio.get_running_loop().add_reader(self._monitor.fileno(), self._read)

    def close(self) -> None:
        """Take in no more events."""
        asyncio.get_running_loop().remove_reader(self._monitor.fileno())

    def enumerate(self) -> Iterator[Seen]:
        """Every device with a filesystem UUID that is here now."""
        for device in self._context.list_devices(subsystem="block"):
            seen = _seen(device)
            if seen is not None and seen.device.uuid:
                yield seen

    def resolve(self, path: str) -> Seen:
        """The block device that *path* leads to; raises Refused when it is none of use."""
        shown = printable(path, 100)
        node = os.path.realpath(path)
        try:
            status = os.stat(node)
        except (OSError, ValueError) as exc:
            raise Refused(
                f"There is no device {shown}.", "`lsblk -f` lists the devices that are here."
            ) from exc
        if not stat.S_ISBLK(status.st_mode):
            raise Refused(
                f"{shown} is not a block device.", "Name a partition, for instance /dev/sda1."
            )
        try:
            device = pyudev.Devices.from_device_number(self._context, "block", status.st_rdev)
        except pyudev.DeviceNotFoundError as exc:
            raise Refused(f"{shown} is not known to udev.") from exc
        seen = _seen(device)
        if seen is None:
            raise Refused(
                f"{shown} is not a drive that can be plugged in.",
                "Loop devices, mappings and RAID arrays can't be enrolled.",
            )
        return seen

    def _read(self) -> None:
        while True:
            try:
                device = self._monitor.poll(timeout=0)
            except OSError as exc:
                # pyudev raises on POLLERR without a number and leaves the error in place.
                number = exc.errno or self._socket_error()
                if number not in (0, errno.ENOBUFS):
                    raise OSError(number, os.strerror(number)) from exc
                self._overflowed()
                continue
            if device is None:
                return
            if device.action == "remove":
                self._left(str(device.device_node))
            else:
                seen = _seen(device)
                if seen is not None:
                    self._arrived(seen)

    def _socket_error(self) -> int:
        """The error that waits on the monitor's socket, which reading it clears."""
        with socket.socket(fileno=os.dup(self._monitor.fileno())) as sock:
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _seen(device: pyudev.Device) -> Seen | None:
    """What udev's *device* is to us; None for what is never plugged in, or gone already."""
    if device.device_node is None or _NOT_PLUGGED.match(device.sys_name):
        return None
    disk = device
    if device.device_type == "partition":
        disk = device.find_parent("block", "disk")
    if disk is None or disk.device_node is None:
        return None
    sequence = _property(device, "DISKSEQ") or _property(disk, "DISKSEQ")
    if _SEQUENCE.fullmatch(sequence) is None:
        return None
    number = device.device_number
    words = [_property(device, key).replace("_", " ").strip() for key in ("ID_VENDOR", "ID_MODEL")]
    return Seen(
        Device(
            node=str(device.device_node),
            major=os.major(number),
            minor=os.minor(number),
            disk=str(disk.device_node),
            diskseq=int(sequence),
            uuid=_property(device, "ID_FS_UUID"),
            fstype=_property(device, "ID_FS_TYPE"),
        ),
        printable(" ".join(word for word in words if word), 60),
    )


def _property(device: pyudev.Device, key: str) -> str:
    """What udev says of *device*; empty where it says nothing, or nothing that is text."""
    try:
        return str(device.properties.get(key, ""))
    except UnicodeDecodeError:
        return ""
