"""Enrolling a drive: make the container, store its header, write the entry.

The container grows under a name of its own (``worker.allocate``) and gets its final one last
but the entry; until then every exit, orderly or not, leaves neither a container under the final
name nor an entry.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from ... import config, paths, protocol
from ...errors import CryptbackError, DriveFailed, Refused, ToolFailed
from ...model import Device, Outcome, Phase, RunResult
from ...run import run
from ...sizes import MIB, sensible
from ...text import size
from .. import allocate, unfinished, whitelist, workspace
from .. import header as headers
from ..allocate import NewContainer, new_container
from ..control import Control
from ..device import opened, probe
from ..layers import files
from ..layers.inner import inner, make_filesystem
from ..layers.luks import format_volume, luks
from ..layers.outer import Outer, outer
from ..layers.parts import Backing, joined
from ..remaining import told
from ..whitelist import Header
from . import first_kit
from .backup import back_up, finished, proven_free
from .survey import examine

_FORMAT = {
    "ext4": ["/usr/sbin/mkfs.ext4", "-q", "-F", "-m", "0"],
    "exfat": ["/usr/sbin/mkfs.exfat"],
}
_SMALLEST_PART = 32 * MIB
"""Bytes of the first of several files: the volume's header lies in it."""


@attrs.frozen
class Options:
    """What was asked for.

    ``container`` None: the partition itself becomes LUKS (``format`` is then ``luks``).
    ``size`` in bytes, None: what the survey suggests.  ``pbkdf_memory`` in KiB.
    ``detached``: the header does not go to the drive, but to whoever asks, who must have
    written it down before anything is enrolled.
    ``part_size`` in bytes: the container is files of that length, whatever the drive can take.
    """

    name: str
    include: tuple[str, ...]
    include_from: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    container: str | None = "backup.luks"
    size: int | None = None
    filesystem: str = "btrfs"
    format: str | None = None
    owner: str | None = None
    run: bool = True
    pbkdf_memory: int | None = None
    pbkdf_iterations: int | None = None
    detached: bool = False
    part_size: int | None = None

    @staticmethod
    def from_message(raw: dict[str, Any]) -> Options:
        """The options in a ``Start``; raises ConfigError and Refused."""
        known = {field.name for field in attrs.fields(Options)}
        options = Options(**{key: value for key, value in raw.items() if key in known})
        options = attrs.evolve(
            options,
            include=tuple(options.include),
            include_from=tuple(options.include_from),
            exclude=tuple(options.exclude),
        )
        config.check_name(options.name)
        if options.name.endswith("-parts"):
            raise Refused(
                f'"{options.name}" can\'t be the name of a drive: what joins the files of another'
                " one's container is called so.",
                "Choose another name.",
            )
        if options.filesystem not in ("btrfs", "ext4", "xfs"):
            raise Refused(f"{options.filesystem} can't be made in a container.")
        if options.format not in (None, "ext4", "exfat", "luks"):
            raise Refused(f"{options.format} can't be made on a drive.")
        if (options.container is None) != (options.format == "luks"):
            raise Refused(
                "A partition becomes LUKS itself with --format luks, which erases it.",
            )
        if options.detached and options.container is None:
            raise Refused(
                "A partition that is encrypted itself has its header on it.",
                "--detached-header is for a container that is a file.",
            )
        each = options.part_size
        if each is not None and (each < _SMALLEST_PART or each % MIB):
            raise Refused(f"Files of {each} bytes can't make up a container.")
        return options


def init(start: protocol.Start, control: Control) -> RunResult:
    """Enrol the device of *start*; its options are those of :class:`Options`."""
    options = Options.from_message(start.options)
    device = start.device
    place = workspace.make(options.name)
    render(options, "0000-0000")
    unfinished.want_none(options.name)
    facts = examine(device, start.options, place)
    if facts.problems:
        raise Refused(**facts.problems[0])
    if options.format in _FORMAT:
        device = _format_drive(device, options, control)
    with proven_free(device, control), ExitStack() as stack:
        drive: Outer | None = None
        fresh: NewContainer | None = None
        bound: Backing | None = None
        control.phase(Phase.ATTACHING)
        backing = device.node
        length = 0
        if options.container is not None:
            drive = stack.enter_context(outer(device, place / "drive"))
            control.phase(Phase.FORMATTING)
            length = _length(options, drive, facts.suggested_size)
            fresh = stack.enter_context(_container(options, drive, length, control))
            bound = stack.enter_context(joined(fresh.fds, options.name))
            backing = bound.node
        header = _formatted(backing, options, control)
        control.phase(Phase.UNLOCKING)
        volume = stack.enter_context(luks(backing, options.name, header, control, "first-open"))
        if bound is not None:
            bound.hand_over()
        control.phase(Phase.FORMATTING)
        make_filesystem(volume, options.filesystem, control)
        control.phase(Phase.MOUNTING)
        tree = attrs.evolve(
            stack.enter_context(inner(volume, place / "tree")),
            beneath=tuple(fresh.fds) if fresh is not None else (),
        )
        stack.enter_context(told(control))
        control.check()
        toml = render(options, device.uuid if drive is not None else header.uuid)
        with enrolled(options, header, toml):
            tree.sync()
            if options.detached:
                first_kit.written(options.name, config.parse(toml, options.name), length, header,
                                  control)  # fmt: skip
            if drive is not None and fresh is not None:
                fresh.publish()
        control.say("enrolled.", "enrolled")
        entry = config.parse(toml, options.name)
        kept = None
        if options.run:
            kept = back_up(
                tree,
                name=options.name,
                entry=entry,
                toml=toml,
                ledger=None,
                forgotten=False,
                accept=False,
                contents=False,
                place=place,
                control=control,
            )
    if kept is not None:
        return finished(kept, entry, device, control)
    control.phase(Phase.FINISHED)
    return RunResult(
        Outcome.WARNINGS if control.warnings else Outcome.DONE,
        "The drive is enrolled; nothing was backed up yet.",
        safe=control.safe,
        warnings=control.warnings.told,
    )


