"""Taking over the header on the drive: after its passphrase was changed on another computer,
or after this one lost all that it knew.

The header is read once.  It is those bytes that are held against the whitelist, that a
passphrase must open, and that are stored: what the drive shows later doesn't matter.
"""

from __future__ import annotations

import json
import os
import pwd
import re
from pathlib import Path
from typing import Any

import attrs

from ... import config, protocol
from ...config import Entry
from ...document import document
from ...errors import ConfigError, ForgedDrive, Refused
from ...model import Device, Outcome, Phase, RunResult
from ...text import printable
from .. import header as headers
from .. import keyslots, own_header, pipes, whitelist, workspace
from ..control import Control
from ..device import opened, probe
from ..keyslots import Keyslots
from ..whitelist import Header
from . import init
from .backup import proven_free
from .passphrase import given

_DEVICE = re.compile(r"\s*(uuid|container)\s*=")
_LUKS = "crypto_LUKS"
"""What libblkid calls a partition that is encrypted itself."""


@attrs.frozen
class Options:
    """What was asked for: an init's options, and the fingerprint that somebody has agreed to.

    ``header``: whoever asks hands the header over, as the drive has none.
    ``settings``: the TOML of an entry, which somebody has agreed to as well; all but ``uuid``
    and ``container`` is taken from there.
    """

    init: init.Options
    fingerprint: str = ""
    header: bool = False
    settings: str = ""

    @staticmethod
    def from_message(raw: dict[str, Any]) -> Options:
        """The options in a ``Start``; raises ConfigError and Refused."""
        plain = {**raw, "container": raw.get("container") or "backup.luks", "format": None}
        plain.setdefault("include", [])
        return Options(
            init.Options.from_message(plain),
            fingerprint=str(raw.get("fingerprint") or ""),
            header=bool(raw.get("header")),
            settings=str(raw.get("settings") or ""),
        )


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
        if headers.is_older(found, stored):
            raise ForgedDrive(
                "The header on the drive is older than the stored one: a passphrase that was"
                " removed since would open the drive again. The stored one stays.",
                f"`cryptback doctor --repair {start.name}` puts the stored header back.",
            )
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
    with proven_free(start.device, control, writes=False):
        header = given_header(control) if options.header else None
        entry, _device, found = planned(options, start.device, place, header)
        if found.fingerprint != options.fingerprint:
            raise ForgedDrive(
                "The drive shows another header than a moment ago; nothing was changed.",
                "Don't use this drive: it lies, or it is failing.",
            )
        if start.entry:
            _move(start, entry, found, control)
        else:
            _prove(options.init.name, found, control)
            chosen = attrs.evolve(options.init, container=entry.container)
            with init.enrolled(chosen, found, _toml(options, chosen, entry)):
                pass
        control.say("enrolled.", "enrolled")
    control.phase(Phase.FINISHED)
    if start.entry:
        done = _done(f"{start.name} is this drive from now on; its versions go on.", control)
        done.ledger = start.ledger
        return done
    return _done("The drive is enrolled again; what is on it is as it was.", control)


def _toml(options: Options, chosen: init.Options, entry: Entry) -> str:
    """The new entry's text; raises ConfigError and Refused."""
    if not options.settings:
        return init.render(chosen, entry.uuid)
    wanted = config.parse(options.settings, "the settings")
    if wanted.owner is not None:
        try:
            pwd.getpwnam(wanted.owner)
        except KeyError:
            raise Refused(
                f"There is no user {printable(wanted.owner, 40)} on this computer.",
                "Name another one with --owner, or make that one first.",
            ) from None
    return document(attrs.evolve(wanted, uuid=entry.uuid, container=entry.container))


def _move(start: protocol.Start, entry: Entry, found: Header, control: Control) -> None:
    """Have the entry *start* be the drive that *entry* tells: a copy of its container.

    The header that was stored is kept where the copy has another one.  It stays the stored one
    where the copy's is older.
    """
    stored = headers.load(start.name)
    _want_same_volume(start.name, found, stored)
    older = headers.is_older(found, stored)
    _prove(start.name, stored if older else found, control)
    before = config.parse(start.entry, start.name)
    after = attrs.evolve(before, uuid=entry.uuid, container=entry.container)
    if older:
        # What is pending stays, too: the next plug may finish it on this drive.
        control.warn(
            "The header on the copy is older than the stored one: a passphrase that was removed"
            " since may still open it. `cryptback doctor --repair"
            f" {start.name}` puts the stored header there."
        )
    else:
        if found.compared != stored.compared:
            headers.keep_old(start.name)
            headers.store(start.name, found)
        headers.settled(start.name)
    init.rewrite(start.name, moved(start.entry, after))


def _want_same_volume(name: str, found: Header, stored: Header) -> None:
    if not found.same_volume(stored):
        raise Refused(
            f'There is an entry "{name}" already, and its container is another one than this.',
            "Choose another name.",
        )


def moved(text: str, after: Entry) -> str:
    """The entry's *text* with another ``uuid`` and ``container``, and all else as it is there.

    Where that can't be done it is written anew.
    """
    head, bracket, rest = text.partition("\n[")
    device = {"uuid": after.uuid, "container": after.container}
    lines = []
    for line in head.split("\n"):
        if match := _DEVICE.match(line):
            value = device.pop(match[1], None)
            if value is None:
                continue
            line = _setting(match[1], value)  # noqa: PLW2901
        lines.append(line)
    lines += [_setting(key, value) for key, value in device.items() if value is not None]
    fresh = "\n".join(lines) + bracket + rest
    try:
        if config.parse(fresh, "the entry") == after:
            return fresh
    except ConfigError:
        pass
    return document(after)


def _setting(key: str, value: str) -> str:
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"


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
    # Nothing is copied by this entry, but one must have it.
    if not chosen.include and not chosen.include_from:
        chosen = attrs.evolve(chosen, include=("/",))
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


def given_header(control: Control) -> Header:
    """The header of a kit, from whoever asks; raises ForgedDrive."""
    _key, fd = control.key("stored-header")
    try:
        return whitelist.parse(pipes.receive(fd, headers.DETACHED, control), stored=True)
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
        warnings=control.warnings.told,
    )
