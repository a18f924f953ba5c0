"""Where things lie: the file names that other programs and people rest on."""

from __future__ import annotations

import re
from pathlib import Path

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,30}")
"""What an entry may be called: it becomes a file name, a mapping and a D-Bus argument."""

DRIVES_D = Path("/etc/cryptback/drives.d")
"""One file an entry: ``NAME.toml``, see cryptback-drives(5)."""

STATE = Path("/var/lib/cryptbackd")
HISTORY = STATE / "history.db"
HEADERS = STATE / "headers"
"""The LUKS2 header of each entry, as enrolled: mode 0600, never the drive's own."""
KITS = STATE / "kits"
"""One file an entry of which there is a recovery kit; see ``cryptbackd.kits``."""
UUIDS = STATE / "uuids"
"""One empty file a known filesystem UUID: what the udev rules test for."""
CATALOGUE = STATE / "catalogue"
"""What the computer remembers of each version, a directory an entry; root's alone."""

RUNTIME = Path("/run/cryptbackd")
COOKIES = RUNTIME / "cookies"
"""Udev cookies that stood before a volume was opened, one file an entry; see worker.sweep."""

CREDENTIALS = Path("/etc/credstore")
ENCRYPTED_CREDENTIALS = Path("/etc/credstore.encrypted")


def mapping(name: str) -> str:
    """The device-mapper name of the entry *name*."""
    return f"cryptback-{name}"


PARTS_UUID = "CRYPTBACK-PARTS-"
"""What the dm UUID begins with of a mapping that joins a container's files."""


def parts(name: str) -> str:
    """The device-mapper name of what joins the files of the container of the entry *name*."""
    return f"cryptback-{name}-parts"


def parts_uuid(name: str) -> str:
    """The dm UUID that goes with :func:`parts`."""
    return f"{PARTS_UUID}{name}"


def pending_header(name: str) -> Path:
    """Where the header from before a change is kept, until the drive has the new one as well."""
    return HEADERS / f"{name}.pending"


def unfinished(name: str) -> Path:
    """What is kept about a change of the container's length until it is through."""
    return STATE / "unfinished" / f"{name}.json"


def catalogue(name: str) -> Path:
    """Where what is remembered of the versions of the entry *name* lies."""
    return CATALOGUE / name
