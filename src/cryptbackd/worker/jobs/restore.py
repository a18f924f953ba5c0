"""The restore: a version is opened, and whoever asked for it reads what they may read.

The worker never touches the place that files are restored to: whoever asked writes them, by
an rsync of their own with the rights that they have.  What is decided here is which version
it is, what rights its reader has, and that the drive is locked again and proven.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import time
from contextlib import ExitStack
from typing import Any

import attrs

from ... import moment, protocol, restoring
from ...config import parse
from ...errors import Cancelled, CryptbackError, Refused, ToolFailed
from ...model import Outcome, Phase, RunResult
from ...restoring import NotUnderstood, Over
from ...text import count, printable, size
from .. import header as headers
from .. import workspace
from ..control import Control, Meter
from ..layers.mounted import Mounted
from ..reading import Identity, Wanted, reader
from ..remaining import told
from ..said import Said
from ..versions import VERSIONS, record
from .backup import proven_free, unlocked


class _Left(Cancelled):
    """Whoever asked for it is gone."""

    def __init__(self) -> None:
        super().__init__("Whoever asked for it is gone; what was begun was not finished.")


def restore(start: protocol.Start, control: Control) -> RunResult:
    """Let files of a version be read.

    Options: ``at``, which version (see ``cryptbackd.moment``), and ``user`` and ``groups`` of
    who asked, as the bus knows them.
    """
    who = Identity.from_message(start.options)
    entry = parse(start.entry, start.name)
    header = headers.load(start.name)
    place = workspace.make(start.name)
    control.phase(Phase.ATTACHING)
    with proven_free(start.device, control, writes=False), ExitStack() as stack:
        tree = stack.enter_context(
            unlocked(start.name, entry, start.device, header, place, control, read_only=True)
        )
        stack.enter_context(told(control))
        version = _chosen(tree, start, control)
        name = printable(version.path.name, 40)
        control.say(f"files of the version {name} are restored by user {who.user}.")
        _key, fd = control.key("files")
        with socket.socket(fileno=fd) as peer:
            over = _Reading(peer, version, who, control).serve()
    return _result(over, name, control)


def _chosen(tree: Mounted, start: protocol.Start, control: Control) -> record.Version:
    directory = tree.path / VERSIONS
    found = [] if directory.is_symlink() else record.versions(directory)
    verdict = record.judge(found, start.ledger)
    if verdict:
        control.warn(f"The drive is not as this computer remembers it. {verdict}", "drive_older")
    made = {version.sequence: version for version in found}
    listed = [moment.Made.named(v.path.name, number) for number, v in made.items()]
    at = str(start.options.get("at") or "")
    return made[moment.choose(at, listed, time.time()).sequence]


def _result(over: Over, version: str, control: Control) -> RunResult:
    """How it ended, from what whoever wrote says; raises CryptbackError."""
    files = f"{count(over.files, 'file')} ({size(over.size)})"
    kept = f" {count(over.left, 'newer file')} left as is." if over.left else ""
    if over.stopped:
        raise Cancelled(f"It was stopped when {files} had been restored.")
    if over.broken:
        raise ToolFailed(f"The restore was broken off when {files} had been restored.")
    if over.errno:
        why = os.strerror(over.errno)
        raise CryptbackError(
            f"The files could not be written where they were to go: {why}."
            f" {files} had been restored.",
            "Make room there, or choose another place with --to." if over.errno == 28 else "",
        )
    if over.failed:
        control.warn(f"{count(over.failed, 'file')} could not be restored.")
    if over.failed and not over.files and not over.left:
        failed = count(over.failed, "file")
        raise Refused(f"No file of the version {version} was restored: {failed} could not be.")
    control.phase(Phase.FINISHED)
    done = "would be restored" if over.dry else "were restored"
    return RunResult(
        Outcome.WARNINGS if control.warnings or over.left else Outcome.DONE,
        f"{files} of the version {version} {done}.{kept}",
        safe=control.safe,
        warnings=control.warnings.told,
    )


@attrs.define
class _Reading:
    """The conversation with whoever writes; see ``cryptbackd.restoring``."""

    peer: socket.socket
    version: record.Version
    who: Identity
    control: Control
    _meter: Meter | None = None
    _total: int = 0
    _early: dict[str, Any] | None = None
    """The end, where it was said before the reader had ended."""

    def serve(self) -> Over:
        """Start readers as they are asked for; what is said at the end.

        Raises Cancelled, also when whoever asked is gone, and Refused.
        """
        self._send({"version": self.version.path.name})
        while True:
            values = self._next()
            if "over" in values:
                return self._over(values)
            if "read" in values:
                self._read(Wanted.from_packet(values))
                if self._early is not None:
                    return self._over(self._early)

    def _next(self) -> dict[str, Any]:
        """What is said next."""
        self._wait(selectors.EVENT_READ)
        return self._receive()

    def _wait(self, event: int) -> None:
        """Wait until the socket can be read or written to; raises Cancelled."""
        with selectors.DefaultSelector() as selector:
            wakes, check = self.control.interrupt
            selector.register(wakes, selectors.EVENT_READ)
            selector.register(self.peer, event)
            while True:
                ready = {key.fd for key, _events in selector.select()}
                if wakes in ready:
                    check()
                if self.peer.fileno() in ready:
                    return

    def _read(self, wanted: Wanted) -> None:
        self.control.phase(Phase.COMPARING if wanted.dry else Phase.RESTORING)
        ours, theirs = socket.socketpair()
        with ExitStack() as stack:
            stack.enter_context(ours)
            with theirs:
                process = stack.enter_context(
                    reader(self.version.path, self.who, wanted, theirs.fileno())
                )
            self._send({"reading": True}, ours.fileno())
            ours.close()
            said = self._until_it_ends(process)
            status = process.wait()
        if self._early is None:
            self._send({"ended": status, "said": said.text, "more": said.more})

    def _until_it_ends(self, process: subprocess.Popen[bytes]) -> Said:
        """Its words; what is said meanwhile is progress."""
        assert process.stderr is not None
        words = process.stderr.fileno()
        said = Said()
        wakes, check = self.control.interrupt
        with selectors.DefaultSelector() as selector:
            for fd in (wakes, words, self.peer.fileno()):
                selector.register(fd, selectors.EVENT_READ)
            while True:
                for key, _events in selector.select():
                    if key.fd == wakes:
                        check()
                    elif key.fd == words:
                        data = os.read(words, 65_536)
                        said.hear(data)
                        if not data:
                            return said
                    else:
                        self._meanwhile(self._receive())

    def _meanwhile(self, values: dict[str, Any]) -> None:
        if "over" in values:
            self._early = values
        else:
            self._progress(values)

    def _progress(self, values: dict[str, Any]) -> None:
        done, total = values.get("done"), values.get("total")
        if type(done) is not int or type(total) is not int or not 0 <= done <= total < 1 << 63:
            return
        if self._meter is None or total != self._total:
            self._meter, self._total = Meter(self.control, total), total
        self._meter.at(done)

    def _over(self, values: dict[str, Any]) -> Over:
        try:
            return Over.from_packet(values)
        except NotUnderstood as exc:
            raise Refused("What was said about the restore's end is not understood.") from exc

    def _receive(self) -> dict[str, Any]:
        try:
            values = restoring.receive_alone(self.peer)
        except NotUnderstood as exc:
            raise Refused("What was asked for is not understood.") from exc
        except ConnectionResetError:
            values = None
        if values is None:
            raise _Left
        return values

    def _send(self, values: dict[str, Any], fd: int | None = None) -> None:
        # Whoever asked may read nothing for as long as they like.
        self._wait(selectors.EVENT_WRITE)
        try:
            restoring.send(self.peer, values, fd)
        except (BrokenPipeError, ConnectionResetError):
            raise _Left from None
