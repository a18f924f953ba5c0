"""What one run of the writing rsync tells, line by line.

A :class:`Pass` lives as long as that run; what it understood is with the writer, and in
:class:`Told`.
"""

from __future__ import annotations

import calendar
import errno
import math
import os
import re
import stat
import time
from typing import TYPE_CHECKING

import attrs

from ..restoring import SOURCE, Over
from ..text import printable
from .target import FAT_LIMIT, is_on_fat

if TYPE_CHECKING:
    from .target import Group
    from .writing import Writer

ITEM = "="
FORMAT = f"--out-format={ITEM}%i %l %U %M %n"
_LINE = re.compile(rb"(\S{11}) (\d+) (\d+) (\S+) (.*)", re.S)
_OCTAL = re.compile(rb"\\#([0-7]{3})")
_NEWER = re.compile(rb"(.*) is newer")
_PROGRESS = re.compile(rb"\s*(\d+)\s+\d+%")
_IN_THE_WAY = re.compile(rb"cannot delete non-empty directory: (.*)")
_NO_FILE = re.compile(rb'skipping non-regular file "(.*)"')
_COMPLAINT = re.compile(
    rb"rsync: \[(?P<side>\w+)[^]]*\] (?P<what>.*?)(?:\"(?P<path>[^\"].*)\".*?)?:"
    rb" (?P<why>[^:]+) \((?P<errno>\d+)\)"
)
_ATTRIBUTE = (b"rsync_xal_set: ", b"set_acl: ")
_FAR_AHEAD = re.compile(rb"\d{5,}/")
"""Begins a time in a year that Python doesn't know any more."""
_PARTIAL = 23
"""The exit status for files that were left out, for whatever reason (rsync(1))."""
_FILE_IO = 11
"""That for a file which could not be written, so that all the others were given up."""
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""What keeps all of it from being written, and not only one file."""


@attrs.frozen
class Item:
    """Something that is done, or would be: to ``path``, in the words of rsync's ``%i``."""

    change: str
    size: int
    owner: int
    path: bytes

    @property
    def what(self) -> str:
        """``new``, ``replace`` or ``update`` (of what isn't content)."""
        if self.change[2:] == "+++++++++":
            return "new"
        return "replace" if self.change[0] in "><ch" else "update"


@attrs.define
class Told:
    """What became of it, with the names: raw, absolute."""

    version: str = ""
    over: Over = attrs.field(factory=Over)
    items: list[Item] = attrs.field(factory=list)
    """Of a dry run."""
    left: dict[bytes, None] = attrs.field(factory=dict)
    failed: dict[bytes, str] = attrs.field(factory=dict)
    unnamed: int = 0
    """So many more have failed, of which no name was told."""
    not_theirs: int = 0
    """Files that were another user's, and are the caller's now."""


