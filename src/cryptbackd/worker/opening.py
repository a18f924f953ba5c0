"""The volume of an enrolled drive: all of the stack but the filesystem inside.

Whatever opens a drive comes through here, so that a change of the container's length that was
cut off (``worker.unfinished``) is finished or undone before anything else is done with it.
Every layer lives as long as the block; what is to be cut off the files is, when nothing uses
them any more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from ..config import Entry
from ..errors import CryptbackError, DriveFailed, Refused
from ..model import Device, Phase
from ..text import printable, size
from . import header as headers
from . import lengths, own_header, unfinished
from .control import Control
from .device import probe
from .layers import redo
from .layers.files import Files, container
from .layers.luks import Volume, luks
from .layers.mounted import Mounted
from .layers.outer import Outer, outer
from .layers.parts import Backing, joined
from .unfinished import Next, Note, Stage
from .whitelist import Header


@attrs.define
class Tail:
    """The end of the container's files; ``cut`` is what they are cut down to, and ``why``.

    ``merging``: first what the computer has for it is written (``layers.redo``).
    """

    name: str
    files: Files
    control: Control
    cut: int | None = None
    why: str = ""
    merging: Note | None = None

    @property
    def length(self) -> int:
        """Bytes of the files, as it will be."""
        return self.files.length if self.cut is None else self.cut


@attrs.define
class Opening:
    """An opened volume.  ``drive``, ``bound`` and ``tail`` are None for a bare partition.

    What is entered into ``beneath`` is left when the volume is closed, and before the device.
    """

    name: str
    volume: Volume
    backing: str
    drive: Outer | None
    bound: Backing | None
    tail: Tail | None
    beneath: ExitStack
    control: Control
    growing: bool = False
    """The filesystem inside was being made longer."""

    @property
    def files(self) -> list[int]:
        """Those of the container, opened; none for a bare partition."""
        return [] if self.tail is None else self.tail.files.fds

    def settle(self, tree: Mounted) -> None:
        """Finish what takes the mounted filesystem; what can't be is a warning.

        Raises DriveFailed when something that was written did not reach the drive.
        """
        if not self.growing:
            return
        self.growing = False
        try:
            lengths.grow(tree, self.volume)
        except CryptbackError as exc:
            # What was lost is told once (syncfs(2)): nobody would find out later.
            if isinstance(exc, DriveFailed) and exc.lost_writes:
                raise
            self.control.warn(
                f"The container is longer, but what is in it is not: {exc.sentence}",
                "resize_settled",
            )
        else:
            self.control.say(
                "the container had been made longer; what is in it is now, too.", "resize_settled"
            )
        unfinished.forget(self.name)


@contextmanager
def opening(
    name: str,
    entry: Entry,
    device: Device,
    header: Header,
    place: Path,
    control: Control,
    *,
    extensible: bool = False,
    untouched: bool = False,
    purpose: str = "open",
) -> Iterator[Opening]:
    """Open the volume of the entry *name* on *device* while the block runs.

    *extensible*: see ``layers.luks``.  *untouched*: nothing is written on the drive, and what
    was cut off is left as it is; raises Refused where it can't be read like that.  *purpose*: of
    the key that is asked for.
    """
    drive: Outer | None = None
    tail: Tail | None = None
    bound: Backing | None = None
    backing = device.node
    with ExitStack() as stack:
        if entry.container is None:
            file = os.open(device.node, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, file)
        else:
            drive = stack.enter_context(outer(device, place / "drive", look_only=untouched))
            access = os.O_RDONLY if untouched else os.O_RDWR
            files = stack.enter_context(container(drive, entry.container, access))
            file = files.fds[0]
            sort_out(name, header, control)
            finish_merge(name, header, files, control, untouched=untouched)
            tail = stack.enter_context(ended(name, files, control))
            bound = stack.enter_context(joined(files.fds, name))
            backing = bound.node
        compare(name, header, file, control, untouched=untouched)
        beneath = stack.enter_context(ExitStack())
        control.phase(Phase.UNLOCKING)
        volume = stack.enter_context(
            luks(
                backing,
                name,
                header,
                control,
                purpose,
                read_only=untouched,
                extensible=extensible,
            )
        )
        if bound is not None:
            bound.hand_over()
        control.say(f"unlocked with the passphrase from {printable(volume.key_source)}.")
        found = Opening(name, volume, backing, drive, bound, tail, beneath, control)
        if tail is not None and not untouched:
            _take_up(found, tail, header)
        if drive is not None and tail is not None and not extensible:
            _warn_of_length(found, drive, tail)
        yield found


def excess(drive: Outer, length: int) -> str:
    """Why a container of *length* bytes can't be all that it claims to be; nothing where it can."""
    status = os.fstatvfs(drive.filesystem.fd)
    total = status.f_blocks * status.f_frsize
    if length <= total:
        return ""
    return (
        f"The container claims {size(length)} on a drive of {size(total)}: somebody made its file"
        " longer."
    )


