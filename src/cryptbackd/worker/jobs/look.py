"""A look at the header on a drive: what is different about it, and whose it is.

Changes nothing: the filesystem is looked at read-only, without replaying its journal.
"""

from __future__ import annotations

import os
from contextlib import suppress

from ... import config, protocol
from ...errors import CryptbackError, ForgedDrive
from ...model import Outcome, RunResult
from .. import header as headers
from .. import own_header, workspace
from ..control import Control
from ..device import opened
from ..whitelist import Header
from .adopt import Options, planned


def look(start: protocol.Start, control: Control) -> RunResult:
    """Look at the header on the drive of an entry, or (without one) of one to be enrolled again.

    The answer has ``fingerprint``, of the header on the drive ("": none that is allowed), and
    without an entry ``copy_of``, the one of whose container it is a copy; with one
    ``difference``, a sentence, ``older`` (than the stored one, so that it can't be adopted),
    ``stored``, the stored header's fingerprint, ``size``, the bytes of the container, and
    ``detached``: the drive is to have no header.
    """
    place = workspace.make(f"look-{os.getpid()}")
    with opened(start.device):
        if not start.entry:
            options = Options.from_message({"name": start.name, **start.options})
            entry, device, found = planned(options, start.device, place)
            container = entry.container or ""
            return _answer(
                control,
                fingerprint=found.fingerprint,
                container=container,
                device=device.node,
                copy_of=_same_as(found),
            )
        entry = config.parse(start.entry, start.name)
        stored = headers.load(start.name)
        with own_header.all_on_drive(entry, start.device, place, look_only=True) as there:
            drive = there[0]
            difference = headers.difference(stored, drive)
            size = sum(map(own_header.length, there))
            fingerprint, older = "", False
            with suppress(ForgedDrive):
                header = headers.read(drive)
                fingerprint, older = header.fingerprint, headers.is_older(header, stored)
    return _answer(
        control,
        difference=difference,
        older=older,
        fingerprint=fingerprint,
        stored=stored.fingerprint,
        detached=stored.detached,
        size=size,
    )


def _same_as(found: Header) -> str:
    """The entry whose container this one is a copy of; empty: none that is known."""
    for name in sorted(config.read_all().good):
        try:
            if headers.load(name).same_volume(found):
                return name
        except CryptbackError:
            continue
    return ""


def _answer(control: Control, **data: object) -> RunResult:
    return RunResult(Outcome.DONE, "", safe=control.safe, data=data)
