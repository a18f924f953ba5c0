"""The container's files as one block device, however many they are.

One file is its loop device.  Several are joined by a linear mapping: it holds their loop
devices, is held open by us until dm-crypt has it, and ``dmsetup remove --deferred`` makes its
last close its end, so that the kernel takes all of it down behind the volume: dm-crypt, the
linear mapping, the loop devices.  Between its birth and the arming there is a gap, as with the
volume itself (``layers.luks``), in which ``worker.sweep`` ends it.
"""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from ... import kernel, paths
from ...errors import DriveFailed, ForgedDrive
from ...run import run
from .. import sweep
from ..gone import watch
from .loop import Loop, loops

DMSETUP = "/usr/sbin/dmsetup"
_SECTOR = 512
_OTHERS = 256
"""Descriptors that a worker may need for all else."""


@attrs.define
class Backing:
    """What dm-crypt is put upon."""

    node: str
    _loops: list[Loop]
    _held: int = -1

    @property
    def only(self) -> Loop | None:
        """The loop device, where there is one alone."""
        return self._loops[0] if len(self._loops) == 1 else None

    def hand_over(self) -> None:
        """The volume holds it open now: let go, so that it goes with that."""
        for device in self._loops:
            device.hand_over()
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


@contextmanager
def joined(files: Sequence[int], name: str) -> Iterator[Backing]:
    """The opened *files* of the container of the entry *name* as one block device.

    Raises DriveFailed when that can't be had, or is still there afterwards, and ForgedDrive when
    it is not what was asked for.
    """
    _allow_descriptors(3 * len(files) + _OTHERS)
    with loops(files) as devices:
        if len(devices) == 1:
            yield Backing(devices[0].node, devices)
        else:
            access = fcntl.fcntl(files[0], fcntl.F_GETFL) & os.O_ACCMODE
            with _linear(devices, name, read_only=access == os.O_RDONLY) as backing:
                yield backing


def _allow_descriptors(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


@contextmanager
def _linear(devices: list[Loop], name: str, *, read_only: bool) -> Iterator[Backing]:
    mapping, uuid = paths.parts(name), paths.parts_uuid(name)
    if _block_device(mapping):
        raise DriveFailed(
            f"There is a mapping {mapping} already.",
            "A run that died may have left it: `systemctl restart cryptbackd` removes it.",
        )
    table = _table(devices)
    with watch() as kernel_events:
        try:
            # It is nobody's to look into: none of our tools waits for what udev makes of it.
            words = [DMSETUP, "create", mapping, "--uuid", uuid, "--noudevsync"]
            words += ["--readonly"] * read_only
            run(words, stdin="".join(f"{line}\n" for line in table).encode())
            node = f"/dev/{_block_device(mapping, uuid)}"
            backing = Backing(node, devices, os.open(node, os.O_RDONLY | os.O_CLOEXEC))
            try:
                run([DMSETUP, "remove", "--deferred", "--noudevsync", mapping])
                _check(mapping, table)
            except BaseException:
                backing.hand_over()
                raise
        except BaseException:
            sweep.lock(mapping)
            raise
        for device in devices:
            device.hand_over()
        try:
            yield backing
        finally:
            backing.hand_over()
            if not kernel_events.until(lambda: not _block_device(mapping, uuid), 20):
                raise DriveFailed(
                    f"The mapping {mapping} of the container's files is still there.",
                    f"Something else uses it; `lsof {node}` may tell.",
                )


def _block_device(mapping: str, uuid: str | None = None) -> str:
    """The kernel's name for a mapping (with this dm UUID), such as ``dm-0``; "": none."""
    for directory in Path("/sys/class/block").glob("dm-*/dm"):
        with suppress(OSError):
            if (directory / "name").read_text().strip() == mapping and (
                uuid is None or (directory / "uuid").read_text().strip() == uuid
            ):
                return directory.parent.name
    return ""


def _table(devices: list[Loop]) -> list[str]:
    """The lines of the mapping's table: the loop devices, one behind the other."""
    lines = []
    start = 0
    for device in devices:
        sectors = kernel.device_size(device.fd) // _SECTOR
        rdev = os.fstat(device.fd).st_rdev
        lines.append(f"{start} {sectors} linear {os.major(rdev)}:{os.minor(rdev)} 0")
        start += sectors
    return lines


def _check(mapping: str, table: list[str]) -> None:
    """The mapping in the kernel is the one that was asked for."""
    there = run([DMSETUP, "table", mapping]).out.decode("ascii", "replace").splitlines()
    if [line.strip() for line in there] != table:
        raise ForgedDrive(f"The mapping {mapping} has another table than it was given.")