def _warn_of_length(found: Opening, drive: Outer, tail: Tail) -> None:
    if why := excess(drive, tail.length):
        found.control.warn(
            f"{why} `cryptback resize {found.name} max` tells how long it was.", doubt=False
        )


def compare(name: str, header: Header, file: int, control: Control, *, untouched: bool) -> None:
    """Finish a change of the drive's own header, and warn where it is another.

    Nothing of it is needed to open the drive.
    """
    try:
        if not untouched:
            own_header.settle(name, header, file, control)
        difference = headers.difference(header, file)
    except DriveFailed as exc:
        difference = exc.sentence
    if difference:
        control.warn(
            "The LUKS header on the drive is not the one that this computer stored."
            f" {difference} The stored one was used, the drive's was left as it is.",
            "header_differs",
        )


@contextmanager
def ended(name: str, files: Files, control: Control) -> Iterator[Tail]:
    """The tail of the container's *files*, which is cut off, if it is to be, after the block."""
    tail = Tail(name, files, control)
    try:
        yield tail
        if tail.merging is not None:
            _merge(tail, tail.merging)
    except BaseException:
        if tail.cut is not None and tail.merging is None:
            _cut(tail, tail.cut)
        raise
    if tail.cut is not None:
        _cut(tail, tail.cut)


def _merge(tail: Tail, note: Note) -> None:
    tail.control.phase(Phase.RESIZING)
    redo.merge(tail.name, tail.files.fds, tail.control)
    unfinished.write(tail.name, attrs.evolve(note, stage=Stage.SHRINKING))


def _cut(tail: Tail, length: int) -> None:
    try:
        tail.files.cut(length)
    except OSError as exc:
        tail.control.warn(
            f"The end of the container could not be cut off: {exc.strerror}."
            " The next run tries again.",
            "resize_settled",
        )
        return
    unfinished.forget(tail.name)
    if tail.why:
        tail.control.say(f"{tail.why}: it has {size(length)}.", "resize_settled")


def sort_out(name: str, header: Header, control: Control) -> None:
    """Set aside what is left of another drive's change of length, which had the name before."""
    aside = unfinished.sort_out(name, header.uuid)
    if aside is not None:
        control.warn(
            f"A change of length was cut off of another drive that was called {name}. What finishes"
            f" it is {aside} now, and is used when that drive is enrolled again.",
            "resize_settled",
            doubt=False,
        )


def finish_merge(
    name: str, header: Header, files: Files, control: Control, *, untouched: bool
) -> None:
    """Write the rest of what the computer had worked out, and was cut off in writing."""
    note = unfinished.read(name, header.uuid)
    if note is None or note.stage is not Stage.MERGING:
        return
    if untouched:
        raise Refused(
            "A change of the container's length was cut off, and must be finished first.",
            f"`cryptback run {name}` does that.",
        )
    if not redo.is_among(redo.superblock(files.fds, header.size), note.superblocks):
        control.warn(
            "The container had been half written to when it was last here, and something else has"
            " changed it since: the rest was not written.",
            "resize_settled",
        )
        unfinished.forget(name)
        return
    _merge(Tail(name, files, control), note)


def _take_up(found: Opening, tail: Tail, header: Header) -> None:
    note = unfinished.read(found.name, header.uuid)
    if note is None:
        unfinished.forget(found.name)
        return
    fstype = probe(found.volume.node).get("TYPE", "")
    # What holds no filesystem that can be read is told when it is mounted.
    try:
        needed = lengths.needed(found.volume, fstype, header)
    except (DriveFailed, KeyError):
        return
    verdict, length = unfinished.decide(note, tail.length, needed)
    longer = note.after > note.before
    if verdict is Next.GROW:
        found.growing = True
    elif verdict is Next.TRIM:
        tail.cut = length
        what = "longer, which is undone" if longer else "shorter, which is finished"
        tail.why = f"the container was being made {what}"
    else:
        unfinished.forget(found.name)
        found.control.say(
            f"the container was being made {'longer' if longer else 'shorter'}, which is undone:"
            f" it has {size(tail.length)}.",
            "resize_settled",
        )


def begin(found: Opening, header: Header, after: int, stage: Stage) -> Note:
    """Note durably that the container is about to have *after* bytes, before it changes."""
    assert found.tail is not None
    note = Note(header.uuid, found.tail.length, after, stage)
    unfinished.write(found.name, note)
    return note
