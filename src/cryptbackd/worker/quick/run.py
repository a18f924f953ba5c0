"""Which way a run goes, and a quick one from its listing to its manifest.

Lists lie in the directory of the recording, which removes them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from ... import manifest
from ...errors import ManifestDamaged, ToolFailed
from ...model import Phase
from ...text import count
from ..control import Control
from ..recording import Recording
from ..rsync_job import RSYNC, Job
from ..sources import is_inside
from ..sync import Synced
from .account import account
from .changes import Changes, changes
from .difference import TooMany, difference
from .large import LARGE, large_files
from .proof import FULL, KIND, QUICK, SINCE, WHY, Circumstances, why_full
from .transfer import Place, bring_back, transfer, transfer_large


@attrs.define
class Way:
    """How a run goes about it."""

    why: str
    """Why it compares in full, as the end of a sentence; empty for a quick run."""
    changes: Changes | None
    """What a quick run has to do."""
    since: int
    """Quick runs since the last full one."""

    @property
    def fields(self) -> dict[str, object]:
        """What the version's record tells of it."""
        if self.changes is None:
            return {KIND: FULL, WHY: self.why, SINCE: 0}
        return {KIND: QUICK, SINCE: self.since + 1}

    def compare_in_full(self, why: str, control: Control) -> None:
        """Change a quick run into a full one."""
        if self.changes is not None:
            self.why, self.changes = why, None
            self.say(control)

    def say(self, control: Control) -> None:
        """Tell the journal."""
        if self.changes is None:
            control.say(f"comparing in full, since {self.why}.", "comparing_full")
        else:
            control.say(
                f"comparing with what this computer remembers of the drive:"
                f" {len(self.changes.transfer) + len(self.changes.remove)} paths to look at.",
                "comparing_quick",
            )


def way(
    found: Circumstances,
    jobs: Sequence[Job],
    kept: Sequence[str],
    taken: Recording,
    place: Path,
    control: Control,
) -> Way:
    """Decide, once the sources are listed but for those that are *kept*.  Raises Cancelled."""
    since = found.last.record.get(SINCE, 0) if found.last is not None else 0
    chosen = Way(why_full(found), None, since if isinstance(since, int) else 0)
    if not chosen.why:
        control.phase(Phase.COMPARING)
        chosen.why, chosen.changes = _compare(jobs, kept, taken, place)
    chosen.say(control)
    return chosen


def _compare(
    jobs: Sequence[Job], kept: Sequence[str], taken: Recording, place: Path
) -> tuple[str, Changes | None]:
    if taken.before is None:
        return "what was remembered of the last version is lost", None
    if not taken.listed_all or len(taken.listings) != len(jobs):
        return "not everything could be listed", None
    try:
        with manifest.opened(taken.before) as before:
            own = [path for job in jobs for path in job.own]
            found = difference(taken.merged(), before, is_kept(kept, own))
        return "", changes(found, [*own, *kept], jobs[0].exclude, place / "skeleton", RSYNC)
    except TooMany:
        return "much has changed", None
    except (ManifestDamaged, ToolFailed) as exc:
        return f"the changes could not be told: {exc.sentence}".rstrip("."), None
    except OSError as exc:
        return f"the changes could not be told: {exc.strerror}", None


def is_kept(kept: Sequence[str], own: Sequence[str]) -> Callable[[bytes], bool]:
    """Whether the innermost source that a path lies in is one of the *kept* ones."""

    def says(path: bytes) -> bool:
        name = "/" + os.fsdecode(path)
        longest = max((len(one) for one in kept if is_inside(name, one)), default=-1)
        return longest > max((len(one) for one in own if is_inside(name, one)), default=-1)

    return says if kept else lambda _path: False


def copy_large(place: Place, taken: Recording, control: Control) -> Synced:
    """Before a full run: write into large files what has changed in them, where that is less.

    Without a listing that is left to the run.
    """
    if place.linked or not taken.listings:
        return Synced()
    files = large_files(taken.merged())
    if not files:
        return Synced()
    control.phase(Phase.SYNCING)
    return transfer_large(place, files, control)


def keep_whole(place: Place, kept: Sequence[str], taken: Recording, control: Control) -> None:
    """Before a full run: have no file of the sources *kept* stay as an interrupted run left it,
    lost or (a large one) half written.
    """
    if place.linked or not kept or not place.jobs[0].delete:
        return
    whole, sure = taken.large(LARGE), taken.unbroken
    stays = is_kept(kept, [path for job in place.jobs for path in job.own])
    lost = sorted(filter(stays, taken.lost))
    brought = bring_back(place, kept, whole, lost, control, sure=sure)
    if brought:
        what = count(brought, "file")
        control.say(
            f"of what is kept, an interrupted run had begun {what}, and not come to its end."
        )


@attrs.frozen
class Done:
    """What a quick run did."""

    synced: Synced
    records: dict[bytes, bytes | None]
    """What changes in the manifest."""


def carry_out(what: Changes, place: Place, taken: Recording, control: Control) -> Done:
    """Bring the target up to date; it holds the last state.  Warns and raises as ``sync``."""
    control.phase(Phase.SYNCING)
    done = transfer(place, what, control)
    told = account(what, done, place, taken.began)
    synced = done.synced
    for path, record in told.items():
        before = what.before.get(path)
        synced.files += (record is not None) - (before is not None)
        synced.size += _size(record) - _size(before)
    for path in what.above:
        # Their records are not among those before.
        synced.files -= told.get(path) is not None and path not in what.before
    return Done(synced, told)


def _size(raw: bytes | None) -> int:
    if raw is None:
        return 0
    record = manifest.Record.parse(raw)
    return record.size if record.kind in ("f", "l") else 0
