"""Lists of files, sorted as a manifest is: of the sources, and of a version.

find(1) and sort(1) run as long as the call, or the block, that started them; what sort puts aside
lies in the directory that it is given.  The one that lists the sources is confined as the reader
of the copy is.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .. import manifest
from ..errors import DriveFailed, ToolFailed
from ..run import child, run, spawn
from .control import Control
from .reader import FIND, listing, reader_arguments
from .rsync_job import Job
from .sources import is_inside

SORT = "/usr/bin/sort"
_BYTES = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
_PATIENCE = 6 * 3600.0
"""Seconds; a slow disk takes its time for a million names."""
_MEMORY = "64M"


def sort(aside: Path, *arguments: str) -> list[str]:
    """The command that sorts records; what its memory doesn't hold it puts into *aside*."""
    return [SORT, "-z", "-S", _MEMORY, "-T", str(aside), *arguments]


def sources(job: Job, out: Path, control: Control) -> bool:
    """List the sources that *job* reads, and all in them, into the file *out*.

    Directories above them are not in it, nor is what another job reads.  What can't be read, or
    vanishes, is left out; whether there was nothing of the former is returned.  Raises ToolFailed
    and Cancelled.
    """
    tops = [p for p in job.own if not any(is_inside(p, o) and p != o for o in job.own)]
    said = manifest.LISTING
    if tops == ["/"]:
        # Of the root itself there is no record.
        expression, begins = ["-mindepth", "1"], "./"
    else:
        expression, begins, said = [], "", said.replace("%P", "%p", 1)
    below = [path for path in job.others if any(is_inside(path, own) for own in job.own)]
    pruned = [f"{begins}{pattern(path.strip('/'))}" for path in below]
    tests = [word for path in pruned for word in ("-path", path, "-prune", "-o")]
    fed = os.memfd_create("sources", os.MFD_CLOEXEC)
    try:
        os.write(fed, b"".join(os.fsencode(top.strip("/") or ".") + b"\0" for top in tops))
        os.lseek(fed, 0, os.SEEK_SET)
        with reader_arguments(job.stage, job.rights) as args_fd:
            argv = [
                *listing(job, args_fd),
                "-files0-from",
                "-",
                "-ignore_readdir_race",
                *expression,
            ]
            argv += [*tests, "-printf", said]
            with _listing(argv, stdin=fed, pass_fds=[args_fd]) as (find, lines):
                run(
                    sort(out.parent, "-o", str(out)),
                    stdin=lines,
                    deadline=_PATIENCE,
                    environment=_BYTES,
                    interrupt=control.interrupt,
                )
                return find.wait() == 0
    finally:
        os.close(fed)


def pattern(path: str) -> str:
    """*path* as a pattern of ``find -path`` that fits nothing else."""
    return re.sub(r"([*?\[\\])", r"\\\1", path)


@contextmanager
def tree(root: Path, aside: Path, control: Control) -> Iterator[Iterator[bytes]]:
    """All that is in the tree *root* on the drive, a record each.

    They must be read to the end.  The block raises ToolFailed, DriveFailed and Cancelled.
    """
    argv = [FIND, str(root), "-mindepth", "1", "-printf", manifest.LISTING]
    with _listing(argv) as (find, lines), records(sort(aside), lines, control) as found:
        yield found
        if find.wait() != 0:
            raise DriveFailed(
                "What is in the new version could not be listed in full.",
                "Check the drive (journalctl -k); the versions before are as they were.",
            )


@contextmanager
def records(argv: Sequence[str], stdin: int | None, control: Control) -> Iterator[Iterator[bytes]]:
    """What a program writes, as records without NUL; it must be read to the end.

    Raises ToolFailed where the program fails, and Cancelled.
    """
    with child(argv, stdin=stdin, environment=_BYTES) as program:
        yield _split(
            chunk for name, chunk in program.read(interrupt=control.interrupt) if name == "out"
        )
        if program.wait() != 0:
            raise ToolFailed(f"{argv[0]} failed: it ended with status {program.wait()}.")


def lines_of(path: Path) -> Iterator[bytes]:
    """The records in the file *path*, without NUL."""
    with path.open("rb") as file:
        yield from _split(iter(lambda: file.read(1 << 16), b""))


def _split(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\0")
        yield from whole


@contextmanager
def _listing(
    argv: Sequence[str], stdin: int | None = None, pass_fds: Sequence[int] = ()
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A running program, and the pipe with what it writes; it ends with the block."""
    lines, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            program = spawn(
                argv,
                stdin=stdin,
                stdout=theirs,
                # There may be a complaint a file, and nobody who reads them.
                stderr=subprocess.DEVNULL,
                pass_fds=pass_fds,
                environment=_BYTES,
            )
        finally:
            os.close(theirs)
        try:
            yield program, lines
        finally:
            program.kill()
            program.wait()
    finally:
        os.close(lines)
