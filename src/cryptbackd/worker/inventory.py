"""What a version holds, put together for its manifest.

The checksums of copied files are kept in a file on the computer from one version to the next, so
that an interrupted run loses none: :class:`Transfers`, open while its block runs.

A manifest tells of what is in the version and of nothing else: there is a record for each path
that was found in it.  What the source was like when it was listed, before the copy, is told only
where the copy is like it; else the next run finds a difference, and looks again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice, takewhile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .. import changes
from ..manifest import SEPARATOR, UNKNOWN, nanoseconds
from .listing import lines_of
from .rsync_job import Received

_HEAD = b"//"
"""Begins a line that is no record: the first names the version that the files were copied after."""
_SETTLED = b"//settled\0"
"""What stands before it is on the drive."""
_LOST = b"0" * 32
"""In the place of a checksum: what was copied is not there."""
_LEAST = 4096
"""Bytes that a file takes in memory at least."""
_LINE = re.compile(rb"//.*|[^\0]+//[0-9]{15,} [0-9]+ -?[0-9]+ -?[0-9]+ [0-9]+ [0-9a-f]{32}")
_MOST_OPEN = 100_000
_MOST_UNSUMMED = 5_000


class Copied(NamedTuple):
    """A file as it was copied."""

    path: bytes
    size: int
    mtime_ns: int
    xxh128: str


class Transfers:
    """The files that were copied since the version before; see :func:`transfers`."""

    def __init__(self, path: Path, file: BinaryIO, *, unbroken: bool) -> None:
        self.path = path
        self.unbroken = unbroken
        """Nothing was copied since then without standing here."""
        self.linked: dict[int, tuple[int, int, bytes]] = {}
        """Size, time and checksum of files with more than one name, by the inode of the copy."""
        self._file: BinaryIO | None = file

    def add(self, received: Received) -> None:
        """Keep the checksum of a file.  Where that can't be written, none of this run is known."""
        if len(received.xxh128) != 32 or self._file is None:
            return
        status, source = received.status, received.source
        linked = source is not None and source.st_nlink > 1
        if linked:
            known = (status.st_size, status.st_mtime_ns, received.xxh128)
            self.linked[status.st_ino] = known
        self._write(
            received.path,
            (status.st_size, status.st_mtime_ns),
            source.st_ctime_ns if source is not None else 0,
            status.st_ino if linked else 0,
            received.xxh128,
        )

    def lose(self, path: bytes) -> None:
        """Take nothing for known of what has that path: what was copied there is not."""
        self._write(path, (0, -1), 0, 0, _LOST)

    def _write(
        self, path: bytes, like: tuple[int, int], ctime: int, inode: int, checksum: bytes
    ) -> None:
        if self._file is None:
            return
        words = (path, self._file.tell(), *like, ctime, inode, checksum)
        line = b"%b//%015d %d %d %d %d %b\0" % words
        try:
            self._file.write(line)
        except OSError:
            self.unbroken = False
            self._file = None
            self.path.unlink(missing_ok=True)

    def unsettled(self, most: int) -> Iterator[Copied]:
        """The last of what may not be on the drive, with the last *most* bytes of it.

        What is added meanwhile is left out.
        """
        begin = total = number = 0
        for number, line in enumerate(lines_of(self.path), 1):
            if line.startswith(_HEAD):
                begin, total = number, 0
            else:
                total += int(_words(line)[1]) + _LEAST
        for line in islice(lines_of(self.path), begin, number):
            _place, size, mtime, _ctime, _inode, checksum = _words(line)
            total -= int(size) + _LEAST
            if total < most and checksum != _LOST:
                path = line.partition(SEPARATOR)[0]
                yield Copied(path, int(size), int(mtime), checksum.decode("ascii"))

    def large(self, least: int) -> dict[bytes, tuple[int, int]]:
        """Size and time of each file that was copied last with *least* bytes or more."""
        found: dict[bytes, tuple[int, int]] = {}
        for line in lines_of(self.path) if self._file is not None else ():
            if line.startswith(_HEAD):
                continue
            path = line.partition(SEPARATOR)[0]
            size, mtime = map(int, _words(line)[1:3])
            found.pop(path, None)
            if size >= least:
                found[path] = size, mtime
        return found


