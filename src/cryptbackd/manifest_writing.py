"""Writing a manifest (``manifest``), as much as can be of what is in the one before it.

What is written gets its name last, durably, or leaves nothing behind.  No more than a block (some
hundred KiB) is held in memory.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .errors import ManifestDamaged
from .manifest import (
    FIELD,
    FORMAT,
    GZIP,
    HEAD,
    MOST_FIRST,
    SEPARATOR,
    Block,
    Reader,
    Record,
    key,
    opened,
)

_LEVEL = 6
_BLOCK = 256 << 10
"""Bytes of text that a block is to have: a change costs the compression of one."""


class Written(NamedTuple):
    """A manifest that was written, durably."""

    records: int
    sha256: str
    """Of the file, hexadecimal: it goes into the version's record."""
    size: int


def write(path: Path, records: Iterable[Record], before: Path | None = None) -> Written:
    """Write *records*, which must be in order, as the manifest *path*; see :func:`write_raw`."""
    return write_raw(path, (record.raw() for record in records), before)


def write_raw(path: Path, records: Iterable[bytes], before: Path | None = None) -> Written:
    """Write *records* (in order, without NUL) as the manifest *path*, for its owner alone.

    *before* is the manifest of the version before: what it has in common with this one is
    not compressed again.  One that can't be read is as none.
    """
    with _maybe(before) as old, _fresh(path) as file:
        return _Writer(file, old).write(records)


def write_changed(path: Path, before: Reader, changes: Mapping[bytes, bytes | None]) -> Written:
    """Write as the manifest *path* what *before* has, with *changes*: path to its new record
    (without NUL), or to None where it is gone.

    Only the blocks that something changes in are read.  Raises ManifestDamaged.
    """
    with _fresh(path) as file:
        return _Writer(file, before).change(changes)


@contextmanager
def _fresh(path: Path) -> Iterator[BinaryIO]:
    """A new file that gets its name *path*, durably, when the block ends without an error."""
    fresh = path.with_name(f".{path.name}.new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(fd)
        os.rename(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise


@contextmanager
def _maybe(path: Path | None) -> Iterator[Reader | None]:
    if path is None:
        yield None
        return
    try:
        manager = opened(path)
        reader = manager.__enter__()
    except (ManifestDamaged, OSError):
        yield None
        return
    try:
        yield reader
    finally:
        manager.__exit__(None, None, None)


def _changed(records: list[bytes], changes: Sequence[tuple[bytes, bytes | None]]) -> list[bytes]:
    """The sorted *records* with *changes*: pairs of key and record, or None."""
    gone = {name for name, _record in changes}
    kept = [raw for raw in records if key(raw.partition(SEPARATOR)[0]) not in gone]
    return sorted([*kept, *(record for _name, record in changes if record is not None)])


class _Writer:
    def __init__(self, file: BinaryIO, old: Reader | None) -> None:
        self._file = file
        self._old = old
        self._known = {block.digest: block for block in old.blocks} if old is not None else {}
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, records: Iterable[bytes]) -> Written:
        total = 0
        for block in self._cut(records):
            total += len(block)
            self._block(block)
        return self._end(total)

    def change(self, changes: Mapping[bytes, bytes | None]) -> Written:
        assert self._old is not None
        old, total = self._old, 0
        pending: list[bytes] = []
        left = sorted((key(path), record) for path, record in changes.items())
        for number, block in enumerate(old.blocks):
            last = number + 1 == len(old.blocks)
            here = len(left) if last else bisect_left(left, (old.blocks[number + 1].first,))
            if not here and not pending:
                total += block.records
                raw = old.compressed(block)
                self._member(block.first, block.records, raw, block.digest, block.size)
                continue
            now = _changed(old.text(block)[:-1].split(b"\0"), left[:here])
            del left[:here]
            pending += now
            # What has become too small goes into the block that follows.
            if last or sum(map(len, pending)) >= _BLOCK // 8:
                total += self._pieces(pending)
                pending = []
        total += self._pieces(pending + _changed([], left))
        return self._end(total)

    def _pieces(self, records: list[bytes]) -> int:
        piece: list[bytes] = []
        size = 0
        for raw in records:
            piece.append(raw)
            size += len(raw) + 1
            if size >= 2 * _BLOCK:
                self._block(piece)
                piece, size = [], 0
        if piece:
            self._block(piece)
        return len(records)

    def _end(self, records: int) -> Written:
        self._member(b"", records, b"\x03\x00" + bytes(8), b"")
        return Written(records, self._hash.hexdigest(), self._size)

    def _cut(self, records: Iterable[bytes]) -> Iterator[list[bytes]]:
        """Blocks that begin where those of the old manifest do, as far as sizes allow."""
        bounds = iter([block.first for block in self._old.blocks[1:]] if self._old else [])
        bound = next(bounds, None)
        block: list[bytes] = []
        size, last = 0, b""
        for raw in records:
            if raw <= last:
                raise ValueError(f"records out of order: {last!r}, {raw!r}")
            last = raw
            at_bound = bound is not None and raw >= bound
            while bound is not None and raw >= bound:
                bound = next(bounds, None)
            # Without old blocks (any more) each gets its size; with them it may have twice that.
            most = _BLOCK if bound is None and not at_bound else 2 * _BLOCK
            if block and (size >= most or (at_bound and size >= _BLOCK // 8)):
                yield block
                block, size = [], 0
            block.append(raw)
            size += len(raw) + 1
        if block:
            yield block

    def _block(self, records: list[bytes]) -> None:
        records.append(b"")
        text = b"\0".join(records)
        digest = hashlib.blake2b(text, digest_size=16).digest()
        old = self._known.get(digest)
        raw = b""
        if self._old is not None and old is not None and old.size == len(text):
            raw = self._taken_over(self._old, old)
        if not raw:
            deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS, 9)
            raw = deflate.compress(text) + deflate.flush()
            raw += struct.pack("<II", zlib.crc32(text), len(text))
        first = records[0].partition(SEPARATOR)[0] + SEPARATOR
        self._member(first[:MOST_FIRST], len(records) - 1, raw, digest, len(text))

    @staticmethod
    def _taken_over(old: Reader, block: Block) -> bytes:
        """The compressed block; empty where it can't be read, so that damage isn't handed on."""
        try:
            old.text(block)
            return old.compressed(block)
        except (ManifestDamaged, OSError):
            return b""

    def _member(self, first: bytes, records: int, raw: bytes, digest: bytes, size: int = 0) -> None:
        head = HEAD.pack(FORMAT, len(raw) - 8, size, records, digest)
        field = head + first
        extra = FIELD + len(field).to_bytes(2, "little") + field
        for part in (GZIP, len(extra).to_bytes(2, "little"), extra, raw):
            self._file.write(part)
            self._hash.update(part)
            self._size += len(part)
