"""A look at the header on a drive: what is different about it, and whose it is.

Changes nothing: the filesystem is looked at read-only, without replaying its journal.
"""

from __future__ import annotations

import os

from ... import config, protocol
from ...errors import ForgedDrive
from ...model import Outcome, RunResult
from .. import header as headers
from .. import own_header, workspace
from ..control import Control
from ..device import opened
from .adopt import Options, planned


def look(start: protocol.Start, control: Control) -> RunResult:
    """Look at the header on the drive of an entry, or (without one) of one to be enrolled again.

    The answer has ``fingerprint``, of the header on the drive ("": none that is allowed), and
    with an entry ``difference``, a sentence, ``stored``, the stored header's fingerprint, and
    ``size``, the bytes of the container; ``detached``: the drive is to have no header.
    """
    place = workspace.make(f"look-{os.getpid()}")
    with opened(start.device):
        if not start.entry:
            options = Options.from_message(start.options)
            entry, device, found = planned(options, start.device, place)
            container = entry.container or ""
            return _answer(
                control, fingerprint=found.fingerprint, container=container, device=device.node
            )
        entry = config.parse(start.entry, start.name)
        stored = headers.load(start.name)
        with own_header.on_drive(entry, start.device, place, look_only=True) as drive:
            difference = headers.difference(stored, drive)
            size = own_header.length(drive)
            try:
                fingerprint = headers.read(drive).fingerprint
            except ForgedDrive:
                fingerprint = ""
    return _answer(
        control,
        difference=difference,
        fingerprint=fingerprint,
        stored=stored.fingerprint,
        detached=stored.detached,
        size=size,
    )


def _answer(control: Control, **data: object) -> RunResult:
    return RunResult(Outcome.DONE, "", safe=control.safe, data=data)
