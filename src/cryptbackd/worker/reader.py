"""The reader: the sending rsync, or find(1), that sees the sources and can write nothing.

It is started through bubblewrap: a process without capabilities but to read everything, or with
a user's rights, that sees the staged sources read-only at ``/source`` and else only ``/usr``.
It dies with who starts it (bwrap(1), ``--die-with-parent``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import kernel
from .rights import Rights
from .rsync_job import RSYNC, SOURCE, Job

BWRAP = "/usr/bin/bwrap"
FIND = "/usr/bin/find"
SETPRIV = "/usr/bin/setpriv"
_UNREADABLE = "/reader-"
"""Begins the names under which a reader with a user's rights sees its programs."""


def reader_command(job: Job, args_fd: int) -> list[str]:
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
