"""The copy: rsync as two processes.

The *writer* is an rsync that pulls into the container, and sees nothing else (``worker.writer``).
The *reader*, the sending side, is started when the writer asks for it, and can write nothing
(``worker.reader``).  Both end before :func:`sync` does; nothing of theirs stays but temporary
files in one directory, which the next run wipes.

Which options, exit codes and messages are relied on: rsync(1).
"""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import attrs

from ..errors import Cancelled, CryptbackError, DriveFailed, DriveFull, ToolFailed
from ..model import Phase
from ..run import Child, child, death
from ..text import printable
from . import rsync_words
from .changing import FULL, no_room
from .control import Control, Meter, escaped
from .reader import reader_arguments, reader_command
from .rsync_job import ITEM, SOURCE, TEMPORARY, Job, Received, arguments, listed
from .rsync_words import Complaint
from .versions.tree import remove_tree
from .writer import confine, readers

_PATIENCE = 3.0
"""Seconds that rsync has to end in order when a job is stopped."""

_LAST_WORDS = 0.1
"""Seconds that more is waited for of what an ended rsync had said: most is in the pipe by then."""

_ROOM = 1 << 20
"""Bytes that no attribute takes."""
_BROKEN = (errno.EIO, errno.EROFS, errno.ENODEV, errno.ENXIO, errno.EUCLEAN, errno.ENOMEDIUM)
_NO_PATH = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_PARTIAL, _VANISHED = 23, 24
_ABORTED_BY_ERROR = 11


@attrs.define
class Synced:
    """What a sync did."""

    files: int = 0
    """Everything in the tree: files, directories, links and the rest."""
    size: int = 0
    changed_files: int = 0
    changed_bytes: int = 0
    deleted: int = 0

    def add(self, other: Synced) -> None:
        """Count in what another sync of the same run did."""
        for field in attrs.fields(Synced):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """A new directory for files that have no name in the target yet.

    What a killed run left there is wiped.  After an error it stays.
    """
    directory = target / TEMPORARY
    remove_tree(directory)
    directory.mkdir(mode=0o700)
    yield directory
    remove_tree(directory)


def copy_named(job: Job, control: Control, total: int) -> Synced:
    """Bring up to date what ``job.names`` names; *total* bytes are expected.

    The temporary directory must be there.  Warns and raises as :func:`sync`.
    """
    copy = _Rsync(job, control, dry=False)
    try:
        synced = copy.copy(total)
    except DriveFull as exc:
        exc.missing = max(0, total - copy.synced.changed_bytes)
        if not job.in_place:
            solid = sum(_solid(job, name) for name in job.names or ())
            exc.solid = max(0, solid - copy.synced.changed_bytes)
        raise
    control.check()
    return synced


def sync(job: Job, control: Control) -> Synced:
    """Bring the target up to date with the staged sources.

    Files that can't be read, vanish or change meanwhile are warned about; the rest is
    copied.  Raises DriveFull, DriveFailed, ToolFailed and Cancelled, and OSError when there
    is not even room for a directory.
    """
    temporary = job.target / TEMPORARY
    remove_tree(temporary)
    temporary.mkdir(mode=0o700)
    control.phase(Phase.COMPARING)
    total, solid = _Rsync(job, control, dry=True).compare()
    control.phase(Phase.SYNCING)
    copy = _Rsync(job, control, dry=False)
    try:
        synced = copy.copy(total)
    except DriveFull as exc:
        remove_tree(temporary)
        exc.missing = max(0, total - copy.synced.changed_bytes)
        exc.solid = max(0, solid - copy.synced.changed_bytes)
        raise
    control.check()
    remove_tree(temporary)
    return synced


