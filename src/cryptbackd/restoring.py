"""What a restore's two sides say to each other: the worker that reads, and whoever writes.

They share one ``AF_UNIX`` ``SOCK_SEQPACKET`` pair, whose end the daemon hands over for the
purpose ``files``.  A packet is one JSON object:

===========================================  ======  ====================================
keys                                         from    means
===========================================  ======  ====================================
``version``                                  worker  first, once: the version that is read
``read``, ``dry``, ``contents``,             writer  paths below the version's root, each
``devices``                                          with a ``/./`` where the part begins
                                                     that is made again at the target
``reading``, with a descriptor               worker  a socket; the reading rsync has the
                                                     other end, see :func:`reader_options`
``ended``, ``said``, ``more``                worker  that rsync's exit status, what it
                                                     said beside the protocol, and how many
                                                     complaints more
``done``, ``total``                          writer  bytes, of the whole restore
``over`` and the numbers of :class:`Over`    writer  last
===========================================  ======  ====================================

The end of the socket means for the worker that nobody wants anything any more.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import attrs

from . import foreign

MAX_PACKET = 128 * 1024
SOURCE = "/source"
"""Where the reading rsync sees the version's root."""


class NotUnderstood(Exception):
    """A packet that is none of these."""


@attrs.frozen
class Over:
    """How the writing went.

    ``files`` and ``size`` were restored (or, ``dry``, would be), ``left`` newer ones stayed,
    ``failed`` could not be restored.  ``errno``: what kept all of it from being written, or 0.
    ``stopped``: somebody wanted it to end.  ``broken``: it came to an end of its own too early.
    """

    files: int = 0
    size: int = 0
    left: int = 0
    failed: int = 0
    errno: int = 0
    dry: bool = False
    stopped: bool = False
    broken: bool = False

    @staticmethod
    def from_packet(raw: dict[str, Any]) -> Over:
        """The numbers in a packet; raises NotUnderstood."""
        wanted: dict[str, Any] = {}
        for field in attrs.fields(Over):
            value: Any = raw.get(field.name, field.default)
            default: Any = field.default
            if type(value) is not type(default) or not 0 <= int(value) < 1 << 63:
                raise NotUnderstood(field.name)
            wanted[field.name] = value
        return Over(**wanted)


def send(sock: socket.socket, values: dict[str, Any], fd: int | None = None) -> None:
    """Send a packet, with a copy of the descriptor *fd* beside it; raises OSError."""
    packet = json.dumps(values).encode()
    socket.send_fds(sock, [packet], [] if fd is None else [fd])


def receive(sock: socket.socket) -> tuple[dict[str, Any], int | None] | None:
    """The next packet and the descriptor beside it (the caller's to close); None at the end.

    Raises NotUnderstood, and OSError.
    """
    packet, fds, _flags, _address = socket.recv_fds(sock, MAX_PACKET, 1)
    if not packet:
        return None
    try:
        return _values(packet), fds[0] if fds else None
    except NotUnderstood:
        for fd in fds:
            os.close(fd)
        raise


def receive_alone(sock: socket.socket) -> dict[str, Any] | None:
    """The next packet; None at the end.  Raises NotUnderstood, and OSError.

    A descriptor beside it is never ours: to close one, whoever serves its file is waited for.
    """
    packet = sock.recv(MAX_PACKET)
    return _values(packet) if packet else None


def _values(packet: bytes) -> dict[str, Any]:
    try:
        values = foreign.loads(packet)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise NotUnderstood("no object")
    return values


def reader_options(*, dry: bool, contents: bool, devices: bool) -> list[str]:
    """What the reading rsync is told: what rsync at the other end would tell a remote one.

    ``writer_options`` are the same, said as a person would.
    """
    letters = f"{'n' * dry}lWHogtp{'D' * devices}AX{'c' * contents}rRSe.LsfxCIvu"
    return [
        "--server", "--sender", f"-{letters}", "--numeric-ids",
        *([] if devices else ["--specials"]), ".",
    ]  # fmt: skip


def writer_options(*, dry: bool, contents: bool, devices: bool) -> list[str]:
    """What the writing rsync is told that the other one must know of, too."""
    argv = ["--recursive", "--links", "--perms", "--times", "--group", "--owner", "--specials"]
    argv += ["--hard-links", "--acls", "--xattrs", "--sparse", "--numeric-ids", "--relative"]
    argv += ["--whole-file", "--modify-window=-1", "--no-inc-recursive"]
    argv += ["--devices"] if devices else []
    argv += ["--checksum"] if contents else []
    return [*argv, "--dry-run"] if dry else argv
