"""The writing side of a restore: an rsync of whoever calls, with the rights that they have.

:class:`Writer` lives as long as its conversation with the worker (``cryptbackd.restoring``),
in a thread of its own.  It first looks what would be done, without doing it, and then does it.
A file gets its name when it is complete: what is broken off is no more than ``.NAME.XXXXXX``,
which rsync removes if it can.

Which options, exit codes and messages are relied on: rsync(1).
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import attrs

from .. import restoring
from ..errors import Cancelled, ToolFailed
from ..restoring import Over, writer_options
from ..run import ENVIRONMENT, child
from . import relay
from .passes import FORMAT, Item, Pass, Told
from .target import Group, opened, seclude

RSYNC = "/usr/bin/rsync"
_PRIVILEGES = ("--chmod=Fu-s,Fg-s", "--filter=-xr security.capability")
_ATTRIBUTES = ("--filter=-xr trusted.*", "--filter=-xr system.*")
_EVERY = 0.25
_PATIENCE = 3.0


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
            failed=len(self.told.failed) + self.told.unnamed,
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
            one = Pass(self, group, target, dry)
            near = stack.enter_context(self._reading(group, dry))
            spared = b"".join(map(_pattern, self._spared.get(group, [])))
            status = self._follow(self._arguments(dry, near, target), near, spared, one)
        ended = self._hear()
        one.reader_said(str(ended.get("said", "")))
        if dry == self._wish.dry and type(more := ended.get("more", 0)) is int:
            self.told.unnamed += more
        if status not in (0, 23, 24) and not self._errno:
            raise ToolFailed(f"The restore by rsync failed: {one.fault(status)}")
        one.ended(status)
        if dry:
            self._spared[group] = one.spared

    @contextmanager
    def _reading(self, group: Group, dry: bool) -> Iterator[int]:
        """The socket to a reading rsync."""
        wish = self._wish
        request = {"read": list(group.paths), "dry": dry, "contents": wish.overwrite}
        request["devices"] = wish.privileges
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
        devices = self._root and wish.privileges
        argv = [RSYNC, *writer_options(dry=dry, contents=wish.overwrite, devices=devices)]
        argv += ["--no-human-readable", "--outbuf=L", FORMAT, *_ATTRIBUTES]
        argv += [] if wish.privileges else _PRIVILEGES
        argv += [] if wish.overwrite else ["--update"]
        argv += ["--info=skip1"] if dry else ["--info=skip1,progress2"]
        argv += ["--from0", "--exclude-from=-"]
        argv += [f"--rsh=/usr/bin/python3 -I {relay.__file__} {near}"]
        return [*argv, "reader:/", f"{target}/"]

    def _follow(self, argv: list[str], near: int, spared: bytes, one: Pass) -> int:
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


def _pattern(path: bytes) -> bytes:
    """That path alone, as a pattern of rsync with its end.

    A backslash is an escape only in a pattern with wildcards.
    """
    if any(byte in path for byte in b"*?["):
        path = re.sub(rb"([*?\[\\])", rb"\\\1", path)
    return b"/" + path + b"\0"
