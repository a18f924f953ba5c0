"""Which version of rsync is installed, as each version of a backup notes it.

What rsync said of itself is kept in a file below ``/run`` for as long as the program is the
same, so that a run need not start it for that.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

from .. import paths
from ..run import run
from .rsync_job import RSYNC

_KEPT = paths.RUNTIME / ".rsync"
"""No name of an entry.  What is half written there is no JSON."""


def rsync_version() -> str:
    """Such as ``3.4.1``; raises ToolFailed."""
    status = os.stat(RSYNC)
    program = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(_KEPT.read_bytes())
        if kept["program"] == program:
            return str(kept["version"])
    version = str(json.loads(run([RSYNC, "--version", "--version"]).out).get("version", ""))
    with suppress(OSError):
        _KEPT.write_text(json.dumps({"program": program, "version": version}))
    return version
