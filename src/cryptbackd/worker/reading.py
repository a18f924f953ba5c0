"""The reading side of a restore: an rsync that sees one version, with somebody's rights.

It lives as long as :func:`reader`'s block, in a sandbox in which there is nothing but that
version, read-only, and ``/usr``.  What it may read is decided by the kernel, by owners, modes
and ACLs as they stand in the version: nobody gets a file out that they could not read at home.
Root's has no right but to read everything.

Anybody else's must not be looked into by its own user, who could hold files of the version
open from outside, so that the drive can't be locked.  The kernel sees to that where the
program's file can't be read by who runs it (execve(2), ptrace(2)): it is a copy of rsync that
everybody may only execute.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from ..errors import Refused
from ..restoring import SOURCE, reader_options
from ..run import spawn
from .bubblewrap import BWRAP
from .rsync_job import RSYNC
from .sync import end_everything_else

SETPRIV = "/usr/bin/setpriv"
_READER = "/rsync"


@attrs.frozen
class Identity:
    """A user with the groups that they have, the primary one first."""

    user: int
    groups: tuple[int, ...]

    @staticmethod
    def from_message(raw: dict[str, Any]) -> Identity:
        """Who asked, as the daemon says in a ``Start``."""
        return Identity(int(raw["user"]), tuple(int(group) for group in raw["groups"]))

    @property
    def is_root(self) -> bool:
        """Whether it is the one who may everything."""
        return self.user == 0


@attrs.frozen
class Wanted:
    """What is read: paths with a ``/./``, see ``cryptbackd.restoring``."""

    paths: tuple[str, ...]
    dry: bool
    contents: bool
    devices: bool
    """Device nodes, too, which only root gets."""

    @staticmethod
    def from_packet(raw: dict[str, Any]) -> Wanted:
        """The request in a packet; raises Refused.

        Nothing outside of the version can be reached whatever it says: this only keeps what
        is no path from being taken for something else by rsync.
        """
        paths = raw["read"]
        if not isinstance(paths, list) or not paths:
            raise Refused("It was not said what is to be restored.")
        for path in paths:
            if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
                raise Refused("What is to be restored is no absolute path.")
            if ".." in path.split("/"):
                raise Refused('What is to be restored has a ".." in its path.')
        return Wanted(
            tuple(paths), *(raw.get(key) is True for key in ("dry", "contents", "devices"))
        )


@contextmanager
def reader(
    version: Path, who: Identity, wanted: Wanted, end: int
) -> Iterator[subprocess.Popen[bytes]]:
    """The reading rsync, which speaks through the socket *end*, while the block runs.

    What it says on standard error is to be read by the caller.
    """
    rsync = os.open(RSYNC, os.O_RDONLY | os.O_CLOEXEC)
    arguments = os.memfd_create("reader-arguments", os.MFD_CLOEXEC)
    try:
        words = _sandbox(version, who, rsync)
        os.write(arguments, b"".join(os.fsencode(word) + b"\0" for word in words))
        os.lseek(arguments, 0, os.SEEK_SET)
        argv = [BWRAP, "--args", str(arguments), "--", *_program(who)]
        devices = who.is_root and wanted.devices
        argv += reader_options(dry=wanted.dry, contents=wanted.contents, devices=devices)
        argv += [f"{SOURCE}{path}" for path in wanted.paths]
        process = spawn(argv, stdin=end, stdout=end, pass_fds=[arguments, rsync])
    finally:
        os.close(arguments)
        os.close(rsync)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
        end_everything_else()


def _sandbox(version: Path, who: Identity, rsync: int) -> list[str]:
    """Bubblewrap's arguments (bwrap(1))."""
    rights = ("DAC_READ_SEARCH",) if who.is_root else ("SETUID", "SETGID", "SETPCAP")
    words = ["--die-with-parent", "--unshare-pid", "--cap-drop", "ALL"]
    for right in rights:
        words += ["--cap-add", f"CAP_{right}"]
    words += ["--clearenv", "--setenv", "PATH", "/usr/bin", "--setenv", "LC_ALL", "C.UTF-8"]
    words += ["--ro-bind", "/usr", "/usr"]
    for link in ("bin", "sbin", "lib", "lib32", "lib64"):
        if os.path.islink(f"/{link}"):
            words += ["--symlink", f"usr/{link}", f"/{link}"]
    words += ["--ro-bind", str(version), SOURCE]
    words += ["--perms", "0711", "--file", str(rsync), _READER, "--remount-ro", "/"]
    return [*words, "--chdir", "/"]


def _program(who: Identity) -> list[str]:
    if who.is_root:
        return [_READER]
    groups = ",".join(str(group) for group in who.groups)
    return [
        SETPRIV, f"--reuid={who.user}", f"--regid={who.groups[0]}", f"--groups={groups}",
        "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs",
        _READER,
    ]  # fmt: skip
