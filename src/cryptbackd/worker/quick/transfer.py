"""A quick run's work on the drive: what is gone is removed, what differs is copied.

Changes the target in place and nothing else: after an error it is neither the last state nor the
new one.  What could not be read at the source keeps its last state.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import attrs

from ...manifest import Record
from ..changing import change
from ..control import Control
from ..rsync_job import Job, Received
from ..sources import is_inside
from ..sync import Synced, copy_named, temporary
from .changes import Changes
from .large import LARGE, dig_holes, grow, half_written
from .within import Within, attributes, within

CP = "/usr/bin/cp"
_ROOT = b"."
_WITH_HOLES = 1 << 20
"""Bytes from which on holes are cared for."""
_PATIENCE = 6 * 3600.0


def reader(jobs: Iterable[Job], path: bytes) -> Job | None:
    """The one of *jobs* with the innermost source that *path* lies in."""
    found, longest = None, -1
    name = "/" + os.fsdecode(path)
    for job in jobs:
        for own in job.own:
            if is_inside(name, own) and len(own) > longest:
                found, longest = job, len(own)
    return found


@attrs.frozen
class Place:
    """Where it is done."""

    jobs: tuple[Job, ...]
    """As for a full run; at least one."""
    last: Path
    """The last version's tree."""
    linked: bool
    """The target's files are links into the last version, and must not be written to."""

    @property
    def target(self) -> Path:
        """What is brought up to date."""
        return self.jobs[0].target

    def job(self, path: bytes) -> Job:
        """The one that *path* is read by."""
        found = reader(self.jobs, path)
        if found is not None:
            return found
        # A directory above sources.
        name = os.fsdecode(path)
        above = (job for job in self.jobs if os.path.isdir(os.path.join(job.stage, name)))
        return next(above, self.jobs[0])

    def source(self, path: bytes) -> bytes:
        """Where it is staged."""
        return os.path.join(os.fsencode(self.job(path).stage), path)


@attrs.define
class Transferred:
    """What was done; what the manifest is to say of it is :mod:`.account`'s."""

    synced: Synced = attrs.field(factory=Synced)
    received: dict[bytes, str] = attrs.field(factory=dict)
    """The checksum of each file that came, by path."""
    failed: set[bytes] = attrs.field(factory=set)
    """What was warned of by its path: it may not be what is at the source."""
    doubtful: bool = False
    """Something else was warned of: so may nothing be that did not come."""


def transfer(place: Place, what: Changes, control: Control) -> Transferred:
    """Bring the target up to date; warns and raises as ``sync`` does."""
    with ExitStack() as stack:
        target = stack.enter_context(within(place.target))
        if is_there(place, what, target):
            control.check()
            return Transferred()
        aside = stack.enter_context(temporary(place.target))
        work = _Transfer(place, what, target, aside, control)
        work.run()
    return work.done


def is_there(place: Place, what: Changes, target: Within) -> bool:
    """Whether there is nothing to do, as far as it shows: then rsync would find nothing, too.

    But for the time of the root, which every copy changes.
    """
    if what.now or what.remove or set(what.transfer) != set(what.above):
        return False
    return all(_is_alike(place.source(path), target, path) for path in (_ROOT, *what.above))


def _is_alike(source: bytes, target: Within, path: bytes) -> bool:
    """Whether a directory has all of the source's that rsync copies."""
    try:
        one, other = os.lstat(source), target.status(path)
        if other is None or not stat.S_ISDIR(one.st_mode):
            return False
        same = (one.st_mode, one.st_uid, one.st_gid) == (other.st_mode, other.st_uid, other.st_gid)
        if path != _ROOT:
            same &= one.st_mtime_ns == other.st_mtime_ns
        return same and target.attributes(path) == attributes(source)
    except OSError:
        return False


def transfer_large(place: Place, listed: Mapping[bytes, bytes], control: Control) -> Synced:
    """Bring large files up to date that differ, of those *listed* (path to record), and that the
    target has already: what is left to a full run then takes them for right.
    """
    with ExitStack() as stack:
        target = stack.enter_context(within(place.target))
        aside = stack.enter_context(temporary(place.target))
        work = _Transfer(place, Changes((), (), {}, dict(listed)), target, aside, control)
        work.run_large()
    return work.done.synced


