"""What the writing rsync starts in the place of a remote shell.

It hands the ends of rsync's pipes to the worker, which starts the reader there, and ends as the
reader did.  So nothing that the reader is made of, or reads, need be where the writer is.
"""

from __future__ import annotations

import os
import socket
import sys


def main() -> int:
    """Arguments: the socket's number, a "host" that counts for nothing, and what to start."""
    with socket.socket(fileno=int(sys.argv[1])) as worker:
        socket.send_fds(worker, [os.fsencode("\0".join(sys.argv[3:]))], [0, 1, 2])
        # Whoever waits for the other end must see it close.
        os.close(0)
        os.close(1)
        answer = worker.recv(16)
    return int(answer) if answer else 1


if __name__ == "__main__":
    sys.exit(main())
