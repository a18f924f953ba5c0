"""The LUKS2 header: the stored one that is believed, the drive's that is only looked at.

The drive's own header never opens a volume.  ``init`` stores a copy on the computer after
every field was held against a list (``worker.whitelist``); a volume is opened from a sealed
memfd of that copy, which lives as long as its descriptor.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .. import paths
from ..errors import ForgedDrive, Refused
from ..luks2 import FIELDS, MAGIC, need
from .whitelist import Header, parse

_AT_ONCE = 16 << 20
_OLDER = "It is older than the stored one, as of a drive that was set back, or a copy:"
DETACHED = 16 << 20
"""Bytes of the file for a header that is not on the drive: what cryptsetup makes of one."""
_PAGE = 4096


def read(fd: int) -> Header:
    """The header at the beginning of an opened container or partition; see ``parse``."""
    # A file that is none at all is not read in full; only the second reading is believed.
    start = os.pread(fd, FIELDS.size, 0)
    need(len(start) == FIELDS.size and start[:6] == MAGIC[0], "it has no LUKS2 magic")
    return parse(read_up_to(fd, _AT_ONCE))


def read_up_to(fd: int, length: int) -> bytes:
    """The first *length* bytes of *fd*, or what there is of them."""
    parts = []
    offset = 0
    while offset < length:
        chunk = os.pread(fd, min(1 << 20, length - offset), offset)
        if not chunk:
            break
        parts.append(chunk)
        offset += len(chunk)
    return b"".join(parts)


def difference(stored: Header, fd: int) -> str:
    """What is different about the header on the drive *fd*, as a sentence; "" for nothing.

    Only compared: nothing that stands there is used.
    """
    if stored.detached:
        return ""
    try:
        theirs = [os.pread(fd, 2 * stored.metadata, 0)]
        theirs += [os.pread(fd, length, offset) for offset, length in stored.areas]
        if b"".join(theirs) == stored.compared:
            return ""
        found = read(fd)
    except ForgedDrive as exc:
        return f"{exc.sentence} It may be damaged or forged."
    except OSError as exc:
        return f"It can't be read: {exc.strerror}."
    if (found.digest, found.salt) != (stored.digest, stored.salt):
        return "It belongs to another volume key: it may be forged, or another volume's."
    if is_older(found, stored):
        return f"{_OLDER} what was removed here since may still open the drive elsewhere."
    return "Its keyslots differ: the passphrase may have been changed on another computer."


def is_older(found: Header, stored: Header) -> bool:
    """Whether *found*, of the same volume, is one that the *stored* one has followed.

    Only a drive that was set back in good faith is known by that: nothing proves the number.
    """
    return found.seqid < stored.seqid


def path_of(name: str) -> Path:
    """Where the header of the entry *name* is stored."""
    return paths.HEADERS / name


def load(name: str) -> Header:
    """The stored header of the entry *name*; raises Refused when there is none that is whole."""
    try:
        raw = path_of(name).read_bytes()
    except FileNotFoundError:
        raise Refused(
            f"The computer has no header stored for {name}, so the drive can't be trusted.",
            f"Put the header that you saved to {path_of(name)} (mode 0600), or enrol it anew.",
        ) from None
    try:
        return parse(raw, stored=True)
    except ForgedDrive as exc:
        raise Refused(f"The stored header {path_of(name)} is damaged: {exc.sentence}") from exc


def store(name: str, header: Header) -> None:
    """Write the header of the entry *name*: whole or not at all, and only for root."""
    with fresh(name, header.raw) as new:
        new.rename(path_of(name))
    fsync_directory(paths.HEADERS)


def keep_old(name: str) -> None:
    """Keep the stored header under another name, too: it may be a volume's only good one.

    Raises Refused where there is no room for it.
    """
    stored = path_of(name)
    with suppress(FileExistsError), _storing():
        os.link(stored, stored.with_name(f"{name}.until-{int(time.time())}"))


def keep_theirs(name: str, fd: int, length: int) -> Path:
    """Keep what stands in the place of the header on the drive *fd*, whatever it is."""
    target = paths.HEADERS / f"{name}.drive-{time.time_ns()}"
    with fresh(name, _what_can_be_read(fd, length)) as new:
        new.rename(target)
    fsync_directory(paths.HEADERS)
    return target


def _what_can_be_read(fd: int, length: int) -> bytes:
    """The first *length* bytes of *fd*, with zeros for what can't be read."""
    parts = []
    for at in range(0, length, _PAGE):
        wanted = min(_PAGE, length - at)
        try:
            parts.append(os.pread(fd, wanted, at))
        except OSError:
            parts.append(bytes(wanted))
    return b"".join(parts)


@contextmanager
def copied(name: str) -> Iterator[Path]:
    """A copy of the stored header of *name*, to be changed in place while the block runs.

    What becomes of it is for :func:`replace` to say; else it is removed.
    """
    with fresh(name, path_of(name).read_bytes()) as copy:
        yield copy


def replace(name: str, changed: Path) -> None:
    """Put the *changed* copy in the place of the stored header of *name*, durably.

    The old one stays as the pending one, by which an interrupted change of the drive's own
    header is known for what it is (see ``worker.own_header``).  Raises Refused where the
    computer can't store it, and the old one stays.
    """
    with _storing():
        fd = os.open(changed, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        with suppress(FileNotFoundError):
            paths.pending_header(name).unlink()
        os.link(path_of(name), paths.pending_header(name))
        fsync_directory(paths.HEADERS)
        changed.rename(path_of(name))
    fsync_directory(paths.HEADERS)


@contextmanager
def fresh(name: str, raw: bytes) -> Iterator[Path]:
    """A new, durable file with *raw* beside the stored headers; removed if it is still there.

    Raises Refused where the computer can't store it.
    """
    new = paths.HEADERS / f".{name}.new"
    try:
        with _storing():
            paths.HEADERS.mkdir(mode=0o700, parents=True, exist_ok=True)
            new.unlink(missing_ok=True)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(fd)
        yield new
    finally:
        with suppress(OSError):  # the next one removes it
            new.unlink()


@contextmanager
def _storing() -> Iterator[None]:
    """What fails in the block is the computer's fault, and not the drive's."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as exc:
        raise Refused(
            f"The computer can't store a LUKS header in {paths.HEADERS}: {exc.strerror}.",
            "Make room there, and try again.",
        ) from exc


def pending(name: str) -> Header | None:
    """The header from before a change that may not have reached the drive; None without one."""
    try:
        return parse(paths.pending_header(name).read_bytes(), stored=True)
    except (FileNotFoundError, ForgedDrive):
        return None


def settled(name: str) -> None:
    """The drive has the stored header: forget the one from before."""
    with suppress(FileNotFoundError):
        paths.pending_header(name).unlink()
        fsync_directory(paths.HEADERS)


def fsync_directory(directory: Path) -> None:
    """Make the names in *directory* durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def sealed(header: Header) -> Iterator[int]:
    """A memfd with the header that nobody, we included, can change any more (memfd_create(2))."""
    fd = os.memfd_create("luks2-header", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(header.raw)
        while view:
            view = view[os.write(fd, view) :]
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield fd
    finally:
        os.close(fd)
