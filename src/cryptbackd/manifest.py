r"""The manifest of a version: one record a path, sorted, compressed.

A file is open only as long as the iterator or the ``with`` block that reads it; what is written
gets its name last, durably, or leaves nothing behind.  Neither holds more than a block (some
hundred KiB) in memory.

A record is a line of text that ends in NUL, as ``find -printf`` writes it with
:data:`LISTING`, and the checksum of the content::

    PATH//KIND MODE UID GID NLINK SIZE MTIME CTIME INODE TARGET XXH128

Since no path contains ``//``, any path can stand there as it is.  KIND is the letter of
``find``'s ``%y``, TARGET that of a symbolic link (else empty).  CTIME and INODE are those of the
source and ``-`` where they are not known, as is XXH128, which only regular files have; NLINK is
the source's, too, or 1.  Records are in the order of their bytes, which is that of ``LC_ALL=C
sort -z``: all that is below a directory, and the directory, stands together.  ``comm -z`` and its
like work on it.

The file is one of gzip(1) with many members (``zcat`` and Python's ``gzip`` read it).  A member
holds a block of records, and says in its header which (RFC 1952, FEXTRA ``CB``); the last one is
empty and has the number of all.  A block that stood in the manifest before is taken over
compressed: what has not changed costs no time, and is known by its digest.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .errors import ManifestDamaged
from .text import printable

LISTING = r"%P//%y %m %U %G %n %s %T@ %C@ %i %l -\0"
"""What ``find -mindepth 1 -printf`` is told: its output, sorted, is records without checksums."""
SEPARATOR = b"//"
UNKNOWN = b"-"

_GZIP = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff"
_FIELD = b"CB"
_HEAD = struct.Struct("<BIIQ16s")
_FORMAT = 1
_LEVEL = 6
_BLOCK = 256 << 10
"""Bytes of text that a block is to have: a change costs the compression of one."""
_MOST_TEXT = 64 << 20
_MOST_FIRST = 8192
_CHECKSUM = re.compile(rb" [^ \0]*\0")


class Record(NamedTuple):
    """One path of a version."""

    path: bytes
    """Relative to the version's root, never empty."""
    kind: str
    """``f`` file, ``d`` directory, ``l`` symbolic link, ``p`` ``s`` ``b`` ``c`` the rest."""
    size: int
    mtime_ns: int
    ctime_ns: int | None
    """Of the source, when it was listed; None where the source was not as the version is."""
    inode: int | None
    """Of the source, as ``ctime_ns``."""
    mode: int
    """Permission bits with setuid, setgid and sticky; without the kind."""
    uid: int
    gid: int
    nlink: int
    xxh128: str | None = None
    """Of a regular file's content, hexadecimal; None where it is not known."""
    target: bytes = b""

    @classmethod
    def parse(cls, raw: bytes) -> Record:
        """The record that *raw* (without NUL) is; raises ManifestDamaged."""
        path, _separator, rest = raw.partition(SEPARATOR)
        try:
            kind, mode, uid, gid, nlink, size, mtime, ctime, inode, last = rest.split(b" ", 9)
            target, space, checksum = last.rpartition(b" ")
            if not path or not space:
                raise ValueError("a record without path or checksum")
            return cls(
                path,
                kind.decode("ascii"),
                int(size),
                nanoseconds(mtime),
                None if ctime == UNKNOWN else nanoseconds(ctime),
                None if inode == UNKNOWN else int(inode),
                int(mode, 8),
                int(uid),
                int(gid),
                int(nlink),
                None if checksum == UNKNOWN else checksum.decode("ascii"),
                target,
            )
        except ValueError as exc:
            raise ManifestDamaged(f"{printable(raw, 80)} is no record of a manifest.") from exc

    def raw(self) -> bytes:
        """As it stands in a manifest, without NUL."""
        ctime = UNKNOWN if self.ctime_ns is None else _time(self.ctime_ns)
        inode = UNKNOWN if self.inode is None else b"%d" % self.inode
        checksum = UNKNOWN if self.xxh128 is None else self.xxh128.encode("ascii")
        return b"%b//%b %o %d %d %d %d %b %b %b %b %b" % (
            self.path,
            self.kind.encode("ascii"),
            self.mode,
            self.uid,
            self.gid,
            self.nlink,
            self.size,
            _time(self.mtime_ns),
            ctime,
            inode,
            self.target,
            checksum,
        )


def nanoseconds(text: bytes) -> int:
    """The time that stands in a record; raises ValueError."""
    # find writes a time before 1970 as its (negative) seconds and what is to be added to them.
    seconds, _point, fraction = text.partition(b".")
    return int(seconds) * 1_000_000_000 + int(fraction[:9])


def _time(ns: int) -> bytes:
    return b"%d.%09d0" % divmod(ns, 1_000_000_000)


def key(path: bytes) -> bytes:
    """What the records' order goes by, and what the record of *path* begins with."""
    return path + SEPARATOR


def without_checksums(text: bytes) -> bytes:
    """Records, each with its NUL, as a listing has them."""
    return _CHECKSUM.sub(b" -\0", text)


