"""The header of a drive that is to have none: handed out, and kept by somebody before it counts.

It exists nowhere but in the worker's memory and, by now, on this computer.  Whoever asked for
the drive gets it through a pipe, writes it down, and says by another one which bytes these
were.  Both pipes end with this function.
"""

from __future__ import annotations

import hashlib
import json
import os

from ... import kits
from ...config import Entry
from ...errors import Refused
from .. import pipes
from ..control import Control
from ..whitelist import Header


def written(name: str, entry: Entry, length: int, header: Header, control: Control) -> None:
    """Return when a recovery kit of a container of *length* bytes has the *header*.

    Raises Refused when none is written, and Cancelled.
    """
    sha256 = hashlib.sha256(header.raw).hexdigest()
    facts = {
        "name": name,
        "uuid": entry.uuid,
        "container": entry.container or "",
        "include": list(entry.backup.include),
        "include_from": list(entry.backup.include_from),
        "size": length,
        "problem": "",
        "sha256": sha256,
    }
    _key, out = control.key("header")
    try:
        taken = pipes.send(out, json.dumps(facts).encode() + b"\n" + header.raw, control)
    finally:
        os.close(out)
    if not taken:
        raise _not_written()
    _key, answer = control.key("kit")
    try:
        said = pipes.receive(answer, 1000, control)
    finally:
        os.close(answer)
    if said.strip() != sha256.encode():
        raise _not_written()
    kits.note(name, sha256)


def _not_written() -> Refused:
    return Refused(
        "No recovery kit was written, and without one the header would be on this computer alone;"
        " nothing was enrolled."
    )
