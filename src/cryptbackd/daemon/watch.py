"""Block devices that come and go, as udev tells.

The monitor listens before the first enumeration, so that no event is lost between the two; it
lives as long as the daemon.  Its events become arrivals (a device that shows a filesystem
UUID) and removals (a node).  Loop devices, mappings and their like are never an arrival: they
are our own doing, or nobody's plug.

That a disk was pulled the kernel says itself, up to a second before udev is through with its
rules; nothing that is unlocked waits for that.  What udev still says of the disk while it
catches up is no arrival.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import stat
from collections import deque
from collections.abc import Callable, Iterator

import attrs
import pyudev

from ..errors import Refused
from ..model import Device
from ..text import printable

_NOT_PLUGGED = re.compile(r"(dm-|loop|md|nbd|ram|zram)\d")
_SEQUENCE = re.compile(r"[0-9]{1,18}")
_PULLS_REMEMBERED = 64
"""udev is never that many disks behind the kernel."""


@attrs.frozen
class Seen:
    """A block device and what its maker calls it."""

    device: Device
    label: str = ""


class Watch:
    """The udev monitor, and the kernel's.  Call :meth:`listen`, then :meth:`enumerate`.

    *arrived* gets each device that comes or changes, *left* the node of one that udev removes,
    *pulled* the sequence number of a disk that the kernel removes.
    """

    def __init__(
        self,
        arrived: Callable[[Seen], None],
        left: Callable[[str], None],
        pulled: Callable[[int], None],
        overflowed: Callable[[], None],
    ) -> None:
        self._context = pyudev.Context()
        self._udev = pyudev.Monitor.from_netlink(self._context, source="udev")
        self._kernel = pyudev.Monitor.from_netlink(self._context, source="kernel")
        self._arrived = arrived
        self._left = left
        self._pulled = pulled
        self._overflowed = overflowed
        self._gone: deque[int] = deque(maxlen=_PULLS_REMEMBERED)

    def listen(self) -> None:
        """Take in events from now on."""
        loop = asyncio.get_running_loop()
        for monitor, heard in ((self._udev, self._heard_udev), (self._kernel, self._heard_kernel)):
            monitor.filter_by("block")
            monitor.start()
            loop.add_reader(monitor.fileno(), self._read, monitor, heard)

    def close(self) -> None:
        """Take in no more events."""
        for monitor in (self._udev, self._kernel):
            asyncio.get_running_loop().remove_reader(monitor.fileno())

    def enumerate(self) -> Iterator[Seen]:
        """Every device with a filesystem UUID that is here now."""
        for device in self._context.list_devices(subsystem="block"):
            seen = _seen(device)
            if seen is not None and seen.device.uuid and seen.device.diskseq not in self._gone:
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

    def _heard_udev(self, device: pyudev.Device) -> None:
        if device.action == "remove":
            self._left(str(device.device_node))
            return
        seen = _seen(device)
        if seen is not None and seen.device.diskseq not in self._gone:
            self._arrived(seen)

    def _heard_kernel(self, device: pyudev.Device) -> None:
        # A partition may go while its disk stays, and shows no number of its own.
        if device.action != "remove" or device.device_type != "disk":
            return
        # It is still here if somebody wrote that to sysfs (Documentation/ABI/testing/sysfs-uevent).
        if _property(device, "SYNTH_UUID"):
            return
        sequence = _property(device, "DISKSEQ")
        if _SEQUENCE.fullmatch(sequence) and not _NOT_PLUGGED.match(device.sys_name):
            self._gone.append(int(sequence))
            self._pulled(int(sequence))

    def _read(self, monitor: pyudev.Monitor, heard: Callable[[pyudev.Device], None]) -> None:
        while True:
            try:
                device = monitor.poll(timeout=0)
            except OSError as exc:
                # pyudev raises on POLLERR without a number and leaves the error in place.
                number = exc.errno or _socket_error(monitor)
                if number not in (0, errno.ENOBUFS):
                    raise OSError(number, os.strerror(number)) from exc
                self._overflowed()
                continue
            if device is None:
                return
            heard(device)


def _socket_error(monitor: pyudev.Monitor) -> int:
    """The error that waits on the monitor's socket, which reading it clears."""
    with socket.socket(fileno=os.dup(monitor.fileno())) as sock:
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
