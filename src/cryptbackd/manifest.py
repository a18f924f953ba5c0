r"""The manifest of a version: one record a path, sorted, compressed.

A file is open only as long as the iterator or the ``with`` block that reads it.  No more than a
block (some hundred KiB) is held in memory.  ``manifest_writing`` makes them.

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

import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .errors import ManifestDamaged
from .text import printable

LISTING = r"%P//%y %m %U %G %n %s %T@ %C@ %i %l -\0"
"""What ``find -mindepth 1 -printf`` is told: its output, sorted, is records without checksums."""
SEPARATOR = b"//"
UNKNOWN = b"-"

GZIP = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff"
FIELD = b"CB"
HEAD = struct.Struct("<BIIQ16s")
FORMAT = 1
_MOST_TEXT = 64 << 20
_MOST_MORE = 1024
"""Bytes, and a thousandth, that deflate adds at most to what it can't make shorter (RFC 1951)."""
MOST_FIRST = 8192
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
            raise ManifestDamaged(f'"{printable(raw, 80)}" is no record of a manifest.') from exc

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
        field = extra[:2] + extra[4 : 4 + HEAD.size]
        if head[:10] != GZIP or field[:2] != FIELD or len(field) != 2 + HEAD.size:
            raise self._damaged("it ends early" if not head else "it is none")
        form, length, size, records, digest = HEAD.unpack(field[2:])
        if form != FORMAT:
            raise self._damaged(f"it has the format {form}")
        if size > _MOST_TEXT or length > size + size // 1000 + _MOST_MORE:
            raise self._damaged("a block is too large")
        first = extra[4 + HEAD.size :]
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
