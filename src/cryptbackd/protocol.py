"""What daemon and worker say to each other.

They share one ``AF_UNIX`` ``SOCK_SEQPACKET`` pair.  A packet is one message: a JSON line
``{"say": NAME, …}`` with at most one descriptor beside it (``SCM_RIGHTS``).  The worker
speaks when it has something to say; the daemon's packets are ``start`` (first, once),
``key`` (the answer to ``key-wanted``) and ``stop``.  End of file from the worker's side
means that it is gone, from the daemon's side that the worker must go at once.

==============  ==========  =======================================================
message         from        descriptor
==============  ==========  =======================================================
Start           daemon      none
Key             daemon      the key's (one line, at most 512 bytes), or none; see KeyWanted
Stop            daemon      none
PhaseChanged    worker      none
Progressed      worker      none
Said            worker      none
Warned          worker      none
KeyWanted       worker      none
Finished        worker      none; the last message, everything is locked
==============  ==========  =======================================================
"""

from __future__ import annotations

import functools
import json
import os
import socket
from collections.abc import Hashable
from enum import StrEnum
from types import UnionType
from typing import Any, ClassVar, cast, get_args, get_origin, get_type_hints

import attrs

from . import foreign
from .model import (
    Device,
    JobKind,
    LedgerEntry,
    Phase,
    Progress,
    RunResult,
    StopReason,
)
from .text import printable

_LARGEST = 1 << 63
MAX_PACKET = 192 * 1024
"""Bytes; below the kernel's default socket buffer (net.core.wmem_default, 212,992)."""


class ProtocolError(Exception):
    """A packet that is not a message of this protocol."""


@attrs.frozen
class Start:
    """Do this job.

    ``entry`` is the text of the entry's TOML, where there is one.  ``options``: for a backup
    ``full`` and ``accept`` (booleans); for an init what ``cryptbackd.worker.jobs.init``
    documents, and with ``adopt`` also ``jobs.adopt``; for a change of passphrases what
    ``jobs.passphrase`` does; for a survey ``container`` and ``size``; for browsing ``user``,
    ``groups`` (numbers, of whom it is shown to) and ``who``, that user's name; for a restore
    what ``jobs.restore`` does.
    ``ledger`` is what the computer remembers of the drive, if anything; ``forgotten``: it may have
    remembered something that is lost.
    """

    SAY: ClassVar[str] = "start"
    job: JobKind
    name: str
    device: Device
    entry: str = ""
    ledger: LedgerEntry | None = None
    options: dict[str, Any] = attrs.field(factory=dict)
    forgotten: bool = False


@attrs.frozen
class Key:
    """The answer to :class:`KeyWanted`.

    With a descriptor: the key's, for ``cryptsetup open`` to read as its standard input.
    ``token`` ≥ 0: the number of a token in the stored header; a descriptor beside it has the
    token's PIN.  Neither: no source has a key (any more), and ``source`` says why in a
    sentence.
    """

    SAY: ClassVar[str] = "key"
    source: str
    token: int = -1


@attrs.frozen
class Stop:
    """Stop in order: lock everything, keep what was copied, finish as cancelled."""

    SAY: ClassVar[str] = "stop"
    reason: StopReason


@attrs.frozen
class PhaseChanged:
    """The job entered this phase."""

    SAY: ClassVar[str] = "phase"
    phase: Phase


@attrs.frozen
class Progressed:
    """How far the current phase is."""

    SAY: ClassVar[str] = "progress"
    progress: Progress


@attrs.frozen
class Said:
    """A sentence for the journal; ``message`` names an entry of the journal catalog."""

    SAY: ClassVar[str] = "said"
    text: str
    message: str = ""
    priority: int = 6


@attrs.frozen
class Warned:
    """A sentence that makes the run end "with warnings"; ``message`` as in :class:`Said`.

    ``many``: one of very many, perhaps (``warned``).
    """

    SAY: ClassVar[str] = "warned"
    text: str
    message: str = ""
    many: bool = False


