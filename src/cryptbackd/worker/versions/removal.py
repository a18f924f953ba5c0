"""Versions that are let go.

A snapshot goes in one step, and its record after it.  A tree is first renamed to what is no
version's name; from then on it is none.  Then its record is removed, and then its files.  What
an interruption leaves of these is removed by the next run.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from ...config import Keep
from ...errors import Cancelled, DriveFailed, DriveFull
from ...model import Phase
from ...text import printable
from ..control import Control
from ..layers.mounted import Mounted
from . import VERSIONS, Store, record
from .retention import Plan, plan

_REMOVED = ".removed-"
_WORTH_A_TRY = (1 << 20, 100)
"""Bytes or inodes that must have become free before the copy is tried again."""

_DENSER = {"btrfs": 4}
"""How much shorter data may become where it is compressed: more than most does, as a version that
could have stayed is the lesser harm than a run that could have succeeded."""


def finish(keeper: Store, directory: Path, control: Control) -> None:
    """Remove what earlier runs left of versions that they let go.

    What can't be removed is warned about.  Raises Cancelled.
    """
    left = sorted(directory.glob(f"{_REMOVED}*"))
    if left:
        control.phase(Phase.REMOVING)
    for tree in left:
        control.check()
        try:
            keeper.remove(tree, control.interrupt)
        except (DriveFailed, DriveFull) as exc:
            _warn(tree.name.removeprefix(_REMOVED), exc, control)


def let_go(keeper: Store, directory: Path, name: str, why: str, control: Control) -> None:
    """Remove the version *name*; *why* ends the sentence that is said.

    Raises DriveFailed, DriveFull, OSError and Cancelled.
    """
    tree = directory / name
    at_once = keeper.removes_at_once(tree)
    if at_once:
        keeper.remove(tree, control.interrupt)
    else:
        tree = tree.rename(directory / f"{_REMOVED}{name}")
    control.say(f"version {printable(name, 40)} removed: {why}.", "version_removed")
    (directory / f"{name}.json").unlink()
    (directory / f"{name}.manifest").unlink(missing_ok=True)
    if not at_once:
        keeper.remove(tree, control.interrupt)


def by_rules(keeper: Store, tree: Mounted, keep: Keep, control: Control) -> None:
    """Let the versions go that no rule of *keep* holds, after a new one was made.

    That one is on the drive before they go.  The run has done its work: when it is to stop,
    or one can't be removed, the rest is left to the next one.  Raises DriveFailed only when
    what was written did not reach the drive.
    """
    directory = tree.path / VERSIONS
    goes = _plan(directory, keep).goes
    if not goes:
        return
    control.phase(Phase.REMOVING)
    tree.sync()
    for version in goes:
        try:
            control.check()
            let_go(keeper, directory, version.name, "no rule of [keep] holds it", control)
        except Cancelled:
            return
        except (DriveFailed, DriveFull, OSError) as exc:
            _warn(version.name, exc, control)
            return


def is_hopeless(solid: int, tree: Mounted) -> bool:
    """Whether so many bytes, without holes, can't have room even if nothing else were there."""
    status = os.fstatvfs(tree.fd)
    return solid > _DENSER.get(tree.fstype, 1) * status.f_blocks * status.f_frsize


def make_room(keeper: Store, tree: Mounted, keep: Keep, control: Control) -> bool:
    """Let versions go that no rule of *keep* holds, oldest first, until another try is worth it.

    Whether one went.  Never the newest.  Raises DriveFailed, DriveFull, OSError and
    Cancelled.
    """
    directory = tree.path / VERSIONS
    keeper.reclaim(control.interrupt)  # else what the copy gave back would count, too
    before = _room(tree)
    spare = _plan(directory, keep).spare
    if not spare:
        return False
    control.phase(Phase.REMOVING)
    why = "the container is full, and no rule of [keep] holds it"
    for version in spare:
        control.check()
        let_go(keeper, directory, version.name, why, control)
        keeper.reclaim(control.interrupt)
        gained = (now - then for now, then in zip(_room(tree), before, strict=True))
        if any(gain >= enough for gain, enough in zip(gained, _WORTH_A_TRY, strict=True)):
            break
    return True


def _room(tree: Mounted) -> tuple[int, int]:
    """Free bytes, and free inodes (of which btrfs has no count)."""
    return tree.free(), os.fstatvfs(tree.fd).f_ffree


def _plan(directory: Path, keep: Keep) -> Plan:
    """What may go of the versions that were made here: a copy of one is somebody else's."""
    made_here = (
        version.dated
        for version in record.versions(directory)
        if version.record.get("version") == version.path.name
    )
    return plan(made_here, keep, int(time.time()))


def _warn(name: str, error: DriveFailed | DriveFull | OSError, control: Control) -> None:
    fault = f"{error.strerror}." if isinstance(error, OSError) else error.sentence
    control.warn(
        f"version {printable(name, 40)} could not be removed; the next run tries again. {fault}"
    )
