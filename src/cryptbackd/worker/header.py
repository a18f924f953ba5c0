"""The LUKS2 header: the stored one that is believed, the drive's that is only looked at.

The drive's own header never opens a volume.  ``init`` stores a copy on the computer after
:func:`parse` has held every field against a whitelist; a volume is opened from a sealed
memfd of that copy, which lives as long as its descriptor.

Field names and layout: "LUKS2 On-Disk Format Specification", version 1.1.x.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from .. import paths
from ..errors import ForgedDrive, Refused
from ..text import printable

CIPHER = "aes-xts-plain64"
KEY_BYTES = 64
SECTOR_SIZES = (512, 4096)

_MAGIC = (b"LUKS\xba\xbe", b"SKUL\xba\xbe")
_FIELDS = struct.Struct(">6sHQQ48s32s64s40s48sQ184s64s")
_BINARY = 4096
_CSUM_AT = _FIELDS.size - 64
_SIZES = tuple(1 << n for n in range(14, 23))
"""Bytes that one of the two metadata areas may have (16 KiB to 4 MiB)."""
_MAX_OFFSET = 64 << 20
_MAX_KDF_MEMORY = 4 << 20
"""KiB; cryptsetup itself makes none above 4 GiB."""
_MAX_ARGON_TIME = 10_000
_MAX_PBKDF2_ITERATIONS = 1_000_000_000
_TOKENS = ("systemd-tpm2", "systemd-fido2", "systemd-recovery")


@attrs.frozen
class Header:
    """A header whose every field that matters is as cryptbackd would have made it."""

    uuid: str
    size: int
    """Bytes from its beginning to the encrypted data."""
    sector_size: int
    digest: str
    salt: str
    areas: tuple[tuple[int, int], ...]
    """Offset and length of the keyslots' areas."""
    metadata: int
    """Bytes of one of the two metadata areas."""
    raw: bytes

    @property
    def compared(self) -> bytes:
        """The bytes in which a change of passphrase or damage shows: metadata and keyslots."""
        parts = [self.raw[: 2 * self.metadata]]
        parts += [self.raw[offset : offset + length] for offset, length in self.areas]
        return b"".join(parts)


def _forged(what: str) -> ForgedDrive:
    return ForgedDrive(f"Its LUKS2 header is not one that cryptbackd made: {what}.")


def _need(good: bool, what: str) -> None:
    if not good:
        raise _forged(what)


def parse(raw: bytes) -> Header:
    """The header at the beginning of *raw*; raises ForgedDrive naming what is not allowed.

    *raw* must hold everything up to the encrypted data.
    """
    try:
        first = _area(raw, 0, _MAGIC[0])
        second = _area(raw, first[1], _MAGIC[1])
        _need(first[0] == second[0], "its two copies differ")
        return _judge(raw, *first)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, struct.error) as exc:
        raise _forged(f"it can't be understood ({printable(str(exc), 60)})") from exc


def _area(raw: bytes, offset: int, magic: bytes) -> tuple[dict[str, Any], int, str]:
    binary = raw[offset : offset + _BINARY]
    fields = _FIELDS.unpack_from(binary)
    _need(fields[0] == magic and fields[1] == 2, "it has no LUKS2 magic")
    size = fields[2]
    _need(size in _SIZES and fields[9] == offset, "its sizes are wrong")
    _need(fields[5].rstrip(b"\0") == b"sha256", "its checksum algorithm is not sha256")
    area = raw[offset : offset + size]
    _need(len(area) == size, "it is cut short")
    blank = area[:_CSUM_AT] + bytes(64) + area[_CSUM_AT + 64 :]
    _need(hashlib.sha256(blank).digest() == fields[11][:32], "its checksum is wrong")
    text = area[_BINARY:].split(b"\0", 1)[0]
    return json.loads(text), size, fields[7].rstrip(b"\0").decode("ascii")


def _judge(raw: bytes, meta: dict[str, Any], metadata: int, uuid: str) -> Header:
    config, segments, digests = meta["config"], meta["segments"], meta["digests"]
    _need(not config.get("requirements"), "it asks for a feature that is not allowed")
    _need(set(segments) == {"0"}, "it has more than one segment")
    segment = segments["0"]
    _need(segment["type"] == "crypt", "its segment is not of type crypt")
    _need(segment["encryption"] == CIPHER, f"its cipher is {printable(segment['encryption'], 40)}")
    _need(segment["size"] == "dynamic" and segment["iv_tweak"] == "0", "its segment is odd")
    _need("integrity" not in segment and "opal" not in segment, "it asks for integrity or OPAL")
    _need(not segment.get("flags"), "its segment has flags")
    sector_size = segment["sector_size"]
    _need(sector_size in SECTOR_SIZES, "its sector size is odd")
    offset = int(segment["offset"])
    _need(2 * metadata <= offset <= _MAX_OFFSET and offset % 4096 == 0, "its offset is odd")
    _need(len(raw) >= offset, "it is cut short")
    _need(set(digests) == {"0"} and digests["0"]["segments"] == ["0"], "its digests are odd")
    digest = digests["0"]
    _need(digest["type"] == "pbkdf2" and digest["hash"] == "sha256", "its digest is odd")
    _need(0 < digest["iterations"] <= _MAX_PBKDF2_ITERATIONS, "its digest costs too much")
    keyslots = meta["keyslots"]
    _need(0 < len(keyslots) <= 32, "it has no keyslot, or too many")
    _need(set(digest["keyslots"]) == set(keyslots), "a keyslot belongs to no digest")
    areas = tuple(_keyslot(slot, 2 * metadata, offset) for _n, slot in sorted(keyslots.items()))
    for token in meta["tokens"].values():
        kind = printable(str(token["type"]), 40)
        _need(token["type"] in _TOKENS, f"it has a token of type {kind}")
    return Header(
        uuid=uuid,
        size=offset,
        sector_size=sector_size,
        digest=str(digest["digest"]),
        salt=str(digest["salt"]),
        areas=areas,
        metadata=metadata,
        raw=raw[:offset],
    )


