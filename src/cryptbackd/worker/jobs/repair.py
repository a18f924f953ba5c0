"""Putting the stored header back onto the drive, whose own is lost, damaged or forged.

What is there is kept on the computer first: it may be somebody's only one.
"""

from __future__ import annotations

from ... import config, protocol
from ...errors import Refused
from ...model import Outcome, Phase, RunResult
from ...text import printable
from .. import header as headers
from .. import own_header, workspace
from ..control import Control
from ..device import probe
from .backup import proven_free
from .passphrase import bring


def repair(start: protocol.Start, control: Control) -> RunResult:
    """Write the stored header of the entry ``start.name`` to its drive, where it differs."""
    entry = config.parse(start.entry, start.name)
    stored = headers.load(start.name)
    place = workspace.make(start.name)
    control.phase(Phase.ATTACHING)
    with proven_free(start.device, control):
        if entry.container is None:
            _want_nothing_else(start.device.node)
        with own_header.on_drive(entry, start.device, place) as drive:
            difference = headers.difference(stored, drive)
            sentence = "The header on the drive is the stored one: there is nothing to repair."
            if difference:
                control.phase(Phase.CHANGING)
                kept = headers.keep_theirs(start.name, drive, stored.size)
                control.say(f"its own LUKS header is kept as {kept}. {difference}")
                control.check()
                bring(start.name, stored, drive)
                sentence = f"The stored header is on the drive again. What was there is in {kept}."
    control.phase(Phase.FINISHED)
    return RunResult(
        Outcome.WARNINGS if control.warnings else Outcome.DONE,
        sentence,
        safe=control.safe,
        warnings=list(control.warnings),
    )


def _want_nothing_else(node: str) -> None:
    """An encrypted partition without its header shows no UUID: somebody has named it."""
    fstype = probe(node).get("TYPE", "")
    if fstype not in ("", "crypto_LUKS"):
        raise Refused(
            f"{node} holds {printable(fstype, 40)}; nothing was changed.",
            "Name the partition that the backup was on.",
        )
