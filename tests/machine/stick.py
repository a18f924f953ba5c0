"""A USB stick: an image file that can be plugged into a machine and pulled out again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.machine.machine import Machine

START = 1 << 20
"""Where the one partition of a partitioned stick begins (and as much is free behind it)."""

MAKE = {
    "vfat": ["mkfs.vfat", "-F", "32"],
    "exfat": ["mkfs.exfat"],
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q"],
    "btrfs": ["mkfs.btrfs", "-q"],
    "f2fs": ["mkfs.f2fs", "-q", "-f"],
    "ntfs": ["mkntfs", "-Q", "-F", "-q", "-p", "0", "-H", "0", "-S", "0"],
}
LABEL = {"vfat": "-n", "f2fs": "-l"}
UUID = {"vfat": "-i", "ext4": "-U", "btrfs": "-U"}
TYPE = {"vfat": "c", "exfat": "7", "ntfs": "7"}

WAIT_FOR_DISK = r"""
disk=/dev/disk/by-id/usb-QEMU_QEMU_HARDDISK_$1-0:0
udevadm wait --timeout=40 "$disk" "$disk$2" && readlink --canonicalize "$disk"
"""


@dataclass(frozen=True)
class Fault:
    """An I/O error of the stick: which requests fail, and how."""

    iotype: str = "write"
    """read, write, write-zeroes, discard, flush."""
    errno: int = 5
    sector: int | None = None
    """Only requests that touch this sector (of 512 bytes)."""
    once: bool = False

    def rule(self) -> dict[str, Any]:
        rule: dict[str, Any] = {
            "event": "none",
            "iotype": self.iotype,
            "errno": self.errno,
            "once": self.once,
        }
        return rule if self.sector is None else {**rule, "sector": self.sector}


class Stick:
    """A stick of a machine. `path` is its image: change that at will while it isn't plugged in."""

    def __init__(self, vm: Machine, name: str, path: Path) -> None:
        self.vm = vm
        self.name = name
        self.path = path
        self.device: str | None = None
        """The whole disk's device in the guest (`/dev/sda`), while it is plugged in."""
        self.plugged = False

    @property
    def partition(self) -> str:
        """The device in the guest that holds the file system."""
        assert self.device, f"stick {self.name} is not plugged in"
        return f"{self.device}1" if self._offset() else self.device

    @property
    def start(self) -> int:
        """Where its file system begins, in bytes."""
        return self._offset()

    @property
    def uuid(self) -> str:
        """The file system's UUID, as blkid on this computer reads it from the image."""
        command = [
            "blkid",
            "-p",
            "-O",
            str(self._offset()),
            "-o",
            "value",
            "-s",
            "UUID",
            str(self.path),
        ]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=_path()
        ).stdout.strip()

    def plug(
        self,
        *,
        read_only: bool = False,
        bps: int = 0,
        sparse: bool = False,
        faults: tuple[Fault, ...] = (),
        bridge: Path | None = None,
        strings: dict[str, Any] | None = None,
        wait: bool = True,
    ) -> str | None:
        """Plug it in, and wait until udev in the guest has seen to it. Returns the disk's device.

        `bps` limits its speed in bytes a second (0: as fast as it goes). `sparse`: zeros that are
        written take no room in the image. `bridge`: what it holds is served by an NBD server at
        this socket, which is told of every flush, instead of coming from the image. `strings`: what
        it says of itself (vendor and product, of 8 and 16 bytes); it must not be waited for then.
        """
        assert not self.plugged, f"stick {self.name} is plugged in already"
        call = self.vm.monitor.call
        call(
            "object-add",
            qom_type="throttle-group",
            id=f"{self.name}-group",
            limits={"bps-total": bps},
        )
        file: dict[str, Any] = {"driver": "file", "filename": str(self.path), "discard": "unmap"}
        if bridge:
            file = {"driver": "nbd", "server": {"type": "unix", "path": str(bridge)}}
        if sparse:
            file["detect-zeroes"] = "unmap"
        call(
            "blockdev-add",
            node_name=f"{self.name}-file",
            read_only=read_only,
            cache={"no-flush": bridge is None},
            **file,
        )
        call("blockdev-add", **self._faulty(faults), read_only=read_only)
        call("blockdev-add", **self._top(), read_only=read_only)
        self.plugged = True
        plug: dict[str, Any] = {"id": self.name, "serial": self.name, "bus": "xhci.0"}
        disk: dict[str, Any] = {
            "drive": self.name,
            "removable": True,
            "rerror": "report",
            "werror": "report",
        }
        if strings:
            call("device_add", driver="usb-bot", **plug)
            call("device_add", driver="scsi-hd", bus=f"{self.name}.0", **disk, **strings)
            call(
                "qom-set", path=f"/machine/peripheral/{self.name}", property="attached", value=True
            )
        else:
            call("device_add", driver="usb-storage", **plug, **disk)
        if wait:
            part = "-part1" if self._offset() else ""
            script = ["/bin/sh", "-c", WAIT_FOR_DISK, "sh", self.name, part]
            self.device = self.vm.run(script).out.strip()
        return self.device

    def pull(self, *, wait: bool = True) -> None:
        """Pull it out, whatever is going on; waits until the guest has noticed."""
        assert self.plugged, f"stick {self.name} is not plugged in"
        call = self.vm.monitor.call
        call("device_del", id=self.name)
        self.vm.monitor.wait_event("DEVICE_DELETED", device=self.name)
        for node in (self.name, f"{self.name}-fault", f"{self.name}-file"):
            call("blockdev-del", node_name=node)
        call("object-del", id=f"{self.name}-group")
        self.plugged = False
        device, self.device = self.device, None
        if wait and device:
            self.vm.run(["udevadm", "wait", "--removed", "--timeout=30", device])

    def replug(self, **options: Any) -> str | None:
        """Pull it and plug it in again."""
        self.pull()
        return self.plug(**options)

    def throttle(self, bps: int) -> None:
        """Change the speed of a plugged stick: 0 is no limit, 1 as good as hanging."""
        group = f"/objects/{self.name}-group"
        call = self.vm.monitor.call
        call("qom-set", path=group, property="limits", value={"bps-total": bps})
        if bps == 0:
            # What waits already would wait as long as it was to; a drained node lets it go.
            call("blockdev-reopen", options=[self._top()])

    def fail(self, *faults: Fault) -> None:
        """From now on, the plugged stick has these faults; none: it is well again."""
        call = self.vm.monitor.call
        spare = f"{self.name}-spare"
        call("blockdev-add", **{**self._faulty(faults), "node-name": spare})
        call("blockdev-reopen", options=[{**self._top(), "file": spare}])
        call("blockdev-del", node_name=f"{self.name}-fault")
        call("blockdev-add", **self._faulty(faults))
        call("blockdev-reopen", options=[self._top()])
        call("blockdev-del", node_name=spare)

    def clone(self, name: str) -> Stick:
        """Another stick with the same content."""
        copy = self.vm.stick_path(name)
        copy_sparse(self.path, copy)
        return self.vm.stick(name)

    def _faulty(self, faults: tuple[Fault, ...]) -> dict[str, Any]:
        node = {
            "driver": "blkdebug",
            "node-name": f"{self.name}-fault",
            "image": f"{self.name}-file",
        }
        rules = [fault.rule() for fault in faults]
        return {**node, "inject-error": rules} if rules else node

    def _top(self) -> dict[str, Any]:
        return {
            "driver": "throttle",
            "node-name": self.name,
            "throttle-group": f"{self.name}-group",
            "file": f"{self.name}-fault",
        }

    def _offset(self) -> int:
        """Where the file system begins: in a partition, or right at the start."""
        with open(self.path, "rb") as file:
            sector = file.read(512)
        start = int.from_bytes(sector[454:458], "little") * 512
        return start if sector[510:] == b"\x55\xaa" and start == START else 0


