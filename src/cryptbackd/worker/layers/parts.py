"""The container's files as one block device, however many they are.

One file is its loop device.  Several are joined by a linear mapping: it holds their loop
devices, is held open by us until dm-crypt has it, and ``dmsetup remove --deferred`` makes its
last close its end, so that the kernel takes all of it down behind the volume: dm-crypt, the
linear mapping, the loop devices.  Between its birth and the arming there is a gap, as with the
volume itself (``layers.luks``), in which ``worker.sweep`` ends it.

When the files become longer, or more, it does, too, while it is in use.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import attrs

from ... import kernel, paths
from ...errors import DriveFailed, ForgedDrive
from ...run import run
from .. import sweep
from ..gone import until
from .loop import Loop, bind, loops

DMSETUP = "/usr/sbin/dmsetup"
_SECTOR = 512


@attrs.define
class Backing:
    """What dm-crypt is put upon."""

    _loops: list[Loop]
    _name: str
    _stack: ExitStack
    _joined: _Linear | None = None

    @property
    def node(self) -> str:
        """The block device."""
        return self._loops[0].node if self._joined is None else self._joined.node

    def hand_over(self) -> None:
        """The volume holds it open now: let go, so that it goes with that."""
        for device in self._loops:
            device.hand_over()
        if self._joined is not None:
            self._joined.hand_over()

    def join(self, *, read_only: bool = False) -> None:
        """Have one mapping join all loop devices, and hold it."""
        joined = _linear(self._loops, self._name, read_only=read_only)
        self._joined = self._stack.enter_context(joined)

    def take_in(self, files: Sequence[int]) -> None:
        """The container has become longer: it is these *files* now, of which the first are known.

        ``node`` may be another afterwards, which is held until it is handed over.
        """
        self._loops[-1].take_in()
        fresh = files[len(self._loops) :]
        for file in fresh:
            self._loops.append(bind(file))
        if self._joined is not None:
            self._joined.reload(self._loops)
            self.hand_over()
        elif fresh:
            self.join()


@attrs.define
class _Linear:
    """What joins several; see :func:`_linear`."""

    node: str
    mapping: str
    held: int

    def hand_over(self) -> None:
        if self.held >= 0:
            os.close(self.held)
            self.held = -1

    def reload(self, devices: list[Loop]) -> None:
        """Have it reach over all of the *devices*, of which it had some; it is in use meanwhile."""
        table = _table(devices)
        run([DMSETUP, "reload", self.mapping], stdin=_lines(table))
        run([DMSETUP, "resume", "--noudevsync", self.mapping])
        _check(self.mapping, table)


@contextmanager
def joined(files: Sequence[int], name: str) -> Iterator[Backing]:
    """The opened *files* of the container of the entry *name* as one block device.

    Raises DriveFailed when that can't be had, or is still there afterwards, and ForgedDrive when
    it is not what was asked for.
    """
    with loops(files) as devices, ExitStack() as stack:
        backing = Backing(devices, name, stack)
        if len(devices) > 1:
            access = fcntl.fcntl(files[0], fcntl.F_GETFL) & os.O_ACCMODE
            backing.join(read_only=access == os.O_RDONLY)
        yield backing


@contextmanager
def _linear(devices: list[Loop], name: str, *, read_only: bool) -> Iterator[_Linear]:
    mapping, uuid = paths.parts(name), paths.parts_uuid(name)
    if _block_device(mapping):
        raise DriveFailed(
            f"There is a mapping {mapping} already.",
            "A run that died may have left it: `systemctl restart cryptbackd` removes it.",
        )
    table = _table(devices)
    try:
        # It is nobody's to look into: none of our tools waits for what udev makes of it.
        words = [DMSETUP, "create", mapping, "--uuid", uuid, "--noudevsync"]
        words += ["--readonly"] * read_only
        run(words, stdin=_lines(table))
        node = f"/dev/{_block_device(mapping, uuid)}"
        joined = _Linear(node, mapping, os.open(node, os.O_RDONLY | os.O_CLOEXEC))
        try:
            run([DMSETUP, "remove", "--deferred", "--noudevsync", mapping])
            _check(mapping, table)
        except BaseException:
            joined.hand_over()
            raise
    except BaseException:
        sweep.lock(mapping)
        raise
    for device in devices:
        device.hand_over()
    try:
        yield joined
    finally:
        joined.hand_over()
        if not until(lambda: not _block_device(mapping, uuid), 20):
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
        with open(device.node, "rb") as opened:
            sectors = kernel.device_size(opened.fileno()) // _SECTOR
            rdev = os.fstat(opened.fileno()).st_rdev
        lines.append(f"{start} {sectors} linear {os.major(rdev)}:{os.minor(rdev)} 0")
        start += sectors
    return lines


def _lines(table: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in table).encode()


def _check(mapping: str, table: list[str]) -> None:
    """The mapping in the kernel is the one that was asked for."""
    there = run([DMSETUP, "table", mapping]).out.decode("ascii", "replace").splitlines()
    if [line.strip() for line in there] != table:
        raise ForgedDrive(f"The mapping {mapping} has another table than it was given.")
