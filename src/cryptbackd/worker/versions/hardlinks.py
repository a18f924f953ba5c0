"""Versions on ext4 and xfs: trees in which unchanged files are links to the version before.

``current`` exists only while a run is going on, or after one that was interrupted: complete,
it is renamed and thereby *is* the version.  A file in it may be a link into an older version,
so it must never be changed in place.  Therefore an interrupted one is not written to again
but set aside, and serves the next run as one more tree to link from.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from ... import kernel
from ...errors import DriveFailed, DriveFull, ForgedDrive
from ...run import Interrupt
from ..changing import TooMuch, change
from .tree import remove_tree

CP = "/usr/bin/cp"
_ASIDE = ".interrupted-"
_MOST_LINK_DESTS = 18
"""rsync takes at most 20 ``--link-dest`` options."""
_PATIENCE = 6 * 3600.0
"""Seconds; a slow drive takes its time for a million names."""


class HardLinkStore:
    """See ``versions.Store``."""

    linked = True

    def __init__(self, current: Path) -> None:
        self.target = current
        self.link_dest: tuple[Path, ...] = ()
        self._last: Path | None = None

    def begin(self, last: Path | None) -> None:
        """Set an interrupted target aside and make an empty one."""
        root = self.target.parent
        aside = _set_aside(root)
        if os.path.lexists(self.target):
            if not stat.S_ISDIR(os.lstat(self.target).st_mode):
                raise ForgedDrive('"current" in the container is not a directory.')
            number = int(aside[-1].name[len(_ASIDE) :]) + 1 if aside else 1
            while os.path.lexists(root / f"{_ASIDE}{number}"):
                number += 1
            aside.append(self.target.rename(root / f"{_ASIDE}{number}"))
        for old in aside[:-_MOST_LINK_DESTS]:
            remove_tree(old)
        newest_first = aside[-_MOST_LINK_DESTS:][::-1]
        self._last = last
        self.link_dest = (*newest_first, last) if last is not None else tuple(newest_first)
        self.target.mkdir(mode=0o755)

    def last_state(self) -> Path | None:
        """The newest version: what is in the target is this run's."""
        return self._last

    def retain(self, path: str) -> None:
        """Link the source's last state into the target."""
        if self._last is None:
            return
        old, new = self._last / path.lstrip("/"), self.target / path.lstrip("/")
        # That of all is always there, and empty.
        if not os.path.lexists(old) or (path != "/" and os.path.lexists(new)):
            return
        new.parent.mkdir(parents=True, exist_ok=True)
        _link(old, new, "The last state could not be kept")

    def left(self) -> tuple[Path, ...]:
        """What was set aside."""
        return tuple(path for path in self.link_dest if path != self._last)

    def is_untouched(self, last: Path) -> bool:
        """It is empty; what an interrupted run left would be lost to a quick one."""
        return self.link_dest == (last,)

    def fill(self, last: Path) -> None:
        """Link all of the tree *last* into the target."""
        try:
            _link(last, self.target, "The last state could not be linked")
        except (DriveFull, TooMuch):
            # It has nothing that the last version hasn't, and takes room that is to be made.
            remove_tree(self.target)
            raise

    def keep(self, version: Path) -> None:
        """The rename makes it a version; what was set aside has served."""
        self.target.rename(version)
        for path in _set_aside(self.target.parent):
            remove_tree(path)

    def removes_at_once(self, tree: Path) -> bool:  # noqa: ARG002
        """It goes name by name."""
        return False

    def remove(self, tree: Path, interrupt: Interrupt) -> None:
        """Remove its names; files that other versions have stay in those."""
        remove_tree(tree, interrupt)

    def reclaim(self, interrupt: Interrupt) -> None:  # noqa: ARG002
        """Blocks are free once the journal has it."""
        fd = os.open(self.target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            kernel.syncfs(fd)
        except OSError as exc:
            raise DriveFailed(f"Room could not be made: {exc.strerror}.") from exc
        finally:
            os.close(fd)


def _link(tree: Path, where: Path, failure: str) -> None:
    """Have *where* be like *tree*, by links to its files."""
    argv = [CP, "--archive", "--link", "--no-dereference", "--no-target-directory", "--"]
    change([*argv, str(tree), str(where)], failure, deadline=_PATIENCE)


def _set_aside(root: Path) -> list[Path]:
    """What interrupted runs left in *root*, oldest first; what only looks like it is left alone."""
    found = {}
    for path in root.glob(f"{_ASIDE}*"):
        number = path.name[len(_ASIDE) :]
        if re.fullmatch("[0-9]{1,9}", number) and stat.S_ISDIR(os.lstat(path).st_mode):
            found[path] = int(number)
    return sorted(found, key=lambda path: found[path])
