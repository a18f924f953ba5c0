"""The writing side of a restore: an rsync of whoever calls, with the rights that they have.

:class:`Writer` lives as long as its conversation with the worker (``cryptbackd.restoring``),
in a thread of its own.  It first looks what would be done, without doing it, and then does it.
A file gets its name when it is complete: what is broken off is no more than ``.NAME.XXXXXX``,
which rsync removes if it can.

Which options, exit codes and messages are relied on: rsync(1).
"""

from __future__ import annotations

import calendar
import errno
import os
import re
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import attrs

from .. import restoring
from ..errors import Cancelled, ToolFailed
from ..restoring import SOURCE, Over, writer_options
from ..run import ENVIRONMENT, child
from ..text import printable
from . import relay
from .target import Group, opened, seclude

RSYNC = "/usr/bin/rsync"
_ITEM = "="
_FORMAT = f"--out-format={_ITEM}%i %l %U %M %n"
_PRIVILEGES = ("--chmod=Fu-s,Fg-s", "--filter=-xr security.capability")
_ATTRIBUTES = ("--filter=-xr trusted.*", "--filter=-xr system.*")
_EVERY = 0.25
_PATIENCE = 3.0

_LINE = re.compile(rb"(\S{11}) (\d+) (\d+) (\S+) (.*)", re.S)
_OCTAL = re.compile(rb"\\#([0-7]{3})")
_NEWER = re.compile(rb"(.*) is newer")
_PROGRESS = re.compile(rb"\s*(\d+)\s+\d+%")
_IN_THE_WAY = re.compile(rb"cannot delete non-empty directory: (.*)")
_COMPLAINT = re.compile(
    rb"rsync: \[(?P<side>\w+)[^]]*\] (?P<what>.*?)(?:\"(?P<path>[^\"].*)\".*?)?:"
    rb" (?P<why>[^:]+) \((?P<errno>\d+)\)"
)
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
    not_theirs: int = 0
    """Files that were another user's, and are the caller's now."""


@attrs.frozen
class Wish:
    """What was asked for."""

    groups: Sequence[Group]
    overwrite: bool
    dry: bool
    privileges: bool


class Writer:
    """See the module; *stop* is a descriptor that can be read when it is to end."""

    def __init__(self, peer: socket.socket, wish: Wish, stop: int) -> None:
        self._peer = peer
        self._wish = wish
        self._stop = stop
        self._root = os.geteuid() == 0
        self.told = Told()
        self.overwrites = wish.overwrite
        self._files = self._size = self._total = self._done = 0
        self._errno = 0
        self._spoke = 0.0
        self._spared: dict[Group, list[bytes]] = {}

    def run(self) -> Told:
        """Restore; what became of it.  Raises CryptbackError where it could not even begin.

        However it ends, the worker is told.
        """
        stopped, broken = False, True
        try:
            seclude()
            self.told.version = str(self._hear().get("version", ""))
            for group in self._wish.groups:
                self._copy(group, dry=True)
            if not self._wish.dry:
                self._total, self._files, self._size = self._size, 0, 0
                self.told.not_theirs = 0
                for group in self._wish.groups:
                    self._copy(group, dry=False)
            broken = False
        except Cancelled:
            stopped, broken = True, False
        finally:
            self._say_over(stopped, broken)
        return self.told

    def _say_over(self, stopped: bool, broken: bool) -> None:
        self.told.over = over = Over(
            files=self._files,
            size=self._size,
            left=len(self.told.left),
            failed=len(self.told.failed),
            errno=self._errno,
            dry=self._wish.dry,
            stopped=stopped,
            broken=broken,
        )
        try:
            restoring.send(self._peer, {"over": True, **attrs.asdict(over)})
        except OSError:
            return  # it is gone; what the daemon tells of the job says why

    def _hear(self) -> dict[str, object]:
        """What the worker says next; raises Cancelled when it is gone."""
        return self._hear_with_fd()[0]

    def _hear_with_fd(self) -> tuple[dict[str, object], int | None]:
        try:
            received = restoring.receive(self._peer)
        except OSError:
            received = None
        if received is None:
            raise Cancelled("The restore was broken off.")
        return received

    def _copy(self, group: Group, *, dry: bool) -> None:
        if self._errno:
            return
        with ExitStack() as stack:
            target = stack.enter_context(opened(group.directory, dry=self._wish.dry))
            one = _Pass(self, group, target, dry)
            near = stack.enter_context(self._reading(group, dry))
            spared = b"".join(map(_pattern, self._spared.get(group, [])))
            status = self._follow(self._arguments(dry, near, target), near, spared, one)
        ended = self._hear()
        one.reader_said(str(ended.get("said", "")))
        if status not in (0, 23, 24) and not self._errno:
            raise ToolFailed(f"The restore by rsync failed: {one.fault(status)}")
        if dry:
            self._spared[group] = one.spared

    @contextmanager
    def _reading(self, group: Group, dry: bool) -> Iterator[int]:
        """The socket to a reading rsync."""
        request = {"read": list(group.paths), "dry": dry, "contents": self._wish.overwrite}
        try:
            restoring.send(self._peer, request)
        except OSError:
            raise Cancelled("The restore was broken off.") from None
        _values, fd = self._hear_with_fd()
        if fd is None:
            raise Cancelled("The restore was broken off.")
        try:
            yield fd
        finally:
            os.close(fd)

    def _arguments(self, dry: bool, near: int, target: str) -> list[str]:
        wish = self._wish
        argv = [RSYNC, *writer_options(dry=dry, contents=wish.overwrite, devices=self._root)]
        argv += ["--no-human-readable", "--outbuf=L", _FORMAT, *_ATTRIBUTES]
        argv += [] if wish.privileges else _PRIVILEGES
        argv += [] if wish.overwrite else ["--update"]
        argv += ["--info=skip1"] if dry else ["--info=skip1,progress2"]
        argv += ["--from0", "--exclude-from=-"]
        argv += [f"--rsh=/usr/bin/python3 -I {relay.__file__} {near}"]
        return [*argv, "reader:/", f"{target}/"]

    def _follow(self, argv: list[str], near: int, spared: bytes, one: _Pass) -> int:
        # Times are told as a clock would: let it be one that is never put back.
        environment = {**ENVIRONMENT, "TZ": "UTC0"}
        rest = {"out": b"", "err": b""}
        lines = {"out": one.out, "err": one.err}
        with child(argv, stdin=spared, pass_fds=[near], environment=environment) as rsync:
            try:
                for stream, chunk in rsync.read(interrupt=(self._stop, _cancel)):
                    *whole, rest[stream] = re.split(rb"[\r\n]", rest[stream] + chunk)
                    for line in whole:
                        lines[stream](line)
                    if self._errno:
                        rsync.terminate(_PATIENCE)
                        break
            except Cancelled:
                rsync.terminate(_PATIENCE)
                raise
            return rsync.wait()

    # What a pass tells.

    def item(self, item: Item, *, dry: bool) -> None:
        """Something is done, or would be."""
        if item.change[0] != "." and item.change[1] != "d":
            self._files += 1
            self._size += item.size if item.change[0] in "><" else 0
        if not self._root and item.owner != os.geteuid() and item.change[0] != ".":
            self.told.not_theirs += 1
        if dry and self._wish.dry:
            self.told.items.append(item)

    def progress(self, done: int, *, finished: bool = False) -> None:
        """So many bytes of this pass are there."""
        if finished:
            self._done += done
            return
        now = time.monotonic()
        if now - self._spoke < _EVERY:
            return
        self._spoke = now
        told = min(self._total, self._done + done)
        try:
            restoring.send(self._peer, {"done": told, "total": self._total})
        except OSError:
            return

    def hopeless(self, number: int) -> None:
        """No further file could be written."""
        self._errno = self._errno or number


