"""The metadata of a LUKS2 header, as the daemon and the worker both understand it.  Pure.

A header is bytes; what is read here lives as long as the result.  Whether it may be used is
judged elsewhere (``worker.header``): here it only has to be what it says.

Field names and layout: "LUKS2 On-Disk Format Specification", version 1.1.x.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from typing import Any, BinaryIO

import attrs

from .errors import ForgedDrive
from .text import printable

MAGIC = (b"LUKS\xba\xbe", b"SKUL\xba\xbe")
"""What the first and the second metadata area begin with."""
FIELDS = struct.Struct(">6sHQQ48s32s64s40s48sQ184s64s")
"""Magic, version, size, seqid, label, checksum's name, salt, UUID, subsystem, offset, (nothing),
checksum.
"""
CIPHER = "aes-xts-plain64"
KEY_BYTES = 64
TPM2 = "systemd-tpm2"
FIDO2 = "systemd-fido2"
RECOVERY = "systemd-recovery"
TOKENS = (TPM2, FIDO2, RECOVERY)
"""The types of tokens that a header may have."""

_BINARY = 4096
_CSUM_AT = FIELDS.size - 64
_SIZES = tuple(1 << n for n in range(14, 23))


def forged(what: str) -> ForgedDrive:
    """The error that says *what* about a header is not allowed."""
    return ForgedDrive(f"Its LUKS2 header is not one that cryptbackd made: {what}.")


def need(good: bool, what: str) -> None:
    """Raise ForgedDrive unless *good*."""
    if not good:
        raise forged(what)


@attrs.frozen
class Token:
    """A token: something else than a person that has a key for a keyslot."""

    number: int
    kind: str
    keyslots: tuple[int, ...]
    pin: bool
    """Whether a person is to be asked for its PIN."""


@attrs.frozen
class Metadata:
    """One of the two metadata areas.  ``seqid`` grows with each change of the header."""

    json: dict[str, Any]
    size: int
    seqid: int
    uuid: str

    @property
    def fingerprint(self) -> str:
        """That of the volume; see :func:`fingerprint`.  Raises ForgedDrive."""
        try:
            segment, digest = self.json["segments"]["0"], self.json["digests"]["0"]
            sector_size, offset = segment["sector_size"], int(segment["offset"])
            return fingerprint(digest["digest"], digest["salt"], sector_size, offset)
        except (KeyError, ValueError, TypeError) as exc:
            raise forged(f"it can't be understood ({printable(str(exc), 60)})") from exc

    @property
    def detached(self) -> bool:
        """Whether the data begins where the drive does: there is no header on it."""
        return str(self.json.get("segments", {}).get("0", {}).get("offset", "")) == "0"

    @property
    def tokens(self) -> tuple[Token, ...]:
        """Its tokens, in the order of their numbers."""
        found = sorted((int(number), token) for number, token in self.json["tokens"].items())
        return tuple(_token(number, token) for number, token in found)


def _token(number: int, token: dict[str, Any]) -> Token:
    pin = token.get("tpm2-pin") is True or token.get("fido2-clientPin-required") is True
    slots = tuple(sorted(int(slot) for slot in token["keyslots"]))
    return Token(number, str(token["type"]), slots, pin)


def first(file: BinaryIO) -> Metadata:
    """The first metadata area of the header *file*, of which no more than that is read.

    Raises ForgedDrive when there is none that is whole, and OSError.
    """
    start = file.read(_BINARY)
    size = FIELDS.unpack_from(start)[2] if len(start) == _BINARY else 0
    need(size in _SIZES, "its sizes are wrong")
    return metadata(start + file.read(size - _BINARY))


def metadata(raw: bytes, offset: int = 0, magic: bytes = MAGIC[0]) -> Metadata:
    """The metadata area at *offset*; raises ForgedDrive when there is none that is whole."""
    try:
        return _metadata(raw, offset, magic)
    except (KeyError, ValueError, TypeError, AttributeError, struct.error) as exc:
        raise forged(f"it can't be understood ({printable(str(exc), 60)})") from exc


def _metadata(raw: bytes, offset: int, magic: bytes) -> Metadata:
    fields = FIELDS.unpack_from(raw[offset : offset + _BINARY])
    need(fields[0] == magic and fields[1] == 2, "it has no LUKS2 magic")
    size = fields[2]
    need(size in _SIZES and fields[9] == offset, "its sizes are wrong")
    need(fields[5].rstrip(b"\0") == b"sha256", "its checksum algorithm is not sha256")
    area = raw[offset : offset + size]
    need(len(area) == size, "it is cut short")
    blank = area[:_CSUM_AT] + bytes(64) + area[_CSUM_AT + 64 :]
    need(hashlib.sha256(blank).digest() == fields[11][:32], "its checksum is wrong")
    text = area[_BINARY:].split(b"\0", 1)[0]
    uuid = fields[7].rstrip(b"\0").decode("ascii")
    return Metadata(json.loads(text), size, fields[3], uuid)


def fingerprint(digest: str, salt: str, sector_size: int, offset: int) -> str:
    """What stays the same as long as the volume key does: SHA-256, hexadecimal.

    Of the *digest* of the volume key, its *salt*, and how the data is encrypted and where.
    """
    facts = (digest, salt, CIPHER, KEY_BYTES, sector_size, offset)
    return hashlib.sha256("\n".join(map(str, facts)).encode()).hexdigest()


def typed(keyslots: Iterable[int], tokens: Iterable[Token]) -> set[int]:
    """Those of *keyslots* that a person can open on any computer, with what they typed or kept
    on paper: passphrases and recovery keys.  A TPM2 is this computer's, and a FIDO2 token is
    lost as easily as the drive.
    """
    return set(keyslots) - {n for t in tokens if t.kind != RECOVERY for n in t.keyslots}
