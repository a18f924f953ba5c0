"""Making a mounted ext4 longer, by a service of its own.

The kernel wants CAP_SYS_RESOURCE for that (ext4_resize_begin, fs/ext4/resize.c), and nothing else
that a worker does needs it.  So ``cryptbackd-lengthen@.service`` has that capability and nothing
else: it gets a descriptor of the mounted filesystem through a socket of root's, makes one call,
and ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import sys

SOCKET = "/run/cryptbackd-lengthen"
_EXT4_IOC_RESIZE_FS = 0x40086610
_PATIENCE = 3600.0
"""Seconds; it takes a few, for large ones."""


def lengthen(root: int, blocks: int) -> None:
    """Have the mounted ext4 that *root* is a descriptor of take *blocks*; raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(_PATIENCE)
        sock.connect(SOCKET)
        socket.send_fds(sock, [str(blocks).encode()], [root])
        answer = sock.recv(16)
    number = int(answer) if answer else errno.EIO
    if number:
        raise OSError(number, os.strerror(number))


def main() -> int:
    """Do what comes by standard input, and say there how it went: the number of an error, or 0."""
    with socket.socket(fileno=0) as asked:
        blocks, fds, _flags, _address = socket.recv_fds(asked, 32, 1)
        if len(fds) != 1:
            return 1
        number = 0
        try:
            fcntl.ioctl(fds[0], _EXT4_IOC_RESIZE_FS, struct.pack("=Q", int(blocks)))
        except OSError as exc:
            number = exc.errno or errno.EIO
        finally:
            # Whoever asked unmounts it next.
            os.close(fds[0])
        asked.send(str(number).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
