"""What the computer remembers of the versions on each drive, with the drive in a drawer.

``/var/lib/cryptbackd/catalogue/ENTRY`` has a copy of each version's record and manifest, under the
names that these have on the drive.  It tells the names of everybody's files: the folder is root's
alone.  Copies are made before it is proven that the version is on the drive; the ledger decides
up to which number they count.  What is opened here is closed when the call, or the block, ends.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import attrs

from . import foreign, paths
from .text import size

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z:._-]{0,99}")
LARGEST = 16 << 20
"""Bytes that a record may have; a longer one is no record."""


@attrs.frozen
class Kept:
    """A version that is remembered."""

    name: str
    sequence: int
    record: dict[str, Any]
    manifest: Path | None
    """Its manifest; None where it never had one, or the copy is lost until the next run."""

    @property
    def sha256(self) -> str:
        """Of the manifest, by its record; empty: it has none."""
        return manifest_sha256(self.record)


def is_name(name: str) -> bool:
    """Whether a version of this name is remembered: a drive may show any."""
    return _NAME.fullmatch(name) is not None


def manifest_sha256(record: dict[str, Any]) -> str:
    """SHA-256 of the manifest that a record tells of, hexadecimal; empty: of none."""
    sha256 = record.get("manifest_sha256")
    return sha256 if isinstance(sha256, str) else ""


def make(name: str) -> Path:
    """The folder of the entry *name*, for root alone; raises OSError."""
    place = paths.catalogue(name)
    for folder in (place.parent, place):
        folder.mkdir(mode=0o700, exist_ok=True)
        if stat.S_IMODE(os.lstat(folder).st_mode) != 0o700:
            folder.chmod(0o700)
    return place


def kept(name: str, up_to: int) -> list[Kept]:
    """The versions of the entry *name* with numbers *up_to* that of the ledger, in their order."""
    place = paths.catalogue(name)
    found = []
    for path in place.glob("[!.]*.json"):
        if not is_name(path.stem):
            continue
        try:
            record = foreign.loads(raw_record(path))
            sequence = record["sequence"]
            if type(sequence) is not int or not 1 <= sequence <= up_to:
                continue
        except (OSError, ValueError, KeyError, TypeError):
            continue
        manifest: Path | None = path.with_suffix(".manifest")
        if not manifest_sha256(record) or manifest is None or not manifest.is_file():
            manifest = None
        found.append(Kept(path.stem, sequence, record, manifest))
    return sorted(found, key=lambda version: version.sequence)


def raw_record(path: Path) -> bytes:
    """What is in a record, here or on a drive; raises OSError, also for what can be none: no
    regular file, or one that is too long (EFBIG).
    """
    with _opened(path) as file:
        raw = file.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise OSError(errno.EFBIG, f"it is longer than {size(LARGEST)}", str(path))
    return raw


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; raises OSError, also for what is no regular file."""
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    # Nobody is waited for who would write to a fifo.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "it is no file", str(path))
        yield file
