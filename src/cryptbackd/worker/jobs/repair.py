"""Putting the stored header back onto the drive, whose own is lost, damaged or forged.

What is there is kept on the computer first: it may be somebody's only one.
"""

from __future__ import annotations

import os

from ... import config, protocol
from ...config import Entry
from ...errors import DriveFailed, Refused
from ...model import Outcome, Phase, RunResult
from ...run import run
from ...text import printable
from .. import header as headers
from .. import own_header, workspace
from ..control import Control
from ..device import BLKID
from ..whitelist import Header
from .adopt import want_own
from .backup import proven_free


def repair(start: protocol.Start, control: Control) -> RunResult:
    """Write the stored header of the entry ``start.name`` to its drive, where it differs."""
    entry = config.parse(start.entry, start.name)
    stored = headers.load(start.name)
    want_own(stored)
    place = workspace.make(start.name)
    control.phase(Phase.ATTACHING)
    with proven_free(start.device, control):
        _want_it(entry, stored.uuid, start.device.node)
        with own_header.on_drive(entry, start.device, place) as drive:
            difference = headers.difference(stored, drive)
            sentence = "The header on the drive is the stored one: there is nothing to repair."
            if difference:
                control.phase(Phase.CHANGING)
                kept = headers.keep_theirs(start.name, drive, stored.size)
                control.say(f"its own LUKS header is kept as {kept}. {difference}")
                control.check()
                _put(stored, drive)
                headers.settled(start.name)
                sentence = f"The stored header is on the drive again. What was there is in {kept}."
    control.phase(Phase.FINISHED)
    return RunResult(
        Outcome.WARNINGS if control.warnings else Outcome.DONE,
        sentence,
        safe=control.safe,
        warnings=control.warnings.told,
    )


def _put(stored: Header, drive: int) -> None:
    try:
        own_header.put(stored, drive)
    except DriveFailed as exc:
        raise DriveFailed(
            f"{exc.sentence} The header that this computer stored is whole.",
            "Repair it again. If the drive is failing, enrol another one.",
        ) from exc


def _want_it(entry: Entry, luks_uuid: str, node: str) -> None:
    """What stands on *node* is the drive, or nothing, and nobody uses it: somebody named it."""
    ended = run([BLKID, "--probe", "--output", "export", node], ok=(0, 2, 8))
    lines = ended.out.decode("utf-8", "replace").splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    fstype, uuid = found.get("TYPE", found.get("PTTYPE", "")), found.get("UUID", "")
    if entry.container is not None:
        good = uuid == entry.uuid
    else:
        ours = fstype == "crypto_LUKS" and uuid == luks_uuid
        good = ended.status != 8 and (not fstype or ours)
    if not good:
        raise Refused(
            f"{node} holds {printable(fstype, 40) or 'several things'}"
            f" {printable(uuid, 40)}, which is not the drive; nothing was changed.",
            "Name the partition that the backup was on.",
        )
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_CLOEXEC | os.O_EXCL))
    except OSError as exc:
        raise Refused(f"{node} is in use by something else; nothing was changed.") from exc
