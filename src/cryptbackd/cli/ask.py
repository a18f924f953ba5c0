"""Passphrases on their way from a person, or a script's descriptor, to a pipe of the daemon.

They are in this process alone, which ends with the job: no argument, no environment and no log
has them, and nobody else of this user may look inside.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import sys

from ..errors import Refused
from ..secret import secretive
from .bus import Client

MAX_PASSPHRASE = 512
"""Bytes that cryptsetup reads of a line."""


def want_terminal(option: str, fd: int | None) -> None:
    """Raise Refused where nobody can be asked, and the descriptor of *option* is not given."""
    if fd is None and not sys.stdin.isatty():
        raise Refused(
            "Nobody can be asked for a passphrase, as this is no terminal.",
            f"Hand it over on a descriptor: {option} N.",
        )


def current(what: str, fd: int | None) -> bytes:
    """The passphrase that is called *what* and exists, from *fd* or from whoever sits there."""
    secretive()
    if fd is not None:
        return one_line(fd)
    return _usable(_typed(f"{what}: "))


def new(what: str, fd: int | None) -> bytes:
    """The passphrase that is called *what* and is to be, from *fd* or typed twice."""
    secretive()
    if fd is not None:
        return one_line(fd)
    first = _typed(f"{what}: ")
    if first != _typed("The same again: "):
        raise Refused("The two are not the same; nothing was changed.")
    return _usable(first)


def _typed(prompt: str) -> bytes:
    return getpass.getpass(prompt).encode("utf-8", "surrogateescape")


def one_line(fd: int) -> bytes:
    """The first line of *fd*; no more is read, as the next line may be another passphrase."""
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) <= MAX_PASSPHRASE:
            byte = os.read(fd, 1)
            if not byte:
                break
            line += byte
    except OSError as exc:
        raise Refused(f"Descriptor {fd} can't be read: {exc.strerror}.") from None
    except OverflowError:
        raise Refused(f"There is no descriptor {fd}.") from None
    return _usable(line.partition(b"\n")[0])


def _usable(passphrase: bytes) -> bytes:
    if not passphrase:
        raise Refused("An empty passphrase protects nothing; nothing was changed.")
    if len(passphrase) > MAX_PASSPHRASE or b"\n" in passphrase or b"\0" in passphrase:
        raise Refused(
            f"The passphrase must be one line of at most {MAX_PASSPHRASE} bytes;"
            " nothing was changed."
        )
    return passphrase


async def hand_over(client: Client, run: str, passphrases: dict[str, bytes]) -> None:
    """Write *passphrases* into the pipes that the daemon made for these purposes of the job
    *run*.  It has given all of them away before the first may turn out to be wrong.
    """
    with contextlib.ExitStack() as stack:
        pipes = {}
        for purpose in passphrases:
            fd = await client.call_for_fd("HandOver", "ss", run, purpose)
            pipes[purpose] = stack.enter_context(os.fdopen(fd, "wb", buffering=0))
        for purpose, passphrase in passphrases.items():
            with contextlib.suppress(BrokenPipeError):
                pipes[purpose].write(passphrase)
            pipes[purpose].close()
