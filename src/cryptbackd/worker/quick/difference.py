"""What differs between the sorted listing of a source and the manifest of a version.

Pure; both are read once, a block of the manifest at a time, and equal blocks are compared as
bytes.  Holds what differs in memory, and no more.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs

from ... import manifest
from ...manifest import SEPARATOR, Block

MOST = 200_000
"""Records that may differ; beyond that a full comparison costs less."""


_SEVERAL = re.compile(rb"//[^d] [0-7]+ [0-9]+ [0-9]+ (?!1 )[0-9]+ [0-9]+ [^ ]+ [^ ]+ ([0-9]+) ")
"""The middle of the record of a file that has several names, and its inode."""


class TooMany(Exception):
    """More differs than a quick run is good for."""


def _nowhere(_path: bytes) -> bool:
    return False


@attrs.define
class Difference:
    """Paths with their records: in both where a path has changed."""

    before: dict[bytes, bytes] = attrs.field(factory=dict)
    """As the manifest has them."""
    now: dict[bytes, bytes] = attrs.field(factory=dict)
    """As the listing has them."""
    is_kept: Callable[[bytes], bool] = _nowhere
    """Whether a path was not listed, and stays as it is."""

    def add(self, before: Iterable[bytes], now: Iterable[bytes]) -> None:
        """Take up records, without NUL."""
        was = _by_path(before)
        self.before.update((path, raw) for path, raw in was if not self.is_kept(path))
        self.now.update(_by_path(now))
        if len(self.before) + len(self.now) > MOST:
            raise TooMany


def _by_path(records: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return ((raw.partition(SEPARATOR)[0], raw) for raw in records if raw)


def difference(
    listing: Path, before: manifest.Reader, is_kept: Callable[[bytes], bool] = _nowhere
) -> Difference:
    """Compare; raises TooMany, and ManifestDamaged.

    Of a file that has several names at the source, and one of them here, all are here.
    """
    found = Difference(is_kept=is_kept)
    fd = os.open(listing, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size == 0:
            for block in before.blocks:
                found.add(before.text(block).split(b"\0"), ())
            return found
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as now:
            _compare(now, before, found)
            _complete(now, before, found)
    finally:
        os.close(fd)
    return found


def _compare(now: mmap.mmap, before: manifest.Reader, found: Difference) -> None:
    at = 0
    for number, block in enumerate(before.blocks):
        text = before.text(block)
        old = manifest.without_checksums(text)
        if now[at : at + len(old)] == old:
            at += len(old)
            continue
        end = _end(now, at, before.blocks[number + 1 : number + 2])
        was = dict(zip(old.split(b"\0"), text.split(b"\0"), strict=True))
        is_ = set(now[at:end].split(b"\0"))
        found.add((was[record] for record in was.keys() - is_), is_ - was.keys())
        at = end
    found.add((), now[at:].split(b"\0"))


def _complete(now: mmap.mmap, before: manifest.Reader, found: Difference) -> None:
    """Add the other names of files of which some names differ: a directory that was renamed
    takes the names in it along, and leaves no trace at the others.
    """
    names: dict[bytes, list[int]] = {}
    for record in found.now.values():
        if match := _SEVERAL.search(record):
            links = int(match[0].split(b" ")[4])
            names.setdefault(match[1], [links, 0])[1] += 1
    wanted = {inode for inode, (links, known) in names.items() if known < links}
    if not wanted:
        return
    for match in _SEVERAL.finditer(now):
        if match[1] in wanted:
            start = now.rfind(b"\0", 0, match.start()) + 1
            record = now[start : now.find(b"\0", match.end())]
            path = record.partition(SEPARATOR)[0]
            if path not in found.now:
                was = before.get(path)
                found.add(() if was is None else (was.raw(),), (record,))


def _end(now: mmap.mmap, at: int, following: tuple[Block, ...]) -> int:
    """Where the records from *at* on that belong into the block before *following* end."""
    if not following:
        return len(now)
    low, high = at, len(now)
    while low < high:
        # The record that holds the byte in the middle.
        middle = (low + high) // 2
        start = now.rfind(b"\0", low, middle) + 1 or low
        stop = now.find(b"\0", middle) + 1
        if now[start : stop - 1] < following[0].first:
            low = stop
        else:
            high = start
    return low
