"""The drive itself: opening it, capping its dirty pages, proving that it is free.

Nothing here outlives the ``with`` block that it is used in, except the cap, which the
kernel forgets when the drive is pulled.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from .. import kernel
from ..errors import DriveAbsent, DriveFailed, Refused
from ..model import Device
from ..run import run
from ..text import printable
from .gone import until
from .mountinfo import mount_points

BLKID = "/usr/sbin/blkid"
DIRTY_LIMIT = 32 << 20
"""Bytes that may wait in memory for one drive: what an eject has to write out at the end."""
_LETTING_GO = 2.0
"""Seconds.  When the removal of a mapping was deferred the kernel closes the device below it a
moment after the mapping is gone (drivers/md/dm.c, close_table_device), and announces nothing.
"""


@contextmanager
def opened(device: Device) -> Iterator[int]:
    """The block device, open for reading, proven to be the insertion that was announced.

    A node can be another disk's by now: the device number and the kernel's disk sequence
    are compared on the opened descriptor.  Raises DriveAbsent.
    """
    gone = DriveAbsent(f"{device.node} is not the drive any more that was plugged in.")
    try:
        fd = os.open(device.node, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise DriveAbsent(f"{device.node} can't be opened: {exc.strerror}.") from exc
    try:
        status = os.fstat(fd)
        here = os.major(status.st_rdev), os.minor(status.st_rdev)
        if not stat.S_ISBLK(status.st_mode) or here != (device.major, device.minor):
            raise gone
        if kernel.disk_sequence(fd) != device.diskseq:
            raise gone
        yield fd
    finally:
        os.close(fd)


def probe(
    node: str, among: Iterable[str] = (), *, usages: str = "filesystem,crypto"
) -> dict[str, str]:
    """What libblkid sees on *node* now, not what udev saw then (blkid(8), low-level).

    Keys such as TYPE, UUID and LABEL; empty when there is nothing, or more than one thing.
    *among*: only these types are looked for, which takes a quarter of the reads; else those with
    the *usages*.
    """
    types = ",".join(among)
    sought = ["--match-types", types] if types else ["--usages", usages]
    ended = run([BLKID, "--probe", *sought, "--output", "export", node], ok=(0, 2, 8))
    if ended.status != 0:
        return {}
    lines = ended.out.decode("utf-8", "replace").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def is_write_protected(device: Device) -> bool:
    """Whether the kernel lets nobody write to it: a switch on the drive, or blockdev(8)."""
    return Path("/sys/dev/block", device.devno, "ro").read_text().strip() != "0"


def want_writable(device: Device) -> None:
    """Raise Refused where it is write-protected."""
    if is_write_protected(device):
        raise Refused(
            f"The drive is write-protected: {device.node} can only be read.",
            "Is there a switch for it on the stick or card? What is on the drive can be restored,"
            " browsed and verified as it is.",
        )


def cap_dirty_pages(bdi: str) -> None:
    """Keep at most ``DIRTY_LIMIT`` bytes waiting for the backing device *bdi*.

    *bdi* is its name below /sys/class/bdi (sysfs-class-bdi, Linux 6.2).  A kernel without
    it only makes the wait at the end longer.
    """
    directory = Path("/sys/class/bdi") / bdi
    with suppress(OSError):
        (directory / "strict_limit").write_text("1")
        (directory / "max_bytes").write_text(str(DIRTY_LIMIT))


def flush(fd: int, node: str) -> None:
    """Have the drive write out its own cache (fsync(2) on a block device).

    Raises DriveFailed.
    """
    try:
        os.fsync(fd)
    except OSError as exc:
        raise DriveFailed(f"{node} could not write out its cache: {exc.strerror}.") from exc


def nodes_of_disk(disk: str) -> list[str]:
    """The nodes of the disk's partitions, and its own.

    Its own is the last: a partition in use claims it too, and knows by whom.
    """
    name = Path(disk).name
    parts = sorted(
        entry.name
        for entry in Path("/sys/class/block", name).iterdir()
        if (entry / "partition").exists()
    )
    return [*(f"/dev/{part}" for part in parts), disk]


def prove_free(disk: str) -> None:
    """Nobody, in any namespace, has the disk or a partition of it mounted or mapped.

    An exclusive open of a block device (O_EXCL without O_CREAT, open(2)) fails with EBUSY
    while anything has claimed it.  Raises DriveFailed, naming who if it can be told.
    """
    for node in nodes_of_disk(disk):
        try:
            free = until(partial(_is_free, node), _LETTING_GO)
        except OSError as exc:
            raise DriveFailed(f"{node} can't be opened any more: {exc.strerror}.") from exc
        if not free:
            raise DriveFailed(
                f"{node} is still in use: {_users(node)}.",
                "The backup is locked, but don't unplug the drive before that is closed.",
            )


def _is_free(node: str) -> bool:
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_CLOEXEC | os.O_EXCL))
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            return False
        raise
    return True


def _users(node: str) -> str:
    status = os.stat(node)
    devno = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    where = mount_points(devno)
    if where:
        return "it is mounted at " + ", ".join(printable(path) for path in where)
    holders = [entry.name for entry in Path("/sys/dev/block", devno, "holders").iterdir()]
    if holders:
        return "it is held by " + ", ".join(sorted(holders))
    return "another program has it mounted out of our sight, or opened it for itself"


def power_off(disk: str) -> None:
    """Power the drive down: the kernel spins it down, and its USB port lets go of it.

    Writes ``remove`` of the USB device above the disk (sysfs-bus-usb).  Raises DriveFailed
    when there is none or it can't be done.
    """
    here = Path("/sys/class/block", Path(disk).name).resolve()
    for directory in here.parents:
        if (directory / "idVendor").exists() and (directory / "remove").exists():
            try:
                (directory / "remove").write_text("1")
            except OSError as exc:
                raise DriveFailed(f"{disk} could not be powered off: {exc.strerror}.") from exc
            return
    raise DriveFailed(f"{disk} can't be powered off: it is no USB device.")
