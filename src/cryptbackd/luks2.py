"""The metadata of a LUKS2 header, as the daemon and the worker both understand it.  Pure.

A header is bytes; what is read here lives as long as the result.  Whether it may be used is
judged elsewhere (``worker.header``): here it only has to be what it says.

Field names and layout: "LUKS2 On-Disk Format Specification", version 1.1.x.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
_UUID = re.compile(r"[0-9A-Za-z-]{0,40}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,19}")


def forged(what: str) -> ForgedDrive:
    """The error that says *what* about a header is not allowed."""
    return ForgedDrive(f"Its LUKS2 header is not one that cryptbackd made: {what}.")


def need(good: bool, what: str) -> None:
    """Raise ForgedDrive unless *good*."""
    if not good:
        raise forged(what)


def number(text: object) -> int:
    """What a number in text is (offsets, and the numbers of keyslots); raises ForgedDrive.

    Written as everybody reads it the same: Python would take ``1_6`` and blanks, C the ``16`` of
    ``16x``.
    """
    if not isinstance(text, str) or _NUMBER.fullmatch(text) is None:
        raise forged("a number in it is odd")
    return int(text)


def whole(number: object) -> int:
    """*number*, a whole one; raises ForgedDrive.  To Python ``512.0`` and ``True`` are as good."""
    if type(number) is not int:
        raise forged("a number in it is odd")
    return number


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
        with understood():
            segment, digest = self.json["segments"]["0"], self.json["digests"]["0"]
            sector_size, offset = segment["sector_size"], number(segment["offset"])
            return fingerprint(digest["digest"], digest["salt"], sector_size, offset)

    @property
    def detached(self) -> bool:
        """Whether the data begins where the drive does: there is no header on it.

        Raises ForgedDrive.
        """
        with understood():
            return bool(self.json["segments"]["0"]["offset"] == "0")

    @property
    def tokens(self) -> tuple[Token, ...]:
        """Its tokens, in the order of their numbers.  Raises ForgedDrive."""
        with understood():
            found = [_token(number(name), each) for name, each in self.json["tokens"].items()]
            return tuple(sorted(found, key=lambda token: token.number))


def _token(number_: int, token: dict[str, Any]) -> Token:
    pin = token.get("tpm2-pin") is True or token.get("fido2-clientPin-required") is True
    need(isinstance(token["keyslots"], list), "the keyslots of a token are no list")
    slots = tuple(sorted(number(slot) for slot in token["keyslots"]))
    return Token(number_, str(token["type"]), slots, pin)


@contextmanager
def understood() -> Iterator[None]:
    """Whatever is not where it is looked for in the block is forged; raises ForgedDrive."""
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, struct.error) as exc:
        raise forged(f"it can't be understood ({printable(str(exc), 60)})") from exc


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
    with understood():
        return _metadata(raw, offset, magic)


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
    need(_UUID.fullmatch(uuid) is not None, "its UUID is none")
    return Metadata(_read(text), size, fields[3], uuid)


def _read(text: bytes) -> dict[str, Any]:
    """The JSON *text*, where whoever reads it must read the same; raises ForgedDrive, ValueError.

    cryptsetup's own parser ends a name at a NUL, and so would find another cipher under the same
    name than was judged here.
    """
    need(b"\\u0000" not in text, "there is a NUL in it")
    try:
        found: dict[str, Any] = json.loads(
            text.decode("ascii"),
            object_pairs_hook=_names_once,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except RecursionError:
        raise forged("it is nested too deeply") from None
    need(isinstance(found, dict), "its metadata are no object")
    return found


def _names_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    need(len(found) == len(pairs), "a name stands in it twice")
    return found


def _no_number(text: str) -> None:
    raise forged(f"it has {printable(text, 40)} where a number should be")


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
