"""Removing versions, each of them wholly, whatever interrupts it.

A version that goes first loses its name, and with that stops being one; then its record goes,
and its tree last.  What an interruption leaves of it has the name ``versions/.NAME.gone``, and
goes in the next run.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ...config import Keep
from ...errors import Cancelled, ToolFailed
from ..control import Control
from . import Store
from .record import Version
from .retention import Dated, decide

_GONE = ".{}.gone"


def finish(directory: Path, store: Store, control: Control) -> None:
    """Remove what is left of versions whose removal was interrupted."""
    for tree in sorted(directory.glob(_GONE.format("*"))):
        if not tree.is_symlink():
            _delete(tree, store, control)


def thin(found: Sequence[Version], rules: Keep, store: Store, control: Control) -> None:
    """Remove of the versions *found* those that no rule holds, the oldest first.

    The newest one is made: whoever stops this run, or whatever hinders the removal, only
    leaves the rest of it to the next run.
    """
    by_number = {version.sequence: version for version in found}
    dated = [Dated(version.sequence, _finished(version)) for version in found]
    with suppress(Cancelled):
        for decision in decide(dated, rules, now=time.time()):
            if decision.reasons:
                continue
            control.check()
            tree = by_number[decision.version.sequence].path
            gone = _take_name(tree)
            control.say(
                f"version {tree.name} removed: no rule of [keep] holds it.", "version_removed"
            )
            _delete(gone, store, control)


def _delete(tree: Path, store: Store, control: Control) -> None:
    try:
        store.remove(tree, control.interrupt)
    except ToolFailed as exc:
        control.warn(f"What is left of a removed version could not be deleted: {exc.sentence}")


def _finished(version: Version) -> float:
    """When it was made; a record that doesn't say it makes it one that is held."""
    finished = version.record.get("finished")
    if isinstance(finished, int | float) and math.isfinite(finished):
        return float(finished)
    return math.inf


def _take_name(tree: Path) -> Path:
    gone = tree.with_name(_GONE.format(tree.name))
    tree.rename(gone)
    tree.with_name(f"{tree.name}.json").unlink()
    _make_durable(tree.parent)
    return gone


def _make_durable(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
