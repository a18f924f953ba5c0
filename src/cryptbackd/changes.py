"""What differs between two manifests, and what only one version holds.  Nothing stays open.

Blocks that both manifests have are not looked at: what two versions have in common costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import attrs

from .manifest import SEPARATOR, UNKNOWN, Reader

_FIELDS = re.compile(
    rb"[a-zA-Z?] [0-7]{1,6} [0-9]{1,10} [0-9]{1,10} [0-9]{1,10} [0-9]{1,19}"
    rb" -?[0-9]{1,20}\.[0-9]{1,20} [^ ]* [^ ]* [^\0]* [^ ]*\Z"
)
"""What follows the path in a record, as far as it is made numbers of."""


_NO_RECORD = (b"?", *[b"0"] * 5, b"0.0", b"-", b"-", b" -")


class Change(NamedTuple):
    """A path about which two versions differ."""

    path: bytes
    before: list[bytes] | None
    """The fields of its record in the older one (see ``manifest``); None: it is new."""
    after: list[bytes] | None
    """The same of the younger one; None: it is gone."""

    @property
    def what(self) -> str:
        """``added``, ``removed``, ``changed`` (its content) or ``attributes``."""
        if self.before is None:
            return "added"
        if self.after is None:
            return "removed"
        return "attributes" if same_content(self.before, self.after) else "changed"


@attrs.define
class Summary:
    """How much differs: files (everything but directories), and bytes of regular ones."""

    added: int = 0
    changed: int = 0
    attributes: int = 0
    removed: int = 0
    added_bytes: int = 0
    changed_bytes: int = 0
    removed_bytes: int = 0


def changes(old: Reader, new: Reader) -> Iterator[Change]:
    """What differs from *old* to *new*, in the order of the manifests.

    What the manifests know of the source alone, and the number of links, is no difference.
    """
    common = {b.digest for b in old.blocks} & {b.digest for b in new.blocks}
    olds, news = _others(old, common), _others(new, common)
    before, after = next(olds, None), next(news, None)
    while before is not None or after is not None:
        if after is None or (before is not None and before[0] < after[0]):
            assert before is not None
            yield Change(before[0][:-2], before[1], None)
            before = next(olds, None)
        elif before is None or after[0] < before[0]:
            yield Change(after[0][:-2], None, after[1])
            after = next(news, None)
        else:
            if before[1] != after[1] and not _same(before[1], after[1]):
                yield Change(after[0][:-2], before[1], after[1])
            before, after = next(olds, None), next(news, None)


def _others(reader: Reader, common: set[bytes]) -> Iterator[tuple[bytes, list[bytes]]]:
    for block in reader.blocks:
        if block.digest in common:
            continue
        for raw in reader.text(block)[:-1].split(b"\0"):
            yield fields(raw)


def fields(raw: bytes) -> tuple[bytes, list[bytes]]:
    """The key of a record, and its fields: the last one is target and checksum.

    Those of what is no record are such that nobody but root is told of it.
    """
    path, _separator, rest = raw.partition(SEPARATOR)
    split = rest.split(b" ", 9)
    return path + SEPARATOR, split if _FIELDS.match(rest) else list(_NO_RECORD)


def same_content(one: list[bytes], other: list[bytes]) -> bool:
    """Whether two records are of the same content, as far as they tell."""
    if one[0] != other[0]:
        return False
    if one[0] == b"l":
        return one[9] == other[9]
    if one[0] != b"f":
        return True
    if one[5] != other[5]:
        return False
    sums = checksum(one), checksum(other)
    return one[6] == other[6] if UNKNOWN in sums else sums[0] == sums[1]


def checksum(record: list[bytes]) -> bytes:
    """The checksum in the fields of a record."""
    return record[9].rpartition(b" ")[2]


def _same(one: list[bytes], other: list[bytes]) -> bool:
    # The time of a directory tells of what is in it.
    same_time = one[6] == other[6] or one[0] == b"d"
    return one[:4] == other[:4] and same_time and same_content(one, other)


class Holding:
    """Which content stands in one version and not in the one beside it, by the path.

    Bytes of a file with several names count once.  A hash stands for each path.
    """

    def __init__(self) -> None:
        self._paths: dict[int, int] = {}
        self._inodes: set[bytes] = set()

    def add(self, path: bytes, record: list[bytes]) -> None:
        """Count in a path."""
        if record[0] != b"f" or record[5] == b"0":
            return
        if record[4] != b"1" and record[8] != UNKNOWN:
            if record[8] in self._inodes:
                return
            self._inodes.add(record[8])
        self._paths[hash(path)] = int(record[5])

    def bytes(self, other: Holding | None) -> int:
        """Of what stands here and in *other* (None: whatever), in bytes."""
        if other is None:
            return sum(self._paths.values())
        paths = other._paths
        return sum(size for path, size in self._paths.items() if path in paths)


def compare(old: Reader, new: Reader) -> tuple[Summary, Holding, Holding]:
    """How much differs, what *old* holds and *new* does not, and the other way round."""
    found, lost, gained = Summary(), Holding(), Holding()
    for change in changes(old, new):
        what = change.what
        if what != "attributes":
            if change.before is not None:
                lost.add(change.path, change.before)
            if change.after is not None:
                gained.add(change.path, change.after)
        record = change.after or change.before
        assert record is not None
        if record[0] == b"d":
            continue
        setattr(found, what, getattr(found, what) + 1)
        if record[0] == b"f" and what != "attributes":
            name = f"{what}_bytes"
            setattr(found, name, getattr(found, name) + int(record[5]))
    return found, lost, gained