@attrs.frozen
class KeyWanted:
    """The volume is ready to be opened: send a :class:`Key`.

    ``purpose`` is ``open`` (any source), or what whoever asked for the job hands over:
    ``format`` and ``first-open`` (init, the same twice), ``current``, ``new`` and ``pin``
    (changes of passphrases; there without an end of line, as each byte counts).  For
    ``recovery-key`` and ``header`` (of a drive that is to have none) the descriptor is the other
    end of a pipe: what is written there goes to whoever asked, who tells by ``kit`` what was
    kept of it.  By ``stored-header`` such a one comes back, for a drive that is enrolled again.
    ``settings`` is such a one, too.  For ``files`` it is a socket to whoever asked for a restore
    (``cryptbackd.restoring``), for ``browse`` that of the mount (``/dev/fuse``) on which whoever
    asked wants to see the versions.  ``refused`` names the source whose key was wrong just now.
    """

    SAY: ClassVar[str] = "key-wanted"
    purpose: str = "open"
    refused: str = ""


@attrs.frozen
class Finished:
    """The job is over and everything that it opened is closed again."""

    SAY: ClassVar[str] = "finished"
    result: RunResult


Message = Start | Key | Stop | PhaseChanged | Progressed | Said | Warned | KeyWanted | Finished
_BY_SAY: dict[str, type[Message]] = {
    cls.SAY: cls
    for cls in (Start, Key, Stop, PhaseChanged, Progressed, Said, Warned, KeyWanted, Finished)
}


def encode(message: Message) -> bytes:
    """One packet's bytes."""
    return json.dumps({"say": message.SAY, **attrs.asdict(message)}).encode() + b"\n"


def decode(packet: bytes) -> Message:
    """The message in *packet*, every field of its type; raises ProtocolError when it is none.

    Numbers and texts are such that the bus and the history can take them.
    """
    try:
        raw = foreign.loads(packet)
        cls = _BY_SAY[raw.pop("say")]
        message: Message = _object(cls, raw)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ProtocolError(f"not a message: {printable(str(exc))}") from exc
    return message


def _object(cls: Any, raw: dict[str, Any]) -> Any:
    kinds = _kinds(cls)
    return cls(**{name: _value(kinds[name], item, name) for name, item in raw.items()})


@functools.cache
def _kinds(cls: Hashable) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in attrs.fields(cast(type[Any], cls))}


def _value(kind: Any, value: Any, name: str) -> Any:
    """*value* as a field of this kind has it; raises ValueError, KeyError and TypeError."""
    if isinstance(kind, UnionType):
        return None if value is None else _value(get_args(kind)[0], value, name)
    if get_origin(kind) is list and isinstance(value, list):
        return [_value(get_args(kind)[0], item, name) for item in value]
    if get_origin(kind) is dict and isinstance(value, dict):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(_bounded(value, name))
    if kind is int and type(value) is int:
        return _bounded(value, name)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if attrs.has(kind) and isinstance(value, dict):
        return _object(kind, value)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(value)
    raise TypeError(f"{name} is not what it must be")


def _bounded(value: float, name: str) -> float:
    if not -_LARGEST <= value < _LARGEST:
        raise ValueError(f"{name} can't be that")
    return value


def fits(message: Message) -> bool:
    """Whether *message* can be sent, as far as its length goes."""
    return len(encode(message)) <= MAX_PACKET


def send(sock: socket.socket, message: Message, fd: int | None = None) -> None:
    """Send *message*, with a copy of the descriptor *fd* beside it."""
    packet = encode(message)
    if len(packet) > MAX_PACKET:
        raise ProtocolError(f"a message of {len(packet)} bytes is too long")
    socket.send_fds(sock, [packet], [] if fd is None else [fd])


def receive(sock: socket.socket) -> tuple[Message, int | None] | None:
    """The next message and the descriptor beside it (the caller's to close); None at the end.

    Raises ProtocolError on anything that is no message, and BlockingIOError on a
    non-blocking socket with nothing to read.
    """
    packet, fds, _flags, _address = socket.recv_fds(sock, MAX_PACKET, 4)
    if not packet:
        return None
    if len(fds) > 1:
        for fd in fds:
            os.close(fd)
        raise ProtocolError("more than one descriptor beside a message")
    try:
        return decode(packet), fds[0] if fds else None
    except ProtocolError:
        for fd in fds:
            os.close(fd)
        raise
