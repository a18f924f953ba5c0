"""The header on the drive: brought to what the computer has stored.

Nothing here is needed to open the volume: the stored header comes first, always.  The drive's
own is what opens it elsewhere.  It is written in an order in which it opens at each moment,
with the old passphrases or the new ones; cut off in the middle, it is finished at the next
plug, and what is in between is known by the header from before (``header.pending``).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .. import kernel
from ..config import Entry
from ..errors import DriveFailed
from ..model import Device
from . import header as headers
from .control import Control
from .layers.files import container
from .layers.outer import outer
from .whitelist import Header

_CHUNK = 64 * 1024
_SECTOR = 512
"""Bytes that a drive writes wholly or not at all."""


@contextmanager
def on_drive(
    entry: Entry, device: Device, place: Path, *, look_only: bool = False
) -> Iterator[int]:
    """What begins with the header of *entry*, opened: its container's first file, or its partition.

    Nothing else is made of it.
    """
    with all_on_drive(entry, device, place, look_only=look_only) as files:
        yield files[0]


@contextmanager
def all_on_drive(
    entry: Entry, device: Device, place: Path, *, look_only: bool = False
) -> Iterator[list[int]]:
    """The opened files of the container of *entry*, or its partition alone."""
    flags = os.O_RDONLY if look_only else os.O_RDWR
    with ExitStack() as stack:
        if entry.container is None:
            fd = os.open(device.node, flags | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            yield [fd]
        else:
            drive = stack.enter_context(outer(device, place / "drive", look_only=look_only))
            yield stack.enter_context(container(drive, entry.container, flags)).fds


def settle(name: str, stored: Header, fd: int, control: Control) -> None:
    """Finish a change of which the drive *fd* has seen nothing yet, or only a part.

    Anything else that is different about its header is left as it is.
    """
    before = headers.pending(name)
    if before is None:
        return
    if stored.detached:
        headers.settled(name)
        return
    try:
        found = headers.read_up_to(fd, stored.size)
    except OSError as exc:
        raise DriveFailed(f"Its LUKS2 header can't be read: {exc.strerror}.") from exc
    if found != stored.raw:
        if before.seqid >= stored.seqid or not between(found, before.raw, stored.raw):
            return
        put(stored, fd)
        control.say(
            "the last change of its passphrases had not reached the drive's own header; it is"
            " finished now.",
            "header_finished",
        )
    headers.settled(name)


def between(found: bytes, before: bytes, after: bytes) -> bool:
    """Whether each sector of *found* is that of *before* or that of *after*."""
    if not len(found) == len(before) == len(after):
        return False
    for at in range(0, len(found), _CHUNK):
        here, old, new = (raw[at : at + _CHUNK] for raw in (found, before, after))
        if here in (old, new):
            continue
        for sector in range(0, len(here), _SECTOR):
            end = sector + _SECTOR
            if here[sector:end] not in (old[sector:end], new[sector:end]):
                return False
    return True


def put(stored: Header, fd: int) -> None:
    """Write the stored header to the beginning of the container or partition *fd*.

    Keyslots that it has come first, where none was; then the metadata that names them, the one
    copy after the other; then the rest, which is where keyslots were that it has no more.
    Each is on the drive before the next begins.  Raises DriveFailed.  Where the drive is to have
    none, nothing is written.
    """
    if stored.detached:
        return
    metadata = [(0, stored.metadata), (stored.metadata, stored.metadata)]
    # Through the kernel's name for it: a partition was opened only for reading.
    try:
        target = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            if length(target) < stored.size:
                raise DriveFailed(
                    "There is no room for its LUKS2 header: what is on the drive is too short.",
                    "The container was cut short, and what it held can't be brought back.",
                )
            for regions in (stored.areas, metadata[:1], metadata[1:], [(0, stored.size)]):
                for offset, count in regions:
                    _write(target, stored.raw, offset, count)
                os.fsync(target)
            os.posix_fadvise(target, 0, stored.size, os.POSIX_FADV_DONTNEED)
            same = headers.read_up_to(target, stored.size) == stored.raw
        finally:
            os.close(target)
    except OSError as exc:
        raise DriveFailed(f"Its LUKS2 header can't be written: {exc.strerror}.") from exc
    if not same:
        raise DriveFailed(
            "What was written of its LUKS2 header reads back differently.",
            "The drive is failing, or it lies. The header that this computer stored is whole.",
        )


def length(fd: int) -> int:
    """Bytes of the container or partition *fd*."""
    status = os.fstat(fd)
    return kernel.device_size(fd) if stat.S_ISBLK(status.st_mode) else status.st_size


def _write(fd: int, raw: bytes, offset: int, length: int) -> None:
    """Write what is different there."""
    for at in range(offset, offset + length, _CHUNK):
        wanted = raw[at : min(at + _CHUNK, offset + length)]
        with suppress(OSError):  # what can't be read may still be written, which mends a sector
            if os.pread(fd, len(wanted), at) == wanted:
                continue
        while wanted:
            done = os.pwrite(fd, wanted, at)
            wanted, at = wanted[done:], at + done  # noqa: PLW2901
