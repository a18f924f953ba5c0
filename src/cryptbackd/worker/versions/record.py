"""What is known of a version: its record, and the ledger that it is held against.

The record ``versions/NAME.json`` is written, and made durable, before the version gets its
name.  Order is the sequence number's, not the clock's.  The computer remembers of the last
version its sequence number, name, nonce and the hash of its record (the ledger): a drive
that shows less is older than it should be.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import stat
import time
from pathlib import Path
from typing import Any

import attrs

from ... import foreign
from ...catalogue import LARGEST, manifest_sha256, raw_record
from ...errors import Refused
from ...model import LedgerEntry
from ...text import printable, size
from .retention import Dated

FORMAT = 1
_HIGHEST = 1 << 53
"""Above what a sequence number may be; it has to fit into the history."""


@attrs.frozen
class Version:
    """A complete version on the drive, with its record."""

    path: Path
    record: dict[str, Any]
    sha256: str

    @property
    def sequence(self) -> int:
        """Its place in the order of versions, from 1."""
        number: int = self.record["sequence"]
        return number

    @property
    def manifest(self) -> str:
        """SHA-256 of its manifest, hexadecimal; empty where it has none."""
        return manifest_sha256(self.record)

    @property
    def manifest_path(self) -> Path:
        """Where its manifest lies, if it has one."""
        return self.path.with_name(f"{self.path.name}.manifest")

    @property
    def dated(self) -> Dated:
        """What the rules of ``[keep]`` go by."""
        finished = self.record.get("finished")
        return Dated(self.sequence, self.path.name, finished if type(finished) is int else -1)

    @property
    def ledger(self) -> LedgerEntry:
        """What the computer is to remember of it."""
        return LedgerEntry(self.sequence, self.path.name, str(self.record["nonce"]), self.sha256)


def versions(directory: Path) -> list[Version]:
    """The complete versions below *directory*, oldest first.

    One without a record that can be read, or with a name that can't be told, is left alone and
    not counted, and so is what has a name that begins with a dot: "...json" would be the record
    of "..".
    """
    found = []
    for path in directory.glob("[!.]*.json"):
        tree = path.with_suffix("")
        try:
            if tree.is_symlink() or not tree.is_dir() or not tree.name.isprintable():
                continue
            raw = raw_record(path)
            record = foreign.loads(raw)
            number, nonce = record["sequence"], record["nonce"]
            if type(number) is int and 1 <= number < _HIGHEST and isinstance(nonce, str):
                found.append(Version(tree, record, hashlib.sha256(raw).hexdigest()))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda version: version.sequence)


def doubt(found: list[Version], ledger: LedgerEntry | None, *, forgotten: bool) -> str:
    """Why nothing is to be deleted on the drive, in sentences; "" where all is as it should be.

    *forgotten*: there may have been a ledger.
    """
    if ledger is None and forgotten and found:
        return (
            "What this computer remembered of the drive is lost: it may be a copy, have been set"
            " back, or have lost what it said it had written."
        )
    verdict = judge(found, ledger)
    return verdict and f"The drive is not as this computer remembers it. {verdict}"


def judge(found: list[Version], ledger: LedgerEntry | None) -> str:
    """What is wrong with the drive by the ledger, as a sentence; "" for nothing.

    A drive with versions beyond the ledger is one whose last run ended without being
    recorded: fine as long as the ledger's own version is among them, unchanged, or one of them
    was made by a computer that remembered just this: then that run let the ledger's version go.
    """
    if ledger is None:
        return ""
    same = next((v for v in found if v.sequence == ledger.sequence), None)
    if same is not None:
        if same.ledger == ledger:
            return ""
        return (
            f"Its version {printable(same.path.name, 40)} is not the one that this computer"
            f" made as number {ledger.sequence}: the drive may be a copy that was used elsewhere."
        )
    newest = found[-1] if found else None
    if newest is not None and newest.sequence > ledger.sequence:
        if any(version.record.get("ledger") == attrs.asdict(ledger) for version in found):
            return ""
        return (
            f"The version {ledger.version} that this computer made last is not on it any more,"
            " though newer ones are."
        )
    shown = f"its newest version is {printable(newest.path.name, 40)}" if newest else "it has none"
    return (
        f"It is older than this computer remembers: {shown}, the last one made was"
        f" {ledger.version}. It may be a copy, have been set back, or have lost what it"
        " said it had written."
    )


def fresh_name(directory: Path) -> str:
    """A name for a version that is made now: UTC, to the second, and not taken."""
    moment = time.time()
    while True:
        name = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
        if not os.path.lexists(directory / name):
            return name
        moment += 1


def write(directory: Path, name: str, fields: dict[str, Any]) -> Version:
    """Write the record of the version *name*, durably; the version itself comes after.

    Raises Refused where it would be longer than what is read of one.
    """
    record = {
        "format": FORMAT,
        "version": name,
        "nonce": secrets.token_hex(16),
        "host": socket.gethostname(),
        **fields,
    }
    raw = json.dumps(record, indent=1, ensure_ascii=True).encode() + b"\n"
    if len(raw) > LARGEST:
        raise Refused(
            f"The record of the version would have {size(len(raw))}, and nothing would read one"
            f" longer than {size(LARGEST)}.",
            "Name fewer sources, in the entry and its lists: directories that hold them.",
        )
    path = directory / f"{name}.json"
    fresh = directory / f".{name}.json.new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(fd)
    fresh.rename(path)
    return Version(directory / name, record, hashlib.sha256(raw).hexdigest())


def tidy(directory: Path) -> None:
    """Remove records and manifests whose version never came to be."""
    for what in ("json", "manifest"):
        for path in (*directory.glob(f"*.{what}"), *directory.glob(f".*.{what}.new")):
            if stat.S_ISDIR(os.lstat(path).st_mode):
                continue  # none that we have made
            if path.name.startswith(".") or not os.path.lexists(path.with_suffix("")):
                path.unlink()