class Pass:
    """One run of rsync, and what its lines tell."""

    def __init__(self, writer: Writer, group: Group, target: str, dry: bool) -> None:
        self._writer = writer
        self._above = os.fsencode(group.directory.rstrip("/"))
        self._target = os.fsencode(target)
        self._dry = dry
        self._done = 0
        self.spared: list[bytes] = []
        """Paths, below the target, that are left out: what is newer there and no regular file, and
        what is too large."""
        self._last_words = ""
        self._last_complaint = ""
        self._reader_said = ""
        self._complained = False

    def fault(self, status: int) -> str:
        """Why it failed, as far as that is known."""
        if status == _FILE_IO and self._last_complaint:
            return self._last_complaint
        words = [word for word in (self._last_words, self._reader_said) if word]
        return " ".join(words) or f"it ended with status {status}."

    def out(self, line: bytes) -> None:
        """A line of its standard output."""
        if line.startswith(ITEM.encode()):
            self._item(line[1:])
        elif match := _NEWER.fullmatch(line):
            self._writer.told.left[self._whole(_decoded(match[1]))] = None
        elif match := _PROGRESS.match(line):
            self._done = int(match[1])
            self._writer.progress(self._done)
        elif match := _IN_THE_WAY.fullmatch(line):
            self._in_the_way(match)
        elif match := _NO_FILE.fullmatch(line):
            self._fail(self._whole(_decoded(match[1])), "a device comes back with --setuid alone")

    def err(self, line: bytes) -> None:
        """A line of its standard error."""
        if match := _COMPLAINT.match(line):
            self._complaint(match)
        elif match := _IN_THE_WAY.fullmatch(line):
            self._in_the_way(match)
        elif line and not line.startswith((b"rsync error:", b"rsync warning:", b" could not make")):
            self._last_words = printable(line)

    def _in_the_way(self, match: re.Match[bytes]) -> None:
        self._complained = True
        self._fail(self._whole(_decoded(match[1])), "a directory that isn't empty is in its place")

    def reader_said(self, text: str) -> None:
        """The reading rsync's own standard error, and the end of this pass."""
        for line in os.fsencode(text).split(b"\n"):
            if match := _COMPLAINT.match(line):
                self._complaint(match)
            elif line:
                self._reader_said = f"The reading side: {printable(line)}"
        self._writer.progress(self._done, finished=True)

    def ended(self, status: int) -> None:
        """It ended with that *status*, when both sides had said all.

        Something that was left out without a word that is understood counts as one file.
        """
        if status == _PARTIAL and not self._complained:
            why = f"not all that it is to hold could be: {self.fault(status)}"
            self._fail(self._above or b"/", why)

    def _item(self, line: bytes) -> None:
        match = _LINE.fullmatch(line)
        if match is None:
            return
        path = _decoded(match[5]).rstrip(b"/")
        item = Item(match[1].decode("ascii"), int(match[2]), int(match[3]), self._whole(path))
        if self._dry and self._is_newer(item, path, match[4]):
            self.spared.append(path)
            self._writer.told.left[item.path] = None
            return
        if self._dry and self._is_too_large(item, path):
            self.spared.append(path)
            self._fail(item.path, "on FAT32 no file has 4 GiB")
            return
        if not any(path.startswith(other + b"/") for other in self.spared):
            self._writer.item(item, dry=self._dry)

    def _is_newer(self, item: Item, path: bytes, when: bytes) -> bool:
        """Whether what is there is newer than what would take its place.

        By itself rsync only leaves a newer regular file that another one would replace.
        """
        if self._writer.overwrites or item.change[0] == ".":
            return False
        try:
            here = os.lstat(os.path.join(self._target, path))
        except OSError:
            return False
        if item.change[1] == "d" and stat.S_ISDIR(here.st_mode):
            return False
        return here.st_mtime >= _moment(when) + 1

    def _is_too_large(self, item: Item, path: bytes) -> bool:
        """Whether rsync would give up everything when it came to that file."""
        is_copied = item.change[0] in "><h" and item.change[1] == "f"
        return is_copied and item.size >= FAT_LIMIT and is_on_fat(os.path.join(self._target, path))

    def _complaint(self, match: re.Match[bytes]) -> None:
        self._complained = True
        number, why = int(match["errno"]), match["why"].decode("utf-8", "replace")
        path = match["path"] or b""
        if match["side"] == b"sender":
            path = path.removeprefix(SOURCE.encode())
            if number == errno.ENOENT:
                why = "it is not in that version"
            self._fail(path, why)
            return
        if number == errno.EPIPE:
            return  # the other one of the two that write has ended, and says why
        if match["what"].startswith(_ATTRIBUTE):
            # The filesystem may not take one that large, though it has room (setxattr(2)).
            path = path.partition(b'","')[0]
        elif number in _HOPELESS:
            self._writer.hopeless(number)
            return
        path = self._whole(_finally(path.removeprefix(self._target).lstrip(b"/")))
        self._last_complaint = f"{printable(path, 1000)}: {printable(why)}."
        self._fail(path, why)

    def _fail(self, path: bytes, why: str) -> None:
        self._writer.told.failed.setdefault(path, why)

    def _whole(self, path: bytes) -> bytes:
        return self._above + b"/" + path


def _decoded(name: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), name)


def _finally(path: bytes) -> bytes:
    """The name that the temporary file *path* was to get."""
    directory, _slash, name = path.rpartition(b"/")
    if re.fullmatch(rb"\..+\.[A-Za-z0-9]{6}", name):
        name = name[1:-7]
    return os.path.join(directory, name)


def _moment(when: bytes) -> float:
    """Unix time of rsync's ``%M``, told in UTC.

    What lies beyond all calendars counts as the oldest: then nothing is replaced by it unasked.
    """
    if _FAR_AHEAD.match(when):
        return math.inf
    try:
        return calendar.timegm(time.strptime(when.decode("ascii"), "%Y/%m/%d-%H:%M:%S"))
    except ValueError:
        return -math.inf