class _Rsync:
    """One run of rsync, and what its lines tell."""

    def __init__(self, job: Job, control: Control, *, dry: bool) -> None:
        self._job = job
        self._control = control
        self._dry = dry
        self._total = self._solid = 0
        self.synced = Synced()
        self._meter: Meter | None = None
        self._fatal: CryptbackError | None = None
        self._complained = False
        self._received = (b"", b"")
        self._last_words = ""

    def compare(self) -> tuple[int, int]:
        """Bytes that a copy would transfer, and how many of them are no holes."""
        self._run()
        return self._total, self._solid

    def copy(self, total: int) -> Synced:
        """Copy; *total* bytes are expected."""
        self._meter = Meter(self._control, total)
        self._run()
        return self.synced

    def _run(self) -> None:
        try:
            status = self._copying()
        except Cancelled:
            self._check_last()
            raise
        if self._fatal is None:
            self._check_unchanged()
        else:
            self._check_last()
        self._judge(status)

    def _copying(self) -> int:
        """Run both sides of rsync, until it has ended or is to be ended; its exit status."""
        job = self._job
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with near, reader_arguments(job.stage, job.rights) as args_fd, ExitStack() as stack:
            with far:
                argv = arguments(job, dry=self._dry, door=far.fileno())
                alone = confine(job.target.parent, job.stage.parent / "writer")
                stack.callback(end_everything_else)
                writer = child(argv, stdin=listed(job), pass_fds=[far.fileno()], confine=alone)
                rsync = stack.enter_context(writer)
            with readers(near, reader_command(job, args_fd), [args_fd]) as shut:
                try:
                    return self._follow(rsync)
                finally:
                    shut()
                    end_everything_else()

    def _follow(self, rsync: Child) -> int:
        """Read what rsync says until it ends, or is to be ended; its exit status."""
        rest = {"out": b"", "err": b""}
        lines = {"out": self._out, "err": self._err}
        try:
            for stream, chunk in rsync.read(interrupt=self._control.interrupt):
                *whole, last = re.split(rb"[\r\n]", rest[stream] + chunk)
                rest[stream] = last[: rsync_words.LONGEST]
                for line in whole:
                    lines[stream](line)
                if self._fatal is not None:
                    rsync.terminate(_PATIENCE)
                    break
        except Cancelled:
            rsync.terminate(_PATIENCE)
            self._last_items(rsync, rest["out"])
            raise
        return rsync.wait()

    def _last_items(self, rsync: Child, rest: bytes) -> None:
        """Read which files it had told of, before it was ended, that were not heard of yet."""
        with suppress(ToolFailed):  # something else holds the pipe, and says nothing
            for stream, chunk in rsync.read(deadline=_LAST_WORDS):
                if stream == "out":
                    *whole, rest = re.split(rb"[\r\n]", rest + chunk)
                    for line in whole:
                        if line.startswith(ITEM.encode()):
                            self._item(line[1:])

    def _out(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "surrogateescape")
        if line.startswith(ITEM):
            self._item(raw[1:])
        elif (through := rsync_words.progress(line)) is not None:
            if self._meter is not None:
                self._meter.at(through)
        elif (found := rsync_words.statistic(line)) is not None:
            what, number = found
            if what == "Number of files":
                self.synced.files = number
            elif what == "Total file size":
                self.synced.size = number
            else:
                self.synced.deleted = number

    def _item(self, line: bytes) -> None:
        change, _space, rest = line.partition(b" ")
        if change[1:2] != b"f":
            return
        if self._job.tell_same and change[:1] == b".":
            self._same(*rsync_words.copied(rest))
        if change[:1] not in b"><":
            return
        if self._dry:
            size, _space, told = rest.partition(b" ")
            self._total += rsync_words.length(size)
            self._solid += _solid(self._job, rsync_words.name(told))
            return
        self._check_unchanged()
        self._received = rsync_words.copied(rest)
        self.synced.changed_files += 1

    def _same(self, path: bytes, checksum: bytes) -> None:
        """Tell of a file that was not copied, as its content is what rsync read at the source."""
        with suppress(OSError):  # gone meanwhile
            copy = os.lstat(os.path.join(os.fsencode(self._job.target), path))
            source = os.lstat(os.path.join(os.fsencode(self._job.stage), path))
            if path and _alike(copy, source):
                self._job.received(Received(path, checksum, copy, source))

    def _check_last(self) -> None:
        """As :meth:`_check_unchanged`, where rsync was ended: the file may not have its name yet,
        and what has it be the one that was there before.
        """
        (path, checksum), self._received = self._received, (b"", b"")
        if not path or self._job.contents or not checksum.strip(b"0"):
            return
        with suppress(OSError):  # it hasn't, or the drive is gone
            copy = os.lstat(os.path.join(os.fsencode(self._job.target), path))
            source = os.lstat(os.path.join(os.fsencode(self._job.stage), path))
            if _alike(copy, source):
                self._job.received(Received(path, checksum, copy, source))

    def _check_unchanged(self) -> None:
        """Look at the file before the one that was logged: that one has its name by now.

        rsync doesn't notice a file that is written to while it is read.
        """
        (path, checksum), self._received = self._received, (b"", b"")
        if not path:
            return
        source = None
        try:
            copy = os.lstat(os.path.join(os.fsencode(self._job.target), path))
            with suppress(OSError):  # gone, or something else is in the way by now
                source = os.lstat(os.path.join(os.fsencode(self._job.stage), path))
        except OSError as exc:
            if exc.errno not in _NO_PATH:
                raise
            return
        same = source is not None and _alike(copy, source)
        # All zeros: it failed, and the copy is the one that was there.  Where contents are compared
        # rsync tells what it read for that (log.c, "%C"), which need not be what it copied.
        if checksum.strip(b"0") and (same or not self._job.contents):
            self._job.received(Received(path, checksum, copy, source))
        if source is None:
            return
        self.synced.changed_bytes += copy.st_size
        if not same:
            self._warn_of(path, "changed while it was read.")

    def _err(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "surrogateescape")
        if (found := rsync_words.complaint(line)) is not None:
            self._complaint(found)
        elif (path := rsync_words.vanished(line)) is not None:
            self._vanished(path)
        elif (path := rsync_words.discarded(line)) is not None:
            self._warn_of(rsync_words.name(path), "changed while it was read and was left out.")
        elif "skipping file deletion" in line:
            self._warn("Nothing was deleted this time, as a directory could not be read.")
        elif line and not line.startswith(("rsync error:", "rsync warning:", "WARNING:")):
            self._last_words = printable(line).strip(" :")

    def _complaint(self, found: Complaint) -> None:
        why = printable(found.why)
        if found.sender:
            if found.path and found.errno == errno.ENOENT:
                self._vanished(found.path)
            elif found.path:
                name = rsync_words.name(found.path.removeprefix(SOURCE))
                self._warn_of(name, f"could not be read: {why}.")
            else:
                self._warn(f"{printable(found.what.strip())} could not be read: {why}.", many=True)
        elif found.errno in _BROKEN:
            self._fatal = DriveFailed(
                f"The drive failed while it was written to: {why}.",
                "Check it (journalctl -k); the versions before are as they were.",
            )
        elif found.attribute and not (found.errno in FULL and self._is_full()):
            self._attribute_lost(found)
        elif found.errno in FULL:
            self._fatal = no_room()
        else:
            path = (found.path or "").removeprefix(str(self._job.target))
            self._warn_of(rsync_words.name(path), f"could not be copied in full: {why}.")

    def _is_full(self) -> bool:
        """Whether there is no room in the target for anything.

        What is told of an attribute that is larger than a filesystem allows is the same
        (setxattr(2), ENOSPC), and no room that is made would help.
        """
        status = os.statvfs(self._job.target)
        inodes = status.f_favail if status.f_files else _ROOM
        return status.f_bavail * status.f_frsize < _ROOM or not inodes

    def _attribute_lost(self, found: Complaint) -> None:
        path = rsync_words.name((found.path or "").removeprefix(str(self._job.target)))
        lost = f"was copied without {printable(found.attribute)}: {printable(found.why)}."
        directory, _slash, file = path.partition(b"/")
        if directory == TEMPORARY.encode():
            # It has no name yet, and is told by that of the next run.
            named = escaped(file.rpartition(b".")[0])
            self._warn(f"A file that is called {named} {lost}", many=True)
        else:
            self._warn_of(path, lost)

    def _vanished(self, path: str) -> None:
        name = rsync_words.name(path.removeprefix(SOURCE))
        self._warn_of(name, "vanished while it was to be read.", gone=True)

    def _warn_of(self, path: bytes, what: str, *, gone: bool = False) -> None:
        """Warn of a file, once: rsync tries twice, and then says that it left it out.

        What is not there under this name, and has not *gone*, was something else, for all we know.
        """
        if self._dry:
            return
        known = gone or os.path.lexists(os.path.join(os.fsencode(self._job.stage), path))
        self._job.failed.add(path)
        self._complained = True
        name = escaped(b"/" + path)
        if name not in self._job.named:
            self._job.named.add(name)
            self._warn(f"{name} {what}", doubt=not known, many=True)

    def _warn(self, sentence: str, *, doubt: bool = True, many: bool = False) -> None:
        if not self._dry:
            self._complained = True
            self._control.warn(sentence, doubt=doubt, many=many)

    def _judge(self, status: int) -> None:
        if self._fatal is not None:
            raise self._fatal
        if status in (0, _VANISHED):
            return
        if status == _PARTIAL:
            if not self._dry and not self._complained:
                self._control.warn(f"Not everything could be copied: {self._last_words}")
            return
        if status == _ABORTED_BY_ERROR:
            last = self._last_words or "it is not told why."
            raise DriveFailed(f"The copy was given up: {last}")
        how = death(status) if status < 0 else f"it ended with status {status}"
        raise ToolFailed(f"The copy by rsync failed: {how}. {self._last_words}".strip())


def _solid(job: Job, path: bytes) -> int:
    """Bytes of a file that is to be copied, without its holes."""
    with suppress(OSError):  # gone meanwhile
        source = os.lstat(os.path.join(os.fsencode(job.stage), path))
        if stat.S_ISREG(source.st_mode):
            return min(source.st_size, source.st_blocks * 512)
    return 0


def _alike(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def end_everything_else() -> None:
    """Kill and reap whatever else lives in our PID namespace: a reader may outlive its writer
    by a moment, and we are its reaper (pid_namespaces(7)).
    """
    if os.getpid() != 1:
        return
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
