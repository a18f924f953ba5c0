"""What is damaged on a drive: files held against the manifests of their versions.

A :class:`Verification` lives as long as its job.  A descriptor of a version is open only while
that version is looked at.

What was read once is not read again.  On ext4 and xfs an unchanged file is the same inode in
each version; on btrfs each snapshot has an inode of its own with the same number and time of
change, as it is the same data until one of the two differs.
"""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import attrs

from ..errors import DriveFailed
from ..manifest import SEPARATOR, Record
from ..text import count, printable
from . import readback
from .versions.record import Version

DIFFERS = "its content is not what was backed up"
_MISSING = "it is not there"
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)
_LONGEST_LIST = 3
_MOST_COPIES = 3

Records = Callable[[Version], Iterable[bytes]]
"""The records of a version, each as it stands in the manifest."""


@attrs.frozen
class Copy:
    """A good copy of what is damaged: where it is, and whether its content is the same."""

    version: str
    path: bytes
    same: bool


@attrs.define
class Damage:
    """One damaged file: in which versions it is the same one, and what good copies there are."""

    path: bytes
    why: str
    checksum: str | None
    versions: list[str] = attrs.field(factory=list)
    copies: list[Copy] = attrs.field(factory=list)

    @property
    def best(self) -> Copy | None:
        """The copy to restore: of the same content if there is one, else the newest."""
        return next((copy for copy in self.copies if copy.same), next(iter(self.copies), None))

    def sentence(self, drive: str) -> str:
        """For a person: what is damaged and what to do about it."""
        name = f'"/{printable(self.path)}"'
        where = _listed(self.versions)
        told = f"{name} is damaged in {where}: {self.why}."
        copy = self.best
        if copy is None:
            return f"{told} No version has a good copy."
        at = printable(copy.version, 40)
        others = [other.version for other in self.copies if other.same == copy.same]
        whole = _listed(list(dict.fromkeys(others)))
        command = f"cryptback restore {drive} {shlex.quote('/' + printable(copy.path))} --at {at}"
        if not copy.same:
            return f"{told} It is good, in another state, in {whole}: {command}"
        if copy.path != self.path:
            return f'{told} The same content is good as "/{printable(copy.path)}": {command}'
        return f"{told} The same content is good in {whole}: {command}"

    def values(self) -> dict[str, object]:
        """For a program."""
        return {
            "path": f"/{printable(self.path, 4096)}",
            "why": self.why,
            "versions": self.versions,
            "good": [
                {
                    "version": copy.version,
                    "path": f"/{printable(copy.path, 4096)}",
                    "same": copy.same,
                }
                for copy in self.copies
            ],
        }


def _listed(names: list[str]) -> str:
    shown = [printable(name, 40) for name in names]
    if len(shown) <= _LONGEST_LIST:
        return ", ".join(shown)
    return f"{', '.join(shown[:2])} and {count(len(shown) - 2, 'more version')}"


