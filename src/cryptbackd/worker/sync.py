"""The copy: rsync as two processes.

The *writer* is an rsync that pulls into the container, and sees nothing else (``worker.writer``).
The *reader*, the sending side, is started through bubblewrap when the writer asks for it: a
process without capabilities but to read everything, that sees the staged sources read-only at
``/source`` and else only ``/usr``.  Both end before :func:`sync` does; nothing of theirs stays but
temporary files in one directory, which the next run wipes.

Which options, exit codes and messages are relied on: rsync(1).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import attrs

from .. import kernel
from ..errors import Cancelled, CryptbackError, DriveFailed, DriveFull, ToolFailed
from ..model import Phase
from ..run import Child, child, death
from ..text import printable
from . import rsync_words
from .control import Control, Meter, escaped
from .rights import Rights
from .rsync_words import Complaint
from .sources import is_inside
from .writer import confine, readers, shell

RSYNC = "/usr/bin/rsync"
BWRAP = "/usr/bin/bwrap"
FIND = "/usr/bin/find"
SETPRIV = "/usr/bin/setpriv"
TEMPORARY = ".cryptback-tmp"
"""Where rsync writes a file before it gets its name: in the root of the target."""

SOURCE = "/source"
"""Where the reader has the staged sources."""
_UNREADABLE = "/reader-"
"""Begins the names under which a reader with a user's rights sees its programs."""
_PATIENCE = 3.0
"""Seconds that rsync has to end in order when a job is stopped."""

_LAST_WORDS = 0.1
"""Seconds that more is waited for of what an ended rsync had said: most is in the pipe by then."""

_ATTRIBUTES = ("trusted.*", "system.*", "security.ima", "security.evm")
"""Extended attributes that are none of ours, on both sides.

The reader can't see ``trusted.*``, and the writer can't set the two of ``security.*``: they are
another kernel's to make.  On the writer's side XFS shows ACLs there a second time,
and rsync would remove them as no part of the source: the ACLs would go.  ``system.*`` is what
rsync leaves out by itself only while there is no such filter.
"""

_LABEL = "security.selinux"
"""Only where SELinux is at work can the writer set it; elsewhere it is what one was once."""

FULL = (errno.ENOSPC, errno.EDQUOT)
_BROKEN = (errno.EIO, errno.EROFS, errno.ENODEV, errno.ENXIO, errno.EUCLEAN, errno.ENOMEDIUM)
_NO_PATH = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_PARTIAL, _VANISHED = 23, 24
_ABORTED_BY_ERROR = 11

_ITEM = "="
"""Begins the lines of ``--out-format``; rsync's own begin with a space or a letter."""


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


class Received(NamedTuple):
    """A file whose content was copied."""

    path: bytes
    xxh128: bytes
    """What rsync computed of the content while it copied it, hexadecimal."""
    status: os.stat_result
    """Of the copy."""
    source: os.stat_result | None
    """Of the source, after it was copied; None: it is gone by now."""


@attrs.frozen
class Job:
    """One sync: from the staged tree into the target, both absolute."""

    stage: Path
    target: Path
    exclude: tuple[str, ...]
    own: tuple[str, ...]
    """Sources that the stage has."""
    others: tuple[str, ...]
    """Sources that it hasn't: theirs stays as it is in the target."""
    rights: Rights | None = None
    """With whose rights the sources are read; None: root's."""
    link_dest: tuple[Path, ...] = ()
    """Trees whose unchanged files are linked into the target (ext4, xfs)."""
    delete: bool = True
    contents: bool = False
    """Compare files by content, not by size and time: reads both sides in full."""
    tell_same: bool = False
    """Have ``received`` told of files whose content was found to be the same, too (together with
    *contents*)."""
    names: tuple[bytes, ...] | None = None
    """What alone is looked at, below the stage: a directory stands for itself, not for what
    is in it, and of a file with several names all are there.  Nothing is deleted then."""
    in_place: bool = False
    """Write into the files that are there what differs in them (together with *names*).  Each
    must have one link, and one whose copy fails is damaged."""
    named: set[str] = attrs.field(factory=set)
    """Files that were warned of already, if this is not the first try."""
    failed: set[bytes] = attrs.field(factory=set)
    """Paths below the stage of what was warned of: the copy may not be what is there."""
    received: Callable[[Received], None] = lambda _file: None
    """Told of each regular file whose content was copied, once it has its name."""


def literal(path: str) -> str:
    """*path* as an rsync pattern that matches nothing else (rsync(1), FILTER RULES).

    A backslash is an escape only in a pattern with wildcards.
    """
    if not any(c in path for c in "*?["):
        return path
    return re.sub(r"([*?\[\\])", r"\\\1", path)


