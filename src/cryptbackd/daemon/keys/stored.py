"""The UUID of an entry's LUKS volume, read from the header that is stored on this computer.

It only says under which name keyrings keep the passphrase: a header that can't be read means
that none is looked up, and whether it is as it must be is the worker's business.
"""

from __future__ import annotations

import os
from pathlib import Path

from ... import paths

_MAGIC = b"LUKS\xba\xbe\x00\x02"
"""The first bytes of the primary header, version 2 (LUKS2 On-Disk Format, 2.1)."""
_UUID = slice(168, 208)
_LETTERS = frozenset("0123456789abcdef-")


def luks_uuid(name: str, directory: Path = paths.HEADERS) -> str:
    """The UUID of the volume of the entry *name*; empty where there is none."""
    try:
        with open(os.path.join(directory, name), "rb") as file:
            start = file.read(_UUID.stop)
    except OSError:
        return ""
    if len(start) < _UUID.stop or not start.startswith(_MAGIC):
        return ""
    uuid = start[_UUID].partition(b"\0")[0].decode("ascii", "replace").lower()
    return uuid if uuid and _LETTERS.issuperset(uuid) else ""
