"""Versions on btrfs: ``current`` is a subvolume, a version a read-only snapshot of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ... import kernel
from ...errors import DriveFailed, ForgedDrive, ToolFailed
from ...run import Interrupt, run
from ..changing import change
from .tree import remove_tree

BTRFS = "/usr/bin/btrfs"
_SUBVOLUME_INODE = 256
"""Inode number of every subvolume's root (BTRFS_FIRST_FREE_OBJECTID)."""
_NOT_MADE = "A subvolume could not be made"


class BtrfsStore:
    """See ``versions.Store``."""

    link_dest: tuple[Path, ...] = ()
    linked = False

    def __init__(self, current: Path) -> None:
        self.target = current

    def begin(self, last: Path | None) -> None:
        """Make the subvolume, from the newest version if it went missing."""
        if not os.path.lexists(self.target):
            if last is None:
                _btrfs(_NOT_MADE, "create", str(self.target))
            else:
                _btrfs(_NOT_MADE, "snapshot", str(last), str(self.target))
        if not _is_subvolume(self.target):
            raise ForgedDrive('"current" in the container is not the subvolume that it was.')

    def last_state(self) -> Path | None:
        """``current`` holds what the last run left, complete or not."""
        return self.target

    def left(self) -> tuple[Path, ...]:
        """It goes on with that one."""
        return (self.target,)

    def is_untouched(self, last: Path) -> bool:
        """Nothing was changed in it since the snapshot, by whomever: the kernel counts."""
        try:
            return kernel.btrfs_last_change(str(self.target)) == kernel.btrfs_last_change(str(last))
        except OSError:
            return False

    def fill(self, last: Path) -> None:
        """It holds that."""

    def retain(self, path: str) -> None:
        """It stands there already."""

    def keep(self, version: Path) -> None:
        """Snapshot it; the name comes to be in one transaction."""
        _btrfs(_NOT_MADE, "snapshot", "-r", str(self.target), str(version))

    def removes_at_once(self, tree: Path) -> bool:
        """A snapshot goes in one transaction, for which there is room when there is no other."""
        return _is_subvolume(tree)

    def remove(self, tree: Path, interrupt: Interrupt) -> None:
        """Delete the snapshot; the kernel makes its room free by and by."""
        if not _is_subvolume(tree):
            remove_tree(tree, interrupt)  # somebody copied it here
            return
        _btrfs("A subvolume could not be deleted", "delete", str(tree))

    def reclaim(self, interrupt: Interrupt) -> None:
        """The first commit wakes the cleaner, the second makes free what it released."""
        root = str(self.target.parent)
        try:
            for what in ("filesystem", "subvolume", "filesystem"):
                run([BTRFS, what, "sync", root], deadline=3600, interrupt=interrupt)
        except ToolFailed as exc:
            raise DriveFailed(f"Room could not be made: {exc.sentence}") from exc


def _is_subvolume(path: Path) -> bool:
    status = os.lstat(path)
    return stat.S_ISDIR(status.st_mode) and status.st_ino == _SUBVOLUME_INODE


def _btrfs(failure: str, *arguments: str) -> None:
    change([BTRFS, "subvolume", *arguments], failure, deadline=600)
