"""What rsync starts in the place of a remote shell: it passes on what a socket and rsync say.

The socket's other end is the reading rsync, which the worker has started: what rsync would
have started (the other arguments) doesn't matter.  It ends when the socket does, or rsync.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

_AT_ONCE = 1 << 18


def main() -> None:
    """Pass on until the socket, whose number is the first argument, is at its end."""
    # Ctrl-C is for who waits for rsync: we end when rsync does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # rsync leaves them such that a write may be refused.
    os.set_blocking(0, True)
    os.set_blocking(1, True)
    far = socket.socket(fileno=int(sys.argv[1]))
    # Each way has a thread: neither may wait for the other, or both sides would for ever.
    threading.Thread(target=_there, args=(far,), daemon=True).start()
    _back(far)


def _there(far: socket.socket) -> None:
    try:
        while data := os.read(0, _AT_ONCE):
            far.sendall(data)
        far.shutdown(socket.SHUT_WR)
    except OSError:
        return  # its end is seen on the other way


def _back(far: socket.socket) -> None:
    try:
        while data := far.recv(_AT_ONCE):
            while data:
                data = data[os.write(1, data) :]
    except (BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    main()
