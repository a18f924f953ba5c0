"""A volume that is changed on the computer first, and on the drive when all of it is known.

The kernel's ``snapshot`` target lies below dm-crypt: what is written goes, encrypted, into a
file on the computer, and the drive keeps every byte.  ``snapshot-merge`` writes it to the drive
later, and goes on where it was cut off (admin-guide/device-mapper/snapshot.rst).  The mapping
is armed like the volume's own (see ``layers.luks``) and lives as long as the block that made
it; the file stays until its whole content is on the drive, or it is thrown away.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from ... import kernel, paths
from ...errors import DriveFailed, Refused
from ...run import run
from ...text import size
from .. import sweep, unfinished
from ..control import Control, Meter
from ..gone import until
from ..header import fsync_directory
from .loop import Loop, loop
from .luks import DMSETUP, dmsetup
from .parts import Backing, joined

_CHUNK = 8
"""Sectors that are stored together: a page."""
_PAGE, _SECTOR = 4096, 512
_MIB = 1 << 20
_POLL = 0.1
_FULL = ("Invalid", "Overflow")


@attrs.frozen
class Overlay:
    """The origin with its changes, as the block device ``node``."""

    node: str
    mapping: str
    room: int
    """Bytes of changes that the computer has room for."""

    def is_full(self) -> bool:
        """Whether more was changed than there is room for: then nothing of it is of use."""
        return _status(self.mapping)[0] in _FULL

    def superblock(self, offset: int) -> str:
        """Hashes of the sectors of the page at *offset* as it is with the changes."""
        return _hashes(_page(self.node, offset))


@contextmanager
def overlay(name: str, origin: Backing) -> Iterator[Overlay]:
    """Keep what is written to the node of the overlay on the computer while the block runs.

    Raises Refused when the computer has no room, and DriveFailed.
    """
    length = _length(origin.node)
    store = unfinished.staged(name)
    store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        store.unlink()
    status = os.statvfs(store.parent)
    free = status.f_bavail * status.f_frsize
    room = min(length + length // 128 + 4 * _MIB, free - max(free // 10, 64 * _MIB))
    if room < 16 * _MIB:
        raise Refused(
            "There is no room on this computer for what is changed: only"
            f" {size(free)} are free in {store.parent}.",
            "Nothing was changed.",
        )
    fd = os.open(store, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, room // _MIB * _MIB)
        fsync_directory(store.parent)
        with loop(fd) as changes, _mapped(name, "snapshot", origin, changes) as mapping:
            yield Overlay(f"/dev/mapper/{mapping}", mapping, room)
        os.fsync(fd)
    finally:
        os.close(fd)


def merge(name: str, files: Sequence[int], control: Control) -> None:
    """Write what the computer kept to the *files* of the container.

    It is on the drive when this returns; cut off, it can be called again.  Raises DriveFailed.
    """
    store = unfinished.staged(name)
    try:
        fd = os.open(store, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise DriveFailed(f"{store} is missing, which had what was to be written.") from None
    try:
        with (
            joined(files, name) as origin,
            loop(fd) as changes,
            _mapped(name, "snapshot-merge", origin, changes) as mapping,
        ):
            _wait(mapping, control)
        for file in files:
            os.fsync(file)
    finally:
        os.close(fd)


def superblock(files: Sequence[int], offset: int) -> str:
    """Those of the page at *offset* of the container, see :meth:`Overlay.superblock`."""
    for file in files:
        length = os.fstat(file).st_size
        if offset < length:
            return _hashes(_page(f"/proc/self/fd/{file}", offset))
        offset -= length
    return ""


def is_among(found: str, known: Sequence[str]) -> bool:
    """Whether each sector is that of one of the *known*: a page can be cut off in the middle.

    Of a container that has become shorter than that nothing was *found*.
    """
    here, *pages = (hashes.split() for hashes in (found, *known))
    if not here or any(len(page) != len(here) for page in pages):
        return False
    return all(word in words for word, *words in zip(here, *pages, strict=True))


def _hashes(page: bytes) -> str:
    sectors = (page[at : at + _SECTOR] for at in range(0, len(page), _SECTOR))
    return " ".join(hashlib.sha256(sector).hexdigest() for sector in sectors)


def _wait(mapping: str, control: Control) -> None:
    meter = None
    while True:
        words = _status(mapping)
        try:
            taken, metadata = int(words[0].partition("/")[0]), int(words[1])
        except (ValueError, IndexError):
            raise DriveFailed(
                f"The drive did not take what was to be written ({' '.join(words)})."
            ) from None
        if meter is None:
            total = taken - metadata
            meter = Meter(control, total * 512)
        meter.at((total - (taken - metadata)) * 512)
        if taken <= metadata:
            return
        time.sleep(_POLL)


def _status(mapping: str) -> list[str]:
    """What the target says of itself, after its beginning, length and type."""
    return run([DMSETUP, "status", mapping]).out.decode("ascii", "replace").split()[3:]


@contextmanager
def _mapped(name: str, target: str, origin: Backing, changes: Loop) -> Iterator[str]:
    mapping = f"{paths.mapping(name)}{sweep.REDO}"
    uuid = f"{sweep.REDO_UUID}{mapping}"
    sectors = _length(origin.node) // 512
    table = f"0 {sectors} {target} {origin.node} {changes.node} P {_CHUNK}"
    with sweep.noted(name):
        try:
            dmsetup(["create", mapping, "--uuid", uuid, "--table", table])
            held = os.open(f"/dev/mapper/{mapping}", os.O_RDONLY | os.O_CLOEXEC)
            dmsetup(["remove", "--deferred", "--noudevsync", mapping])
        except BaseException:
            sweep.lock(mapping)
            raise
    origin.hand_over()
    changes.hand_over()
    rdev = os.fstat(held).st_rdev
    shown = Path("/sys/dev/block", f"{os.major(rdev)}:{os.minor(rdev)}", "dm/uuid")
    try:
        yield mapping
    finally:
        os.close(held)
        if not until(lambda: not _is(shown, uuid), 20):
            raise DriveFailed(f"The mapping {mapping} is still there: something else uses it.")


def _is(path: Path, text: str) -> bool:
    try:
        return path.read_text().strip() == text
    except OSError:
        return False


def _length(node: str) -> int:
    fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return kernel.device_size(fd)
    finally:
        os.close(fd)


def _page(path: str, offset: int) -> bytes:
    """The page at *offset*, past the caches: what wrote it went past them as well."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, offset, _PAGE, os.POSIX_FADV_DONTNEED)
        with mmap.mmap(-1, _PAGE) as page:
            os.preadv(fd, [page], offset)
            return bytes(page)
    finally:
        os.close(fd)