def _boundaries(job: Job) -> list[str]:
    """Filters that leave alone what is not this job's: the innermost source has the say."""
    filters = []
    for path in sorted({*job.own, *job.others}, key=len, reverse=True):
        below = re.sub(r"([*?\[\\])", r"\\\1", path.rstrip("/")) + "/**"
        if path in job.own:
            rules = "R"
        else:
            rules = "HP" if any(is_inside(path, own) for own in job.own) else "P"
        filters += [f"--filter={rule} {what}" for rule in rules for what in (literal(path), below)]
    return filters


def _arguments(job: Job, *, dry: bool, door: int) -> list[str]:
    left_out = _ATTRIBUTES if os.path.exists("/sys/fs/selinux/enforce") else (*_ATTRIBUTES, _LABEL)
    filters = [f"--filter=-xsr {attribute}" for attribute in left_out]
    filters += [f"--filter=P /{TEMPORARY}", *_boundaries(job)]
    filters += [f"--filter=- {pattern}" for pattern in job.exclude]
    argv = [RSYNC, "--archive", "--hard-links", "--acls", "--xattrs", *filters]
    argv += ["--numeric-ids", "--secluded-args", "--modify-window=-1"]
    argv += ["--no-human-readable", "--outbuf=L", "--checksum-choice=xxh128", "--force"]
    if job.in_place:
        argv += ["--inplace", "--no-whole-file", "--ignore-times"]
    else:
        argv += ["--whole-file", "--sparse", f"--temp-dir={job.target / TEMPORARY}"]
    if job.contents:
        argv += ["--checksum"]
    if job.tell_same:
        argv += ["--itemize-changes", "--itemize-changes"]
    if job.names is not None:
        argv += ["--files-from=-", "--from0"]
    elif job.delete:
        argv += ["--delete", "--delete-excluded"]
    argv += [f"--link-dest={path}" for path in job.link_dest]
    if dry:
        argv += ["--dry-run", f"--out-format={_ITEM}%i %l"]
    else:
        # %C makes rsync log a file when it has all of it, just before it gets its name.
        argv += ["--info=progress2", "--stats", f"--out-format={_ITEM}%i %C %n"]
    # Who starts the reader needs no host.
    argv += [f"--rsh={shell(door)}", f"--rsync-path={RSYNC}"]
    return [*argv, f"reader:{SOURCE}/", f"{job.target}/"]


def _reader(job: Job, args_fd: int) -> list[str]:
    """What rsync's words for a reader are put to; *args_fd* is of :func:`reader_arguments`."""
    confined = [BWRAP, "--args", str(args_fd)]
    if job.rights is None:
        return [*confined, RSYNC]
    # setpriv(1) runs rsync itself: a program between them that the user can read could be
    # traced by the user.
    user = job.rights
    groups = ",".join(str(group) for group in user.groups)
    confined += [SETPRIV, "--inh-caps=-all", f"--reuid={user.uid}", f"--groups={groups}"]
    return [*confined, f"--regid={user.gid}", _unreadable_name(RSYNC)]


@contextmanager
def reader_arguments(stage: Path, rights: Rights | None) -> Iterator[int]:
    """A descriptor with bubblewrap's arguments: paths need no quoting there (bwrap(1))."""
    arguments = ["--die-with-parent", "--unshare-pid", "--cap-drop", "ALL"]
    if rights is None:
        arguments += ["--cap-add", "CAP_DAC_READ_SEARCH"]
    else:
        arguments += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        for program in (RSYNC, FIND):
            copy = _unreadable(stage.parent, program)
            arguments += ["--ro-bind", str(copy), _unreadable_name(program)]
    arguments += ["--clearenv"]
    arguments += ["--setenv", "PATH", "/usr/bin", "--setenv", "LC_ALL", "C.UTF-8"]
    arguments += ["--ro-bind", "/usr", "/usr"]
    for link in ("bin", "sbin", "lib", "lib32", "lib64"):
        if os.path.islink(f"/{link}"):
            arguments += ["--symlink", f"usr/{link}", f"/{link}"]
    arguments += ["--ro-bind", str(stage), SOURCE, "--chdir", "/"]
    fd = os.memfd_create("reader-arguments", os.MFD_CLOEXEC)
    try:
        os.write(fd, b"".join(os.fsencode(argument) + b"\0" for argument in arguments))
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def _unreadable(workspace: Path, program: str) -> Path:
    """A copy of a program that only root can read.

    A process that runs it can't be traced by the user whose rights it has (ptrace(2),
    "dumpable"), who would else speak to the writer, which is root, in its place.
    """
    directory = workspace / "reader"
    if not directory.exists():
        directory.mkdir()
        safe = kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("tmpfs", str(directory), safe, "size=16m,mode=0755")
    copy = directory / os.path.basename(program)
    if not copy.exists():
        shutil.copyfile(program, copy)
        copy.chmod(0o711)
    return copy


