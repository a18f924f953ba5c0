"""Starting the server: confined to the versions, for the time of one call.

Nothing of it is left when :func:`serve` returns or raises.  It is killed, whatever is still
open on the other side of the mount: those who have it open get errors from then on.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path

import attrs

from ...errors import Refused, ToolFailed
from ...run import child, death
from ...text import printable
from ..bubblewrap import BWRAP, confinement
from ..control import Control
from ..sync import end_everything_else
from .__main__ import VERSIONS

_PYTHON = "/usr/bin/python3"
_BECOMES = ("CAP_SETUID", "CAP_SETGID")
_READS_ALL = ("CAP_DAC_READ_SEARCH",)
_LAST_WORDS = 4096


@attrs.frozen
class Viewer:
    """Whose rights the server has; the first of the groups is the main one."""

    user: int
    groups: tuple[int, ...]


def want_library() -> None:
    """Raise Refused where the server can't run."""
    if find_spec("pyfuse3") is None:
        raise Refused(
            "Browsing needs the Python library pyfuse3, which is not installed.",
            "apt install python3-pyfuse3",
        )


def serve(
    versions: Path, names: Iterable[str], fuse: int, viewer: Viewer, control: Control
) -> None:
    """Serve these *versions* on the mount of the descriptor *fuse* (owned) until it is gone.

    Raises ToolFailed when the server fails, and Cancelled.
    """
    words = b""
    listed = b"".join(os.fsencode(name) + b"\0" for name in names)
    try:
        # The mount lives as long as a descriptor of it: only the server is to have one.
        with io.FileIO(fuse, "r+") as mount, _arguments(versions, viewer) as arguments:
            command = [BWRAP, "--args", str(arguments), "--", _PYTHON, "-I"]
            command += ["-m", "cryptbackd.worker.view", "--fuse", str(fuse)]
            command += ["--user", str(viewer.user)]
            command += ["--groups", ",".join(str(group) for group in viewer.groups)]
            with child(command, stdin=listed, pass_fds=[arguments, fuse]) as server:
                mount.close()
                for stream, chunk in server.read(interrupt=control.interrupt):
                    if stream == "err":
                        words = (words + chunk)[-_LAST_WORDS:]
                status = server.wait()
    finally:
        end_everything_else()
    if status != 0:
        lines = words.decode("utf-8", "replace").splitlines()
        how = death(status) if status < 0 else f"it ended with status {status}"
        last = printable(lines[-1]) if lines else ""
        raise ToolFailed(f"What shows the versions failed: {how}. {last}".strip())


def _arguments(versions: Path, viewer: Viewer) -> AbstractContextManager[int]:
    """A descriptor with bubblewrap's arguments."""
    capabilities = _READS_ALL if viewer.user == 0 else _BECOMES
    return confinement("server-arguments", capabilities, [(str(versions), VERSIONS)])