def settle(path: Path) -> None:
    """Note that what the file *path* tells of is on the drive.  Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(fd, _SETTLED)
    finally:
        os.close(fd)


@contextmanager
def transfers(path: Path, after: str) -> Iterator[Transfers]:
    """The checksums of what is copied *after* the version with that nonce (or mark).

    What is in the file goes on counting if it was copied after the same; a computer without power
    may have cut it off in the middle of a line.  Raises OSError.
    """
    head = _HEAD + after.encode() + b"\0"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "r+b", buffering=0) as file:
        same = file.read(len(head)) == head
        if not same:
            file.seek(0)
            file.truncate()
            file.write(head)
        whole = sum(len(line) + 1 for line in takewhile(_LINE.fullmatch, lines_of(path)))
        kept = Transfers(path, file, unbroken=same and whole == os.fstat(fd).st_size)
        file.truncate(whole)
        file.seek(whole)
        kept.linked.update(_linked(path))
        yield kept


def _linked(path: Path) -> Iterator[tuple[int, tuple[int, int, bytes]]]:
    for line in lines_of(path):
        if line.startswith(_HEAD):
            continue
        _place, size, mtime, _ctime, inode, checksum = _words(line)
        if inode != b"0":
            yield int(inode), (int(size), int(mtime), checksum)


def _words(line: bytes) -> list[bytes]:
    return line.partition(SEPARATOR)[2].split(b" ")


class Inventory:
    """The records of a version, in order: iterate once.

    *sources* is the listing from before the copy, *tree* that of the version, *copied* the sorted
    lines of *kept*, and *before* the records of the version before.  *compared*: the copy has
    compared contents.  What has *failed* may not be in the version what it was at the source.
    """

    def __init__(
        self,
        sources: Iterator[bytes],
        tree: Iterator[bytes],
        copied: Iterator[bytes],
        before: Iterator[bytes],
        kept: Transfers,
        *,
        compared: bool,
        failed: Collection[bytes] = (),
    ) -> None:
        self._compared = compared
        self._failed = {path + SEPARATOR for path in failed}
        self._sources = _Cursor(sources)
        self._tree = tree
        self._copied = _Cursor(line for line in copied if not line.startswith(_HEAD))
        self._before = _Cursor(before)
        self._kept = kept
        self._open: dict[bytes, int] = {}
        self.unsummed: dict[bytes, int] = {}
        """Files that were read and whose checksum is not known all the same, with their size: the
        first that were found.  Right at the end, and after :meth:`completed`."""

    def __iter__(self) -> Iterator[bytes]:
        for found in self._tree:
            path, _separator, rest = found.partition(SEPARATOR)
            key = path + SEPARATOR
            yield self._record(
                key,
                rest.split(b" ", 9),
                self._sources.last(key),
                self._copied.last(key),
                self._before.last(key),
            )

    def completed(self, written: Iterable[bytes]) -> Iterable[bytes] | None:
        """What was *written*, with the checksums that were known only later; None: all are there.

        That is of a further name of a file, where the one that was known comes after it.
        """
        later = {
            key: self._kept.linked[inode][2]
            for key, inode in self._open.items()
            if inode in self._kept.linked
        }
        if not later:
            return None
        for key in later:
            self.unsummed.pop(key.removesuffix(SEPARATOR), None)
        return (_completed(raw, later) for raw in written)

    def _record(
        self,
        key: bytes,
        found: list[bytes],
        source: bytes | None,
        copied: bytes | None,
        before: bytes | None,
    ) -> bytes:
        now = source[len(key) :].split(b" ", 9) if source is not None else None
        failed = key in self._failed
        was_there = before is not None and copied is None and not failed
        if was_there and source is not None and now is not None:
            # Most are as they were in all that is known of them.
            assert before is not None
            same = before.startswith(source[:-1]) and _alike(found, now)
            if same and (now[4] == b"1" or now[0] != b"f"):
                if now[0] == b"f" and before.endswith(b" " + UNKNOWN):
                    self._note(key, int(found[5]))
                return before
        was = changes.fields(before)[1] if before is not None else None
        here = _words(copied) if copied is not None else None
        if now is not None and _alike(found, now):
            fields = list(now)
            if failed or (found[0] == b"f" and self._in_doubt(now, here, was)):
                fields[7:9] = UNKNOWN, UNKNOWN
        elif was is not None and _alike(found, was):
            fields = list(was)  # a source that was not read keeps its state and what is known of it
            if now is not None:
                fields[7:9] = UNKNOWN, UNKNOWN
        else:
            # On ext4 and xfs the links of the copy count those of other versions, too.
            linked = now[4] if now is not None else b"1"
            fields = [*found[:4], linked, *found[5:7], UNKNOWN, UNKNOWN, found[9]]
        checksum = UNKNOWN
        if found[0] == b"f":
            checksum = self._checksum(found, fields, now, here, was)
            if checksum == UNKNOWN and fields[4] != b"1" and len(self._open) < _MOST_OPEN:
                self._open[key] = int(found[8])
            if checksum == UNKNOWN and now is not None and not failed:
                self._note(key, int(found[5]))
        fields[9] = fields[9].rpartition(b" ")[0] + b" " + checksum
        return key + b" ".join(fields)

    def _note(self, key: bytes, size: int) -> None:
        if len(self.unsummed) < _MOST_UNSUMMED:
            self.unsummed[key.removesuffix(SEPARATOR)] = size

    def _in_doubt(
        self, now: list[bytes], here: list[bytes] | None, was: list[bytes] | None
    ) -> bool:
        """Whether the content of the source may be another than that of the copy.

        Size and time are the same, but can be put back by whoever changed the content.
        """
        if here is not None:
            return int(here[3]) != nanoseconds(now[7])
        return not self._compared and was is not None and was[7:9] != now[7:9]

    def _checksum(
        self,
        found: list[bytes],
        fields: list[bytes],
        now: list[bytes] | None,
        here: list[bytes] | None,
        was: list[bytes] | None,
    ) -> bytes:
        size, mtime, inode = int(found[5]), nanoseconds(found[6]), int(found[8])
        if here is not None:
            return here[5] if (size, mtime) == (int(here[1]), int(here[2])) else UNKNOWN
        if inode in self._kept.linked:
            *known, checksum = self._kept.linked[inode]
            if [size, mtime] == known:
                return checksum
        # It was not copied: its content is that of the version before.
        if was is None or was[0] != b"f" or was[5:7] != found[5:7]:
            return UNKNOWN
        if not self._kept.unbroken and now is not None and was[7:9] != now[7:9]:
            return UNKNOWN
        checksum = was[9].rpartition(b" ")[2]
        if fields[4] != b"1" and checksum != UNKNOWN:
            self._kept.linked[inode] = (size, mtime, checksum)
        return checksum


def _completed(raw: bytes, later: dict[bytes, bytes]) -> bytes:
    checksum = later.get(raw.partition(SEPARATOR)[0] + SEPARATOR)
    return raw if checksum is None else raw.rpartition(b" ")[0] + b" " + checksum


class _Cursor:
    """Sorted lines, asked for ever greater keys."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._line = next(lines, None)

    def last(self, key: bytes) -> bytes | None:
        """The last line that begins with *key*."""
        line = self._line
        found = None
        while line is not None and (line < key or line.startswith(key)):
            if line.startswith(key):
                found = line
            line = next(self._lines, None)
        self._line = line
        return found


def _alike(one: list[bytes], other: list[bytes]) -> bool:
    """Whether two records say the same but for what only the source or the content knows."""
    return (
        one[:4] == other[:4]
        and one[6] == other[6]
        and (one[5] == other[5] or one[0] == b"d")
        and one[9].rpartition(b" ")[0] == other[9].rpartition(b" ")[0]
    )