def make_image(
    path: Path,
    size: int,
    fs: str | None,
    *,
    partitioned: bool = False,
    label: str | None = None,
    uuid: str | None = None,
) -> None:
    """Make a stick's sparse image, with a file system or without, in a partition or without."""
    with open(path, "wb") as file:
        file.truncate(size)
    if not partitioned:
        if fs:
            _make_fs(path, fs, label, uuid)
        return
    first, length, kind = START // 512, (size - 2 * START) // 512, TYPE.get(fs or "", "83")
    table = f"label: dos\nstart={first}, size={length}, type={kind}\n"
    command = ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(path)]
    subprocess.run(command, input=table, text=True, check=True, capture_output=True, env=_path())
    if fs:
        part = path.with_suffix(".part")
        with open(part, "wb") as file:
            file.truncate(size - 2 * START)
        _make_fs(part, fs, label, uuid)
        with open(part, "rb") as source, open(path, "r+b") as target:
            for start, end in _data(source.fileno()):
                source.seek(start)
                target.seek(START + start)
                while (position := source.tell()) < end:
                    target.write(source.read(min(1 << 20, end - position)))
        part.unlink()


def copy_sparse(source: Path, target: Path) -> None:
    """Copy an image: holes stay holes."""
    command = ["cp", "--sparse=always", "--reflink=auto", str(source), str(target)]
    subprocess.run(command, check=True)


def _make_fs(path: Path, fs: str, label: str | None, uuid: str | None) -> None:
    command = list(MAKE[fs])
    if label:
        command += [LABEL.get(fs, "-L"), label]
    if uuid:
        command += [UUID[fs], uuid.replace("-", "") if fs == "vfat" else uuid]
    assert shutil.which(command[0], path=_path()["PATH"]), f"{command[0]} is not installed"
    subprocess.run([*command, str(path)], check=True, capture_output=True, env=_path())


def _data(descriptor: int) -> Iterator[tuple[int, int]]:
    """The parts of a sparse file that hold data."""
    end = 0
    while True:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # no data behind this
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def _path() -> dict[str, str]:
    """An environment in which the tools for disks are found without being root."""
    return {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
