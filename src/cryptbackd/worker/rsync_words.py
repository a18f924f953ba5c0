"""What the lines of rsync say.  Pure.

Names in them may be anything that a user can call a file, and the reading side is confined as it
is because it might not say what rsync would: whatever a line is, it is read in a time that grows
with its length alone, and no path leads out of the tree that is copied.
"""

from __future__ import annotations

import os
import re

import attrs

LONGEST = 64 << 10
"""Bytes of a line: the longest path, each byte of it escaped, is a quarter of that."""

_COMPLAINT = re.compile(
    r"rsync: \[(?P<side>sender|generator|receiver|Receiver)[^]]*\] "
    r"(?P<what>.*): (?P<why>[^:]+) \((?P<errno>[0-9]{1,6})\)"
)
_ATTRIBUTE = re.compile(
    r'rsync_xal_set: \w+\("(?P<file>/.*)","(?P<name>.*)"\) failed'
    r"|set_acl: \w+\((?P<path>.*), (?P<acl>ACL_TYPE_(?:ACCESS|DEFAULT))\)"
)
_VANISHED = re.compile(r'file has vanished: "(?P<path>.*)"')
_DISCARDED = re.compile(r"ERROR: (?P<path>.*) failed verification -- update discarded\.")
_OCTAL = re.compile(rb"\\#([0-3][0-7]{2})")
_PROGRESS = re.compile(r"\s*([0-9]{1,18})\s+[0-9]+%")
_STATISTIC = re.compile(r"(Number of files|Total file size|Number of deleted files): ([0-9]{1,18})")
_CHECKSUM = re.compile(rb"[0-9a-f]{32}")
_SIZE = re.compile(rb"[0-9]{1,18}")


@attrs.frozen
class Complaint:
    """An error of the system, about a file or not."""

    sender: bool
    """Whether the reading side complains."""
    what: str
    """Words; with no *path* all that is told of it."""
    path: str | None
    """As rsync writes it, absolute; of an access control list below the root of the copy."""
    why: str
    errno: int
    attribute: str = ""
    """The extended attribute, or access control list, that could not be set, if it is that."""


def complaint(line: str) -> Complaint | None:
    """What an error of the system is about."""
    match = _COMPLAINT.match(line)
    if match is None:
        return None
    what, path = match["what"], None
    sender = match["side"] == "sender"
    number = int(match["errno"])
    if not sender and (found := _ATTRIBUTE.fullmatch(what)):
        path = found["file"] or found["path"]
        return Complaint(sender, what, path, match["why"], number, found["name"] or found["acl"])
    begin, end = what.find('"/'), what.rfind('"')
    if 0 <= begin < end:
        what, path = what[:begin], what[begin + 1 : end]
    return Complaint(sender, what, path, match["why"], number)


def vanished(line: str) -> str | None:
    """The path of a file that is gone."""
    match = _VANISHED.match(line)
    return None if match is None else match["path"]


def discarded(line: str) -> str | None:
    """The path of a file that changed while it was read, twice."""
    match = _DISCARDED.match(line)
    return None if match is None else match["path"]


def progress(line: str) -> int | None:
    """Bytes that are through."""
    match = _PROGRESS.match(line)
    return None if match is None else int(match[1])


def statistic(line: str) -> tuple[str, int] | None:
    """One of the numbers at the end, and what it counts."""
    match = _STATISTIC.match(line)
    return None if match is None else (match[1], int(match[2]))


def length(text: bytes) -> int:
    """The size of a file that is to be copied; 0 where it says none."""
    return int(text) if _SIZE.fullmatch(text) else 0


def copied(text: bytes) -> tuple[bytes, bytes]:
    """Path and checksum (hexadecimal) of a file that was copied; empty what is none."""
    checksum, _space, told = text.lstrip().partition(b" ")
    path = unescaped(told)
    inside = name(told) == os.path.normpath(path)
    known = _CHECKSUM.fullmatch(checksum) is not None
    return path if inside else b"", checksum if known else b""


def unescaped(text: bytes) -> bytes:
    """A name as rsync writes it (rsync(1), ``--8-bit-output``)."""
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), text)


def name(told: str | bytes) -> bytes:
    """The path below the root of what rsync tells of."""
    path = unescaped(os.fsencode(told)).replace(b"\0", b"")
    return os.path.normpath(b"/" + path).lstrip(b"/")
