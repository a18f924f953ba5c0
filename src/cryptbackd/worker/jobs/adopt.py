"""Taking over the header on the drive: after its passphrase was changed on another computer,
or after this one lost all that it knew.

The header is read once.  It is those bytes that are held against the whitelist, that a
passphrase must open, and that are stored: what the drive shows later doesn't matter.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs

from ... import config, protocol
from ...config import Entry
from ...errors import ForgedDrive, Refused
from ...model import Device, Outcome, Phase, RunResult
from ...text import printable
from .. import header as headers
from .. import keyslots, own_header, pipes, workspace
from ..control import Control
from ..device import opened, probe
from ..header import Header
from ..keyslots import Keyslots
from . import init
from .backup import proven_free
from .passphrase import given

_LUKS = "crypto_LUKS"
"""What libblkid calls a partition that is encrypted itself."""


@attrs.frozen
class Options:
    """What was asked for: an init's options, and the fingerprint that somebody has agreed to.

    ``header``: whoever asks hands the header over, as the drive has none.
    """

    init: init.Options
    fingerprint: str = ""
    header: bool = False

    @staticmethod
    def from_message(raw: dict[str, Any]) -> Options:
        """The options in a ``Start``; raises ConfigError and Refused."""
        plain = {**raw, "container": raw.get("container") or "backup.luks", "format": None}
        chosen = init.Options.from_message(plain)
        return Options(chosen, str(raw.get("fingerprint") or ""), bool(raw.get("header")))


def adopt(start: protocol.Start, control: Control) -> RunResult:
    """Store the header on the drive of an entry; it must be of the same volume key."""
    entry = config.parse(start.entry, start.name)
    stored = headers.load(start.name)
    want_own(stored)
    place = workspace.make(start.name)
    control.phase(Phase.ATTACHING)
    with proven_free(start.device, control):
        with own_header.on_drive(entry, start.device, place) as drive:
            own_header.settle(start.name, stored, drive, control)
            found = headers.read(drive)
        if not found.same_volume(stored):
            raise ForgedDrive(
                "The header on the drive belongs to another volume key: it may be forged, or"
                " another volume's. The stored one stays.",
                f"`cryptback doctor --repair {start.name}` puts the stored header back.",
            )
        if found.compared == stored.compared:
            raise Refused("The header on the drive is the stored one: there is nothing to adopt.")
        _prove(start.name, found, control)
        headers.keep_old(start.name)
        headers.store(start.name, found)
        headers.settled(start.name)
    control.phase(Phase.FINISHED)
    return _done("The header on the drive is the stored one from now on.", control)


def enrol_again(start: protocol.Start, control: Control) -> RunResult:
    """Enrol a drive that was enrolled before, by the header that is on it.

    Trust on first use: whoever asks has seen its fingerprint.  What is on it stays.
    """
    options = Options.from_message(start.options)
    place = workspace.make(options.init.name)
    control.phase(Phase.ATTACHING)
    with proven_free(start.device, control):
        given_header = _given_header(control) if options.header else None
        entry, _device, found = planned(options, start.device, place, given_header)
        if found.fingerprint != options.fingerprint:
            raise ForgedDrive(
                "The drive shows another header than a moment ago; nothing was changed.",
                "Don't use this drive: it lies, or it is failing.",
            )
        _prove(options.init.name, found, control)
        chosen = attrs.evolve(options.init, container=entry.container)
        with init.enrolled(chosen, found, init.render(chosen, entry.uuid)):
            pass
        control.say("enrolled.", "enrolled")
    control.phase(Phase.FINISHED)
    return _done("The drive is enrolled again; what is on it is as it was.", control)


def planned(
    options: Options, device: Device, place: Path, header: Header | None = None
) -> tuple[Entry, Device, Header]:
    """The entry that would be written for *device*, and the header that is on it, or that was
    given.
    """
    probed = probe(device.node)
    uuid = probed.get("UUID", "")
    chosen = options.init
    if probed.get("TYPE") == _LUKS:
        chosen = attrs.evolve(chosen, container=None)
    device = attrs.evolve(device, uuid=uuid)
    if not uuid:
        raise Refused(
            f"{device.node} holds nothing that is known.", "`lsblk -f` shows what is plugged in."
        )
    entry = config.parse(init.render(chosen, uuid), chosen.name)
    for name, other in config.read_all().good.items():
        if (other.uuid, other.container) == (entry.uuid, entry.container):
            raise Refused(
                f'This drive is enrolled already, as "{printable(name)}".',
                f"`cryptback passphrase {name} --adopt` takes over a changed passphrase.",
            )
    with opened(device), own_header.on_drive(entry, device, place, look_only=True) as drive:
        return entry, device, header or headers.read(drive)


def _given_header(control: Control) -> Header:
    _key, fd = control.key("stored-header")
    try:
        return headers.parse(pipes.receive(fd, headers.DETACHED, control), stored=True)
    finally:
        os.close(fd)


def want_own(stored: Header) -> None:
    """Raise Refused where the drive is to have no header of its own."""
    if stored.detached:
        raise Refused(
            "The drive has no header of its own, as it was enrolled with --detached-header."
            " Nothing was changed.",
            "The one that this computer has stored is all that is needed.",
        )


def _prove(name: str, found: Header, control: Control) -> None:
    """A passphrase of whoever asks opens *found*; else nobody could, once it is stored."""
    control.phase(Phase.CHANGING)
    keyslots.want_left(found, set())
    with headers.fresh(name, found.raw) as copy, given(control, "current") as current:
        Keyslots(os.fspath(copy), control).opened_by(current)
    control.check()


def _done(sentence: str, control: Control) -> RunResult:
    return RunResult(
        Outcome.WARNINGS if control.warnings else Outcome.DONE,
        sentence,
        safe=control.safe,
        warnings=list(control.warnings),
    )
