"""Making a container's files: as long as they are to be, and valid to their end.

They grow under names of their own and get their final ones when all is done; until then every
exit, orderly or not, leaves none under a final name that the next try would not take back.  An
orderly exit also removes what was begun.  What a pulled or killed one leaves on the drive
(``.cryptback-NAME.new``) the next try goes on with where making it takes long, and makes anew
elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import attrs

from ..errors import CryptbackError, DriveFailed, DriveFull, Refused
from ..text import printable, size
from .control import Control, Meter
from .fill import NTFS, STEP, ZEROED_LATER, fill, no_copy_on_write
from .layers import files
from .layers.outer import Outer


@attrs.frozen
class _File:
    name: str
    final: str
    length: int


@attrs.define
class NewContainer:
    """The opened files of a container in the making, under names of their own."""

    drive: Outer
    fds: list[int]
    _files: list[_File]
    published: bool = False

    def publish(self) -> None:
        """Give them their final names, durably, when everything before is on the drive.

        The first comes last: without it the others are no container.
        """
        root = self.drive.filesystem
        root.sync()
        for file in self._files:
            if _exists(root.fd, file.final):
                raise Refused(f'"{printable(file.final)}" exists on the drive by now.')
        for file in reversed(self._files):
            os.rename(file.name, file.final, src_dir_fd=root.fd, dst_dir_fd=root.fd)
        self.published = True
        root.sync()


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def temporary(name: str) -> str:
    """What the container of the entry *name* is called while it is made."""
    return f".cryptback-{name}.new"


@contextmanager
def new_container(
    drive: Outer, name: str, path: str, lengths: list[int], control: Control, *, random: bool
) -> Iterator[NewContainer]:
    """The container *path* of the entry *name*, of files of these *lengths*, valid to the end.

    With *random* bytes in it, where nothing is to show what of it is used, and zeros else.
    Removed unless it was published.
    """
    root = drive.filesystem.fd
    take_back(drive, name, path)
    new = temporary(name)
    if len(lengths) == 1:
        made = [_File(new, path, lengths[0])]
    else:
        made = [
            _File(files.part(new, n), files.part(path, n), each) for n, each in enumerate(lengths)
        ]
    # What is there of it already may not be random, whatever made it.
    resumes = drive.filesystem.fstype in ZEROED_LATER and not random
    keep = {file.name for file in made} if resumes else set()
    for stale in sorted(_begun(drive, name) - keep):
        _unlink(root, stale)
    fresh = NewContainer(drive, [], made)
    try:
        try:
            _make(fresh, control, resumes=resumes, random=random)
        except OSError as exc:
            raise _failed(exc) from exc
        yield fresh
    finally:
        for fd in fresh.fds:
            os.close(fd)
        if not fresh.published:
            for file in made:
                _unlink(root, file.name)


def _failed(exc: OSError) -> DriveFull | DriveFailed:
    told = f"The container could not be made: {exc.strerror}."
    if exc.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return DriveFull(told, "Say a smaller --size.")
    return DriveFailed(told, "Check the drive: journalctl -k")


def _unlink(directory: int, name: str) -> None:
    with suppress(OSError):
        os.unlink(name, dir_fd=directory)


def _begun(drive: Outer, name: str) -> set[str]:
    """What an interrupted try left at the root of the drive."""
    new = temporary(name)
    names = drive.names()
    return {files.part(new, n) for n in files.numbers(new, names)} | ({new} & set(names))


def taken(drive: Outer, name: str, path: str) -> int:
    """Bytes of the drive that an interrupted try has taken, which the next one has again."""
    begun = [*_begun(drive, name), *(files.part(path, n) for n in interrupted(drive, name, path))]
    total = 0
    for file in begun:
        with suppress(OSError):
            status = os.stat(file, dir_fd=drive.filesystem.fd, follow_symlinks=False)
            total += status.st_blocks * 512 if stat.S_ISREG(status.st_mode) else 0
    return total


def interrupted(drive: Outer, name: str, path: str) -> list[int]:
    """The numbers of those files of *path* that an interrupted publishing had renamed already.

    There are some only when these, and those that were not renamed yet, are all there, once.
    """
    directory = os.path.dirname(path)
    renamed = files.numbers(path, drive.names(directory))
    left = files.numbers(temporary(name), drive.names())
    whole = sorted(renamed + left) == list(range(len(renamed) + len(left)))
    return renamed if renamed and whole and 0 in left else []


def take_back(drive: Outer, name: str, path: str) -> None:
    """Undo an interrupted publishing: the files get the names again that they grew under."""
    root = drive.filesystem.fd
    for number in interrupted(drive, name, path):
        back = files.part(temporary(name), number)
        os.rename(files.part(path, number), back, src_dir_fd=root, dst_dir_fd=root)


def _make(fresh: NewContainer, control: Control, *, resumes: bool, random: bool) -> None:
    drive = fresh.drive
    begun = []
    for file in fresh._files:
        fd, valid = _opened(drive, file, resumes=resumes)
        fresh.fds.append(fd)
        begun.append(valid)
    if any(begun):
        control.say(f"going on with the container that was begun: {size(sum(begun))} are there.")
    done = sum(begun)
    meter = Meter(control, sum(file.length for file in fresh._files), done)
    for file, fd, valid in zip(fresh._files, fresh.fds, begun, strict=True):
        region = valid, file.length
        fstype = drive.filesystem.fstype
        fill(fd, *region, fstype, control, random=random, meter=meter, done=done)
        done += file.length - valid


def _opened(drive: Outer, file: _File, *, resumes: bool) -> tuple[int, int]:
    """The opened file, and how many bytes of it are valid already."""
    root = drive.filesystem.fd
    if resumes:
        with suppress(OSError, CryptbackError):
            fd = drive.open(file.name)
            try:
                # Of the last step it can't be told how much of it had reached the drive.
                there = min(os.fstat(fd).st_size, file.length)
                whole = there == file.length and drive.filesystem.fstype != NTFS
                valid = there if whole else max(0, there // STEP - 1) * STEP
                os.ftruncate(fd, valid)
            except OSError:
                os.close(fd)
                raise
            return fd, valid
    _unlink(root, file.name)
    fd = drive.open(file.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    if drive.filesystem.fstype == "btrfs":
        no_copy_on_write(fd)
    return fd, 0
