"""The reader: the sending rsync, or find(1), that sees the sources and can write nothing.

It is started through bubblewrap: a process without capabilities but to read everything, or with
a user's rights, that sees the staged sources read-only at ``/source`` and else only ``/usr``.
It dies with who starts it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import kernel
from .bubblewrap import BWRAP, confinement
from .rights import Rights
from .rsync_job import RSYNC, SOURCE, Job

FIND = "/usr/bin/find"
SETPRIV = "/usr/bin/setpriv"
_UNREADABLE = "/reader-"
"""Begins the names under which a reader with a user's rights sees its programs."""


def reader_command(job: Job, args_fd: int) -> list[str]:
    """What rsync's words for a reader are put to; *args_fd* is of :func:`reader_arguments`."""
    return _started(RSYNC, job.rights, [BWRAP, "--args", str(args_fd)])


def listing(job: Job, args_fd: int) -> list[str]:
    """How find(1) is started among the sources of *job*, with the rights of its reader.

    *args_fd* is of :func:`reader_arguments`; what find is to do follows.
    """
    return _started(FIND, job.rights, [BWRAP, "--args", str(args_fd), "--chdir", SOURCE])


def _started(program: str, rights: Rights | None, confined: list[str]) -> list[str]:
    if rights is None:
        return [*confined, program]
    # setpriv(1) runs the program itself: one between them that the user can read could be
    # traced by the user.
    groups = ",".join(str(group) for group in rights.groups)
    confined = [*confined, SETPRIV, "--inh-caps=-all", f"--reuid={rights.uid}"]
    return [*confined, f"--groups={groups}", f"--regid={rights.gid}", _unreadable_name(program)]


@contextmanager
def reader_arguments(stage: Path, rights: Rights | None) -> Iterator[int]:
    """A descriptor with bubblewrap's arguments for who reads what is staged."""
    bound = [(str(stage), SOURCE)]
    capabilities = ["CAP_DAC_READ_SEARCH"]
    if rights is not None:
        capabilities = ["CAP_SETUID", "CAP_SETGID"]
        copies = {program: _unreadable(stage.parent, program) for program in (RSYNC, FIND)}
        bound += [(str(copy), _unreadable_name(program)) for program, copy in copies.items()]
    with confinement("reader-arguments", capabilities, bound) as fd:
        yield fd


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
