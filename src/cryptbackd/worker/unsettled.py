"""What an interrupted run had copied, and the drive may not have.

btrfs and ext4 let a file have its name, length and time before its content is on the drive.  Where
that was pulled, or power failed, such a file has zeros in it, and the next copy would take it for
right.  So the last that was copied is read back, as much as memory could have held.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from ..model import Phase
from ..text import count
from .control import Control, Meter
from .inventory import Copied
from .layers.mounted import Mounted
from .listing import records
from .quick.within import Within, within
from .readback import Readback
from .reader import FIND
from .recording import Recording


def put_right(trees: Iterable[Path], taken: Recording, tree: Mounted, control: Control) -> None:
    """Remove from *trees*, which the next copy goes by, what has not the content that was copied.

    What is in none of them is not known any more: the next copy may take for it what the version
    before has there, if size and time are the same.

    Raises OSError, DriveFailed, ToolFailed and Cancelled.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if next(taken.unsettled(memory), None) is None:
        return
    control.phase(Phase.VERIFYING)
    meter = Meter(control, sum(each.size for each in taken.unsettled(memory)))

    def passed(_length: int) -> None:
        control.check()
        meter.at(readback.size)

    readback = Readback(tree.fstype, tree.beneath, passed)
    with ExitStack() as stack:
        places = [(where, stack.enter_context(within(where)), set[int]()) for where in trees]
        for each in taken.unsettled(memory):
            there = False
            for _where, root, lost in places:
                control.check()
                if inode := _like(root, each):
                    whole = _is_whole(root, each, readback)
                    there |= whole
                    lost.update(() if whole else (inode,))
            if not there:
                taken.lose(each.path)
        for where, root, lost in places:
            if lost:
                taken.lost.update(_remove(where, root, lost, control))


def _remove(where: Path, root: Within, lost: set[int], control: Control) -> list[bytes]:
    """Remove all names of the files *lost*, and return them: rsync goes by any of them."""
    argv = [FIND, str(where), "-mindepth", "1", "-printf", r"%i %P\0"]
    with records(argv, None, control) as found:
        names = [line.partition(b" ")[2] for line in found if int(line.partition(b" ")[0]) in lost]
    for name in names:
        root.remove(name, control.interrupt)
    what = count(len(lost), "file")
    control.say(f"of what an interrupted run had copied, {what} did not reach the drive.")
    return names


def _like(root: Within, copied: Copied) -> int:
    """The inode of what the next copy would take for right; 0 where it would take nothing."""
    status = root.status(copied.path)
    if status is None or not stat.S_ISREG(status.st_mode):
        return 0
    same = (status.st_size, status.st_mtime_ns) == (copied.size, copied.mtime_ns)
    return status.st_ino if same else 0


def _is_whole(root: Within, copied: Copied, readback: Readback) -> bool:
    try:
        return readback.digest(root.number, copied.path).hex() == copied.xxh128
    except OSError:
        return False
