"""What a container remembers of its entry: for a computer that has never seen the drive.

Opened with the header that is on the drive, once somebody has agreed to its fingerprint, and
only looked at.  The settings are foreign text: here they are handed over, and nothing more.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from typing import Any

from ... import protocol
from ...errors import ForgedDrive, Refused
from ...model import Outcome, Phase, RunResult
from .. import workspace
from ..control import Control
from ..layers.mounted import Mounted
from ..versions import VERSIONS, record
from .adopt import Options, given_header, planned
from .backup import proven_free, unlocked

_LARGEST = 48 * 1024
"""Bytes of settings that are handed over: they fit into the pipe that nobody may read."""


def recover(start: protocol.Start, control: Control) -> RunResult:
    """Hand over, for the purpose ``settings``, what the newest version knows of its entry.

    A JSON object: ``name``, ``entry`` (its TOML), ``host``, ``version`` (the newest one's
    name) and ``versions`` (how many there are).  Options: ``container``,
    ``fingerprint`` and ``header``, as for an init.
    """
    options = Options.from_message({**start.options, "name": start.name})
    place = workspace.make(f"recover-{os.getpid()}")
    control.phase(Phase.ATTACHING)
    with proven_free(start.device, control, writes=False), ExitStack() as stack:
        header = given_header(control) if options.header else None
        entry, device, found = planned(options, start.device, place, header)
        if found.fingerprint != options.fingerprint:
            raise ForgedDrive(
                "The drive shows another header than a moment ago; nothing was changed.",
                "Don't use this drive: it lies, or it is failing.",
            )
        tree = stack.enter_context(
            unlocked(
                start.name,
                entry,
                device,
                found,
                place,
                control,
                read_only=True,
                purpose="current",
            )
        )
        settings = json.dumps(_settings(tree)).encode()
        if len(settings) > _LARGEST:
            raise Refused("The settings in the container are too long.", "Say --include.")
        _key, out = control.key("settings")
        with os.fdopen(out, "wb") as file:
            file.write(settings)
        control.phase(Phase.LOCKING)
    control.phase(Phase.FINISHED)
    return RunResult(Outcome.DONE, "The settings were read.", safe=control.safe)


def _settings(tree: Mounted) -> dict[str, Any]:
    directory = tree.path / VERSIONS
    found = [] if directory.is_symlink() else record.versions(directory)
    if not found:
        raise Refused(
            "There is no version in the container, so it remembers no settings.",
            "Say --name and --include.",
        )
    newest = found[-1]
    told = {key: newest.record.get(key) for key in ("entry_name", "entry", "host")}
    if not all(isinstance(value, str) for value in told.values()):
        raise Refused(
            "The newest version does not say what its settings were.", "Say --name and --include."
        )
    return {
        "name": told["entry_name"],
        "entry": told["entry"],
        "host": told["host"],
        "version": newest.path.name,
        "versions": len(found),
    }
