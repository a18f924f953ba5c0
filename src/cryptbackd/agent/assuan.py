"""The protocol that pinentry speaks: lines, percent-encoded (libassuan, "Client responses")."""

from __future__ import annotations

from enum import Enum

MAX_LINE = 1000
"""Bytes of a line, without its end."""
_CODE = 0xFFFF
"""The part of an error's number that says what it is; the rest says who found it."""


class Failure(Enum):
    """Why a dialog had no answer."""

    TIMEOUT = 62
    NO_PINENTRY = 86
    CANCELED = 99
    NOT_CONFIRMED = 114
    FULLY_CANCELED = 198
    OTHER = -1


def command(verb: str, text: str = "") -> bytes:
    """A line that says *verb* with *text*; too long a text is cut between two characters."""
    line = verb.encode("ascii") + (b" " if text else b"")
    for character in text:
        piece = b"".join(
            b"%%%02X" % byte if byte < 0x20 or byte in b"%\x7f" else bytes((byte,))
            for byte in character.encode("utf-8", "replace")
        )
        if len(line) + len(piece) > MAX_LINE:
            break
        line += piece
    return line + b"\n"


def decoded(data: bytes) -> bytes:
    """What a data line holds."""
    out = bytearray()
    at = 0
    while at < len(data):
        if data[at] == ord("%"):
            try:
                out.append(int(data[at + 1 : at + 3], 16))
                at += 3
                continue
            except ValueError:
                pass  # not of this protocol: taken as it is
        out.append(data[at])
        at += 1
    return bytes(out)


def failure(words: bytes) -> Failure:
    """The reason behind an ``ERR`` and its *words*: number, description."""
    try:
        return Failure(int(words.split(maxsplit=1)[0]) & _CODE)
    except (ValueError, IndexError):
        return Failure.OTHER
