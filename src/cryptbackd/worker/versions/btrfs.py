"""Versions on btrfs: ``current`` is a subvolume, a version a read-only snapshot of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from ...errors import DriveFailed, ForgedDrive, ToolFailed
from ...run import run

BTRFS = "/usr/bin/btrfs"
_SUBVOLUME_INODE = 256
"""Inode number of every subvolume's root (BTRFS_FIRST_FREE_OBJECTID)."""


class BtrfsStore:
    """See ``versions.Store``."""

    link_dest: tuple[Path, ...] = ()

    def __init__(self, current: Path) -> None:
        self.target = current

    def begin(self, last: Path | None) -> None:
        """Make the subvolume, from the newest version if it went missing."""
        if not os.path.lexists(self.target):
            if last is None:
                _btrfs("create", str(self.target))
            else:
                _btrfs("snapshot", str(last), str(self.target))
        status = os.lstat(self.target)
        if not stat.S_ISDIR(status.st_mode) or status.st_ino != _SUBVOLUME_INODE:
            raise ForgedDrive('"current" in the container is not the subvolume that it was.')

    def last_state(self) -> Path | None:
        """``current`` holds what the last run left, complete or not."""
        return self.target

    def retain(self, path: str) -> None:
        """It stands there already."""

    def keep(self, version: Path) -> None:
        """Snapshot it; the name comes to be in one transaction."""
        _btrfs("snapshot", "-r", str(self.target), str(version))

    def remove(self, tree: Path, interrupt: tuple[int, Callable[[], None]]) -> None:
        """Delete the snapshot; the kernel frees its space afterwards, also after another mount."""
        run([BTRFS, "subvolume", "delete", "--", str(tree)], deadline=600, interrupt=interrupt)


def _btrfs(*arguments: str) -> None:
    try:
        run([BTRFS, "subvolume", *arguments], deadline=600)
    except ToolFailed as exc:
        raise DriveFailed(f"A subvolume could not be made: {exc.sentence}") from exc