def _container(
    options: Options, drive: Outer, length: int, control: Control
) -> AbstractContextManager[NewContainer]:
    """The container of *length* bytes while it is made, of as many files as it takes."""
    assert options.container is not None
    lengths = files.several(drive.filesystem.fstype, length, options.part_size) or [length]
    names = options.name, options.container
    return new_container(drive, *names, lengths, control, random=options.detached)


def render(options: Options, uuid: str) -> str:
    """The entry that *options* ask for; raises ConfigError."""
    sources = options.include, options.exclude, options.include_from
    toml = config.render(uuid, options.container, options.owner, *sources)
    config.parse(toml, options.name)
    return toml


def _format_drive(device: Device, options: Options, control: Control) -> Device:
    """Make the outer filesystem that was asked for; the device with its new UUID."""
    control.phase(Phase.FORMATTING)
    assert options.format is not None
    try:
        with opened(device):
            run([*_FORMAT[options.format], device.node], deadline=600, interrupt=control.interrupt)
    except ToolFailed as exc:
        raise DriveFailed(f"{device.node} can't be formatted: {exc.sentence}") from exc
    found = probe(device.node)
    return attrs.evolve(device, uuid=found.get("UUID", ""), fstype=found.get("TYPE", ""))


def _length(options: Options, drive: Outer, suggested: int) -> int:
    if options.size is None and options.format is None:
        return suggested
    assert options.container is not None
    free = drive.filesystem.free() + allocate.taken(drive, options.name, options.container)
    length = options.size
    if length is None:
        # What was shown before is a guess at what the new filesystem leaves.
        length = min(suggested, sensible(free))
    if length > free:
        raise Refused(f"A container of {size(length)} does not fit: {size(free)} are free.")
    return length // MIB * MIB


def _formatted(backing: str, options: Options, control: Control) -> Header:
    """Make a volume of *backing*: its header, wherever that is."""
    cost = options.pbkdf_memory, options.pbkdf_iterations
    if not options.detached:
        format_volume(backing, control, *cost)
        return _header_of(backing)
    with headers.fresh(options.name, bytes(headers.DETACHED)) as file:
        format_volume(backing, control, *cost, header=file)
        return whitelist.parse(file.read_bytes(), stored=True)


def _header_of(backing: str) -> Header:
    fd = os.open(backing, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return headers.read(fd)
    finally:
        os.close(fd)


@contextmanager
def enrolled(options: Options, header: Header, toml: str) -> Iterator[None]:
    """Header first, then whatever the block does, then the entry: all of it or nothing."""
    name = options.name
    _set_aside(name)
    headers.store(name, header)
    target = paths.DRIVES_D / f"{name}.toml"
    fresh = target.with_name(f".{name}.toml.new")
    try:
        # Where there is no room for it, what the block does is not to be done.
        _write_text(fresh, toml)
        yield
        # A link, unlike a rename, never replaces an entry that came up meanwhile.
        os.link(fresh, target)
        fresh.unlink()
        headers.fsync_directory(target.parent)
    except (CryptbackError, OSError) as exc:
        with suppress(FileNotFoundError):
            fresh.unlink()
        headers.path_of(name).unlink()
        if isinstance(exc, OSError):
            raise DriveFailed(f"The entry could not be written: {exc.strerror}.") from exc
        raise


def rewrite(name: str, toml: str) -> None:
    """Have *toml* be the entry's text, in one step; raises DriveFailed."""
    target = paths.DRIVES_D / f"{name}.toml"
    fresh = target.with_name(f".{name}.toml.new")
    try:
        _write_text(fresh, toml)
        fresh.rename(target)
        headers.fsync_directory(target.parent)
    except OSError as exc:
        raise DriveFailed(f"The entry could not be written: {exc.strerror}.") from exc


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(fd)


def _set_aside(name: str) -> None:
    """Keep a stored header that no entry uses any more: it may be a volume's only good one."""
    old = headers.path_of(name)
    if old.exists():
        status = old.stat()
        old.rename(old.with_name(f"{name}.until-{int(status.st_mtime)}"))
