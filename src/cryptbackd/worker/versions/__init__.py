"""Versions: what the drive keeps of each complete sync.

A *store* offers a target to sync into and gives it a name when it is complete; a version is
there whole or not at all.  Beside each version lies its record; see ``versions.record``.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Protocol

from ...errors import ForgedDrive
from ...run import Interrupt
from ..layers.mounted import Mounted
from . import btrfs, hardlinks

CURRENT = "current"
VERSIONS = "versions"


class Store(Protocol):
    """The versions in one container."""

    target: Path
    """What to sync into."""
    linked: bool
    """Files of a version are links into others, and must not be written to."""
    link_dest: tuple[Path, ...]
    """Trees whose unchanged files are to be linked into the target."""

    def begin(self, last: Path | None) -> None:
        """Make the target ready; *last* is the tree of the newest version."""

    def last_state(self) -> Path | None:
        """The tree that holds the last state of the sources; None when there is none."""

    def left(self) -> tuple[Path, ...]:
        """Trees with what an interrupted run may have left, by which the next copy goes."""

    def is_untouched(self, last: Path) -> bool:
        """Whether the target, once begun, is as the tree *last* is, or will be when filled."""

    def fill(self, last: Path) -> None:
        """Have the target hold what the tree *last* does.

        Raises DriveFull, DriveFailed, and TooMuch where a path, or a file's name, can't be.
        """

    def retain(self, path: str) -> None:
        """Have the last state of the source *path* stand in the target; "/" comes first."""

    def keep(self, version: Path) -> None:
        """Give the synced target the name *version*."""

    def removes_at_once(self, tree: Path) -> bool:
        """Whether :meth:`remove` takes away *tree* as a whole, in one step."""

    def remove(self, tree: Path, interrupt: Interrupt) -> None:
        """Remove a tree that is no version any more; stopped in between, it can be repeated.

        Raises DriveFailed and DriveFull, and what *interrupt* raises.
        """

    def reclaim(self, interrupt: Interrupt) -> None:
        """Wait until the room of what was removed can be used.

        Raises DriveFailed, and what *interrupt* raises.
        """


def store(tree: Mounted) -> Store:
    """The store in the mounted container."""
    versions = tree.path / VERSIONS
    if not os.path.lexists(versions):
        versions.mkdir(mode=0o700)
    if not stat.S_ISDIR(os.lstat(versions).st_mode):
        raise ForgedDrive('"versions" in the container is not a directory.')
    current = tree.path / CURRENT
    if tree.fstype == "btrfs":
        return btrfs.BtrfsStore(current)
    return hardlinks.HardLinkStore(current)