def _cancel() -> None:
    raise Cancelled("It was stopped.")


class _Pass:
    """One run of rsync, and what its lines tell."""

    def __init__(self, writer: Writer, group: Group, target: str, dry: bool) -> None:
        self._writer = writer
        self._above = os.fsencode(group.directory.rstrip("/"))
        self._target = os.fsencode(target)
        self._dry = dry
        self._done = 0
        self.spared: list[bytes] = []
        """Paths, below the target, of what is newer there and no regular file."""
        self._last_words = ""
        self._reader_said = ""

    def fault(self, status: int) -> str:
        """Why it failed, as far as that is known."""
        words = [word for word in (self._last_words, self._reader_said) if word]
        return " ".join(words) or f"it ended with status {status}."

    def out(self, line: bytes) -> None:
        """A line of its standard output."""
        if line.startswith(_ITEM.encode()):
            self._item(line[1:])
        elif match := _NEWER.fullmatch(line):
            self._writer.told.left[self._whole(_decoded(match[1]))] = None
        elif match := _PROGRESS.match(line):
            self._done = int(match[1])
            self._writer.progress(self._done)
        elif match := _IN_THE_WAY.fullmatch(line):
            self._in_the_way(match)

    def err(self, line: bytes) -> None:
        """A line of its standard error."""
        if match := _COMPLAINT.match(line):
            self._complaint(match)
        elif match := _IN_THE_WAY.fullmatch(line):
            self._in_the_way(match)
        elif line and not line.startswith((b"rsync error:", b"rsync warning:", b" could not make")):
            self._last_words = printable(line)

    def _in_the_way(self, match: re.Match[bytes]) -> None:
        self._fail(self._whole(_decoded(match[1])), "a directory that isn't empty is in its place")

    def reader_said(self, text: str) -> None:
        """The reading rsync's own standard error, and the end of this pass."""
        for line in os.fsencode(text).split(b"\n"):
            if match := _COMPLAINT.match(line):
                self._complaint(match)
            elif line:
                self._reader_said = f"The reading side: {printable(line)}"
        self._writer.progress(self._done, finished=True)

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

    def _complaint(self, match: re.Match[bytes]) -> None:
        number, why = int(match["errno"]), match["why"].decode("utf-8", "replace")
        path = match["path"] or b""
        if match["side"] == b"sender":
            path = path.removeprefix(SOURCE.encode())
            if number == errno.ENOENT:
                why = "it is not in that version"
            self._fail(path, why)
            return
        if number in _HOPELESS:
            self._writer.hopeless(number)
            return
        path = path.removeprefix(self._target).lstrip(b"/")
        self._fail(self._whole(_finally(path)), why)

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


def _moment(when: bytes) -> int:
    """Unix time of rsync's ``%M``, told in UTC."""
    return calendar.timegm(time.strptime(when.decode("ascii"), "%Y/%m/%d-%H:%M:%S"))


def _pattern(path: bytes) -> bytes:
    """That path alone, as a pattern of rsync with its end.

    A backslash is an escape only in a pattern with wildcards.
    """
    if any(byte in path for byte in b"*?["):
        path = re.sub(rb"([*?\[\\])", rb"\\\1", path)
    return b"/" + path + b"\0"