def _keyslot(slot: dict[str, Any], lowest: int, highest: int) -> tuple[int, int]:
    _need(slot["type"] == "luks2" and slot["key_size"] == KEY_BYTES, "a keyslot's key is short")
    area, kdf, spread = slot["area"], slot["kdf"], slot["af"]
    _need(area["type"] == "raw" and area["encryption"] == CIPHER, "a keyslot's cipher is wrong")
    _need(area["key_size"] in (32, KEY_BYTES), "a keyslot's own key is short")
    offset, length = int(area["offset"]), int(area["size"])
    _need(lowest <= offset and length > 0 and offset + length <= highest, "a keyslot lies outside")
    _need(
        spread["type"] == "luks1" and spread["stripes"] == 4000 and spread["hash"] == "sha256",
        "a keyslot's splitter is odd",
    )
    if kdf["type"] in ("argon2id", "argon2i"):
        _need(
            0 < kdf["memory"] <= _MAX_KDF_MEMORY
            and 0 < kdf["time"] <= _MAX_ARGON_TIME
            and 0 < kdf["cpus"] <= 64,
            "a keyslot's Argon2 costs too much",
        )
    else:
        _need(
            kdf["type"] == "pbkdf2"
            and kdf["hash"] in ("sha256", "sha512")
            and 0 < kdf["iterations"] <= _MAX_PBKDF2_ITERATIONS,
            "a keyslot's key derivation is odd",
        )
    _need(len(base64.b64decode(kdf["salt"], validate=True)) >= 16, "a keyslot's salt is short")
    return offset, length


def read(fd: int) -> Header:
    """The header at the beginning of an opened container or partition; see ``parse``."""
    start = os.pread(fd, _FIELDS.size, 0)
    if len(start) < _FIELDS.size or start[:6] != _MAGIC[0]:
        raise _forged("it has no LUKS2 magic")
    return parse(_read_up_to(fd, 16 << 20))


def _read_up_to(fd: int, length: int) -> bytes:
    parts = []
    offset = 0
    while offset < length:
        chunk = os.pread(fd, min(1 << 20, length - offset), offset)
        if not chunk:
            break
        parts.append(chunk)
        offset += len(chunk)
    return b"".join(parts)


def difference(stored: Header, fd: int) -> str:
    """What is different about the header on the drive *fd*, as a sentence; "" for nothing.

    Only compared: nothing that stands there is used.
    """
    theirs = [os.pread(fd, 2 * stored.metadata, 0)]
    theirs += [os.pread(fd, length, offset) for offset, length in stored.areas]
    if b"".join(theirs) == stored.compared:
        return ""
    try:
        found = read(fd)
    except ForgedDrive as exc:
        return f"{exc.sentence} It may be damaged or forged."
    if (found.digest, found.salt) != (stored.digest, stored.salt):
        return "It belongs to another volume key: it may be forged, or another volume's."
    return "Its keyslots differ: the passphrase may have been changed on another computer."


def path_of(name: str) -> Path:
    """Where the header of the entry *name* is stored."""
    return paths.HEADERS / name


def load(name: str) -> Header:
    """The stored header of the entry *name*; raises Refused when there is none that is whole."""
    try:
        raw = path_of(name).read_bytes()
    except FileNotFoundError:
        raise Refused(
            f"The computer has no header stored for {name}, so the drive can't be trusted.",
            f"Put the header that you saved to {path_of(name)} (mode 0600), or enrol it anew.",
        ) from None
    try:
        return parse(raw)
    except ForgedDrive as exc:
        raise Refused(f"The stored header {path_of(name)} is damaged: {exc.sentence}") from exc


def store(name: str, header: Header) -> None:
    """Write the header of the entry *name*: whole or not at all, and only for root."""
    target = path_of(name)
    fresh = target.with_name(f".{name}.new")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        fresh.unlink()
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(header.raw)
        file.flush()
        os.fsync(fd)
    fresh.rename(target)
    fsync_directory(target.parent)


def fsync_directory(directory: Path) -> None:
    """Make the names in *directory* durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def sealed(header: Header) -> Iterator[int]:
    """A memfd with the header that nobody, we included, can change any more (memfd_create(2))."""
    fd = os.memfd_create("luks2-header", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(header.raw)
        while view:
            view = view[os.write(fd, view) :]
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield fd
    finally:
        os.close(fd)