def _unreadable_name(program: str) -> str:
    return _UNREADABLE + os.path.basename(program)


def listing(job: Job, args_fd: int) -> list[str]:
    """How find(1) is started among the sources of *job*, with the rights of its reader.

    *args_fd* is of :func:`reader_arguments`; what find is to do follows.
    """
    confined = [BWRAP, "--args", str(args_fd), "--chdir", SOURCE]
    if job.rights is None:
        return [*confined, FIND]
    user = job.rights
    groups = ",".join(str(group) for group in user.groups)
    confined += [SETPRIV, "--inh-caps=-all", f"--reuid={user.uid}", f"--groups={groups}"]
    return [*confined, f"--regid={user.gid}", _unreadable_name(FIND)]


@contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """A new directory for files that have no name in the target yet.

    What a killed run left there is wiped.  After an error it stays.
    """
    directory = target / TEMPORARY
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    yield directory
    shutil.rmtree(directory)


def copy_named(job: Job, control: Control, total: int) -> Synced:
    """Bring up to date what ``job.names`` names; *total* bytes are expected.

    The temporary directory must be there.  Warns and raises as :func:`sync`.
    """
    copy = _Rsync(job, control, dry=False)
    try:
        synced = copy.copy(total)
    except DriveFull as exc:
        exc.missing = max(0, total - copy.synced.changed_bytes)
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
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o700)
    control.phase(Phase.COMPARING)
    total = _Rsync(job, control, dry=True).compare()
    control.phase(Phase.SYNCING)
    copy = _Rsync(job, control, dry=False)
    try:
        synced = copy.copy(total)
    except DriveFull as exc:
        shutil.rmtree(temporary, ignore_errors=True)
        exc.missing = max(0, total - copy.synced.changed_bytes)
        raise
    control.check()
    shutil.rmtree(temporary)
    return synced


class _Rsync:
    """One run of rsync, and what its lines tell."""

    def __init__(self, job: Job, control: Control, *, dry: bool) -> None:
        self._job = job
        self._control = control
        self._dry = dry
        self._total = 0
        self.synced = Synced()
        self._meter: Meter | None = None
        self._fatal: CryptbackError | None = None
        self._complained = False
        self._received = (b"", b"")
        self._last_words = ""

    def compare(self) -> int:
        """Bytes that a copy would transfer."""
        self._run()
        return self._total

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
                argv = _arguments(job, dry=self._dry, door=far.fileno())
                alone = confine(job.target.parent, job.stage.parent / "writer")
                stack.callback(end_everything_else)
                writer = child(argv, stdin=_listed(job), pass_fds=[far.fileno()], confine=alone)
                rsync = stack.enter_context(writer)
            with readers(near, _reader(job, args_fd), [args_fd]) as shut:
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
                        if line.startswith(_ITEM.encode()):
                            self._item(line[1:])

    def _out(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "surrogateescape")
        if line.startswith(_ITEM):
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
            self._total += rsync_words.length(rest)
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
                self._warn(f"{printable(found.what.strip())} could not be read: {why}.")
        elif found.errno in FULL:
            self._fatal = DriveFull("There is no room left in the container.")
        elif found.errno in _BROKEN:
            self._fatal = DriveFailed(
                f"The drive failed while it was written to: {why}.",
                "Check it (journalctl -k); the versions before are as they were.",
            )
        else:
            path = (found.path or "").removeprefix(str(self._job.target))
            self._warn_of(rsync_words.name(path), f"could not be copied in full: {why}.")

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
            self._warn(f"{name} {what}", doubt=not known)

    def _warn(self, sentence: str, *, doubt: bool = True) -> None:
        if not self._dry:
            self._complained = True
            self._control.warn(sentence, doubt=doubt)

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


def _listed(job: Job) -> bytes | None:
    """The names as ``--files-from`` takes them.

    With "./" before it a name can begin with anything: one that begins with "#" or ";" would
    be a comment, with ``--from0``, too.
    """
    if job.names is None:
        return None
    return b"".join(b"./" + name + b"\0" for name in job.names)


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
