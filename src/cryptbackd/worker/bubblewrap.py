"""What bubblewrap is told: a process that sees ``/usr`` and what is bound for it, and nothing else.

It dies with who starts it (bwrap(1), ``--die-with-parent``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

BWRAP = "/usr/bin/bwrap"


@contextmanager
def confinement(
    name: str, capabilities: Iterable[str], bound: Iterable[tuple[str, str]]
) -> Iterator[int]:
    """A descriptor with bubblewrap's arguments: paths need no quoting there (bwrap(1), --args).

    The process keeps these *capabilities*, and sees each path of *bound* read-only at its place.
    *name*: of the memory that the descriptor is of.
    """
    arguments = ["--die-with-parent", "--unshare-pid", "--cap-drop", "ALL"]
    for capability in capabilities:
        arguments += ["--cap-add", capability]
    arguments += ["--clearenv", "--setenv", "PATH", "/usr/bin", "--setenv", "LC_ALL", "C.UTF-8"]
    arguments += ["--ro-bind", "/usr", "/usr"]
    for link in ("bin", "sbin", "lib", "lib32", "lib64"):
        if os.path.islink(f"/{link}"):
            arguments += ["--symlink", f"usr/{link}", f"/{link}"]
    for path, place in bound:
        arguments += ["--ro-bind", path, place]
    arguments += ["--chdir", "/"]
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.write(fd, b"".join(os.fsencode(argument) + b"\0" for argument in arguments))
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)
