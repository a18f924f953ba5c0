"""What is mounted where, as this process sees it (proc_pid_mountinfo(5))."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path

import attrs

_ESCAPED = re.compile(rb"\\([0-3][0-7]{2})")


@attrs.frozen
class Mount:
    """One line of mountinfo.  ``devno`` is ``major:minor``; ``source`` is what was mounted.

    ``root`` is what of the filesystem is to be seen at ``path``.
    """

    number: str
    devno: str
    root: str
    path: str
    fstype: str
    source: str
    options: tuple[str, ...]
    """Those of the filesystem, not of the mount."""

    @property
    def served_by_user(self) -> bool:
        """Whether somebody else than root mounted it, and answers for it (mount.fuse3(8))."""
        fuse = self.fstype.partition(".")[0] in ("fuse", "fuseblk")
        return fuse and "user_id=0" not in self.options


def mounts() -> list[Mount]:
    """Every mount, in the kernel's order: of two at one path the later one is on top."""
    return parse(Path("/proc/self/mountinfo").read_bytes())


def parse(table: bytes) -> list[Mount]:
    """The mounts that the *table* tells of; a line that is none is left out.

    A path has any bytes: of those that could end a line or a field the kernel escapes blank, tab
    and newline alone (proc_pid_mountinfo(5)).
    """
    found = []
    for line in table.split(b"\n"):
        before, dash, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        if not dash or len(fields) < 6 or len(rest) < 3:
            continue
        found.append(
            Mount(
                _text(fields[0]),
                _text(fields[2]),
                _text(fields[3]),
                _text(fields[4]),
                _text(rest[0]),
                _text(rest[1]),
                tuple(_text(option) for option in rest[2].split(b",")),
            )
        )
    return found


def _text(field: bytes) -> str:
    raw = _ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), field)
    return raw.decode("utf-8", "surrogateescape")


def of_descriptor(fd: int) -> Mount:
    """The mount that *fd* was opened on; its filesystem is asked nothing.

    Raises OSError where it was taken away since, as a user can do with theirs.
    """
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        (number,) = [line.split()[1].decode() for line in file if line.startswith(b"mnt_id:")]
    found = next((mount for mount in mounts() if mount.number == number), None)
    if found is None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    return found


def mount_points(devno: str) -> list[str]:
    """Where the block device ``major:minor`` is mounted, as far as we see.

    A btrfs shows a device number of its own in mountinfo, so the source is compared too.
    """
    node = os.path.realpath(f"/dev/block/{devno}")
    return [
        mount.path
        for mount in mounts()
        if mount.devno == devno
        or (mount.source.startswith("/dev/") and os.path.realpath(mount.source) == node)
    ]


def mount_of(path: str) -> Mount:
    """The mount that *path* lies on: the one with the longest path, the last of those."""
    return holding(os.path.realpath(path), mounts())


def holding(path: str, table: Sequence[Mount]) -> Mount:
    """The mount of *table* that *path* lies on by its name: no link is followed, nothing asked."""
    containing = [m for m in table if f"{path}/".startswith(m.path.rstrip("/") + "/")]
    longest = max(len(mount.path) for mount in containing)
    return [mount for mount in containing if len(mount.path) == longest][-1]


def shows_other(mount: Mount, around: Mount) -> bool:
    """Whether what *mount* shows, which lies in *around*, isn't what that has at its place.

    So is another subvolume of one btrfs; the directories that a service sees read-only are not.
    """
    below = mount.path.removeprefix(around.path.rstrip("/"))
    return (mount.devno, mount.root) != (around.devno, around.root.rstrip("/") + below)
