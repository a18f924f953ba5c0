"""The child that takes a mount from whoever browses; see ``mounts``.

It ends when it has passed one on, or when something else came; if it can.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress

from .. import kernel

_FUSE = (10, 229)
"""The number of ``/dev/fuse`` (Documentation/admin-guide/devices.txt)."""
_TAKEN = b"+"


def main() -> int:
    """Pass on what comes by standard input, if it is a mount, and say so there."""
    with socket.socket(fileno=0) as handed, socket.socket(fileno=1) as daemon:
        _word, fds, _flags, _address = socket.recv_fds(handed, 64, 1)
        # Nothing is asked of the filesystem, not even what kind of file it is.
        if len(fds) != 1 or kernel.device_number(fds[0]) != _FUSE:
            return 1
        socket.send_fds(daemon, [_TAKEN], fds)
        os.close(fds[0])
        with suppress(OSError):  # they may have gone
            handed.send(_TAKEN)
    return 0


if __name__ == "__main__":
    sys.exit(main())
