"""A longer or shorter container.

Longer: files, loop devices, volume, filesystem; shorter: the same backwards.  The volume is
unlocked before anything is changed.  Each step is noted on the computer before it is begun, and
whoever opens the drive next finishes or undoes what was cut off (``worker.unfinished``).
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import attrs

from ... import kernel, protocol, sizes
from ...config import parse
from ...errors import Cancelled, CryptbackError, DriveFull, Refused
from ...model import Outcome, Phase, RunResult
from ...sizes import How, Wanted
from ...text import printable, size
from .. import extent, lengths, superblock, unfinished, workspace
from .. import header as headers
from ..control import Control
from ..device import probe
from ..layers import redo
from ..layers.inner import OPTIONS, inner
from ..layers.luks import extend, rebase
from ..opening import Opening, Tail, begin, excess, opening
from ..remaining import told
from ..unfinished import Stage
from ..whitelist import Header
from .backup import proven_free


@attrs.frozen
class _Job:
    """What all steps need."""

    found: Opening
    header: Header
    fstype: str
    place: Path
    control: Control

    @property
    def tail(self) -> Tail:
        """The end of the container; there is one."""
        assert self.found.tail is not None
        return self.found.tail


def resize(start: protocol.Start, control: Control) -> RunResult:
    """Give the container of the entry ``start.name`` the length ``start.options["size"]``."""
    entry = parse(start.entry, start.name)
    header = headers.load(start.name)
    wanted = wanted_of(str(start.options.get("size", "")))
    sizes.want_possible(entry.container, wanted)
    place = workspace.make(start.name)
    control.phase(Phase.ATTACHING)
    with proven_free(start.device, control), ExitStack() as stack:
        found = stack.enter_context(
            opening(start.name, entry, start.device, header, place, control, extensible=True)
        )
        fstype = probe(found.volume.node).get("TYPE", "")
        if fstype not in OPTIONS:
            raise Refused(f"The container holds {printable(fstype) or 'no filesystem'}.")
        job = _Job(found, header, fstype, place, control)
        control.phase(Phase.RESIZING)
        sentence = _partition(job) if found.tail is None else _container(job, wanted)
    control.phase(Phase.FINISHED)
    return RunResult(
        Outcome.WARNINGS if control.warnings else Outcome.DONE,
        sentence,
        safe=control.safe,
        warnings=control.warnings.told,
    )


def wanted_of(text: str) -> Wanted:
    """What *text* asks for; raises Refused."""
    try:
        return sizes.parse(text)
    except ValueError as exc:
        raise Refused(f"{printable(str(exc))}.") from exc


def _partition(job: _Job) -> str:
    """The volume is as long as the partition already; what is in it may not be."""
    with open(job.found.backing, "rb") as device:
        there = kernel.device_size(device.fileno())
    needed = lengths.needed(job.found.volume, job.fstype, job.header)
    if there - needed < sizes.MIB:
        return f"It fills its partition of {size(there)} already."
    lengths.want_tool(job.fstype)
    lengths.want_length(job.fstype, there - job.header.size)
    with inner(job.found.volume, job.place / "tree") as tree, told(job.control):
        lengths.grow(tree, job.found.volume)
        free = tree.free()
    return f"It fills its partition of {size(there)} now; {size(free)} are free in it."


def _container(job: _Job, wanted: Wanted) -> str:
    drive, tail = job.found.drive, job.tail
    assert drive is not None
    current = tail.length
    status = os.fstatvfs(drive.filesystem.fd)
    total = status.f_blocks * status.f_frsize
    needed = lengths.needed(job.found.volume, job.fstype, job.header)
    if wanted.how is How.MAX and (why := excess(drive, current)):
        raise Refused(
            why,
            f"`cryptback resize {job.found.name} {-(-needed // sizes.MIB)}M` makes it as long as"
            " what is in it.",
        )
    target = sizes.length(
        wanted,
        current=current,
        taken=extent.taken(tail.files),
        free=status.f_bavail * status.f_frsize,
        total=total,
        most=extent.most(tail.files),
    )
    if target < current:
        if job.fstype == "btrfs":
            _shorten_btrfs(job, target)
        else:
            _shorten_ext4(job, target)
        tail.cut = target
        return f"The container is shorter now: {size(target)}, {size(current)} before."
    lengths.want_tool(job.fstype)
    wanted_lengths: list[int] = []
    if target > current:
        lengths.want_length(job.fstype, target - job.header.size)
        wanted_lengths = extent.plan(tail.files, target)
    with inner(job.found.volume, job.place / "tree") as tree, told(job.control):
        job.found.settle(tree)
        job.control.phase(Phase.RESIZING)
        if target > current:
            _lengthen(job, wanted_lengths)
        if target > current or current - needed >= sizes.MIB:
            lengths.grow(tree, job.found.volume)
        unfinished.forget(job.found.name)
        free = tree.free()
    if target == current:
        return f"The container has {size(current)}, as it had before; {size(free)} are free in it."
    return (
        f"The container is longer now: {size(target)}, {size(current)} before;"
        f" {size(free)} are free in it."
    )


def _lengthen(job: _Job, wanted: list[int]) -> None:
    """Files, what joins them, and volume."""
    found, tail, control = job.found, job.tail, job.control
    current = tail.length
    note = begin(found, job.header, sum(wanted), Stage.FILLING)
    tail.cut = current
    tail.why = ""
    try:
        extent.lengthen(tail.files, wanted, control, random=job.header.detached)
        control.check()
    except OSError as exc:
        raise DriveFull(
            f"The container could not be made longer: {exc.strerror}.",
            f"It has {size(current)}, as before.",
        ) from exc
    # From here on it is done to its end, by whomever.
    unfinished.write(found.name, attrs.evolve(note, stage=Stage.FILLED))
    tail.cut = None
    assert found.bound is not None
    found.bound.take_in(found.files)
    if found.bound.node != found.backing:
        rebase(found.volume, found.bound.node, found.name, job.header)
        found.bound.hand_over()
    extend(found.volume, found.bound.node, found.name, job.header)


def _want_room(job: _Job, target: int, used: int) -> None:
    least = sizes.least(job.header.size, lengths.smallest(job.fstype), used)
    if target < least:
        raise Refused(
            f"A container of {size(target)} is too short: {size(used)} are in use in it, for which"
            f" it needs {size(least)} at least.",
            "Fewer versions take less: see [keep] in cryptback-drives(5).",
        )


def _shorten_btrfs(job: _Job, target: int) -> None:
    found, control = job.found, job.control
    with inner(found.volume, job.place / "tree") as tree, told(control):
        found.settle(tree)
        control.phase(Phase.RESIZING)
        _want_room(job, target, lengths.used(tree))
        begin(found, job.header, target, Stage.SHRINKING)
        try:
            lengths.shrink_btrfs(tree, target - job.header.size, control)
        except (Refused, Cancelled):
            unfinished.forget(found.name)  # it went back to what it was
            raise
    _want_short(job, target)


def _shorten_ext4(job: _Job, target: int) -> None:
    found, control = job.found, job.control
    _want_room(job, target, superblock.read(found.volume.node, job.fstype).used)
    assert found.bound is not None
    note = begin(found, job.header, target, Stage.STAGED)
    offset = job.header.size
    try:
        over = found.beneath.enter_context(redo.overlay(found.name, found.bound))
        rebase(found.volume, over.node, found.name, job.header)
        lengths.shrink_ext4(found.volume, target - offset, over, control)
        _want_short(job, target)
        superblocks = redo.superblock(job.tail.files.fds, offset), over.superblock(offset)
        control.check()
    except CryptbackError:
        unfinished.forget(found.name)
        raise
    # From here on it is done to its end, by whomever.
    note = attrs.evolve(note, stage=Stage.MERGING, superblocks=superblocks)
    unfinished.write(found.name, note)
    job.tail.merging = note


def _want_short(job: _Job, target: int) -> None:
    needed = lengths.needed(job.found.volume, job.fstype, job.header)
    if needed > target:
        raise Refused(
            f"The {job.fstype} filesystem did not become that short: it takes {size(needed)}.",
            "Nothing of the container was cut off.",
        )