@attrs.define
class Verification:
    """Holds files against manifests.

    *device* is asked whether it still answers when a file can't be read: where it doesn't,
    DriveFailed is raised; None: it isn't asked.  *remember* has everything that was read be
    remembered, for whoever looks at several versions.
    """

    fstype: str
    readback: readback.Readback
    device: str | None = None
    remember: bool = False
    files: int = 0
    """So many were read, each once."""
    unknown: int = 0
    """So many could be read, and there was nothing to compare them with."""
    damages: dict[tuple[bytes, int], Damage] = attrs.field(factory=dict)
    _known: dict[int, bytes | str] = attrs.field(factory=dict)
    """What was read: the checksum, or what is wrong with it; by the file's identity."""

    def check(self, root: int, version: Version, record: Record) -> bool:
        """Hold one path against its *record*; whether it is as it should be.

        *root* is the opened version.  Raises DriveFailed, and what ``passed`` of the
        :class:`readback.Readback` does.
        """
        identity, fault, _digest = self._look(root, record)
        if fault:
            self._damaged(record, identity, fault, version)
        return not fault

    def find_copies(self, versions: Iterable[Version], records: Records) -> None:
        """Look in all *versions* (the newest first) for good copies of what is damaged."""
        if not self.damages:
            return
        self.remember = True
        paths: dict[bytes, list[Damage]] = {}
        contents: dict[bytes, list[Damage]] = {}
        for damage in self.damages.values():
            paths.setdefault(damage.path, []).append(damage)
            if damage.checksum is not None:
                contents.setdefault(damage.checksum.encode(), []).append(damage)
        for version in versions:
            with opened(version) as root:
                for raw in records(version):
                    path = raw.partition(SEPARATOR)[0]
                    checksum = raw[raw.rfind(b" ") + 1 :]
                    here = [*paths.get(path, ()), *contents.get(checksum, ())]
                    if here:
                        self._offer(root, version, Record.parse(raw), here)

    def _offer(self, root: int, version: Version, record: Record, damages: list[Damage]) -> None:
        """See whether this path is a good copy, or as damaged."""
        if record.kind != "f":
            return
        wanted = [
            damage
            for damage in damages
            if damage.path == record.path or sum(copy.same for copy in damage.copies) < _MOST_COPIES
        ]
        if not wanted:
            return
        identity, fault, proven = self._look(root, record)
        if fault:
            if any(damage.path == record.path for damage in wanted):
                self._damaged(record, identity, fault, version)
            return
        if not proven:
            return
        for damage in wanted:
            same = damage.checksum is not None and damage.checksum == record.xxh128
            copy = Copy(version.path.name, record.path, same)
            if copy not in damage.copies:
                damage.copies.append(copy)

    def _damaged(self, record: Record, identity: int, fault: str, version: Version) -> None:
        key = (record.path, identity)
        damage = self.damages.get(key)
        if damage is None:
            damage = self.damages[key] = Damage(record.path, fault, record.xxh128)
        if version.path.name not in damage.versions:
            damage.versions.append(version.path.name)

    def _look(self, root: int, record: Record) -> tuple[int, str, bool]:
        """The identity of what stands at the record's path, what is wrong with it ("" for
        nothing), and whether its content is proven to be the record's.
        """
        try:
            status = readback.look(root, record.path)
        except OSError as exc:
            return 0, _MISSING if exc.errno in _GONE else self._unreadable(exc), False
        kind = readback.kind(status)
        identity = self._identity(status)
        if kind != record.kind:
            return identity, "it is another kind of file than was backed up", False
        if kind != "f":
            return identity, "", True
        known = self._known.get(identity)
        fresh = known is None
        if known is None:
            known = self._read(root, record.path)
            self.files += 1
            if self.remember or status.st_nlink > 1 or isinstance(known, str):
                self._known[identity] = known
        if isinstance(known, str):
            return identity, known, False
        if record.xxh128 is None:
            self.unknown += fresh
            return identity, "", self.fstype == "btrfs"  # which checks what it reads
        good = known.hex() == record.xxh128
        return identity, "" if good else DIFFERS, good

    def _identity(self, status: os.stat_result) -> int:
        if self.fstype != "btrfs":
            return status.st_ino
        return status.st_ino << 64 | status.st_ctime_ns & (1 << 64) - 1

    def _read(self, root: int, path: bytes) -> bytes | str:
        try:
            return self.readback.digest(root, path)
        except OSError as exc:
            return self._unreadable(exc)

    def _unreadable(self, exc: OSError) -> str:
        if self.device is not None and not readback.answers(self.device):
            raise DriveFailed(
                f"The drive can't be read any more: {exc.strerror}.",
                "Look at the kernel's messages (journalctl -k), and try another port and cable.",
            ) from exc
        return f"it can't be read ({exc.strerror})"


@contextmanager
def opened(version: Version) -> Iterator[int]:
    """A descriptor of the version's tree."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(version.path, flags)
    try:
        yield fd
    finally:
        os.close(fd)
