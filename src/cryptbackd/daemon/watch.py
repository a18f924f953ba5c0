"""Block devices that come and go, as udev and the kernel tell.

They are listened to before the first enumeration, so that no event is lost between the two, as
long as the daemon lives.  Udev's events become arrivals (a device that shows a filesystem UUID)
and removals (a node).  Loop devices, mappings and their like are never an arrival: they are our
own doing, or nobody's plug.

That a disk was pulled the kernel says itself, up to a second before udev is through with its
rules; nothing that is unlocked waits for that.  What udev still says of the disk while it
catches up is no arrival.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import stat
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import attrs
import pyudev

from ..errors import Refused
from ..model import Device
from ..text import printable
from .uevents import Lost, Properties, Uevents

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
    """What is told by *events* (owned).  Call :meth:`listen`, then :meth:`enumerate`.

    *arrived* gets each device that comes or changes, *left* the node of one that udev removes,
    *pulled* the sequence number of a disk that the kernel removes.
    """

    def __init__(
        self,
        events: socket.socket,
        arrived: Callable[[Seen], None],
        left: Callable[[str], None],
        pulled: Callable[[int], None],
        overflowed: Callable[[], None],
    ) -> None:
        self._context = pyudev.Context()
        self._events = Uevents(events)
        self._arrived = arrived
        self._left = left
        self._pulled = pulled
        self._overflowed = overflowed
        self._gone: deque[int] = deque(maxlen=_PULLS_REMEMBERED)

    def listen(self) -> None:
        """Take in events from now on.

        Those of before would tell of what has changed since, as may have happened to a daemon
        that was started anew.
        """
        self._events.forget()
        asyncio.get_running_loop().add_reader(self._events.fileno(), self._read)

    def close(self) -> None:
        """Take in no more events."""
        asyncio.get_running_loop().remove_reader(self._events.fileno())
        self._events.close()

    def enumerate(self) -> Iterator[Seen]:
        """Every device with a filesystem UUID that is here now."""
        for device in self._context.list_devices(subsystem="block"):
            seen = _seen(device, device.properties)
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
        seen = _seen(device, device.properties)
        if seen is None:
            raise Refused(
                f"{shown} is not a drive that can be plugged in.",
                "Loop devices, mappings and RAID arrays can't be enrolled.",
            )
        return seen

    def _read(self) -> None:
        while True:
            try:
                event = self._events.next()
            except Lost:
                self._overflowed()
                continue
            if event is None:
                return
            if event.by_kernel:
                self._heard_kernel(event.properties)
            else:
                self._heard_udev(event.properties)

    def _heard_udev(self, properties: Properties) -> None:
        if properties.get("ACTION") == "remove":
            if not _is_made_up(properties):
                self._left(properties.get("DEVNAME", ""))
            return
        try:
            path = f"/sys{properties['DEVPATH']}"
            device = pyudev.Devices.from_sys_path(self._context, path)
        except (pyudev.DeviceNotFoundError, KeyError, ValueError):
            return  # it left again
        seen = _seen(device, properties)
        if seen is not None and seen.device.diskseq not in self._gone:
            self._arrived(seen)

    def _heard_kernel(self, properties: Properties) -> None:
        # A partition may go while its disk stays, and shows no number of its own.
        if properties.get("ACTION") != "remove" or properties.get("DEVTYPE") != "disk":
            return
        if _is_made_up(properties) or _NOT_PLUGGED.match(properties.get("DEVNAME", "")):
            return
        sequence = properties.get("DISKSEQ", "")
        if _SEQUENCE.fullmatch(sequence):
            self._gone.append(int(sequence))
            self._pulled(int(sequence))


def _is_made_up(properties: Properties) -> bool:
    """Whether somebody wrote the event to sysfs (Documentation/ABI/testing/sysfs-uevent).

    What is said to be removed is still there then.
    """
    return "SYNTH_UUID" in properties


def _seen(device: pyudev.Device, properties: Mapping[str, str]) -> Seen | None:
    """What udev's *device* is to us; None for what is never plugged in, or gone already."""
    if device.device_node is None or _NOT_PLUGGED.match(device.sys_name):
        return None
    disk = device
    if device.device_type == "partition":
        disk = device.find_parent("block", "disk")
    if disk is None or disk.device_node is None:
        return None
    sequence = _text(properties, "DISKSEQ") or _text(disk.properties, "DISKSEQ")
    if _SEQUENCE.fullmatch(sequence) is None:
        return None
    number = device.device_number
    words = [_text(properties, key).replace("_", " ").strip() for key in ("ID_VENDOR", "ID_MODEL")]
    return Seen(
        Device(
            node=str(device.device_node),
            major=os.major(number),
            minor=os.minor(number),
            disk=str(disk.device_node),
            diskseq=int(sequence),
            uuid=_text(properties, "ID_FS_UUID"),
            fstype=_text(properties, "ID_FS_TYPE"),
        ),
        printable(" ".join(word for word in words if word), 60),
    )


def _text(properties: Mapping[str, str], key: str) -> str:
    """What udev says under *key*; empty where it says nothing, or nothing that is text."""
    try:
        value = str(properties.get(key, ""))
        value.encode()
    except UnicodeError:
        return ""
    return value