def bring_back(
    place: Place,
    kept: Iterable[str],
    whole: Mapping[bytes, tuple[int, int]],
    lost: Sequence[bytes],
    control: Control,
    *,
    sure: bool,
) -> int:
    """Have the last version's files stand in the place of those of the sources *kept* that an
    interrupted run has half written, or that were *lost*; how many these were.

    See ``large.half_written``.  Where that version has none, there is none then, if it is *sure*
    that all of what is *whole* is known.
    """
    with ExitStack() as stack:
        target = stack.enter_context(within(place.target))
        half = half_written(target, place.target, place.last, kept, whole, control)
        half += lost
        if half:
            aside = stack.enter_context(temporary(place.target))
            work = _Transfer(place, Changes((), (), {}, {}), target, aside, control)
            for path in half:
                work.bring_back(path, sure=sure)
    return len(half)


class _Transfer:
    def __init__(
        self, place: Place, what: Changes, target: Within, aside: Path, control: Control
    ) -> None:
        self._place = place
        self._what = what
        self._target = target
        self._aside = aside
        self._control = control
        self._now = {path: Record.parse(raw) for path, raw in what.now.items()}
        self._before = {path: Record.parse(raw) for path, raw in what.before.items()}
        self.done = Transferred()

    def run(self) -> None:
        doubts = self._control.doubts.number
        for path in self._what.remove:
            self._target.remove(path, self._control.interrupt)
            self._control.check()
        self.done.synced.deleted = sum(path not in self._now for path in self._before)
        large = self.run_large()
        self._part_names()
        self._copy([path for path in self._what.transfer if path not in large])
        again = [path for path in self._unread() if path not in large]
        # What is brought back is a link into the last version, where files are links, and not to
        # be written to.
        if not self._place.linked:
            self._bring_back(large)
        if again:
            self._pass([_ROOT, *again], contents=False)
        if self._place.linked:
            self._dig_holes()
            self._bring_back(large)
        self.done.failed = {path for job in self._place.jobs for path in job.failed}
        self.done.doubtful = self._control.doubts.number > doubts

    def bring_back(self, path: bytes, *, sure: bool) -> None:
        """Have the last version's file stand in the target; none where that has none, if *sure*."""
        if os.path.lexists(os.path.join(os.fsencode(self._place.last), path)):
            self._restore(path)
        elif sure:
            self._target.remove(path, self._control.interrupt)

    # Large files

    def run_large(self) -> set[bytes]:
        """Write into large files what has changed in them; which these were."""
        large = set() if self._place.linked else set(self._large())
        if large:
            self._in_place(sorted(large))
        return large

    def _large(self) -> Iterator[bytes]:
        """Large files of which a part may have changed, and that stand alone on both sides."""
        for path, now in self._now.items():
            if now.kind != "f" or now.nlink != 1 or now.size < LARGE:
                continue
            status = self._target.status(path)
            if status is None or not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                continue
            differs = (status.st_size, status.st_mtime_ns) != (now.size, now.mtime_ns)
            if differs and status.st_size >= LARGE:
                yield path

    def _in_place(self, paths: list[bytes]) -> None:
        for path in paths:
            grow(self._target, path, self._now[path].size)
        self._pass(paths, in_place=True)
        for path in paths:
            if path in self.done.received:
                dig_holes(self._place.source(path), self._target, path, self._control)
            else:
                self._restore(path)

    # Files with several names

    def _part_names(self) -> None:
        """Remove names that share a file in the target and would keep doing so.

        rsync takes a name for right whose content is right, whatever other names that file has.
        """
        shared: dict[int, list[bytes]] = {}
        links: dict[int, int] = {}
        for path, now in self._now.items():
            status = None if now.kind == "d" else self._target.status(path)
            if status is None or stat.S_ISDIR(status.st_mode):
                continue
            if self._place.linked:
                self._target.remove(path, self._control.interrupt)
            elif status.st_nlink > 1:
                shared.setdefault(status.st_ino, []).append(path)
                links[status.st_ino] = status.st_nlink
        for inode, paths in shared.items():
            sources = [self._now[path].inode for path in paths]
            # With names that were not listed anew, none can be told to belong to the others.
            stays = max(set(sources), key=sources.count) if len(paths) == links[inode] else None
            for path in paths:
                if stays is None or self._now[path].inode != stays:
                    self._target.remove(path, self._control.interrupt)

    # The copy

    def _copy(self, paths: list[bytes]) -> None:
        if not self._place.linked:
            self._pass([_ROOT, *paths])
            return
        # A file with several names is not linked from the last version: it would come back
        # with the names that it had there.
        several = [path for path in paths if self._had_several_names(path)]
        if several:
            self._pass(several, link=False)
        alone = set(paths).difference(several)
        self._pass([_ROOT, *sorted(alone)])

    def _dig_holes(self) -> None:
        """What rsync copies from the last version, since but its owner (or the like) has
        changed, has no holes any more.
        """
        for path, now in self._now.items():
            if now.kind == "f" and now.size >= _WITH_HOLES:
                dig_holes(self._place.source(path), self._target, path, self._control)

    def _had_several_names(self, path: bytes) -> bool:
        now, before = self._now.get(path), self._before.get(path)
        if now is None or now.kind == "d":
            return False
        if before is None or before.kind == "d":
            return now.nlink > 1
        return now.nlink > 1 or before.nlink > 1 or before.inode is None

    def _pass(
        self,
        paths: Collection[bytes],
        *,
        in_place: bool = False,
        link: bool = True,
        contents: bool = True,
    ) -> None:
        shares: dict[Path, tuple[Job, list[bytes]]] = {}
        for path in paths:
            job = self._place.job(path)
            shares.setdefault(job.stage, (job, []))[1].append(path)
        for job, share in shares.values():
            self._share(job, share, in_place=in_place, link=link, contents=contents)

    def _share(
        self, job: Job, paths: list[bytes], *, in_place: bool, link: bool, contents: bool
    ) -> None:
        tell = job.received

        def received(file: Received) -> None:
            self.done.received[file.path] = file.xxh128.decode("ascii")
            tell(file)

        job = attrs.evolve(
            job,
            names=tuple(paths),
            contents=contents and not in_place,
            in_place=in_place,
            link_dest=(self._place.last,) if self._place.linked and link else (),
            received=received,
        )
        total = sum(now.size for p in paths if (now := self._now.get(p)) and now.kind == "f")
        done = copy_named(job, self._control, total)
        self.done.synced.changed_files += done.changed_files
        self.done.synced.changed_bytes += done.changed_bytes

    # What could not be read

    def _unread(self) -> list[bytes]:
        """Of the files that could not be read, those whose copy has their size and time.

        To a full run they would be unchanged but for their owner and the like.
        """
        failed = {path for job in self._place.jobs for path in job.failed}
        unread = {now.inode for path in failed if (now := self._now.get(path)) and now.kind == "f"}
        same = {
            now.inode
            for path, now in self._now.items()
            if (was := self._before.get(path))
            and (was.kind, was.size, was.mtime_ns) == ("f", now.size, now.mtime_ns)
        }
        return sorted(path for path, now in self._now.items() if now.inode in unread & same)

    def _bring_back(self, large: Collection[bytes]) -> None:
        """Restore what is missing although the source has it."""
        for path, before in self._before.items():
            if path in large or path not in self._now or before.kind == "d":
                continue
            there = os.path.lexists(self._place.source(path))
            if there and self._target.status(path) is None:
                self._restore(path)

    def _restore(self, path: bytes) -> None:
        """Have the last version's file stand in the target."""
        last = os.path.join(os.fsencode(self._place.last), path)
        if not os.path.lexists(last):
            return
        fresh = self._aside / "restored"
        how = "--link" if self._place.linked else "--reflink=auto"
        argv = [CP, "--archive", "--no-dereference", "--no-target-directory", how, "--"]
        argv += [os.fsdecode(last), str(fresh)]
        failure = "A file could not be kept as it was"
        change(argv, failure, deadline=_PATIENCE, interrupt=self._control.interrupt)
        with self._target.parent(path) as (directory, name):
            times = os.fstat(directory)
            os.rename(fresh, name, dst_dir_fd=directory)
            kept = (times.st_atime_ns, times.st_mtime_ns)
            os.utime(f"/proc/self/fd/{directory}", ns=kept)