class Block(NamedTuple):
    """Some records that follow each other."""

    first: bytes
    """What its first record's bytes begin with: the key, or (of a very long path) a part of it."""
    records: int
    size: int
    """Bytes of its text."""
    digest: bytes
    """BLAKE2b of its text: blocks of two manifests that agree in it hold the same."""
    offset: int
    length: int


class Reader:
    """An open manifest; see :func:`opened`."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self.damaged = False
        """What could be read of it was not what was written."""
        self.blocks: tuple[Block, ...] = tuple(self._index())
        self.records = sum(block.records for block in self.blocks)

    def text(self, block: Block) -> bytes:
        """The records of *block*, each with its NUL."""
        raw = self.compressed(block)
        try:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            text = inflate.decompress(raw[:-8], block.size + 1)
        except zlib.error as exc:
            raise self._damaged(str(exc)) from exc
        if (zlib.crc32(text), len(text)) != struct.unpack("<II", raw[-8:]):
            raise self._damaged("a block is not what was written")
        if not text.endswith(b"\0"):
            raise self._damaged("a record is not whole")
        return text

    def compressed(self, block: Block) -> bytes:
        """The block as it lies in the file, after the header of its member."""
        self._file.seek(block.offset)
        raw = self._read(block.length)
        if len(raw) != block.length:
            raise self._damaged("it ends early")
        return raw

    def __iter__(self) -> Iterator[bytes]:
        """Every record, in order, without NUL."""
        for block in self.blocks:
            yield from self.text(block)[:-1].split(b"\0")

    def get(self, path: bytes) -> Record | None:
        """The record of *path*."""
        return next((Record.parse(raw) for raw in self.starting(key(path))), None)

    def starting(self, beginning: bytes) -> Iterator[bytes]:
        """The records whose bytes start with *beginning*: with ``b"a/"`` all of the tree ``a``."""
        for number, block in enumerate(self.blocks):
            later = self.blocks[number + 1].first if number + 1 < len(self.blocks) else None
            if later is not None and later < beginning and not beginning.startswith(later):
                continue
            if block.first > beginning and not block.first.startswith(beginning):
                return
            for raw in self.text(block)[:-1].split(b"\0"):
                if raw.startswith(beginning):
                    yield raw

    def _index(self) -> Iterator[Block]:
        records = 0
        while True:
            block = self._member()
            if not block.size:
                break
            records += block.records
            yield block
        if block.records != records:
            raise self._damaged("records are missing")
        self.compressed(block)
        if self._read(1):
            raise self._damaged("something follows its end")

    def _member(self) -> Block:
        head = self._read(12)
        extra = self._read(int.from_bytes(head[10:12], "little"))
        field = extra[:2] + extra[4 : 4 + _HEAD.size]
        if head[:10] != _GZIP or field[:2] != _FIELD or len(field) != 2 + _HEAD.size:
            raise self._damaged("it ends early" if not head else "it is none")
        form, length, size, records, digest = _HEAD.unpack(field[2:])
        if form != _FORMAT:
            raise self._damaged(f"it has the format {form}")
        if size > _MOST_TEXT:
            raise self._damaged("a block is too large")
        first = extra[4 + _HEAD.size :]
        block = Block(first, records, size, digest, self._file.tell(), length + 8)
        self._file.seek(block.offset + block.length)
        return block

    def _read(self, length: int) -> bytes:
        try:
            return self._file.read(length)
        except OSError as exc:
            raise self._damaged(str(exc.strerror)) from exc

    def _damaged(self, what: str) -> ManifestDamaged:
        self.damaged = True
        return ManifestDamaged(f"The manifest {self._name} can't be read: {what}.")


@contextmanager
def opened(path: Path) -> Iterator[Reader]:
    """The manifest at *path*, which may be on a drive that is not believed.

    Raises ManifestDamaged, here and while it is read, and FileNotFoundError.
    """
    name = printable(path.name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise ManifestDamaged(f"The manifest {name} can't be read: {exc.strerror}.") from exc
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ManifestDamaged(f"The manifest {name} is no file.")
        yield Reader(file, name)


def read(path: Path) -> Iterator[Record]:
    """Each record of the manifest at *path*, in order; raises what :func:`opened` does."""
    return map(Record.parse, read_raw(path))


def read_raw(path: Path) -> Iterator[bytes]:
    """The same, as bytes without NUL."""
    with opened(path) as reader:
        yield from reader


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
        self._member(first[:_MOST_FIRST], len(records) - 1, raw, digest, len(text))

    @staticmethod
    def _taken_over(old: Reader, block: Block) -> bytes:
        """The compressed block; empty where it can't be read, so that damage isn't handed on."""
        try:
            old.text(block)
            return old.compressed(block)
        except (ManifestDamaged, OSError):
            return b""

    def _member(self, first: bytes, records: int, raw: bytes, digest: bytes, size: int = 0) -> None:
        head = _HEAD.pack(_FORMAT, len(raw) - 8, size, records, digest)
        field = head + first
        extra = _FIELD + len(field).to_bytes(2, "little") + field
        for part in (_GZIP, len(extra).to_bytes(2, "little"), extra, raw):
            self._file.write(part)
            self._hash.update(part)
            self._size += len(part)
