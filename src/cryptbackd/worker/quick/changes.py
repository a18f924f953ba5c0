"""What a quick run has to do on the drive, going by a difference.

Pure but for rsync's word on what is excluded.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

import attrs

from ...manifest import SEPARATOR
from .difference import Difference, TooMany
from .excluded import included

MOST = 5000
"""Paths that rsync is handed by name; beyond that it is faster to have it walk."""
_MOST_ASKED = 50_000
"""Paths that rsync is asked about at a time, whether they are excluded."""


@attrs.frozen
class Changes:
    """Paths below the root of the tree, as bytes."""

    remove: tuple[bytes, ...]
    """To be taken away with all below them; none lies below another."""
    transfer: tuple[bytes, ...]
    """To be handed to rsync, sorted; it is to look at nothing else."""
    before: dict[bytes, bytes]
    """The records of what is changed or gone, as the manifest has them."""
    now: dict[bytes, bytes]
    """The records of what is changed or new and not excluded, as the listing has them."""
    above: tuple[bytes, ...] = ()
    """Directories above the sources: the listing doesn't have them, so they are looked at
    each time."""


def kind(record: bytes) -> bytes:
    """The letter of the kind of what is recorded."""
    after = record.index(SEPARATOR) + len(SEPARATOR)
    return record[after : after + 1]


def above(sources: Iterable[str]) -> tuple[bytes, ...]:
    """The directories above these sources, as paths below the root."""
    found: set[bytes] = set()
    for source in sources:
        path = os.fsencode(source.strip("/"))
        while path := os.path.dirname(path):
            found.add(path)
    return tuple(sorted(found))


def changes(
    found: Difference, sources: Iterable[str], patterns: tuple[str, ...], where: Path, rsync: str
) -> Changes:
    """What follows from a difference; raises TooMany.

    *where*, which must not exist, is a place for a moment; see ``excluded.included``.
    """
    upper = above(sources)
    for path in upper:
        if path not in found.now:
            found.before.pop(path, None)
    now = _without_excluded(found, patterns, where, rsync)
    other = {
        path
        for path, record in found.before.items()
        if path not in now or kind(now[path]) != kind(record)
    }
    remove = tuple(path for path in sorted(other) if not _below(path, other))
    # A directory from which something is taken away gets its time back from the source.
    parents = {os.path.dirname(path) for path in remove} - other - {b""}
    transfer = tuple(sorted({*now, *parents, *upper}))
    if len(transfer) + len(remove) > MOST:
        raise TooMany
    return Changes(remove, transfer, found.before, now, upper)


def _below(path: bytes, others: Collection[bytes]) -> bool:
    while path := os.path.dirname(path):
        if path in others:
            return True
    return False


def _without_excluded(
    found: Difference, patterns: tuple[str, ...], where: Path, rsync: str
) -> dict[bytes, bytes]:
    """The records of the listing without those of excluded paths."""
    if not patterns:
        return found.now
    fresh = {
        path: kind(record) == b"d"
        for path, record in found.now.items()
        if path not in found.before or kind(found.before[path]) != kind(record)
    }
    # First what lies in directories that are known: with a directory that is excluded, all
    # below it is, and most of what differs may be that.
    tops = [path for path in fresh if os.path.dirname(path) not in fresh]
    out = _excluded(tops, fresh, patterns, where, rsync)
    left = [path for path in fresh if path not in out and not _below(path, out)]
    if len(left) > len(tops) - len(out):
        out |= _excluded(left, fresh, patterns, where, rsync)
    return {
        path: record
        for path, record in found.now.items()
        if path not in fresh or (path not in out and not _below(path, out))
    }


def _excluded(
    paths: Iterable[bytes],
    is_directory: dict[bytes, bool],
    patterns: tuple[str, ...],
    where: Path,
    rsync: str,
) -> set[bytes]:
    asked = {path: is_directory[path] for path in paths}
    if len(asked) > _MOST_ASKED:
        raise TooMany
    return asked.keys() - included(asked.items(), patterns, where, rsync)
